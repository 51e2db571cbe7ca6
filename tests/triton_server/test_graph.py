"""The backend's graph without Triton around it: what no server can be made to ask of it on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx_graph import Graph, GraphError, Question, load_graph, session_options
from serving_contract import ContractError, check_shapes, read_settings, rows_per_run

from onnx_converter import placement
from triton_server import graphs

if TYPE_CHECKING:
    from pathlib import Path

CONFIG: dict[str, Any] = {
    "max_batch_size": 8,
    "input": [{"name": name, "data_type": "TYPE_INT64", "dims": [-1]} for name in ("input_ids", "attention_mask")],
    "output": [{"name": "sentence_embedding", "data_type": "TYPE_FP32", "dims": [graphs.WIDTH]}],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.onnx"
    file.write_bytes(graphs.embedder())
    return file


@pytest.fixture
def graph(path: Path) -> Graph:
    return load_graph(path, read_settings(CONFIG), "CPU", 0)


def question(value: int, length: int, rows: int = 1) -> Question:
    ids, mask = np.full((rows, length), value), np.ones((rows, length), np.int64)
    return Question({"input_ids": ids, "attention_mask": mask}, ("sentence_embedding",))


def with_parameter(key: str, value: str) -> dict[str, Any]:
    return CONFIG | {"parameters": {key: {"string_value": value}}}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GPU", "KIND_GPU needs CUDAExecutionProvider, which onnxruntime .* does not have .*CPUExecutionProvider"),
        ("MODEL", "KIND_MODEL is not one of KIND_CPU, KIND_GPU"),
    ],
)
def test_an_instance_is_never_moved_to_another_execution_provider(path: Path, kind: str, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        load_graph(path, read_settings(CONFIG), kind, 0)


def accelerated(name: str, **parameters: str) -> dict[str, Any]:
    entry = {"name": name, "parameters": parameters}
    return CONFIG | {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": [entry]}}}


def test_tensorrt_is_told_what_the_native_backend_tells_it(path: Path) -> None:
    settings = read_settings(
        accelerated("tensorrt", precision_mode="BF16", max_workspace_size_bytes="7", trt_engine_cache_path="/engines")
    )
    assert settings.tensorrt_options == {
        "trt_bf16_enable": "1",
        "trt_max_workspace_size": "7",
        "trt_engine_cache_path": "/engines",
    }
    assert read_settings(CONFIG).tensorrt_options is None
    assert read_settings(accelerated("cuda", use_tf32="0")).cuda_options == {"use_tf32": "0"}
    with pytest.raises(ContractError, match=r"KIND_GPU needs TensorrtExecutionProvider, which onnxruntime .* does not"):
        load_graph(path, settings, "GPU", 0)
    with pytest.raises(ContractError, match="precision_mode: 'FP8' is not one of FP32, FP16, BF16, INT8"):
        read_settings(accelerated("tensorrt", precision_mode="FP8"))


def test_each_question_of_a_failed_batch_is_asked_alone(graph: Graph) -> None:
    good, bad, mixed = graph.answer([question(1, 4, rows=2), question(graphs.VOCABULARY, 4), question(2, 4)])
    assert isinstance(bad, GraphError)
    assert not isinstance(good, Exception)
    assert not isinstance(mixed, Exception)
    ones = np.ones((2, 4), np.int64)
    np.testing.assert_allclose(good["sentence_embedding"], graphs.embed(ones, ones), atol=1e-5)
    np.testing.assert_allclose(mixed["sentence_embedding"], graphs.embed(2 * ones[:1], ones[:1]), atol=1e-5)


def test_a_question_that_contradicts_itself_does_not_reach_the_graph(graph: Graph) -> None:
    crooked = Question({"input_ids": np.ones((1, 4), np.int64), "attention_mask": np.ones((1, 3), np.int64)}, ())
    refused, answered = graph.answer([crooked, question(1, 4)])
    assert isinstance(refused, ContractError)
    assert not isinstance(answered, Exception)


@pytest.mark.parametrize(
    ("limit", "length", "rows"), [("2048", 512, 4), ("2048", 100, 20), ("10", 512, 1), ("0", 512, 2**31)]
)
def test_as_many_rows_run_at_once_as_the_positions_allow(limit: str, length: int, rows: int) -> None:
    settings = read_settings(with_parameter("max_positions_per_run", limit))
    assert rows_per_run(settings, {"input_ids": (32, length), "attention_mask": (32, length)}) == rows


def test_fixed_dimensions_do_not_count_as_positions() -> None:
    image = {"name": "image", "data_type": "TYPE_FP32", "dims": [3, 224, 224]}
    assert rows_per_run(read_settings(CONFIG | {"input": [image]}), {"image": (32, 3, 224, 224)}) == 2048


def test_dimensions_of_one_name_must_be_equal_and_fixed_ones_must_be_met(graph: Graph) -> None:
    check_shapes(graph.inputs, {"input_ids": (2, 5), "attention_mask": (2, 5)})
    with pytest.raises(ContractError, match=r"'attention_mask' has 3 in dimension 0, but input 'input_ids' has 2"):
        check_shapes(graph.inputs, {"input_ids": (2, 5), "attention_mask": (3, 5)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sequence_batching": {"direct": {}}}, "sequence_batching: not supported by this backend"),
        ({"optimization": {"graph": {"level": 7}}}, r"optimization\.graph\.level: 7 is not one of \[-1, 0, 1, 2\]"),
        (with_parameter("execution_mode", "parallel"), r"parameters\.execution_mode: 'parallel' is not 0 or 1"),
        (with_parameter("enable_mem_arena", "no"), r"parameters\.enable_mem_arena: 'no' is not 0 or 1"),
        (
            {"input": [{"name": "a", "data_type": "TYPE_STRING", "dims": [1]}]},
            "input 'a': data_type TYPE_STRING is not",
        ),
        ({"input": [{"name": "a", "data_type": "TYPE_FP32", "optional": True}]}, "input 'a': optional inputs are not"),
    ],
)
def test_what_would_have_to_be_ignored_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        read_settings(CONFIG | change)


def test_a_reshape_is_what_the_graph_sees() -> None:
    reshaped = {"name": "a", "data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}}
    assert read_settings(CONFIG | {"input": [reshaped]}).inputs[0].dims == ()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_of_one_request_wait_for_each_other_awake_for_as_long_as_the_benchmark_has_them(threads: int) -> None:
    settings = read_settings(CONFIG | {"parameters": {"intra_op_thread_count": {"string_value": str(threads)}}})
    options = session_options(settings)
    key = "session.intra_op." + ("allow_spinning" if threads == 1 else "spin_duration_us")
    assert options.get_session_config_entry(key) == ("0" if threads == 1 else placement.SPIN_MICROSECONDS)
