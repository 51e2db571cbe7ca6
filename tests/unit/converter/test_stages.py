"""A graph is compared with the original where it comes from too: what quantisation is blamed for is its own doing."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from checkpoints import tiny, tiny_decoder, tiny_encoder_decoder, tiny_vision
from onnx_converter import routes, stages
from onnx_converter.conversion import Stage
from onnx_converter.graph import MODEL
from onnx_converter.spec import Parity, Scheme, Task
from unit.converter.test_gate import flip_one_weight, freeze_the_batch_inside

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from unit.converter.steps import Ended, Line

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
GOOD = Stage(
    stage="exported", samples=8, min_cosine="0.9999999", max_absolute="2e-06", max_relative="1e-06", label_agreement="1"
)


def stages_of(line: Line, provider: str = CPU) -> list[dict[str, Any]]:
    written = json.loads((line.work / "graph" / "conversion.json").read_text())
    found: list[dict[str, Any]] = written["graphs"][provider]["stages"]
    return found


@pytest.mark.parametrize(
    ("make", "scheme"),
    [
        (tiny, "int8-dynamic"),
        (tiny_decoder, "int4-weight-only"),
        (tiny_encoder_decoder, "int8-dynamic"),
        (partial(tiny_encoder_decoder, name="whisper"), "int8-dynamic"),
        (tiny_vision, "int8-dynamic"),
    ],
    ids=["encoder", "decoder", "encoder-decoder", "sound", "images"],
)
def test_what_is_quantised_was_like_the_original_before_as_exported_and_as_optimised(
    make: Callable[[Path], Path], scheme: str, tmp_path: Path, line: Line
) -> None:
    converted = line.convert(line.fetch(make(tmp_path / "model")).details["digest"], scheme=scheme)
    assert "stages" not in converted.details["graphs"][CPU], "a termination message has no room for them"
    assert next(said["samples"] for said in converted.lines if said["event"] == "StagesMeasured") > 1
    assert [one["stage"] for one in stages_of(line)] == ["exported", "optimised"]
    for one in stages_of(line):
        assert float(one["minCosine"]) > 0.99999
        assert 0 < float(one["maxAbsolute"]) < 1e-4, "an original that is compared with itself differs in nothing"
    assert sorted(path.name for path in (line.work / "graph").iterdir()) == [CPU, "conversion.json", "tokenizer"]
    assert not list((line.work / "graph" / CPU).glob(".*"))


def broken(line: Line, folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[onnx.ModelProto], None]) -> str:
    """A conversion of a graph that was exported wrong; the digest of its checkpoint."""
    make = routes.make

    def wrong(*given: Any) -> routes.Made:
        made = make(*given)
        model = onnx.load(made.folder / MODEL)
        fault(model)
        onnx.save(model, made.folder / MODEL)
        return made

    monkeypatch.setattr(routes, "make", wrong)
    return str(line.fetch(tiny(folder)).details["digest"])


def test_an_export_that_is_wrong_is_told_from_a_scheme_that_loses(
    tmp_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = broken(line, tmp_path / "model", monkeypatch, flip_one_weight)
    assert line.convert(digest, scheme="int8-dynamic").code == 0
    ended: Ended = line.validate(digest, scheme="int8-dynamic")
    assert ended.summary.reason == "ParityFailed"
    assert ended.summary.message.startswith("as exported, before anything is quantised, the graph is not like the orig")
    page = (line.work / f"validation-{CPU}" / "report.html").read_text()
    assert "as exported" in page
    told = json.loads((line.work / f"validation-{CPU}" / "report.json").read_text())
    assert told["conversion"]["graphs"][CPU]["stages"] == stages_of(line)


def test_a_graph_that_answers_with_an_error_before_it_is_quantised_says_so(
    tmp_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = broken(line, tmp_path / "model", monkeypatch, freeze_the_batch_inside)
    assert line.convert(digest).code == 0
    assert ["batch 1, length 1" in one["error"] for one in stages_of(line)] == [True, True]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"max_absolute": "40"}, None),
        ({"min_cosine": "0.9998"}, "minCosine is 0.9998"),
        ({"max_relative": "0.02"}, "maxRelative is 0.02"),
        ({"label_agreement": "0.5"}, "minLabelAgreement is 0.5"),
        ({"error": "there is no such operator"}, "there is no such operator"),
    ],
    ids=["good", "large-numbers", "another-direction", "far", "other-words", "error"],
)
def test_each_stage_is_judged_as_if_nothing_were_quantised(changes: dict[str, str], words: str | None) -> None:
    optimised = GOOD.model_copy(update={"stage": "optimised"} | changes)
    found = stages.fault([GOOD, optimised], Parity(), Task.TEXT_GENERATION, Scheme.INT8_DYNAMIC)
    assert found is None if words is None else found is not None and words in found and "as optimised" in found


def test_what_the_user_bears_with_a_stage_may_do_as_well() -> None:
    worse = GOOD.model_copy(update={"max_relative": "0.02"})
    assert stages.fault([worse], Parity(max_relative="0.05"), Task.TEXT_GENERATION, Scheme.NONE) is None


@pytest.mark.parametrize(
    "make",
    [tiny, tiny_decoder, tiny_encoder_decoder, partial(tiny_encoder_decoder, name="whisper"), tiny_vision],
    ids=["encoder", "decoder", "encoder-decoder", "sound", "images"],
)
def test_half_precision_is_compared_with_the_original_in_float32(
    make: Callable[[Path], Path], tmp_path: Path, line: Line
) -> None:
    converted = line.convert(line.fetch(make(tmp_path / "model")).details["digest"], scheme="float16")
    assert next(said["samples"] for said in converted.lines if said["event"] == "StagesMeasured") > 1
    assert [one["stage"] for one in stages_of(line)] == ["exported", "optimised"]
    for one in stages_of(line):
        assert float(one["minCosine"]) > 0.999
        assert float(one["maxAbsolute"]) > 1e-4, "an original in half precision is nearer"


def test_an_export_in_half_precision_that_is_wrong_fails_the_validation(
    tmp_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = broken(line, tmp_path / "model", monkeypatch, flip_one_weight)
    assert line.convert(digest, scheme="float16").code == 0
    ended = line.validate(digest, scheme="float16")
    assert ended.summary.reason == "ParityFailed"
    assert ended.summary.message.startswith("as exported, ")


def test_a_graph_without_kernels_on_the_cpu_says_that_it_was_not_measured(tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny(tmp_path / "model")).details["digest"]
    converted = line.convert(digest, scheme="bfloat16", providers=[CUDA])
    assert next(said["samples"] for said in converted.lines if said["event"] == "StagesMeasured") == 0
    found = stages_of(line, CUDA)
    assert [(one["stage"], one["samples"], one["error"]) for one in found] == [
        ("exported", 0, None),
        ("optimised", 0, None),
    ]
    for one in found:
        assert one["notMeasured"].startswith(f"{CPU} lacks a kernel: ")
        assert stages.fault([Stage.model_validate(one)], Parity(), Task.FEATURE_EXTRACTION, Scheme.BFLOAT16) is None


@pytest.mark.parametrize(
    ("scheme", "changes", "words"),
    [
        (Scheme.FLOAT16, {"min_cosine": "0.981", "max_relative": "0.2"}, None),
        (Scheme.FLOAT16, {"min_cosine": "0.979"}, "minCosine is 0.979"),
        (Scheme.FLOAT16, {"label_agreement": "0.97"}, None),
        (Scheme.BFLOAT16, {"min_cosine": "0.91"}, None),
        (Scheme.BFLOAT16, {"min_cosine": "0.89"}, "minCosine is 0.89"),
        (Scheme.FLOAT16, {"error": "the graph answers with NaN"}, "the graph answers with NaN"),
    ],
)
def test_stages_of_half_precision_are_judged_by_its_own_bounds(
    scheme: Scheme, changes: dict[str, str], words: str | None
) -> None:
    found = stages.fault([GOOD.model_copy(update=changes)], Parity(), Task.TEXT_GENERATION, scheme)
    assert found is None if words is None else found is not None and words in found
