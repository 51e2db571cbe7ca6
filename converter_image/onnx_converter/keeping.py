"""Attention that keeps its cache by itself, and reads heads as the layers before it write them.

fused.py is given heads one after the other and a cache that transformers put together. MultiHeadAttention puts new keys
and values to the past by itself, and reads heads side by side, as RotaryEmbedding does: nothing needs to be turned,
reshaped and joined around them, and each such node costs a token its time. Leaves a layer as it is whose keys or values
come otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir
from onnx_ir.convenience import replace_all_uses_with
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnx_converter.idioms import maker

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_ATTENTION: Final = "MultiHeadAttention"
_ROTATION: Final = "RotaryEmbedding"
#: Heads before tokens, of tokens before heads or the other way round.
_TURNED: Final = (0, 2, 1, 3)
#: Heads of a group before tokens, of (batch, tokens, kept heads, heads of a group, width).
_GROUPED: Final = (0, 3, 1, 2, 4)
_TOKENS: Final = (2, -2)
#: Operators that go by single numbers, or along the last axis: whether heads or tokens come first is one to them.
_OF_NUMBERS: Final = frozenset({"Add", "Cast", "Div", "Mul", "Pow", "Sqrt"})
_OF_WIDTH: Final = frozenset({-1, 3})
#: Where MultiHeadAttention reads the mask, after which comes the past.
_MASK: Final = 5


@dataclass(frozen=True, slots=True)
class Heads:
    """Those of a token side by side, on one axis or still on two, and what rotates them, if anything does."""

    tokens: onnx_ir.Value
    width: int
    rotation: onnx_ir.Node | None

    @classmethod
    def of(cls, value: onnx_ir.Value | None) -> Heads | None:
        """What (batch, heads, tokens, width) is made of."""
        rotation = _maker(value, _ROTATION)
        tokens = _turned(rotation.inputs[0] if rotation is not None else value)
        match _dims(tokens):
            case (_, _, int(heads), int(width)) if tokens is not None:
                return cls(_unsplit(tokens), heads * width, rotation)
            case _:
                return None

    def put(self, graph: onnx_ir.Graph, before: onnx_ir.Node) -> onnx_ir.Value:
        """(batch, tokens, heads x width), rotated."""
        value = self.tokens
        if len(_dims(value)) == len(_TURNED):
            value = _reshaped(graph, before, value, (0, 0, self.width))
        if self.rotation is None:
            return value
        inputs = [value, *self.rotation.inputs[1:]]
        return _put(
            graph, before, onnx_ir.node(_ROTATION, inputs, self.rotation.attributes, domain=self.rotation.domain)
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """Keys or values of a layer: those of the past, the new ones, and both together."""

    past: onnx_ir.Value
    new: Heads
    present: onnx_ir.Value

    @classmethod
    def of(cls, present: onnx_ir.Value | None) -> Kept | None:
        """Where nothing but the attention reads them."""
        joined = _maker(present, "Concat")
        if present is None or joined is None or joined.attributes["axis"].as_int() not in _TOKENS:
            return None
        past, *others = joined.inputs
        if len(present.uses()) > 1 or len(others) != 1 or past is None or not past.is_graph_input():
            return None
        new = Heads.of(others[0])
        return None if new is None else cls(past, new, present)


def settle(model: onnx_ir.Model) -> None:
    """In place; every number stays."""
    attentions = [node for node in model.graph if node.op_type == _ATTENTION]
    if not attentions:
        return
    _turn_late(model.graph)
    for attention in attentions:
        kept = [Kept.of(value) for value in attention.inputs[1:3]]
        if len(attention.inputs) == _MASK + 1 and None not in kept:
            _keep(model.graph, attention, [each for each in kept if each is not None])
            _ask(model.graph, attention)
            _answer(attention.outputs[0])
    RemoveUnusedNodesPass()(model)


def _turn_late(graph: onnx_ir.Graph) -> None:
    """Heads after they were normed, or told apart as queries, keys and values, and not before."""
    turned: set[onnx_ir.Value | None] = set()
    moved: dict[onnx_ir.Node, None] = {}
    for node in graph:
        if _turned(node.outputs[0]) is not None:
            turned.add(node.outputs[0])
        elif not turned.isdisjoint(node.inputs) and _is_same_turned(node, turned):
            turned.update(node.outputs)
            moved[node] = None
    for node in moved:
        for at, value in enumerate(node.inputs):
            if (before := _turned(value)) is not None:
                node.replace_input_with(at, before)
        for output in node.outputs:
            batch, heads, tokens, width = output.shape.dims if output.shape is not None else ()
            output.shape = onnx_ir.Shape([batch, tokens, heads, width])
            if others := [use for use in output.uses() if use.node not in moved]:
                late = onnx_ir.node("Transpose", [output], {"perm": _TURNED})
                graph.insert_after(node, late)
                for use in others:
                    use.node.replace_input_with(use.idx, late.outputs[0])


def _is_same_turned(node: onnx_ir.Node, turned: Collection[onnx_ir.Value | None]) -> bool:
    if node.op_type == "ReduceMean":
        axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
        fits = axes is not None and axes.numpy().tolist() in [[axis] for axis in _OF_WIDTH]
    elif node.op_type == "Split":
        fits = node.attributes["axis"].as_int() in _OF_WIDTH
    else:
        fits = node.op_type in _OF_NUMBERS
    of_width = (
        value in turned or (value is not None and value.shape is not None and len(value.shape) <= 1)
        for value in node.inputs
    )
    return (
        fits
        and all(of_width)
        and all(len(_dims(output)) == len(_TURNED) and not output.is_graph_output() for output in node.outputs)
    )


def _keep(graph: onnx_ir.Graph, attention: onnx_ir.Node, kept: Sequence[Kept]) -> None:
    """The cache, in the operator."""
    attention.resize_inputs(_MASK + 1 + len(kept))
    attention.resize_outputs(1 + len(kept))
    for at, (each, output) in enumerate(zip(kept, attention.outputs[1:], strict=True), 1):
        attention.replace_input_with(at, each.new.put(graph, attention))
        attention.replace_input_with(at + _MASK, each.past)
        name, each.present.name = each.present.name, None
        output.name, output.shape, output.type = name, each.present.shape, each.present.type
        replace_all_uses_with(each.present, output, replace_graph_outputs=True)


def _ask(graph: onnx_ir.Graph, attention: onnx_ir.Node) -> None:
    """Queries as they are; or those that share a head of the cache as more tokens of one, turned once."""
    joined = _maker(attention.inputs[0], "Reshape")
    split = joined.inputs[0] if joined is not None else None
    if joined is None or split is None:
        return
    if _is_alike(whole := _unsplit(split), attention.inputs[0]):
        attention.replace_input_with(0, whole)
        return
    heads = _turned(split)
    shared = _maker(heads, "Reshape")
    queries = Heads.of(heads if shared is None else shared.inputs[0])
    if queries is None:
        return
    if shared is None:
        attention.replace_input_with(0, queries.put(graph, attention))
        return
    match _dims(heads):
        case (_, int(kept), _, int(width)):
            groups = (0, 0, kept, queries.width // (kept * width), width)
            value = _reshaped(graph, attention, queries.put(graph, attention), groups)
            value = _put(graph, attention, onnx_ir.node("Transpose", [value], {"perm": _GROUPED}))
            value = _put(graph, attention, onnx_ir.node("Reshape", [value, joined.inputs[1]], joined.attributes))
            attention.replace_input_with(0, value)
        case _:
            return


def _answer(answer: onnx_ir.Value) -> None:
    """As it is, where it is cut into heads only to be put together again."""
    for cut in _readers(answer, "Reshape"):
        for joined in _readers(cut.outputs[0], "Reshape"):
            if _is_alike(joined.outputs[0], answer):
                replace_all_uses_with(joined.outputs[0], answer)


def _turned(value: onnx_ir.Value | None) -> onnx_ir.Value | None:
    """What a value is with heads and tokens the other way round."""
    node = _maker(value, "Transpose")
    return node.inputs[0] if node is not None and tuple(node.attributes["perm"].as_ints()) == _TURNED else None


def _unsplit(value: onnx_ir.Value) -> onnx_ir.Value:
    """Three axes, of the last of which two were made, if that is so."""
    split = _maker(value, "Reshape")
    whole = split.inputs[0] if split is not None else None
    match _dims(value), _dims(whole):
        case (batch, tokens, int(heads), int(width)), outer if outer == (batch, tokens, heads * width):
            return value if whole is None else whole
        case _:
            return value


def _reshaped(
    graph: onnx_ir.Graph, before: onnx_ir.Node, value: onnx_ir.Value | None, shape: Sequence[int]
) -> onnx_ir.Value:
    """With 0 for what stays."""
    name = ".".join(map(str, ("shape", *shape)))
    if name not in graph.initializers:
        tensor = onnx_ir.tensor(np.array(shape, np.int64), name=name)
        graph.register_initializer(onnx_ir.Value(name=name, const_value=tensor))
    return _put(graph, before, onnx_ir.node("Reshape", [value, graph.initializers[name]]))


def _put(graph: onnx_ir.Graph, before: onnx_ir.Node, node: onnx_ir.Node) -> onnx_ir.Value:
    graph.insert_before(before, node)
    return node.outputs[0]


def _readers(value: onnx_ir.Value, kind: str) -> list[onnx_ir.Node]:
    return [use.node for use in value.uses() if use.node.op_type == kind]


def _maker(value: onnx_ir.Value | None, kind: str) -> onnx_ir.Node | None:
    """As idioms.maker, but for what only hands a value on."""
    handed = maker(value, "Identity")
    return maker(value, kind) if handed is None else _maker(handed.inputs[0], kind)


def _dims(value: onnx_ir.Value | None) -> tuple[object, ...]:
    """An axis of which nothing is known is like no other."""
    dims = value.shape.dims if value is not None and value.shape is not None else ()
    return tuple(dim if isinstance(dim, int) else dim.value or object() for dim in dims)


def _is_alike(one: onnx_ir.Value | None, other: onnx_ir.Value | None) -> bool:
    dims = _dims(one)
    return bool(dims) and dims == _dims(other)
