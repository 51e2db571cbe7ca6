"""The same arithmetic in the words that onnxruntime has fast kernels for.

onnxruntime recognises a handful of patterns in a graph and puts one operator in their place. torch's exporter writes
some of them otherwise, so that they are not recognised; and one is better not recognised.
"""

from __future__ import annotations

from typing import Final

import onnx_ir

from onnx_converter.spec import Provider

_HALF: Final = 0.5


def settle(model: onnx_ir.Model, provider: Provider) -> None:
    """Rewrites a graph in place; every rewrite gives the same numbers."""
    for node in list(model.graph):
        if node.op_type == "Mul":
            _divide(model, node)
            _halve_last(node)
            if provider is Provider.CPU:
                _multiply_in_floats(model, node)
        if provider is Provider.CPU and node.op_type == "LayerNormalization":
            _keep_apart(node)


def _divide(model: onnx_ir.Model, node: onnx_ir.Node) -> None:
    """By a root, instead of multiplying by its reciprocal: onnxruntime knows a norm by that and makes it one node."""
    for other, factor in (node.inputs, node.inputs[::-1]):
        reciprocal = maker(factor, "Reciprocal")
        if reciprocal is None or maker(root := reciprocal.inputs[0], "Sqrt") is None:
            continue
        node.op_type = "Div"
        node.replace_input_with(0, other)
        node.replace_input_with(1, root)
        if not reciprocal.outputs[0].uses():
            model.graph.remove(reciprocal, safe=True)
        return


def _halve_last(node: onnx_ir.Node) -> None:
    """The half of x (1 + erf), instead of x by the half of (1 + erf): onnxruntime knows GELU by that."""
    for x, factor in (node.inputs, node.inputs[::-1]):
        halved = maker(factor, "Mul")
        if halved is None or len(halved.outputs[0].uses()) > 1:
            continue
        for half, sum_ in (halved.inputs, halved.inputs[::-1]):
            added = maker(sum_, "Add")
            if _number(half) == _HALF and added is not None and any(maker(term, "Erf") for term in added.inputs):
                halved.replace_input_with(0, x)
                halved.replace_input_with(1, sum_)
                node.replace_input_with(0, halved.outputs[0])
                node.replace_input_with(1, half)
                return


def _keep_apart(node: onnx_ir.Node) -> None:
    """The sum that is normalised by another name: as one operator with its norm, onnxruntime's kernel for the CPU takes
    ten times as long as both alone.
    """
    if (added := maker(node.inputs[0], "Add")) is not None:
        added.op_type = "Sum"


def _multiply_in_floats(model: onnx_ir.Model, node: onnx_ir.Node) -> None:
    """Two numbers of bfloat16, as in a Falcon's ALiBi: the CPU has no kernel for them, and their product in float32,
    rounded once, is the same number.
    """
    product, half = node.outputs[0], onnx_ir.DataType.BFLOAT16
    if product.dtype is not half:
        return
    wide = [onnx_ir.node("Cast", [value], {"to": onnx_ir.DataType.FLOAT}) for value in node.inputs]
    times = onnx_ir.node("Mul", [one.outputs[0] for one in wide])
    cast = onnx_ir.node("Cast", times.outputs, {"to": half})
    onnx_ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], [*wide, times, cast], [product], cast.outputs
    )


def maker(value: onnx_ir.Value | None, kind: str) -> onnx_ir.Node | None:
    """The node of this operator that makes a value, if one does."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == kind else None


def _number(value: onnx_ir.Value | None) -> float | None:
    constant = value.const_value if value is not None else None
    return constant.numpy().item() if constant is not None and constant.size == 1 else None
