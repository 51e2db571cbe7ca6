"""Graphs are read and written weight by weight, to the byte as protobuf does it with all of them in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from onnx_converter import export, wire

if TYPE_CHECKING:
    from pathlib import Path

LARGE = np.arange(wire.LARGE, dtype=np.float32).reshape(64, -1)


def a_model() -> onnx.ModelProto:
    """With a large weight between small ones, and fields on either side of each weight's bytes."""
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 64]) for name in ("x", "y"))
    weights = [numpy_helper.from_array(LARGE[:1, :2], "small"), numpy_helper.from_array(LARGE, "large")]
    weights.append(numpy_helper.from_array(LARGE + 1, "larger"))
    weights[1].doc_string = "said after the bytes"
    nodes = [helper.make_node("MatMul", ["x", "large"], ["y"], name="product")]
    graph = helper.make_graph(nodes, "graph", [given], [made], weights, doc_string="of the graph")
    return helper.make_model(graph, producer_name="test", functions=[], opset_imports=[helper.make_opsetid("", 18)])


def test_a_graph_that_is_read_without_its_weights_is_written_with_them_as_it_was(tmp_path: Path) -> None:
    onnx.save(a_model(), tmp_path / "one.onnx")
    outline = wire.outline(tmp_path / "one.onnx")
    assert [uses_external_data(tensor) for tensor in outline.graph.initializer] == [False, True, True]
    assert outline.ByteSize() < wire.LARGE
    wire.write(
        outline,
        tmp_path / "two.onnx",
        lambda tensor, stream: stream.write(wire.mapped(tensor, tmp_path).data),
    )
    assert (tmp_path / "two.onnx").read_bytes() == (tmp_path / "one.onnx").read_bytes()


def test_an_export_is_saved_as_its_own_library_would_save_it(tmp_path: Path) -> None:
    model = onnx_ir.from_proto(a_model())
    onnx_ir.save(model, tmp_path / "library.onnx")
    export.save(model, tmp_path / "ours.onnx")
    assert (tmp_path / "ours.onnx").read_bytes() == (tmp_path / "library.onnx").read_bytes()
    assert model.graph.initializers["large"].const_value is not None
    np.testing.assert_array_equal(model.graph.initializers["large"].const_value.numpy(), LARGE)


def test_a_weight_stays_in_its_file(tmp_path: Path) -> None:
    onnx.save(a_model(), tmp_path / "one.onnx")
    small, large, _ = wire.outline(tmp_path / "one.onnx").graph.initializer
    np.testing.assert_array_equal(wire.mapped(small, tmp_path), LARGE[:1, :2])
    mapped = wire.mapped(large, tmp_path)
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, LARGE)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_file_that_is_cut_is_no_graph(share: float, tmp_path: Path) -> None:
    onnx.save(a_model(), tmp_path / "one.onnx")
    data = (tmp_path / "one.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match="it is cut"):
        wire.outline(tmp_path / "cut.onnx")


def test_what_is_no_protobuf_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="it is"):
        wire.outline(tmp_path / "text.onnx")


def test_a_weight_of_another_size_than_was_said_is_told(tmp_path: Path) -> None:
    onnx.save(a_model(), tmp_path / "one.onnx")
    with pytest.raises(ValueError, match=r"two\.onnx: a weight has another size"):
        wire.write(wire.outline(tmp_path / "one.onnx"), tmp_path / "two.onnx", lambda _, stream: stream.write(b"less"))
