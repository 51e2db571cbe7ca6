"""Where on its way a graph stops being like the original: as it was exported, and as onnxruntime optimises it.

What is served is judged by validate.py; of a quantised graph alone nobody could tell whether the loss is the scheme's.
The original answers while its weights are there, the graph once they are gone, from weights that stay in their file, so
that both are never in memory together. On the CPU, with few samples. The truth is in float32, loaded anew beside a
model that was exported in half precision, where only what onnxruntime makes of a graph comes after its export. Refuses
nothing while it measures: a graph that answers with an error has that to say for it, and one that has no kernels here,
as those of bfloat16, was not measured.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Final

import onnxruntime
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernelError

from onnx_converter import load, parity, placement, report, samples, wire
from onnx_converter.contest import Candidate, Loaded, Original
from onnx_converter.conversion import Stage
from onnx_converter.heads import parts_of, wrap
from onnx_converter.reasons import StepFailedError, gist
from onnx_converter.spec import AS_EXPORTED, Provider, Scheme

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from onnx_converter.contest import Answer
    from onnx_converter.graph import Part
    from onnx_converter.load import Checkpoint
    from onnx_converter.samples import Sample
    from onnx_converter.spec import Parity, Task

#: Of the samples by which the served graph is judged those that ask for no more tokens, as answers are kept meanwhile.
_TOKENS: Final = 16
_FIRST: Final = 8
#: What is heard or seen takes long, and comes to a lot.
_SIGHTS: Final = 2
_LEVELS: Final = {
    "exported": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "optimised": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def ask(checkpoint: Checkpoint, folder: Path) -> Sequence[tuple[Sample, Answer]]:
    """What the original answers in float32, to samples with keys and values as the graph is given them."""
    whole = checkpoint
    if checkpoint.model.dtype is not torch.float32:
        longest = checkpoint.max_sequence_length or None
        whole = replace(load.load(folder, checkpoint.task, longest), kept=checkpoint.kept)
    original = Original(whole, wrap(whole, folder))
    return [(sample, original.answer(sample)) for sample in _few(whole)]


def _few(checkpoint: Checkpoint) -> Iterator[Sample]:
    if checkpoint.sight:
        return islice(samples.images_one_by_one(checkpoint.sight), _SIGHTS)
    asked = (samples.answers if checkpoint.cross else samples.continuations if checkpoint.cache else samples.shapes)(
        checkpoint
    )
    if checkpoint.speech:
        return islice(asked, _SIGHTS)
    tokens = "decoder_input_ids" if checkpoint.cross else "input_ids"
    return (one for one in islice(asked, _FIRST) if one.tensors[tokens].size <= _TOKENS)


def measure(checkpoint: Checkpoint, asked: Iterable[tuple[Sample, Answer]], folder: Path) -> tuple[Stage, ...]:
    """How far the graphs of a folder are from what the original answered, at each stage."""
    parts = parts_of(checkpoint)
    return tuple(_measured(checkpoint.task, stage, asked, folder, parts) for stage in _LEVELS)


def _measured(
    task: Task, stage: str, asked: Iterable[tuple[Sample, Answer]], folder: Path, parts: Sequence[Part]
) -> Stage:
    try:
        graph = Candidate(Provider.CPU, tuple(_loaded(folder / part.file, stage) for part in parts))
        found = parity.total(
            parity.compare(task, sample, truth, graph.answer([*truth], sample)) for sample, truth in asked
        )
    except StepFailedError as error:
        if isinstance(error.__cause__, NoKernelError):
            return Stage(stage=stage, not_measured=f"{Provider.CPU} lacks a kernel: {gist(error.__cause__)}")
        return Stage(stage=stage, error=error.message)
    except Exception as error:  # noqa: BLE001  what a graph lacks the gate has a reason for; a stage only tells
        return Stage(stage=stage, error=f"{type(error).__name__}: {gist(error)}")
    return Stage(
        stage=stage,
        samples=found.samples,
        min_cosine=report.cosine(found.min_cosine),
        max_absolute=report.number(found.max_absolute),
        max_relative=report.number(found.max_relative),
        label_agreement=report.number(found.label_agreement),
    )


def _loaded(path: Path, stage: str) -> Loaded:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[stage]
    # Else each matrix were copied into the order that its product likes best, and memory kept for the next request.
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    outline = path.with_name(f".{path.name}")
    outline.write_bytes(wire.outline(path).SerializeToString())
    try:
        return Loaded.of(path, placement.session(outline, Provider.CPU, options=options))
    finally:
        outline.unlink()


def fault(
    stages: Iterable[Stage], asked: Parity, task: Task, scheme: Scheme, *, has_experts: bool = False
) -> str | None:
    """The first stage that is not like the original, in words. Bounds are the user's, and those of the scheme in half
    precision or of no quantisation, but for the one that grows with the numbers of a model.
    """
    scheme = scheme if scheme in AS_EXPORTED else Scheme.NONE
    bounds = replace(parity.tolerance_of(asked, scheme, task, has_experts=has_experts), max_absolute=None)
    if scheme is not Scheme.NONE:
        # Two words that are nearly as good as each other change places in 16 bits, and of so few that is a large share.
        bounds = replace(bounds, min_label_agreement=None)
    for one in stages:
        if one.not_measured:
            continue
        words = one.error or "; ".join(parity.violations(_total_of(one), bounds))
        if words:
            return f"as {one.stage}, before anything is quantised, the graph is not like the original: {words}"
    return None


def _total_of(one: Stage) -> parity.Total:
    cosine, absolute, relative, agreement = (
        None if value is None else float(value)
        for value in (one.min_cosine, one.max_absolute, one.max_relative, one.label_agreement)
    )
    assert cosine is not None and absolute is not None and relative is not None  # noqa: PT018, S101  without an error
    return parity.Total(one.samples, 0, 0, cosine, absolute, relative, agreement, None)
