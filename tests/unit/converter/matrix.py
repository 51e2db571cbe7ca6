"""Every scheme of one architecture by the gate, with the tolerances that users get: a row of the reference."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import architectures
from onnx_converter import convert, footprint, parity, quantize, report, routes, texts, validate
from onnx_converter.contest import Answers, Candidate, Original
from onnx_converter.experts import has_experts
from onnx_converter.heads import parts_of
from onnx_converter.progress import Progress
from onnx_converter.reasons import StepFailedError
from onnx_converter.route import Goal
from onnx_converter.spec import AS_EXPORTED, ConversionSpec, Parity, Provider, Scheme, Serving, Task
from unit.converter.steps import Line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: What such a graph may end with: everything else is a fault of the converter's.
JUDGED = {"Validated", "ParityFailed"}


def fill(
    architecture: str,
    line: Line,
    digest: str,
    converted: Mapping[str, Any],
    told: Mapping[str, Any],
    *,
    is_first: bool = True,
    **spec: Any,
) -> dict[str, dict[str, Any]]:
    """Quantises what was converted with scheme none, judges each, and keeps the row; what the validation told is its
    first cell, and how it ends by the other routes stands before. What has to be exported anew for a scheme is asked
    of the first of an architecture's tasks.
    """
    graphs = line.work / "graph" / Provider.CPU
    original = replace(
        Original.load(line.checkpoint(digest), Task.AUTO, spec.get("maxSequenceLength")),
        answered=Answers(footprint.REMEMBERED),
    )
    cells = {"none": {"reason": "Validated", **told["parity"]}}
    if is_first:
        cells[Scheme.FLOAT16] = exported_in_half(line, digest, **spec)
    for name in architectures.SCHEMES:
        scheme = Scheme(name)
        if scheme not in AS_EXPORTED:
            cells[scheme] = judged(original, scheme, graphs, line.root / scheme)
    taken = converted["graphs"][Provider.CPU]["route"]
    ends = {taken: architectures.VALIDATED, **by_other_routes(original, line, digest, taken, **spec)}
    architectures.note(
        {"architecture": architecture, "task": converted["task"], "routes": ends, "cells": cells},
    )
    assert {cell["reason"] for cell in cells.values()} <= JUDGED
    rounded = {scheme: cell for scheme, cell in cells.items() if Scheme(scheme) not in AS_EXPORTED}
    assert all(float(cell["minCosine"]) < 0.99999 for cell in rounded.values()), "it was quantised"
    return cells


def graphs_of(line: Line, scheme: str) -> Path:
    """Where the graphs of a cell are that was filled."""
    return halves(line).work / "graph" / Provider.CPU if scheme == Scheme.FLOAT16 else line.root / scheme


def halves(line: Line) -> Line:
    return Line(line.root / "half")


def begun(anew: Line, line: Line) -> Line:
    """What is exported anew of the same checkpoint has folders of its own."""
    anew.root.mkdir()
    (anew.root / "checkpoints").symlink_to(line.root / "checkpoints")
    return anew


def by_other_routes(original: Original, line: Line, digest: str, taken: str, **spec: Any) -> dict[str, str]:
    """How the steps end where there is no other route, by each that says that it covers the checkpoint."""
    asked = ConversionSpec.model_validate(spec)
    goal = Goal(Provider.CPU, asked.scheme, quantize.opset_of(asked))
    shared = validate.Shared(digest, validate.Truth(original, 0.0, (), {}))
    ends: dict[str, str] = {}
    for route in routes.ROUTES:
        if route.name == taken or route.misses(original.checkpoint, goal) is not None:
            continue
        anew = begun(Line(line.root / route.name), line)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(routes, "ROUTES", (route,))
            ended = anew.convert(digest, **spec).summary
        ends[route.name] = ended.reason if ended.exit_code else gated(anew, digest, asked, shared)
    return ends


def gated(line: Line, digest: str, spec: ConversionSpec, shared: validate.Shared) -> str:
    """How the step ends, as after another scheme: the original is not loaded and asked again."""
    folder, target = line.checkpoint(digest), line.work / "validation"
    asked = validate.Validate(
        folder, line.work / "graph", Provider.CPU, spec, Parity(), Serving(), 0.0, target, shared=shared
    )
    try:
        validate.run(asked, Progress("validate", io.StringIO()))
    except StepFailedError as error:
        return error.reason.name
    return architectures.VALIDATED


def exported_in_half(line: Line, digest: str, **spec: Any) -> dict[str, Any]:
    """One cell."""
    half = begun(halves(line), line)
    spec["scheme"] = str(Scheme.FLOAT16)
    assert half.convert(digest, **spec).code == 0
    ended = half.validate(digest, **spec)
    measured = json.loads((half.work / f"validation-{Provider.CPU}" / report.REPORT).read_text())["parity"]
    return {"reason": ended.summary.reason, **measured}


def judged(original: Original, scheme: Scheme, exported: Path, target: Path) -> dict[str, Any]:
    """One cell."""
    files = [part.file for part in parts_of(original.checkpoint)]
    sources = [exported / file for file in files]
    convert.write_graphs(original.checkpoint, ConversionSpec(scheme=scheme), texts.ALL, sources, target)
    candidate = Candidate.load([target / file for file in files], Provider.CPU, is_proved=True)
    mixes = has_experts(original.checkpoint.model)
    tolerance = parity.tolerance_of(Parity(), scheme, original.checkpoint.task, has_experts=mixes)
    judgement = validate.judge(original, candidate, tolerance, Progress("validate", io.StringIO()))
    measured = judgement.total
    assert measured is not None, judgement.message
    return {
        "reason": judgement.reason.name,
        "maxAbsolute": report.number(measured.max_absolute),
        "minCosine": report.cosine(measured.min_cosine),
        "minLabelAgreement": measured.label_agreement,
    }
