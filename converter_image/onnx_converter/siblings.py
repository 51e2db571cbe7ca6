"""Products of the same rows as one: a layer's queries, keys and values; its gate and what that lets through.

A model that writes multiplies one row for a token, and what such a product takes is mostly to wake the threads for it.
Side by side the weights are one matrix, and the answer is cut where they meet: each column is a sum of its own, so the
numbers stay, in fewer bits as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that one node alone reads."""

    value: onnx_ir.Value
    tensor: onnx_ir.TensorProtocol

    @property
    def width(self) -> int:
        return self.tensor.shape.numpy()[-1]


@dataclass(frozen=True, slots=True)
class Layer:
    """A product with a weight, and what adds the bias to it, if any does."""

    nodes: tuple[onnx_ir.Node, ...]
    weight: Constant
    bias: Constant | None

    @classmethod
    def of(cls, node: onnx_ir.Node) -> Layer | None:
        weight = _constant(node.inputs[1], 2) if node.op_type == "MatMul" else None
        if weight is None:
            return None
        added = [use.node for use in node.outputs[0].uses()]
        if len(added) == 1 and added[0].op_type == "Add":
            for value in added[0].inputs:
                if (bias := _constant(value, 1)) is not None and bias.width == weight.width:
                    return cls((node, added[0]), weight, bias)
        return cls((node,), weight, None)

    @property
    def end(self) -> onnx_ir.Value:
        return self.nodes[-1].outputs[0]


def join(model: onnx_ir.Model) -> None:
    """In place; what comes of several layers has the names of them all."""
    alike: dict[object, list[Layer]] = {}
    for node in model.graph:
        if (layer := Layer.of(node)) is not None:
            alike.setdefault((node.inputs[0], layer.weight.tensor.dtype, layer.bias is None), []).append(layer)
    for layers in alike.values():
        if len(layers) > 1:
            _join(model.graph, layers)


def _join(graph: onnx_ir.Graph, layers: Sequence[Layer]) -> None:
    first = layers[0].nodes[0]
    name = _name(str(layer.nodes[0].name) for layer in layers)
    weight = _beside(graph, [layer.weight for layer in layers], f"{name}.weight")
    made = [onnx_ir.node("MatMul", [first.inputs[0], weight], name=name)]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if biases:
        bias = _beside(graph, biases, f"{name}.bias")
        made.append(onnx_ir.node("Add", [made[0].outputs[0], bias], name=f"{name}.sum"))
    sizes = onnx_ir.tensor(np.array([layer.weight.width for layer in layers]), name=f"{name}.widths")
    widths = onnx_ir.Value(name=sizes.name, const_value=sizes)
    graph.register_initializer(widths)
    cut = onnx_ir.node(
        "Split", [made[-1].outputs[0], widths], {"axis": -1}, num_outputs=len(layers), name=f"{name}.parts"
    )
    onnx_ir.convenience.replace_nodes_and_values(
        graph,
        first,
        [node for layer in layers for node in layer.nodes],
        [*made, cut],
        [layer.end for layer in layers],
        cut.outputs,
    )


def _beside(graph: onnx_ir.Graph, constants: Sequence[Constant], name: str) -> onnx_ir.Value:
    """One constant of several, put together when it is written, as what they are made of is read only then."""
    tensors = [constant.tensor for constant in constants]
    shape = onnx_ir.Shape([*tensors[0].shape.numpy()[:-1], sum(constant.width for constant in constants)])
    lazy = onnx_ir.LazyTensor(partial(_concatenated, tensors, shape.numpy(), name), tensors[0].dtype, shape, name=name)
    made = onnx_ir.Value(name=name, shape=shape, type=constants[0].value.type, const_value=lazy)
    graph.register_initializer(made)
    for constant in constants:
        graph.initializers.pop(str(constant.value.name))
    return made


def _concatenated(tensors: Sequence[onnx_ir.TensorProtocol], shape: Sequence[int], name: str) -> onnx_ir.TensorProtocol:
    arrays = [tensor.numpy() for tensor in tensors]
    # In the order of rows, as it is written: those of matrices that are turned would come out turned as well.
    made = np.empty(shape, arrays[0].dtype)
    return onnx_ir.tensor(np.concatenate(arrays, axis=-1, out=made), name=name)


def _constant(value: onnx_ir.Value | None, rank: int) -> Constant | None:
    if value is None or not value.is_initializer() or len(value.uses()) > 1:
        return None
    tensor = value.const_value
    return Constant(value, tensor) if tensor is not None and len(tensor.shape) == rank else None


def _name(layers: Iterable[str]) -> str:
    """As in `layers.0.mlp.gate_proj+up_proj`, `h.0.self_attention+mlp.query_key_value+dense_h_to_4h` or
    `layers.0+1.encoder_attn.k_proj+v_proj`: wherever they are not called alike, by all that stands there.
    """
    parts = zip_longest(*(name.split(".") for name in layers), fillvalue="")
    return ".".join("+".join(dict.fromkeys(filter(None, words))) for words in parts)
