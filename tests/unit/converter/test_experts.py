"""Layers of experts: as one operator, in floats and in whole numbers, and grown as any other layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from checkpoints import change_json, tiny_decoder
from onnx_converter import load, quantize, routes
from onnx_converter.products import routers_of
from onnx_converter.reasons import StepFailedError
from onnx_converter.spec import ConversionSpec, Provider, Task
from unit.converter.test_layers import FUSED, GOAL, TRACE, answers, plan_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from onnx_converter.route import Route

EXPERTS, FEW, WIDTH, INNER, TOKENS = 6, 2, 32, 48, 5


def numbers(seed: int, *shape: int) -> NDArray[np.float32]:
    drawn: NDArray[np.float32] = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return drawn


UP = numbers(0, EXPERTS, 2 * INNER, WIDTH) * np.float32(0.25)
BIAS = numbers(1, EXPERTS, 2 * INNER)
DOWN = numbers(2, EXPERTS, WIDTH, INNER)


def write(path: Path, up: NDArray[np.float32] = UP, down: NDArray[np.float32] = DOWN) -> Path:
    """A router, and what its best experts make of each token, as the converter writes both."""
    nodes = [
        helper.make_node("MatMul", ["tokens", "router"], ["raw"], name="router"),
        helper.make_node("Softmax", ["raw"], ["scores"]),
        helper.make_node("MatMul", ["tokens", "beside"], ["other"], name="beside"),
        helper.make_node(
            "MoE",
            ["tokens", "scores", "up", "bias", "down"],
            ["made"],
            name="experts",
            domain="com.microsoft",
            k=FEW,
            activation_type="swiglu",
            activation_alpha=1.0,
            activation_beta=0.0,
            swiglu_fusion=1,
            normalize_routing_weights=1,
        ),
        helper.make_node("Add", ["made", "other"], ["answer"]),
    ]
    weights = {"router": numbers(3, WIDTH, EXPERTS), "beside": numbers(4, WIDTH, WIDTH), "up": up, "bias": BIAS}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["tokens", WIDTH])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["tokens", WIDTH])],
        [numpy_helper.from_array(values, name) for name, values in (weights | {"down": down}).items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    return path


def by_hand(tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    """Expert by expert, of rows of the gate and of what it gates in turn."""
    raw = tokens @ numbers(3, WIDTH, EXPERTS)
    scores = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    answer = tokens @ numbers(4, WIDTH, WIDTH)
    for row, token in enumerate(tokens):
        best = np.argsort(-scores[row])[:FEW]
        shares = np.exp(scores[row][best]) / np.exp(scores[row][best]).sum()
        for expert, share in zip(best, shares, strict=True):
            made = UP[expert] @ token + BIAS[expert]
            gate, up = made[::2], made[1::2]
            answer[row] += share * (DOWN[expert] @ (gate / (1 + np.exp(-gate)) * up))
    return answer


def asked(path: Path, tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    (answer,) = onnxruntime.InferenceSession(path, providers=[Provider.CPU]).run(None, {"tokens": tokens})
    return np.asarray(answer)


#: What is said of the operator in floats.
KNOWN = {"k", "activation_type", "activation_alpha", "activation_beta", "swiglu_fusion", "normalize_routing_weights"}
#: How far an answer may be from that in floats, as a share of its length; another expert's is further than all of it.
SCHEMES: dict[str, tuple[dict[str, Any], float]] = {
    "int8-dynamic": ({"scheme": "int8-dynamic"}, 0.03),
    "int8-static": ({"scheme": "int8-static"}, 0.03),
    "int8-weight-only": ({"scheme": "int8-weight-only"}, 0.02),
    "int4-weight-only": ({"scheme": "int4-weight-only"}, 0.2),
    "int4-weight-only, symmetric": ({"scheme": "int4-weight-only", "symmetric": True}, 0.2),
    "int4-weight-only in blocks of 128": ({"scheme": "int4-weight-only", "blockSize": 128}, 0.2),
}


@pytest.mark.parametrize("case", SCHEMES)
def test_weights_of_experts_are_in_whole_numbers_and_those_of_their_router_stay(case: str, tmp_path: Path) -> None:
    said, most = SCHEMES[case]
    source, target, tokens = write(tmp_path / "floats.onnx"), tmp_path / "whole.onnx", numbers(5, TOKENS, WIDTH)
    exact = asked(source, tokens)
    np.testing.assert_allclose(exact, by_hand(tokens), rtol=1e-3, atol=1e-3)
    quantize.quantise(ConversionSpec.model_validate(said), source, target, [{"tokens": tokens}])
    graph = onnx.load(target).graph
    kinds = [node.op_type for node in graph.node]
    assert ("MoE" in kinds, kinds.count("QMoE")) == (False, 1)
    (made,) = (node for node in graph.node if node.op_type == "QMoE")
    # onnxruntime 1.23 loads no graph that says more of it.
    assert {item.name for item in made.attribute} - KNOWN == {"expert_weight_bits", "block_size"}
    assert len(made.input) <= 8
    assert routers_of(onnx.load(source).graph) == {"router"}
    floats = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    assert {"router", "bias"} <= floats
    assert floats.isdisjoint({"up", "down", "beside"})
    moved = np.linalg.norm(asked(target, tokens) - exact) / np.linalg.norm(exact)
    assert 1e-4 < moved < most


def test_experts_can_be_left_out_by_name(tmp_path: Path) -> None:
    source, target = write(tmp_path / "floats.onnx"), tmp_path / "whole.onnx"
    for scheme in ("int8-dynamic", "int8-static"):
        spec = ConversionSpec.model_validate({"scheme": scheme, "exclude": ["exp*"]})
        quantize.quantise(spec, source, target, [{"tokens": numbers(5, TOKENS, WIDTH)}])
        assert "MoE" in {node.op_type for node in onnx.load(target).graph.node}


def test_a_static_graph_of_nothing_but_experts_is_refused_as_one_of_no_layers(tmp_path: Path) -> None:
    spec = ConversionSpec.model_validate({"scheme": "int8-static", "exclude": ["beside"]})
    with pytest.raises(StepFailedError, match="leaves none of 3 layers to quantise"):
        quantize.quantise(spec, write(tmp_path / "floats.onnx"), tmp_path / "whole.onnx")


def test_experts_of_widths_that_no_block_divides_stay_in_floats(tmp_path: Path) -> None:
    inner = INNER - 8
    source = write(tmp_path / "floats.onnx", UP[:, : 2 * inner], DOWN[:, :, :inner])
    model = onnx.load(source)
    model.graph.node[3].input[3] = ""
    source.write_bytes(model.SerializeToString())
    quantize.quantise(ConversionSpec.model_validate({"scheme": "int4-weight-only"}), source, tmp_path / "whole.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "whole.onnx").graph.node}
    assert {"MoE", "MatMulNBits"} <= kinds


def test_experts_that_are_all_asked_are_not_quantised_in_part(tmp_path: Path) -> None:
    checkpoint = load.load(tiny_decoder(tmp_path / "model", "mixtral", num_hidden_layers=1), Task.AUTO, None)
    routes._export(TRACE, checkpoint, tmp_path / "model", tmp_path / "graph", GOAL)
    for scheme in ("int8-dynamic", "int8-static", "int4-weight-only"):
        with pytest.raises(
            StepFailedError, match=f"quantization.scheme {scheme} has no form for the 4 experts"
        ) as told:
            quantize.quantise(
                ConversionSpec.model_validate({"scheme": scheme}), tmp_path / "graph" / "model.onnx", tmp_path / "whole"
            )
        assert told.value.reason.name == "SpecImpossible"


@pytest.mark.parametrize("route", [FUSED, TRACE], ids=lambda route: route.name)
def test_layers_of_experts_are_grown_and_answer_as_those_that_were_traced_whole(route: Route, tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "model", "mixtral", num_hidden_layers=5)
    checkpoint = load.load(folder, Task.AUTO, None)
    plan_of(checkpoint)
    for grows in (True, False):
        routes._export(route, checkpoint, folder, tmp_path / str(grows), GOAL, grows=grows)
    grown, whole = (answers(tmp_path / str(grows)) for grows in (True, False))
    assert grown.keys() == whole.keys()
    for name, values in grown.items():
        np.testing.assert_array_equal(values, whole[name], err_msg=name)
    kinds = [node.op_type for node in onnx.load(tmp_path / "True" / "model.onnx").graph.node]
    assert kinds.count("MoE") == (5 if route is FUSED else 0)


@pytest.mark.parametrize("name", ["num_experts", "num_local_experts"])
def test_the_number_of_experts_is_read_by_either_name_of_the_field(name: str, tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "model", "qwen3_moe", num_hidden_layers=1)
    change_json(folder / "config.json", num_experts=None, num_local_experts=None)
    change_json(folder / "config.json", **{name: 4})
    assert load.load(folder, Task.AUTO, None).model.config.num_experts == 4
