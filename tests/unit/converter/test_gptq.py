"""GPTQ: what is moved is made up for, and what comes out is what the graph multiplies by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from checkpoints import tiny_encoder_decoder
from onnx_converter import gptq, quantize
from onnx_converter.spec import ConversionSpec

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from unit.converter.steps import Line

ROWS, COLUMNS = 72, 24


def weights() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((ROWS, COLUMNS), dtype=np.float32)


def correlated(rows: int = 400) -> NDArray[np.float32]:
    """Inputs such as layers get: a few directions carry nearly all."""
    random = np.random.default_rng(1)
    few = random.standard_normal((rows, 9)) @ random.standard_normal((9, ROWS))
    return (few + 0.05 * random.standard_normal((rows, ROWS))).astype(np.float32)


def error(given: NDArray[np.float32], made: NDArray[np.float32]) -> float:
    exact = given @ weights()
    return float(np.linalg.norm(given @ made - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_what_is_moved_is_made_up_for_by_the_rows_that_are_left(block: int, *, symmetric: bool) -> None:
    given, others = np.split(correlated(), 2)
    plain = gptq.rounded(weights(), np.eye(ROWS), block, symmetric=symmetric).weights(block)
    made = gptq.rounded(weights(), given.T @ given, block, symmetric=symmetric).weights(block)
    assert error(given, made) < 0.4 * error(given, plain)
    assert error(others, made) < 0.5 * error(others, plain), "on inputs that it was not made for"


def test_inputs_that_have_nothing_to_do_with_each_other_leave_plain_rounding() -> None:
    found = gptq.rounded(weights(), np.eye(ROWS), 32, symmetric=False)
    nearest = np.abs(found.weights(32) - weights())
    assert (nearest <= np.repeat(found.scales, 32, axis=0)[:ROWS] * 0.5 + 1e-6).all()


def test_a_row_that_no_input_reaches_moves_nothing_and_breaks_nothing() -> None:
    given = correlated()
    given[:, 5] = 0
    found = gptq.rounded(weights(), given.T @ given, 32, symmetric=False)
    assert np.isfinite(found.weights(32)).all()


def write(path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["given", "weights"], ["first"], name="first"),
        # A product of activations: its inputs are no layer's.
        helper.make_node("Transpose", ["first"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["turned", "first"], ["scores"], name="scores"),
        helper.make_node("MatMul", ["first", "scores"], ["answer"], name="mixed"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("given", TensorProto.FLOAT, ["sequence", ROWS])],
        [helper.make_tensor_value_info("first", TensorProto.FLOAT, ["sequence", COLUMNS])],
        [numpy_helper.from_array(weights(), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def requests() -> list[dict[str, NDArray[Any]]]:
    return [{"given": part} for part in np.split(correlated(), 4)]


# Of 72 rows the last block is cut; of 16 there are five, so that the last zero has a byte of its own.
@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_graph_multiplies_by_what_was_rounded(block: int, tmp_path: Path, *, symmetric: bool) -> None:
    said = {"scheme": "int4-weight-only", "algorithm": "gptq", "blockSize": block, "symmetric": symmetric}
    source, target = write(tmp_path / "source.onnx"), tmp_path / "target.onnx"
    quantize.quantise(ConversionSpec.model_validate(said), source, target, requests())
    model = onnx.load(target)
    for node in model.graph.node:
        for item in node.attribute:
            if item.name == "accuracy_level":
                # In floats, so that only the weights are rounded.
                item.i = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = correlated()
    made = gptq.rounded(weights(), given.T @ given, block, symmetric=symmetric).weights(block)
    np.testing.assert_allclose(session.run(None, {"given": given})[0], given @ made, atol=2e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.onnx", "target.onnx"]


def test_only_what_goes_into_a_layer_that_is_quantised_is_measured(tmp_path: Path) -> None:
    source = write(tmp_path / "source.onnx")
    assert gptq.Inputs.of(source, requests()).names == ["given"]
    model = onnx.load(source)
    square = numpy_helper.from_array(np.eye(COLUMNS, dtype=np.float32), "square")
    model.graph.initializer.append(square)
    for name, perm, given in (("a layer", [1, 0], "first"), ("as it was", [0, 1], "answer")):
        model.graph.node.append(helper.make_node("Transpose", ["square"], [f"{name} turned"], perm=perm))
        model.graph.node.append(helper.make_node("MatMul", [given, f"{name} turned"], [f"{name} answer"], name=name))
    onnx.save(model, source)
    assert gptq.Inputs.of(source, requests()).names == ["given", "first"]
    spec = ConversionSpec.model_validate({"scheme": "int4-weight-only", "algorithm": "gptq"})
    quantize.quantise(spec, source, tmp_path / "target.onnx", requests())
    made = {node.name for node in onnx.load(tmp_path / "target.onnx").graph.node if node.op_type == "MatMulNBits"}
    assert made == {"first_Q4"}


def test_texts_without_an_algorithm_that_reads_them_are_refused() -> None:
    calibration = {"configMap": {"name": "texts", "key": "t"}, "digest": f"sha256:{'a' * 64}"}
    with pytest.raises(ValueError, match="no meaning with algorithm rtn"):
        ConversionSpec.model_validate({"scheme": "int4-weight-only", "calibration": calibration})


def test_an_algorithm_that_is_useless_on_the_cpu_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="slower than none: use rtn or gptq"):
        ConversionSpec.model_validate({"scheme": "int4-weight-only", "algorithm": "hqq"})


def test_a_model_of_two_graphs_is_refused_with_the_way_out(line: Line) -> None:
    words = "quantization.algorithm gptq is for models of one graph: use rtn for t5"
    asked = {"scheme": "int4-weight-only", "algorithm": "gptq"}
    line.refuses(tiny_encoder_decoder(line.root / "source"), "SpecImpossible", words, **asked)
