"""Which products of a graph are its layers: those by a weight, as it lies there or turned on the way; and experts.

A weight that words in and out share lies there once, and is turned on the way to its layer. Refuses nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Container

    import onnx

PRODUCTS: Final = ("MatMul", "Gemm")
#: All experts of a layer as one operator.
EXPERTS: Final = "MoE"
#: Where it reads the weights that go up and those that go down; the bias of each is next.
UP: Final = 2
DOWN: Final = 4


def layers_of(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    constants = {tensor.name for tensor in graph.initializer}
    return products_by(constants | turned_in(graph, constants).keys(), graph)


def products_by(weights: Container[str], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type in PRODUCTS and node.input[1] in weights]


def experts_of(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == EXPERTS]


def routers_of(graph: onnx.GraphProto) -> frozenset[str]:
    """Layers that choose which experts a token asks: rounded, they choose others, and an answer is another."""
    makers = {output: node for node in graph.node for output in node.output}
    found, left = set[str](), [node.input[1] for node in experts_of(graph)]
    while left:
        node = makers.pop(left.pop(), None)
        if node is not None and node.op_type in PRODUCTS:
            found.add(node.name)
        elif node is not None and node.op_type != "Shape":
            left.extend(node.input)
    return frozenset(found)


def turned_in(graph: onnx.GraphProto, constants: Container[str]) -> dict[str, str]:
    """The weights that nodes do nothing with but turn them, by what they are called then."""
    return {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Transpose"
        and node.input[0] in constants
        and [list(item.ints) for item in node.attribute] == [[1, 0]]
    }
