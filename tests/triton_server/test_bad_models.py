"""A model that cannot be served keeps the server from starting, and the reason names the file, tensor or field."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from triton_server import graphs
from triton_server.serverprocess import Server

if TYPE_CHECKING:
    from pathlib import Path

GOOD = graphs.embedder()
CONFIG = graphs.embedder_config()


@dataclass(frozen=True)
class Bad:
    """A model with a flaw, and what must be said of it (a pattern)."""

    words: str
    graph: bytes | None = GOOD
    config: str = CONFIG


CASES = {
    "missing-file": Bad(r"missing-file/1/model\.onnx does not exist; default_model_filename", graph=None),
    "other-file": Bad(
        r"other-file/1/other\.onnx does not exist", config=CONFIG + '\ndefault_model_filename: "other.onnx"'
    ),
    "corrupt-file": Bad(
        r"corrupt-file/1/model\.onnx: onnxruntime [\d.]+ cannot load it: .*[Pp]rotobuf", graph=b"\xff" * 99
    ),
    "truncated-file": Bad(r"truncated-file/1/model\.onnx: onnxruntime [\d.]+ cannot load it", graph=GOOD[:-99]),
    "opset-too-new": Bad(r"opset-too-new/1/model\.onnx: .*[Oo]pset 99", graph=graphs.embedder(opset=99)),
    "ir-too-new": Bad(r"ir-too-new/1/model\.onnx: .*IR version: 99", graph=graphs.embedder(ir_version=99)),
    "unknown-input": Bad(
        r"input 'token_type_ids': the graph has no such input; it has 'attention_mask', 'input_ids'",
        config=CONFIG.replace("input [", 'input [ { name: "token_type_ids" data_type: TYPE_INT64 dims: [ -1 ] },', 1),
    ),
    "input-not-given": Bad(
        r"input: the graph also needs 'attention_mask', which config\.pbtxt does not give",
        config=CONFIG.replace(
            graphs.EMBEDDER_INPUTS, '\ninput [ { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] } ]'
        ),
    ),
    "unknown-output": Bad(
        r"output 'pooled': the graph has no such output; it has 'sentence_embedding'",
        config=CONFIG.replace("sentence_embedding", "pooled"),
    ),
    "wrong-datatype": Bad(
        r"input 'input_ids': config\.pbtxt says TYPE_INT32, the graph has tensor\(int64\)",
        config=CONFIG.replace("TYPE_INT64", "TYPE_INT32", 1),
    ),
    "wrong-rank": Bad(
        r"input 'input_ids': config\.pbtxt says \[-1, -1, -1\] \(max_batch_size adds the first\), "
        r"which is rank 3; the graph has \[-1, -1\]",
        config=CONFIG.replace("dims: [ -1 ]", "dims: [ -1, -1 ]", 1),
    ),
    "wrong-width": Bad(
        r"output 'sentence_embedding': config\.pbtxt says \[-1, 9\] .*, the graph has \[-1, 8\]",
        config=CONFIG.replace("dims: [ 8 ]", "dims: [ 9 ]"),
    ),
    "no-batch-dimension": Bad(
        r"input 'input_ids': max_batch_size > 0 needs a dynamic first dimension; the graph has 3",
        graph=graphs.embedder(batch=3),
    ),
    "ragged": Bad(
        r"input 'input_ids': allow_ragged_batch is not supported",
        config=CONFIG.replace("dims: [ -1 ]", "dims: [ -1 ] allow_ragged_batch: true", 1),
    ),
    "other-accelerator": Bad(
        r"optimization\.execution_accelerators\.cpu_execution_accelerator: 'openvino' is not supported",
        config=CONFIG
        + '\noptimization { execution_accelerators { cpu_execution_accelerator: [ { name: "openvino" } ] } }',
    ),
    "threads-in-words": Bad(
        r"parameters\.intra_op_thread_count: 'two' is not a whole number",
        config=CONFIG.replace('string_value: "1"', 'string_value: "two"', 1),
    ),
    "nothing-to-shrink": Bad(
        r"parameters\.memory\.enable_memory_arena_shrinkage: there is no arena to shrink",
        config=CONFIG
        + graphs.parameter("enable_mem_arena", "0")
        + graphs.parameter("memory.enable_memory_arena_shrinkage", "cpu:0"),
    ),
    # Triton 2.51 says "failed to run warmup sample …", or crashes at it; onnxruntime has said what was wrong before.
    "broken-warm-up": Bad(
        rf"Non-zero status code returned while running Add node.* {graphs.POSITIONS} by {graphs.POSITIONS + 1}",
        config=CONFIG + graphs.warm_up(graphs.POSITIONS + 1),
    ),
    "gpu-without-gpu": Bad(
        "has kind KIND_GPU but no GPUs are available", config=CONFIG.replace("KIND_CPU", "KIND_GPU")
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_server_ends_and_says_why(server_root: Path, folder: Path, name: str) -> None:
    case = CASES[name]
    models = [graphs.Model(name, case.graph, case.config)]
    with Server(server_root, folder, models) as server:
        assert server.wait_ended() != 0
        assert re.search(case.words, server.log), server.log


def test_one_bad_model_among_good_ones_ends_the_server(server_root: Path, folder: Path) -> None:
    models = [graphs.Model("good", GOOD, CONFIG), graphs.Model("bad", GOOD[:-99], CONFIG)]
    with Server(server_root, folder, models) as server:
        assert server.wait_ended() != 0
        assert re.search(r"model 'bad': .*bad/1/model\.onnx: onnxruntime [\d.]+ cannot load it", server.log)
