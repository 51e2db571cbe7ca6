"""Where nodes may run, by what onnxruntime's profile says of them."""

from __future__ import annotations

import pytest

from onnx_converter.placement import counted
from onnx_converter.reasons import StepFailedError
from onnx_converter.spec import Provider

CPU, CUDA, TENSORRT = map(str, (Provider.CPU, Provider.CUDA, Provider.TENSORRT))
ENGINE = ("TRTKernel_graph_main_7141592653_0", TENSORRT, "TRTKernel_graph_main_7141592653_0")


def test_an_engine_is_one_node_of_a_name_that_stays() -> None:
    nodes = [ENGINE, ("Gather", CPU, "a"), ("MatMul", CUDA, "b"), ("MatMul", CUDA, "c")]
    assert counted(nodes, Provider.TENSORRT) == {
        "Gather": {CPU: 1},
        "MatMul": {CUDA: 2},
        "TRTKernel": {TENSORRT: 1},
    }


@pytest.mark.parametrize(
    ("provider", "nodes", "message"),
    [
        pytest.param(
            Provider.TENSORRT, [ENGINE, ("MatMul", CPU, "b")], "node b .MatMul. ran on CPU", id="neither of two devices"
        ),
        pytest.param(
            Provider.TENSORRT,
            [("MatMul", CUDA, "b")],
            "no node of the graph ran on Tensorrt",
            id="the second one alone",
        ),
        pytest.param(
            Provider.CUDA, [("Add", CUDA, "a"), ("MatMul", CPU, "b")], "node b .MatMul. ran on CPU", id="not the device"
        ),
    ],
)
def test_a_heavy_node_elsewhere_is_a_failure(
    provider: Provider, nodes: list[tuple[str, str, str]], message: str
) -> None:
    with pytest.raises(StepFailedError, match=message):
        counted(nodes, provider)


@pytest.mark.parametrize(
    "operator",
    [
        "Conv",
        "QLinearConv",
        "QLinearMatMul",
        "MatMulNBits",
        "GroupQueryAttention",
        "RotaryEmbedding",
        "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    ],
)
def test_what_takes_the_time_of_a_model_is_heavy_whatever_it_is_called(operator: str) -> None:
    nodes = [("Add", CUDA, "a"), (operator, CPU, "b")]
    with pytest.raises(StepFailedError, match=f"node b .{operator}. ran on CPU"):
        counted(nodes, Provider.CUDA)
    assert counted([("Shape", CPU, "a"), (operator, CUDA, "b")], Provider.CUDA)[operator] == {CUDA: 1}
