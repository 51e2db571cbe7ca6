"""The ways from a checkpoint to graphs, in the order of their speed, and the proof that one may be taken.

Every route but the last is tried first: on a model of the same configuration, but for its size and its weights, the
graph must answer the samples that break graphs as torch does. A route that cannot, or gives up, is refused with a
reason and the next one is asked. The gate judges the real graph afterwards, whichever route it came by.
"""

from __future__ import annotations

import copy
import shutil
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from onnx_converter import decoders, export, fused, layers, parity, samples, share
from onnx_converter.contest import Candidate, Original
from onnx_converter.heads import modules_of, parts_of
from onnx_converter.reasons import StepFailedError, gist
from onnx_converter.spec import AS_EXPORTED, Parity, Provider, Scheme

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from onnx_converter.conversion import Stage
    from onnx_converter.load import Checkpoint
    from onnx_converter.route import Goal, Route

#: A model no larger than this is its own trial; words, length and the inner width of a larger one are cut to less.
_SMALL: Final = 4_000_000
_WORDS: Final = 512
_LENGTH: Final = 256
#: What configurations call those widths, how many experts a layer has, and what decides how many are asked.
_WIDTHS: Final = ("intermediate_size", "moe_intermediate_size")
_EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_ASKED: Final = ("num_experts_per_tok", "moe_k", "n_group")
#: Layers of each kind, and one more, so that what grows has to.
_LAYERS: Final = 2
#: Longest reason, since a termination message holds them all.
_TOLD: Final = 200


@dataclass(frozen=True, slots=True)
class Made:
    """The route that was taken, and those before it with the reasons why they were not."""

    route: str
    refused: tuple[tuple[str, str], ...]
    folder: Path
    #: How far the graphs are from the original, measured once for all that is made of them.
    stages: tuple[Stage, ...] = ()


#: The last misses nothing.
ROUTES: Final = (fused.ROUTE, export.ROUTE)


def make(checkpoint: Checkpoint, source: Path, folder: Path, goal: Goal) -> Made:
    """The graphs as they come from torch, in a folder of their own below the given one."""
    refused: list[tuple[str, str]] = []
    for route in ROUTES:
        # As idioms.settle tells providers apart.
        target = folder / ("cpu" if goal.provider is Provider.CPU else "others") / route.name
        reason = route.misses(checkpoint, goal)
        # Another provider's graphs may have come by it.
        if reason is None and not target.exists():
            reason = _made(route, checkpoint, source, target, goal)
        if reason is None:
            return Made(route.name, tuple(refused), target)
        refused.append((route.name, reason[:_TOLD]))
    raise AssertionError("the last route misses nothing")


def _made(route: Route, checkpoint: Checkpoint, source: Path, folder: Path, goal: Goal) -> str | None:
    """Makes the graphs, or says why not: from a few layers where that is shown to be right, else from all of them."""
    given = (route, checkpoint, source, folder, goal)
    reason: str | None = "it is not deep"
    if plan := layers.plan_of(checkpoint):
        reason = _proved(partial(_grown, *given, plan=plan), folder)
        reason = reason and _proved(partial(_whole, *given, grows=True), folder)
    if reason is not None and route is ROUTES[-1]:
        _export(*given)
        return None
    return reason and _proved(partial(_whole, *given), folder)


def _proved(make: Callable[[], str | None], folder: Path) -> str | None:
    """What making it says, or ends with: whatever that is, there is another way."""
    try:
        reason = make()
    except (OSError, MemoryError):
        # Of the machine and not of the route: which one is taken must not depend on where.
        raise
    except Exception as error:  # noqa: BLE001
        reason = error.message if isinstance(error, StepFailedError) else gist(error)
    if reason is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return reason


def _grown(
    route: Route, checkpoint: Checkpoint, source: Path, folder: Path, goal: Goal, *, plan: layers.Plan
) -> str | None:
    """The very graph that is wanted is tried first, with few layers, few words and weights of chance."""
    with goal.trials.running():
        trial = shrunk(checkpoint)
    if trial is checkpoint:
        return "it is small enough to be its own trial"
    with route.traced(checkpoint.model), layers.shallow(checkpoint, plan) as few:
        (part,), (module,) = parts_of(few.checkpoint), modules_of(few.checkpoint, source)
        graph = export.trace(few.checkpoint, part, module, goal.opset)
    with goal.trials.running(), _beside(folder) as place:
        small = export.settle(layers.grow_small(graph, few, checkpoint, trial), trial, goal.provider)
        layers.forget_sizes(small)
        export.save(small, place / part.file)
        reason = _differs(trial, place, goal)
    if reason is None:
        layers.grow(graph, few, checkpoint.cache)
        folder.mkdir(parents=True)
        export.save(export.settle(graph, checkpoint, goal.provider), folder / part.file)
    return reason


def _whole(
    route: Route, checkpoint: Checkpoint, source: Path, folder: Path, goal: Goal, *, grows: bool = False
) -> str | None:
    reason = tried(route, checkpoint, source, folder, goal, grows=grows)
    if reason is None and not folder.exists():
        _export(route, checkpoint, source, folder, goal, grows=grows)
    return reason


def _export(
    route: Route, checkpoint: Checkpoint, source: Path, folder: Path, goal: Goal, *, grows: bool = False
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plan = layers.plan_of(checkpoint) if grows else None
    with route.traced(checkpoint.model), layers.shallow(checkpoint, plan) if plan else nullcontext() as few:
        traced = checkpoint if few is None else few.checkpoint
        parts = parts_of(traced)
        shared = share.Weights(folder) if len(parts) > 1 else None
        for part, module in zip(parts, modules_of(traced, source), strict=True):
            graph = export.trace(traced, part, module, goal.opset)
            if few is not None:
                layers.grow(graph, few, checkpoint.cache)
            export.save(export.settle(graph, checkpoint, goal.provider), folder / part.file, shared)


def tried(
    route: Route, checkpoint: Checkpoint, source: Path, folder: Path, goal: Goal, *, grows: bool = False
) -> str | None:
    """Why the route is not to be taken; of a small model the graphs that were tried stay, as they are those wanted."""
    with goal.trials.running():
        trial = shrunk(checkpoint)
    with goal.trials.running(), nullcontext(folder) if trial is checkpoint else _beside(folder) as place:
        _export(route, trial, source, place, goal, grows=grows)
        return _differs(trial, place, goal)


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    place = folder.with_name(f"{folder.name}-tried")
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _differs(trial: Checkpoint, place: Path, goal: Goal) -> str | None:
    """How the graphs in a folder answer the samples that break graphs otherwise than torch does."""
    original = Original(trial, decoders.wrap(trial.model, trial.max_sequence_length))
    candidate = Candidate.load([place / part.file for part in parts_of(trial)], Provider.CPU)
    measured = parity.total(
        parity.compare(trial.task, sample, original.answer(sample), candidate.answer(original.outputs, sample))
        for sample in samples.continuations(trial)
    )
    scheme = goal.scheme if goal.scheme in AS_EXPORTED else Scheme.NONE
    return next(iter(parity.violations(measured, parity.tolerance_of(Parity(), scheme, trial.task))), None)


def shrunk(checkpoint: Checkpoint) -> Checkpoint:
    """A language model of the same kind with a layer of each kind, few words, and weights of chance that all matter."""
    model, config = checkpoint.model, copy.deepcopy(checkpoint.model.config)
    if sum(weight.numel() for weight in model.parameters()) <= _SMALL:
        return checkpoint
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    less: dict[str, Any] = {
        "num_hidden_layers": min(config.num_hidden_layers, _LAYERS * max(1, len(kinds)) + 1),
        "vocab_size": min(config.vocab_size, _WORDS),
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    }
    if kinds:
        less["layer_types"] = (kinds * (_LAYERS + 1))[: less["num_hidden_layers"]]
    for name in _WIDTHS:
        if hasattr(config, name):
            less[name] = min(getattr(config, name), _LENGTH)
    for name in _EXPERTS:
        if isinstance(experts := getattr(config, name, None), int):
            # Some are chosen by groups, and of a group by its best two.
            asked = max(getattr(config, each, None) or 1 for each in _ASKED)
            less[name] = min(experts, 2 * asked)
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
