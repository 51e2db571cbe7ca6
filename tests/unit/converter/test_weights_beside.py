"""Weights in a file beside the graph: as large models have them, and as an attacker would write them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_converter import graph, quantize
from onnx_converter.reasons import StepFailedError
from onnx_converter.spec import AS_EXPORTED, ConversionSpec, Scheme

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write(folder: Path, **external: str) -> Path:
    """A graph of one multiplication whose weights are described as given."""
    weights = numpy_helper.from_array(np.ones((3, 3), np.float32), "weights")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in external.items():
        weights.external_data.add(key=key, value=value)
    made = helper.make_graph(
        [
            helper.make_node("Cast", ["input_ids"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["numbers", "weights"], ["logits"]),
        ],
        "graph",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [weights],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (folder / "weights.data").write_bytes(b"\0" * 36)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def inspect(path: Path) -> graph.GraphFacts:
    return graph.inspect(
        path, [graph.TensorSpec("input_ids", "INT64", (-1, -1))], [graph.TensorSpec("logits", "FP32", (-1,))]
    )


def test_weights_beside_the_graph_are_counted_with_it(tmp_path: Path) -> None:
    path = write(tmp_path, location="weights.data", offset="0", length="36")
    assert inspect(path).bytes == path.stat().st_size + 36


def _hard_link(folder: Path) -> None:
    (folder / "weights.data").rename(folder.parent / "secret")
    os.link(folder.parent / "secret", folder / "weights.data")


def _symbolic_link(folder: Path) -> None:
    (folder / "weights.data").rename(folder.parent / "secret")
    (folder / "weights.data").symlink_to(folder.parent / "secret")


def _folder(folder: Path) -> None:
    (folder / "weights.data").unlink()
    (folder / "weights.data").mkdir()


def _nothing(_folder: Path) -> None:
    """The description alone is wrong."""


WRONG: dict[str, tuple[dict[str, str], Callable[[Path], None]]] = {
    "an absolute path": ({"location": "/etc/hostname"}, _nothing),
    "a path that leads out": ({"location": "../weights.data"}, _nothing),
    "a folder": ({"location": "weights.data"}, _folder),
    "no location": ({"offset": "0"}, _nothing),
    "an empty location": ({"location": ""}, _nothing),
    "a negative offset": ({"location": "weights.data", "offset": "-4"}, _nothing),
    "an offset that is no number": ({"location": "weights.data", "offset": "x"}, _nothing),
    "ten terabytes": ({"location": "weights.data", "length": "10000000000000"}, _nothing),
    "bytes after the end": ({"location": "weights.data", "offset": "32", "length": "8"}, _nothing),
    "a hard link": ({"location": "weights.data"}, _hard_link),
    "a symbolic link": ({"location": "weights.data"}, _symbolic_link),
}


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.replace(" ", "-"))
def test_weights_that_are_not_the_graphs_own_are_refused(case: str, tmp_path: Path) -> None:
    external, change = WRONG[case]
    folder = tmp_path / "graph"
    folder.mkdir()
    path = write(folder, **external)
    change(folder)
    with pytest.raises(StepFailedError) as caught:
        inspect(path)
    assert caught.value.reason.name == "GraphRefused"
    assert "model.onnx" in caught.value.message


@pytest.mark.parametrize(
    ("opset", "ir_version", "fits"), [(18, 10, True), (23, 11, True), (24, 11, False), (18, 12, False)]
)
def test_a_graph_newer_than_the_server_is_refused(tmp_path: Path, opset: int, ir_version: int, *, fits: bool) -> None:
    path = write(tmp_path, location="weights.data")
    model: Any = onnx.load(path, load_external_data=False)
    model.opset_import[0].version = opset
    model.ir_version = ir_version
    path.write_bytes(model.SerializeToString())
    if fits:
        assert inspect(path).opset == opset
        return
    with pytest.raises(StepFailedError, match="lower opset"):
        inspect(path)


@pytest.mark.parametrize("scheme", sorted(set(Scheme) - AS_EXPORTED - {Scheme.AUTO}))
def test_what_is_quantised_of_weights_beside_the_graph_has_its_own_beside_it(scheme: Scheme, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)
    made = helper.make_graph(
        [helper.make_node("MatMul", ["numbers", "weights"], ["product"], name="layer")],
        "graph",
        [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, ["batch", 64])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    source, target = tmp_path / "exported" / "model.onnx", tmp_path / "model.onnx"
    source.parent.mkdir()
    onnx.save_model(model, source, save_as_external_data=True, location="model.onnx.data")
    numbers = np.ones((1, 64), np.float32)
    quantize.quantise(ConversionSpec(scheme=scheme), source, target, [{"numbers": numbers}])
    assert sorted(path.name for path in source.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "model.onnx", "model.onnx.data"]
    (found,) = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"]).run(None, {"numbers": numbers})
    assert np.linalg.norm(found - numbers @ weights) < 0.2 * np.linalg.norm(numbers @ weights)
