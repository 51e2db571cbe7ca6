"""The ways from a checkpoint to graphs, in the order of their speed, and the proof that one may be taken.

Every route but the last is tried first: on a model of the same configuration, but for its size and its weights, the
graph must answer the samples that break graphs as torch does. A route that cannot, or gives up, is refused with a
reason and the next one is asked. The gate judges the real graph afterwards, whichever route it came by.
"""

from __future__ import annotations

import copy
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch

from onnx_converter import decoders, export, fused, parity, samples
from onnx_converter.contest import Candidate, Original
from onnx_converter.heads import modules_of, parts_of
from onnx_converter.reasons import StepFailedError, gist
from onnx_converter.spec import Parity, Provider, Scheme, Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel

    from onnx_converter.load import Checkpoint

#: A model no larger than this is its own trial; words, length and the inner width of a larger one are cut to less.
_SMALL: Final = 4_000_000
_WORDS: Final = 512
_LENGTH: Final = 256
_LAYERS: Final = 2
#: Longest reason, since a termination message holds them all.
_TOLD: Final = 200


@dataclass(frozen=True, slots=True)
class Goal:
    """What the graphs are for."""

    provider: Provider
    scheme: Scheme
    opset: int


@dataclass(frozen=True, slots=True)
class Route:
    """One way; `misses` says why a checkpoint cannot take it, and an export inside of `traced` takes it."""

    name: str
    misses: Callable[[Checkpoint, Goal], str | None]
    traced: Callable[[PreTrainedModel], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Made:
    """The route that was taken, and those before it with the reasons why they were not."""

    route: str
    refused: tuple[tuple[str, str], ...]
    folder: Path


def _fused_misses(checkpoint: Checkpoint, goal: Goal) -> str | None:
    if checkpoint.task is not Task.TEXT_GENERATION:
        return "is for language models that only write"
    if goal.provider is not Provider.CPU:
        return f"its operators were never timed on {goal.provider}"
    if checkpoint.model.dtype is not torch.float32:
        return "its operators are told to answer in float32"
    return fused.misses(checkpoint.model)


ROUTES: Final = (
    Route("fused-attention", _fused_misses, fused.traced),
    Route("trace", lambda _checkpoint, _goal: None, lambda _model: nullcontext()),
)


def make(checkpoint: Checkpoint, source: Path, folder: Path, goal: Goal) -> Made:
    """The graphs as they come from torch, in a folder below the given one that the route is named after."""
    refused: list[tuple[str, str]] = []
    for route in ROUTES:
        target = folder / route.name
        reason = route.misses(checkpoint, goal)
        # Another provider's graphs may have come by it.
        if reason is None and not target.exists():
            if route is ROUTES[-1]:
                _export(route, checkpoint, source, target, goal)
            else:
                reason = _proved(route, checkpoint, source, target, goal)
        if reason is None:
            return Made(route.name, tuple(refused), target)
        refused.append((route.name, reason[:_TOLD]))
    raise AssertionError("the last route misses nothing")


def _proved(route: Route, checkpoint: Checkpoint, source: Path, folder: Path, goal: Goal) -> str | None:
    """Makes the graphs, or says why not."""
    try:
        reason = tried(route, checkpoint, source, folder, goal)
        if reason is None and not folder.exists():
            _export(route, checkpoint, source, folder, goal)
    except (OSError, MemoryError):
        # Of the machine and not of the route: which one is taken must not depend on where.
        raise
    except Exception as error:  # noqa: BLE001  whatever a trial ends with, there is another way
        reason = error.message if isinstance(error, StepFailedError) else gist(error)
    if reason is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return reason


def _export(route: Route, checkpoint: Checkpoint, source: Path, folder: Path, goal: Goal) -> None:
    folder.mkdir(parents=True)
    with route.traced(checkpoint.model):
        for part, module in zip(parts_of(checkpoint), modules_of(checkpoint, source), strict=True):
            export.save(export.export(checkpoint, part, module, goal.opset), folder / part.file)


def tried(route: Route, checkpoint: Checkpoint, source: Path, folder: Path, goal: Goal) -> str | None:
    """Why the route is not to be taken; of a small model the graphs that were tried stay, as they are those wanted."""
    trial = shrunk(checkpoint)
    place = folder if trial is checkpoint else folder.with_name(f"{folder.name}-tried")
    try:
        _export(route, trial, source, place, goal)
        original = Original(trial, decoders.wrap(trial.model, trial.max_sequence_length))
        candidate = Candidate.load([place / part.file for part in parts_of(trial)], Provider.CPU)
        measured = parity.total(
            parity.compare(trial.task, sample, original.answer(sample), candidate.answer(original.outputs, sample))
            for sample in samples.continuations(trial)
        )
    finally:
        if place is not folder:
            shutil.rmtree(place, ignore_errors=True)
    return next(iter(parity.violations(measured, parity.tolerance_of(Parity(), Scheme.NONE, trial.task))), None)


def shrunk(checkpoint: Checkpoint) -> Checkpoint:
    """A language model of the same kind with a layer of each kind, few words, and weights of chance that all matter."""
    model, config = checkpoint.model, copy.deepcopy(checkpoint.model.config)
    if sum(weight.numel() for weight in model.parameters()) <= _SMALL:
        return checkpoint
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    less: dict[str, Any] = {
        "num_hidden_layers": min(config.num_hidden_layers, max(_LAYERS, len(kinds))),
        "vocab_size": min(config.vocab_size, _WORDS),
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    }
    if kinds:
        less["layer_types"] = (kinds * _LAYERS)[: less["num_hidden_layers"]]
    if hasattr(config, "intermediate_size"):
        less["intermediate_size"] = min(config.intermediate_size, _LENGTH)
    for name, value in less.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = type(model)(config)
        for weight in small.parameters():
            # The usual start is so small that all tokens look alike; from this a sum is as large as its parts.
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    small.eval()
    small.requires_grad_(requires_grad=False)
    decoders.settle_rotation(small)
    cache = decoders.cache_of(small)
    # Long enough that a window, if there is one, ends within.
    length = _LENGTH + (getattr(config, "sliding_window", None) or 0)
    return replace(
        checkpoint,
        model=small,
        inputs=(*decoders.INPUTS, *decoders.names_of(decoders.PAST, cache)),
        max_sequence_length=min(checkpoint.max_sequence_length, length),
        cache=cache,
    )
