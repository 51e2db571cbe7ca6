"""Products of the same rows become one, and answer as they did, number by number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_converter import siblings
from unit.converter.rewriting import rewritten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

WIDTH = 8
#: Layers by name: what it multiplies, how many columns, whether a bias is added.
ATTENTION = {"block.q": ("x", 8, True), "block.k": ("x", 4, True), "block.v": ("x", 4, True)}
GATED = {"block.mlp.gate": ("x", 12, False), "block.mlp.up": ("x", 12, False)}


def layer(name: str, rows: str, columns: int, *, biased: bool) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    random = np.random.default_rng(len(name) + columns)
    weight = numpy_helper.from_array(random.standard_normal((WIDTH, columns)).astype(np.float32), f"{name}.w")
    product = f"{name}.product" if biased else name
    nodes, tensors = [helper.make_node("MatMul", [rows, weight.name], [product], name=name)], [weight]
    if biased:
        tensors.append(numpy_helper.from_array(random.standard_normal(columns).astype(np.float32), f"{name}.b"))
        # The exporter writes either order.
        nodes.append(helper.make_node("Add", [tensors[1].name, product], [name], name=f"{name}.add"))
    return nodes, tensors


def info(name: str, *shape: str | int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def graph_of(layers: Mapping[str, tuple[str, int, bool]], *more: onnx.NodeProto) -> onnx.ModelProto:
    made = [layer(name, rows, columns, biased=biased) for name, (rows, columns, biased) in layers.items()]
    ends = [*layers, *(output for node in more for output in node.output)]
    return helper.make_model(
        helper.make_graph(
            [*more, *(node for nodes, _ in made for node in nodes)],
            "graph",
            [info("x", "batch", "length", WIDTH)],
            [info(name, *(f"{name} {axis}" for axis in "abc")) for name in ends],
            [tensor for _, tensors in made for tensor in tensors],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )


def joined(graph: onnx.ModelProto) -> onnx.ModelProto:
    return rewritten(graph, siblings.join)


def answers(graph: onnx.ModelProto) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = np.random.default_rng(0).standard_normal((2, 3, WIDTH)).astype(np.float32)
    return [np.asarray(answer) for answer in session.run(None, {"x": rows})]


def names_of(graph: onnx.ModelProto) -> set[str]:
    return {node.name for node in graph.graph.node if node.op_type == "MatMul"}


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (ATTENTION, {"block.q+k+v"}),
        (GATED, {"block.mlp.gate+up"}),
        # With a bias and without one.
        ({**ATTENTION, **GATED}, {"block.q+k+v", "block.mlp.gate+up"}),
        ({"one": ("x", 8, False), "of another": ("y", 8, False)}, {"one", "of another"}),
        (dict.fromkeys(("0.cross.k", "0.cross.v", "1.cross.k", "1.cross.v"), ("x", 8, False)), {"0+1.cross.k+v"}),
        ({"block.attention.q": ("x", 8, False), "block.up": ("x", 8, False)}, {"block.attention+up.q"}),
    ],
    ids=["attention", "gate", "both", "other rows", "several blocks", "other depths"],
)
def test_products_of_the_same_rows_are_one(layers: Mapping[str, tuple[str, int, bool]], names: set[str]) -> None:
    graph = graph_of(layers, helper.make_node("Neg", ["x"], ["y"]))
    made = joined(graph)
    assert names_of(made) == names
    for before, after in zip(answers(graph), answers(made), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)
    assert sum(tensor.name.endswith((".w", ".b")) for tensor in made.graph.initializer) == (
        0 if len(names) < len(layers) else len(layers)
    ), "each weight once"


def test_a_weight_that_something_else_reads_stays_where_it_is() -> None:
    shared = helper.make_node("Gather", ["block.k.w", "zero"], ["words"])
    graph = graph_of(ATTENTION, shared)
    graph.graph.initializer.append(numpy_helper.from_array(np.array([[0]]), "zero"))
    made = joined(graph)
    assert names_of(made) == {"block.q+v", "block.k"}
    for before, after in zip(answers(graph), answers(made), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)
