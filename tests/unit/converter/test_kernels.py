"""What has no kernel is refused for its time, of products as the quantiser writes them and as it must not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from checkpoints import tiny
from onnx_converter import kernels, quantize, wire
from onnx_converter.reasons import StepFailedError
from onnx_converter.spec import ConversionSpec, Provider

if TYPE_CHECKING:
    from pathlib import Path

    from unit.converter.steps import Line

INNER, OUTER, BLOCK = 512, 256, 32
WEIGHTS = np.random.default_rng(0).standard_normal((INNER, OUTER), dtype=np.float32)


def saved(folder: Path, nodes: list[onnx.NodeProto], weights: dict[str, Any], outer: int = OUTER) -> Path:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", INNER])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outer])
    held = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "g", [given], [answer], held)
    folder.mkdir(exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")
    return folder / "model.onnx"


def floats(folder: Path) -> Path:
    # What comes before and after a layer is none of its time.
    nodes = [
        helper.make_node("Sin", ["x"], ["given"]),
        helper.make_node("MatMul", ["given", "w"], ["product"], name="layer"),
        helper.make_node("Cos", ["product"], ["y"]),
    ]
    return saved(folder, nodes, {"w": WEIGHTS})


def quantised(folder: Path, scheme: str) -> Path:
    """By the converter's own quantiser."""
    source, target = floats(folder), folder / "quantised.onnx"
    texts = [{"x": np.ones((4, INNER), np.float32)}]
    quantize.quantise(ConversionSpec(scheme=scheme), source, target, texts)
    return target


def rounded_to_16_bits(folder: Path) -> Path:
    """Whole numbers that onnxruntime has no product for: they become floats again, for every call."""
    rounding = ("scale", "middle")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *rounding], ["whole"]),
        helper.make_node("DequantizeLinear", ["whole", *rounding], ["given"]),
        helper.make_node("DequantizeLinear", ["w", "scales", "zeros"], ["floats"], axis=1),
        helper.make_node("MatMul", ["given", "floats"], ["product"], name="layer"),
        helper.make_node("QuantizeLinear", ["product", *rounding], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", *rounding], ["y"]),
    ]
    weights = {
        "w": WEIGHTS.round().astype(np.int8),
        "scales": np.full(OUTER, 0.03, np.float32),
        "zeros": np.zeros(OUTER, np.int8),
        "scale": np.float32(0.001),
        "middle": np.uint16(32768),
    }
    return saved(folder, nodes, weights)


def zeros_in_floats(folder: Path) -> Path:
    """Four bits as HQQ has them."""
    said = {"K": INNER, "N": OUTER, "bits": 4, "block_size": BLOCK}
    nodes = [helper.make_node("MatMulNBits", ["x", "w", "s", "z"], ["y"], "layer", domain="com.microsoft", **said)]
    blocks = INNER // BLOCK
    weights = {
        "w": np.full((OUTER, blocks, BLOCK // 2), 0x5A, np.uint8),
        "s": np.full(OUTER * blocks, 0.03, np.float32),
        "z": np.full(OUTER * blocks, 7.5, np.float32),
    }
    return saved(folder, nodes, weights)


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-static", "int8-weight-only", "int4-weight-only"])
def test_what_the_quantiser_makes_is_about_as_fast_as_floats_or_faster(scheme: str, tmp_path: Path) -> None:
    path = quantised(tmp_path, scheme)
    (product,) = kernels.products(wire.outline(path))
    assert (product.inner, product.outer) == (INNER, OUTER)
    assert not {"Sin", "Cos"} & {node.op_type for node in product.nodes}
    assert set(kernels.refuse_slow([(path, Provider.CPU)])) == {product.layer}


def test_a_product_of_rounded_numbers_without_a_kernel_is_refused_with_its_layer_and_how_slow_it_is(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        StepFailedError, match=r"model\.onnx: layer, a matrix of 512 x 256, takes .* times for 1 and"
    ) as raised:
        kernels.refuse_slow([(rounded_to_16_bits(tmp_path), Provider.CPU)])
    assert raised.value.reason.name == "KernelSlow"
    assert "choose another scheme" in raised.value.message


def test_products_are_told_by_how_long_they_take_and_not_by_what_they_are_called(tmp_path: Path) -> None:
    """Nearest to the bound of all that is bad: asked of both, in one run."""
    slow, fast = zeros_in_floats(tmp_path / "slow"), quantised(tmp_path / "fast", "int4-weight-only")
    ratios = {}
    for path in (slow, fast):
        (product,) = kernels.products(model := wire.outline(path))
        ratios[path] = max(kernels._ratios(kernels._alone(model, product, path.parent), product, Provider.CPU))
    assert ratios[slow] > 2 * ratios[fast]


def test_floats_small_matrices_and_what_another_runtime_makes_of_it_are_left_alone(tmp_path: Path) -> None:
    assert kernels.refuse_slow([(floats(tmp_path / "floats"), Provider.CPU)]) == {}
    assert kernels.refuse_slow([(rounded_to_16_bits(tmp_path / "engine"), Provider.TENSORRT)]) == {}
    small = {"w": np.ones((INNER, 4), np.int8), "s": np.float32(0.03)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["floats"]),
        helper.make_node("MatMul", ["x", "floats"], ["y"]),
    ]
    assert kernels.refuse_slow([(saved(tmp_path / "small", nodes, small, 4), Provider.CPU)]) == {}


def test_a_model_that_is_as_good_as_the_original_and_slow_is_published_by_nobody(
    tmp_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = line.fetch(tiny(tmp_path / "model")).details["digest"]
    spec: dict[str, Any] = {"scheme": "int8-dynamic"}
    assert line.convert(digest, **spec).code == 0
    good = line.validate(digest, **spec)
    assert good.summary.reason == "Validated", good.summary.message
    assert next(said["layers"] for said in good.lines if said["event"] == "KernelsTimed") == 0, "it is too small"
    # Of a model of such a size, any kernel is slow, and none is as fast as this.
    monkeypatch.setattr(kernels, "_LEAST", 1)
    monkeypatch.setattr(kernels, "_SLOW", 1e-3)
    ended = line.validate(digest, **spec)
    assert (ended.summary.reason, ended.code) == ("KernelSlow", 69)
    report = json.loads((line.work / "validation-CPUExecutionProvider" / "report.json").read_text())
    assert (report["verdict"], report["reason"]) == ("Failed", "KernelSlow")
    assert line.publish(**spec).summary.outcome == "Failed"
