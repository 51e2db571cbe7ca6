"""The scheme auto: what it takes of what was measured, and a model through all steps with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from checkpoints import tiny_decoder
from onnx_converter import footprint, ladder, limits, summary
from onnx_converter.contest import Answers
from onnx_converter.ladder import Row
from onnx_converter.reasons import BY_NAME
from onnx_converter.samples import Sample
from onnx_converter.spec import Auto, ConversionSpec, Preference, Provider, Scheme
from unit.converter import matrix

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from unit.converter.steps import Ended, Line

CPU = "CPUExecutionProvider"


def row(scheme: Scheme, loss: float | None, speedup: float | None = None, size: int = 100) -> Row:
    return Row(scheme, "Validated" if loss is not None else "ParityFailed", "", loss, speedup, size)


NONE = row(Scheme.NONE, 1e-12, 2.0, 400)
DYNAMIC = row(Scheme.INT8_DYNAMIC, 0.008, 4.0, 110)
EIGHT = row(Scheme.INT8_WEIGHT_ONLY, 0.0003, 3.9, 105)
FOUR = row(Scheme.INT4_WEIGHT_ONLY, 0.03, 6.0, 60)

CHOICES: dict[str, tuple[list[Row], Preference, Scheme]] = {
    "the fastest, above the bound": ([NONE, row(Scheme.INT8_DYNAMIC, 0.02, 9.0)], Preference.SPEED, Scheme.NONE),
    "the fastest": ([NONE, row(Scheme.INT8_DYNAMIC, 0.01, 4.2), EIGHT], Preference.SPEED, Scheme.INT8_DYNAMIC),
    "of equally fast ones the smaller": ([NONE, DYNAMIC, EIGHT], Preference.SPEED, Scheme.INT8_WEIGHT_ONLY),
    "the smallest": ([NONE, DYNAMIC, EIGHT], Preference.SIZE, Scheme.INT8_WEIGHT_ONLY),
    "the smallest, above the bound": ([NONE, DYNAMIC, FOUR], Preference.SIZE, Scheme.INT8_DYNAMIC),
    "no speed was measured": ([row(Scheme.NONE, 0, None, 400), DYNAMIC], Preference.SPEED, Scheme.INT8_DYNAMIC),
    "all others were refused": ([NONE, row(Scheme.INT8_DYNAMIC, None, None)], Preference.SPEED, Scheme.NONE),
    "float32 loses what losses are counted from": ([row(Scheme.NONE, 0.5, 1.0)], Preference.SPEED, Scheme.NONE),
}


@pytest.mark.parametrize("case", CHOICES, ids=lambda case: case.replace(" ", "-"))
def test_of_what_loses_little_enough_the_preferred_is_taken(case: str) -> None:
    rows, prefer, taken = CHOICES[case]
    assert ladder.choose(rows, Auto(max_quality_loss=0.01, prefer=prefer)).scheme is taken


def test_a_loss_is_that_of_the_worst_evaluation_where_any_is_declared() -> None:
    told: dict[str, Any] = {"parity": {"qualityLoss": "0.5"}, "benchmark": {"cells": [{"speedup": "2"}]}}
    assert ladder.row_of(Scheme.NONE, 7, told).loss == 0.5
    assert ladder.row_of(Scheme.NONE, 7, told | {"evaluations": [{"loss": "-0.1"}, {"loss": "0.02"}]}).loss == 0.02


def test_speed_is_the_geometric_mean_over_all_shapes_of_request() -> None:
    told = {"parity": {"qualityLoss": "0"}, "benchmark": {"cells": [{"speedup": "2"}, {"speedup": "8"}]}}
    assert ladder.row_of(Scheme.NONE, 7, told).speedup == pytest.approx(4)
    assert ladder.row_of(Scheme.NONE, 7, {"parity": {"qualityLoss": "0"}}).speedup is None


def test_each_provider_is_offered_what_it_has_kernels_for() -> None:
    both = ConversionSpec(scheme=Scheme.AUTO, providers=(Provider.CUDA, Provider.CPU))
    offered = {spec.scheme: spec.providers for spec in ladder.rungs(both)}
    assert next(iter(offered)) is Scheme.NONE
    assert offered[Scheme.NONE] == (Provider.CUDA, Provider.CPU)
    assert offered[Scheme.INT8_DYNAMIC] == (Provider.CPU,)


@pytest.fixture(scope="module")
def ended(new_line: Callable[[str], Line]) -> tuple[Line, dict[str, Any], str, Ended]:
    line = new_line("auto")
    spec: dict[str, Any] = {"scheme": "auto", "auto": {"maxQualityLoss": "0.01", "prefer": "size"}}
    digest = line.fetch(tiny_decoder(line.root / "source")).details["digest"]
    enough = footprint.peak(footprint.sizes_of(line.checkpoint(digest)), "none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "memory_of", lambda: enough)
        # Of a model this small hardly anything is its weights'.
        patch.setitem(footprint._QUANTIZING, "int8-static", 10_000)
        converted = line.convert(digest, **spec)
    assert converted.code == 0
    assert [one["event"] for one in converted.lines].count("CheckpointVerified") == 1
    return line, spec, digest, line.validate(digest, **spec)


def test_what_is_taken_and_all_that_was_tried_is_told(ended: tuple[Line, dict[str, Any], str, Ended]) -> None:
    line, _, _, validated = ended
    told = validated.details
    tried = {one["scheme"]: one for one in told["schemes"]}
    assert set(tried) == {"none", "int8-dynamic", "int8-static", "int8-weight-only", "int4-weight-only"}
    assert tried["int8-static"] == {"scheme": "int8-static", "reason": "MemoryTooSmall"}
    assert all(one["reason"] in BY_NAME for one in tried.values())
    kept = [one for one in tried.values() if "loss" in one and float(one["loss"]) <= 0.01]
    smallest = min(kept, key=lambda one: one["sizeBytes"])
    assert told["scheme"] == smallest["scheme"] == "int8-weight-only"
    assert float(tried["none"]["loss"]) < 1e-6 < float(smallest["loss"])
    assert validated.summary.message.startswith("auto takes int8-weight-only: ")
    page = (line.work / f"validation-{CPU}" / "report.html").read_text()
    assert "auto takes <strong>int8-weight-only</strong>" in page
    assert "of memory with scheme int8-static" in page, "why a scheme was refused"
    assert "Loss by size, MB" in page


def test_what_is_preferred_for_its_speed_was_measured_as_the_fastest_or_as_fast_and_smaller(line: Line) -> None:
    spec: dict[str, Any] = {"scheme": "auto", "auto": {"maxQualityLoss": "0.01", "prefer": "speed"}}
    digest = line.fetch(tiny_decoder(line.root / "source", num_hidden_layers=1)).details["digest"]
    assert line.convert(digest, **spec).code == 0
    told = line.validate(digest, benchmark=1, **spec).details
    (measured,) = (one for one in told["schemes"] if one["scheme"] == "int8-static")
    assert measured["reason"] in matrix.JUDGED
    kept = [one for one in told["schemes"] if "loss" in one and float(one["loss"]) <= 0.01]
    assert len(kept) > 1
    fastest = max(float(one["speedup"]) for one in kept)
    # What is told is rounded, and a scheme at the very edge may be on either side of it.
    among = [one for one in kept if float(one["speedup"]) >= 0.94 * fastest]
    surely = [one for one in kept if float(one["speedup"]) >= 0.96 * fastest]
    (taken,) = (one for one in kept if one["scheme"] == told["scheme"])
    assert taken in among
    assert taken["sizeBytes"] <= min(one["sizeBytes"] for one in surely)


def test_the_artifact_holds_the_graph_that_its_scheme_gives_without_auto(
    ended: tuple[Line, dict[str, Any], str, Ended], line: Line
) -> None:
    done, spec, digest, validated = ended
    artifact = done.artifact(done.publish(**spec).details["digest"])
    lineage = json.loads((artifact / "manifest.json").read_bytes())["lineage"]
    assert lineage["schemes"] == {CPU: validated.details["scheme"]}
    assert line.fetch(done.root / "source").details["digest"] == digest
    alone = line.convert(digest, scheme=validated.details["scheme"]).details["graphs"][CPU]["digest"]
    assert lineage["conversion"]["graphs"][CPU]["digest"] == alone


def test_without_what_convert_left_of_its_choice_nothing_is_validated(
    ended: tuple[Line, dict[str, Any], str, Ended],
) -> None:
    line, spec, digest, _ = ended
    left = line.work / "graph" / ladder.FILE
    told = left.read_bytes()
    left.unlink()
    try:
        again = line.validate(digest, **spec)
    finally:
        left.write_bytes(told)
    assert again.summary.reason == "ArtifactCorrupt"
    assert "run the convert step again" in again.summary.message


def test_what_schemes_share_is_gone_when_all_are_made(ended: tuple[Line, dict[str, Any], str, Ended]) -> None:
    line, _, _, _ = ended
    assert not [path.name for path in (line.work / "graph").iterdir() if path.name.startswith(".")]


def test_an_original_is_asked_the_same_once_as_long_as_there_is_room_to_remember() -> None:
    asked: list[str] = []

    def ask(sample: Sample) -> dict[str, NDArray[np.float32]]:
        asked.append(sample.name)
        return {"answer": np.full(sample.tensors["ids"].shape, len(asked), np.float32)}

    def question(name: str, *ids: int, dtype: type = np.int64) -> Sample:
        return Sample(name, is_text=True, tensors={"ids": np.array(ids, dtype)})

    answers = Answers(room=12)
    first = answers.of(question("one", 1, 2), ask)["answer"]
    assert answers.of(question("the same", 1, 2), ask)["answer"] is first
    assert not first.flags.writeable, "it is told to others"
    for other in (question("other", 2, 1), question("of another type", 1, 2, dtype=np.int32)):
        assert answers.of(other, ask)["answer"][0] > 1
    answers.of(question("other", 2, 1), ask)
    answers.of(question("small", 3), ask)
    answers.of(question("small", 3), ask)
    assert asked == ["one", "other", "of another type", "other", "small"], "no room for another of two"


def test_the_most_that_there_is_to_tell_has_room_in_a_termination_message() -> None:
    """Six evaluations, four shapes of request and every scheme, each number as long as it can be."""
    number, size = "-1.2346e-05", 123_456_789_012
    latency = dict.fromkeys(("p50Milliseconds", "p90Milliseconds", "p99Milliseconds", "tokensPerSecond"), "0.00123")
    cell = {"batch": 8, "sequenceLength": 128, "pastLength": 128, "runs": 200, "speedup": "0.00123"}
    cells = [cell | {"original": latency, "graph": latency}] * 4
    side = {"sizeBytes": size, "loadMilliseconds": "123456", "peakMemoryBytes": size}
    measures = dict.fromkeys(("original", "graph", "loss", "lossLow", "lossHigh"), number)
    provider = str(Provider.CUDA)
    rows = [Row(scheme, "Validated", "", 1.234e-5, 0.00123, size) for scheme in ladder.TRIED[Provider.CUDA]]
    bounds = ("minCosine", "maxAbsolute", "maxRelative", "minLabelAgreement")
    details = {
        "provider": provider,
        "parity": dict.fromkeys((*bounds, "qualityLoss"), number),
        "tolerance": dict.fromkeys(bounds, "0.99999"),
        "samples": 100,
        "evaluations": [{"name": "x" * 32, **measures, "samples": 10_000}] * 6,
        "placement": {CPU: 1000, provider: 12_345},
        "reportDigest": f"sha256:{'a' * 64}",
        "benchmark": {
            "provider": provider,
            "threads": 16,
            "originalDevice": "cuda",
            "cells": cells,
            "original": side,
            "graph": side,
        },
        "scheme": "int8-weight-only",
        "schemes": [row.brief() for row in rows],
    }
    text = summary.dump(summary.Summary("validate", "Succeeded", "Validated", "auto takes it", 0, details))
    assert summary.parse(text).details == details
