"""The memory of a large batch is given back, and is bounded while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tritonclient.http

from triton_server import graphs
from triton_server.serverprocess import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH = "max_batch_size: 32\n" + graphs.HUNGRY_INPUT + graphs.ONE_INSTANCE + graphs.ONE_THREAD
SHRINK = "memory.enable_memory_arena_shrinkage"
#: 32 texts of 128 tokens, 64 KiB for each: 256 MiB where they are run at once.
ROWS, LENGTH, WHOLE = 32, 128, 256


@pytest.fixture(scope="module")
def hungry(server_root: Path) -> Iterator[Server]:
    graph = graphs.hungry()
    at_once = graphs.parameter("max_positions_per_run", "0")
    models = (
        graphs.Model("as-we-do", graph, BATCH),
        graphs.Model("at-once", graph, BATCH + at_once),
        graphs.Model("keeping", graph, BATCH + at_once + graphs.parameter(SHRINK, "")),
    )
    folder = server_root.parent / "hungry"
    folder.mkdir()
    with Server(server_root, folder, models) as server:
        yield server.wait_ready()


def mebibytes(process: int, field: str) -> int:
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(field + ":")) // 1024


def run_large_batch(server: Server, model: str) -> tuple[int, int]:
    """How many MiB the backend process has more than before: at its peak, and afterwards."""
    (process,) = server.backends(model)
    before = mebibytes(process, "VmRSS")
    client = server.http()
    tokens = tritonclient.http.InferInput("input_ids", [ROWS, LENGTH], "INT64")
    tokens.set_data_from_numpy(np.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % 4)
    assert client.infer(model, [tokens]).as_numpy("largest").tolist() == [[3.0]] * ROWS
    client.close()
    return mebibytes(process, "VmHWM") - before, mebibytes(process, "VmRSS") - before


def test_memory_does_not_stay_at_the_peak_of_a_large_batch(hungry: Server) -> None:
    peak, after = run_large_batch(hungry, "at-once")
    assert peak > 0.9 * WHOLE, "the batch was not large enough to show anything"
    assert after < 0.2 * WHOLE


def test_without_shrinking_it_would_stay(hungry: Server) -> None:
    _, after = run_large_batch(hungry, "keeping")
    assert after > 0.9 * WHOLE, "the arena gives its memory back by itself: the shrinking can go"


def test_the_peak_is_bounded_because_large_batches_run_in_turns(hungry: Server) -> None:
    peak, after = run_large_batch(hungry, "as-we-do")
    assert 0.3 * WHOLE < peak < 0.7 * WHOLE  # 2048 of its 4096 tokens at once
    assert after < 0.2 * WHOLE
