"""What is told of speed and memory: right in itself, bounded in time, and never a reason to fail."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from checkpoints import TINY_LENGTH, tiny, tiny_decoder
from onnx_converter import benchmark, load, placement, summary
from onnx_converter.benchmark import Cell, Side, Timed, cells_of, quantile, race, told_of
from onnx_converter.memory import Memory
from onnx_converter.spec import Task
from onnx_operator.api.revision import BenchmarkStatus
from unit.converter.steps import Line, run

if TYPE_CHECKING:
    from pathlib import Path

    from unit.converter.steps import Ended

CPU = "CPUExecutionProvider"
CELLS = (Cell(1, 16), Cell(1, 128), Cell(8, 128))


@dataclass
class Clock:
    """Time passes only when somebody answers."""

    now: float = 0.0
    asked: list[str] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def side(self, name: str, seconds_by_token: float) -> Side:
        def answer(cell: Any) -> None:
            self.asked.append(name)
            self.now += seconds_by_token * cell.work

        return Side(answer, Memory())


def raced(seconds: float, *cells: Cell, slow: float = 1e-3) -> tuple[Clock, list[Timed], list[Cell]]:
    clock = Clock()
    sides = (clock.side("original", 2 * slow), clock.side("graph", slow))
    asked: Any = {cell: cell for cell in cells}
    timed, left_out = race(asked, sides, seconds, clock)
    return clock, timed, left_out


@pytest.mark.parametrize(("q", "wanted"), [(0.5, 50), (0.9, 90), (0.99, 99), (1, 100)])
def test_a_percentile_is_one_of_the_runs(q: float, wanted: float) -> None:
    values = [float(value) for value in np.random.default_rng(0).permutation(np.arange(1, 101))]
    assert quantile(values, q) == wanted
    assert quantile([7.0], q) == 7.0


def test_both_sides_answer_in_turn_some_in_a_row_and_equally_often() -> None:
    clock, timed, left_out = raced(30, *CELLS)
    assert left_out == []
    turns = [(name, len(list(same))) for name, same in groupby(clock.asked)]
    assert [name for name, _ in turns] == ["original", "graph"] * (len(turns) // 2)
    assert [many for _, many in turns[::2]] == [many for _, many in turns[1::2]]
    assert max(many for _, many in turns) == 8
    for one in timed:
        assert len(one.seconds[0]) == len(one.seconds[1]) >= 1
        assert set(np.round(one.seconds[0], 9)) == {round(2e-3 * one.cell.work, 9)}


def test_no_cell_has_more_runs_than_tell_anything() -> None:
    _, timed, _ = raced(1e9, *CELLS)
    assert [len(one.seconds[0]) for one in timed] == [200, 200, 200]


def test_time_that_one_cell_leaves_is_for_those_after_it() -> None:
    clock, timed, _ = raced(60, *CELLS, slow=1e-4)
    assert len(timed[0].seconds[0]) == 200
    assert len(timed[2].seconds[0]) * 3e-4 * 1024 > 60 / 3
    assert clock.now < 60 + 2 * 3e-4 * 1024


def test_what_would_take_too_long_is_left_out_and_named() -> None:
    clock, timed, left_out = raced(2, *CELLS)
    assert [one.cell for one in timed] == [Cell(1, 16), Cell(1, 128)]
    assert [str(cell) for cell in left_out] == ["8 x 128"]
    assert clock.now < 2 + 3e-3 * 128


def test_of_a_model_that_is_slower_than_all_the_time_one_cell_is_asked_twice() -> None:
    clock, timed, left_out = raced(1, *CELLS, slow=1.0)
    assert clock.asked == ["original", "graph"] * 2
    assert [len(one.seconds[1]) for one in timed] == [1]
    assert left_out == [*CELLS[1:]]
    assert raced(0, *CELLS)[1] == []


def test_a_cell_is_told_in_milliseconds_in_tokens_and_beside_the_original() -> None:
    told = told_of(Timed(Cell(8, 1, 128), ([0.4, 0.2, 0.3], [0.00123, 0.00456, 0.0001])))
    assert told == {
        "batch": 8,
        "sequenceLength": 1,
        "pastLength": 128,
        "runs": 3,
        "speedup": "244",
        "original": {
            "p50Milliseconds": "300",
            "p90Milliseconds": "400",
            "p99Milliseconds": "400",
            "tokensPerSecond": "26.7",
        },
        "graph": {
            "p50Milliseconds": "1.23",
            "p90Milliseconds": "4.56",
            "p99Milliseconds": "4.56",
            "tokensPerSecond": "6504",
        },
    }


def test_memory_is_the_peak_over_what_was_there_and_what_stays_counts() -> None:
    size = 64 << 20
    memory = Memory(held=1000)
    kept = memory.watch(lambda: np.ones(size, np.uint8))
    memory.watch(lambda: np.ones(size, np.uint8).sum())
    assert memory.peak is not None
    assert 1.9 * size < memory.peak < 2.5 * size
    assert kept.nbytes == size


def test_what_is_watched_within_hides_no_earlier_peak() -> None:
    size = 64 << 20
    outer, inner = Memory(), Memory()
    outer.watch(lambda: (np.ones(size, np.uint8).sum(), inner.watch(lambda: np.ones(1024, np.uint8))))
    assert outer.peak is not None
    assert inner.peak is not None
    assert inner.peak < size // 2 < 0.9 * size < outer.peak


def test_where_the_kernel_tells_no_peak_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("onnx_converter.memory._CLEAR", tmp_path / "missing" / "clear_refs")
    memory = Memory()
    assert memory.watch(lambda: 3) == 3
    assert memory.peak is None


def benchmarked(line: Line, digest: str) -> Ended:
    return run(
        "validate",
        ("--checkpoint", line.checkpoint(digest), "--graph", line.work / "graph", "--provider", CPU),
        ("--spec", "{}", "--serving", '{"maxBatchSize": 4, "threads": 1}', "--benchmark", 600),
        ("--output", line.work / f"validation-{CPU}"),
    )


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Line, str]:
    folder = tmp_path_factory.mktemp("benchmarked")
    line = Line(folder / "line")
    digest = line.fetch(tiny(folder / "model")).details["digest"]
    line.convert(digest)
    return line, digest


def test_a_validation_tells_its_benchmark_as_the_revision_keeps_it(
    converted: tuple[Line, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "_MOST_RUNS", 3)
    line, digest = converted
    ended = benchmarked(line, digest)
    told = ended.details["benchmark"]
    assert [(cell["batch"], cell["sequenceLength"]) for cell in told["cells"]] == [
        (1, 16),
        (1, TINY_LENGTH),
        (4, TINY_LENGTH),
    ]
    assert told["graph"]["sizeBytes"] == (line.work / "graph" / CPU / "model.onnx").stat().st_size
    assert told["original"]["sizeBytes"] > 0
    status = BenchmarkStatus.model_validate(told)
    assert status.model_dump(mode="json", exclude_none=True) == told
    kept = json.loads((line.work / f"validation-{CPU}" / "benchmark.json").read_text())
    assert kept == {"schema": "onnx-operator.io/benchmark/v1alpha1"} | told
    assert "Speed on" in (line.work / f"validation-{CPU}" / "report.html").read_text()


def test_a_benchmark_that_breaks_is_told_and_the_validation_passes(
    converted: tuple[Line, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_arguments: Any) -> None:
        raise MemoryError("no room for\na session")

    monkeypatch.setattr(benchmark, "race", no_memory)
    ended = benchmarked(*converted)
    assert (ended.summary.reason, ended.code) == ("Validated", 0)
    assert ended.details["benchmark"] == {
        "provider": CPU,
        "threads": 1,
        "message": "the benchmark broke: no room for",
    }
    assert (converted[0].work / f"validation-{CPU}" / "golden.json").exists()


def test_a_language_model_is_timed_reading_and_writing(tmp_path: Path) -> None:
    original = load.load(tiny_decoder(tmp_path), Task.TEXT_GENERATION, None)
    cells = cells_of(original, 1)
    longest = original.max_sequence_length
    assert {cell.past > 0 for cell in cells} == {True, False}
    assert all(cell.past + cell.length <= longest for cell in cells)
    assert max(cell.batch for cell in cells) == 8
    assert [cell.length for cell in cells if cell.past] == [1, 1]


def test_the_fullest_benchmark_and_evaluations_fit_a_termination_message() -> None:
    footprint = {"sizeBytes": 10**13, "loadMilliseconds": "1234567", "peakMemoryBytes": 10**13}
    latency = [[123.456 + number] * 3 for number in range(2)]
    cells = [told_of(Timed(Cell(8, 128, past), (latency[0], latency[1]))) for past in (1, 2, 3, 4)]
    told = {
        "provider": CPU,
        "threads": 64,
        "cells": cells,
        "original": footprint,
        "graph": footprint,
        "message": "x" * 320,
    }
    numbers = dict.fromkeys(("original", "graph", "loss", "lossLow", "lossHigh"), "-1.2345e-05")
    evaluations = [{"name": "n" * 32, **numbers, "samples": 10_000}] * 6
    details = {"benchmark": told, "evaluations": evaluations, "others": "y" * 700}
    words = summary.Summary("validate", "Succeeded", "Validated", "fine", 0, details)
    assert summary.parse(summary.dump(words)).message == "fine"


def test_operators_are_summed_by_provider() -> None:
    coverage = {"MatMul": {"b": 3}, "Shape": {"a": 2, "b": 1}}
    assert list(placement.by_provider(coverage).items()) == [("a", 2), ("b", 4)]
