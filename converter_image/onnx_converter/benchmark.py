"""How fast the graph is beside the original, and what it takes: told, and never judged.

Both sides answer the same requests in turn, on as many threads as a server's instance has, so that what disturbs the
node disturbs both; the ratio is what counts. Measured after the verdict. Refuses to fail: what breaks is told.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import onnxruntime
import torch

from onnx_converter import samples
from onnx_converter.contest import Candidate
from onnx_converter.memory import Memory
from onnx_converter.overriding import override
from onnx_converter.reasons import gist
from onnx_converter.spec import Provider

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from onnx_converter.contest import Original
    from onnx_converter.load import Checkpoint
    from onnx_converter.samples import Sample
    from onnx_converter.spec import Serving

SCHEMA: Final = "onnx-operator.io/benchmark/v1alpha1"
_BATCH: Final = 8
#: Batches of images; each counts as one token, whatever its size.
_IMAGES: Final = (1, 2, 4, 8)
_SHORT: Final = 16
_LONG: Final = 128
_MOST_RUNS: Final = 200
#: The first after the other side finds nothing in a cache, unlike a server's, which come one after the other.
_IN_A_ROW: Final = 8
#: Whatever it reads, a model reads all of its weights: fewer tokens than this take hardly less time.
_LEAST_TOKENS: Final = 16
_CPU: Final = "cpu"
_QUANTILES: Final = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What to measure beside the original, and how long."""

    checkpoint: Path
    graphs: tuple[Path, ...]
    provider: Provider
    serving: Serving
    #: How long it took to load the original.
    load_seconds: float
    #: After these no cell begins; loading counts.
    seconds: float
    #: What the provider is told besides.
    told: Mapping[str, str] | None = None
    #: Where each graph runs, if not all do on the provider.
    places: tuple[Provider, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """One shape of request: so many texts of so many new tokens, each after so many that are past."""

    batch: int
    length: int
    past: int = 0

    @property
    def work(self) -> int:
        return max(self.batch * self.length, _LEAST_TOKENS)

    @override
    def __str__(self) -> str:
        return f"{self.batch} x {self.length}" + (f" after {self.past}" if self.past else "")


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two that answer."""

    answer: Callable[[Sample], object]
    memory: Memory


@dataclass(frozen=True, slots=True)
class Timed:
    """The seconds of each answer to one cell, in the order of the sides."""

    cell: Cell
    seconds: tuple[Sequence[float], ...]


def cells_of(checkpoint: Checkpoint, most_batch: int) -> list[Cell]:
    """What is asked, the cheapest first; nothing longer or wider than what is served."""
    if checkpoint.sight:
        return [Cell(batch, 1) for batch in _IMAGES if batch <= max(most_batch, 1)]
    longest = checkpoint.max_sequence_length
    short, long = min(_SHORT, longest), min(_LONG, longest)
    if checkpoint.cache:
        # Its batch is an axis like any, which no server's bound cuts.
        past = min(_LONG, longest - 1)
        asked = [Cell(1, short), Cell(1, 1, past), Cell(_BATCH, 1, past), Cell(1, long)]
    else:
        asked = [Cell(1, short), Cell(1, long), Cell(min(_BATCH, most_batch), long)]
    return list(dict.fromkeys(asked))


def measure(original: Original, wanted: Benchmark, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Everything about both sides as plain data; of a benchmark that broke, what broke it."""
    told: dict[str, Any] = {"provider": str(wanted.provider), "threads": wanted.serving.threads}
    if (device := device_of(wanted.provider)) != _CPU:
        told["originalDevice"] = device
    before = torch.get_num_threads()
    torch.set_num_threads(wanted.serving.threads)
    try:
        return told | _measure(original, wanted, clock)
    except Exception as error:  # noqa: BLE001  the graph was found to be right, and that is what the step is for
        return told | {"message": f"the benchmark broke: {gist(error)}"}
    finally:
        torch.set_num_threads(before)


def device_of(provider: Provider) -> str:
    """Where the original is run, as torch calls it."""
    is_accelerated = provider in (Provider.CUDA, Provider.TENSORRT)
    return "cuda" if is_accelerated and torch.cuda.is_available() else _CPU


def _measure(original: Original, wanted: Benchmark, clock: Callable[[], float]) -> dict[str, Any]:
    end = clock() + wanted.seconds
    # Beside an accelerator the original is asked there, too: both are given and give back what lies in main memory.
    original.wrapper.to(device_of(wanted.provider))
    memory = Memory()
    began = clock()
    candidate = memory.watch(
        lambda: Candidate.load(wanted.graphs, wanted.provider, wanted.serving.threads, wanted.told, wanted.places)
    )
    loaded = clock() - began
    options = onnxruntime.RunOptions()
    if wanted.provider is Provider.CPU:
        # As package.py tells the server.
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    tensors = [*original.wrapper.parameters(), *original.wrapper.buffers()]
    sides = (
        Side(original.answer, Memory(sum(tensor.nbytes for tensor in tensors))),
        Side(lambda sample: candidate.answer(original.outputs, sample, options), memory),
    )
    checkpoint = original.checkpoint
    asked = {
        cell: samples.plain(checkpoint, cell.batch, cell.past, cell.length)
        for cell in cells_of(checkpoint, wanted.serving.max_batch_size)
    }
    timed, left_out = race(asked, sides, end, clock)
    sizes = (
        sum(file.stat().st_size for file in wanted.checkpoint.glob("*.safetensors")),
        sum(file.stat().st_size for file in wanted.graphs[0].parent.iterdir()),
    )
    footprints = [
        {"sizeBytes": size, "loadMilliseconds": _number(1000 * seconds)}
        | ({} if side.memory.peak is None else {"peakMemoryBytes": side.memory.peak})
        for side, size, seconds in zip(sides, sizes, (wanted.load_seconds, loaded), strict=True)
    ]
    told = {"cells": [told_of(one) for one in timed], "original": footprints[0], "graph": footprints[1]}
    if left_out:
        told["message"] = f"{wanted.seconds:g} s are too short for {', '.join(map(str, left_out))}"
    return told


def race(
    asked: Mapping[Cell, Sample], sides: Sequence[Side], end: float, clock: Callable[[], float]
) -> tuple[list[Timed], list[Cell]]:
    """Both sides in turn, some requests in a row, cell by cell; and the cells that would take too long.

    Each cell has its share of the time.
    """
    timed: list[Timed] = []
    left_out: list[Cell] = []
    second_by_work = 0.0
    for place, (cell, sample) in enumerate(asked.items()):
        now = clock()
        # Each side is warmed up and timed once, or not asked.
        if now >= end or 2 * second_by_work * cell.work > end - now:
            left_out.append(cell)
            continue
        share = now + (end - now) / (len(asked) - place)
        for side in sides:
            side.memory.watch(lambda side=side, sample=sample: side.answer(sample))  # type: ignore[misc]
        seconds: tuple[list[float], ...] = tuple([] for _ in sides)
        in_a_row = 1
        while len(seconds[0]) < _MOST_RUNS and (not seconds[0] or clock() < share):
            for side, list_of in zip(sides, seconds, strict=True):
                for _ in range(in_a_row):
                    began = clock()
                    side.answer(sample)
                    list_of.append(clock() - began)
            turn = sum(each[-1] for each in seconds)
            left = min((share - clock()) // turn if turn else _IN_A_ROW, _MOST_RUNS - len(seconds[0]))
            in_a_row = max(1, min(_IN_A_ROW, int(left)))
        timed.append(Timed(cell, seconds))
        second_by_work = sum(quantile(each, 0.5) for each in seconds) / cell.work
    return timed, left_out


def told_of(timed: Timed) -> dict[str, Any]:
    """One cell as it is told: milliseconds, tokens in a second, and how many times as fast as the original."""
    cell = timed.cell
    original, graph = (_latency(cell, seconds) for seconds in timed.seconds)
    medians = [quantile(seconds, 0.5) for seconds in timed.seconds]
    return {
        "batch": cell.batch,
        "sequenceLength": cell.length,
        **({"pastLength": cell.past} if cell.past else {}),
        "runs": len(timed.seconds[0]),
        "speedup": _number(medians[0] / medians[1]),
        "original": original,
        "graph": graph,
    }


def _latency(cell: Cell, seconds: Sequence[float]) -> dict[str, str]:
    found = [quantile(seconds, q) for q in _QUANTILES]
    names = [f"p{round(100 * q)}Milliseconds" for q in _QUANTILES]
    milliseconds = {name: _number(1000 * value) for name, value in zip(names, found, strict=True)}
    return milliseconds | {"tokensPerSecond": _number(cell.batch * cell.length / found[0])}


def quantile(seconds: Sequence[float], q: float) -> float:
    """The smallest that this share of all does not exceed: always one that was measured."""
    return sorted(seconds)[math.ceil(q * len(seconds)) - 1]


def _number(value: float) -> str:
    """Three digits, and no exponent: what is beyond them is noise."""
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f}"
