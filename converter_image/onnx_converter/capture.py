"""torch's exporter without its second trace.

What it has captured it traces once more, since ONNX has no words for some operators, and that takes as long as the
capture did. A language model has so few of those that each can be replaced where it stands. A program with any other
is decomposed as ever.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch.fx import Node

_ATEN: Final = torch.ops.aten
#: Another type or device, or a tensor as it is: on one device it is a cast where the type is another, else nothing.
_CASTS: Final = {_ATEN.to.dtype, _ATEN.to.device, _ATEN.to.dtype_layout, _ATEN.detach_.default, _ATEN.detach.default}
_SYNONYMS: Final = {
    _ATEN.__and__.Tensor: _ATEN.bitwise_and.Tensor,
    _ATEN.__or__.Tensor: _ATEN.bitwise_or.Tensor,
    _ATEN.min.other: _ATEN.minimum.default,
    _ATEN.max.other: _ATEN.maximum.default,
}
#: What the exporter drops as well.
_CHECKS: Final = {
    _ATEN._assert_tensor_metadata.default,  # noqa: SLF001  torch's name of an operator
    _ATEN._assert_scalar.default,  # noqa: SLF001
    _ATEN.sym_constrain_range_for_size.default,
}
_REPLACED: Final = _CASTS | _SYNONYMS.keys() | _CHECKS

_decompose = ExportedProgram.run_decompositions


@contextmanager
def once() -> Iterator[None]:
    """Inside, an export decomposes what has to be, and nothing else."""
    with patch.object(ExportedProgram, "run_decompositions", _run):
        yield


def _run(program: ExportedProgram, table: Mapping[Any, Callable[..., Any]] | None = None) -> ExportedProgram:
    graph = program.graph_module.graph
    if table is None or not all(_is_plain(node, table) for node in graph.nodes):
        decomposed: ExportedProgram = _decompose(program, table)
        return decomposed
    # The signature knows answers by their names, so what is one stays.
    answers = set(graph.output_node().all_input_nodes)
    for node in graph.nodes:
        if node.target in _REPLACED:
            _replace(node, is_answer=node in answers)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _is_plain(node: Node, table: Mapping[Any, Callable[..., Any]]) -> bool:
    """Whether it can be translated or replaced; what the table knows cannot, nor what writes to a tensor."""
    operator = node.target
    if node.op == "get_attr" or isinstance(operator, HigherOrderOperator):
        return False
    if operator in _REPLACED or not isinstance(operator, OpOverload):
        return True
    return operator not in table and not operator._schema.is_mutable  # noqa: SLF001


def _replace(node: Node, *, is_answer: bool) -> None:
    if node.target in _CHECKS:
        node.graph.erase_node(node)
    elif node.target in _SYNONYMS:
        node.target = _SYNONYMS[node.target]
    elif (dtype := node.meta["val"].dtype) != node.args[0].meta["val"].dtype:  # type: ignore[union-attr]
        node.target, node.args, node.kwargs = _ATEN._to_copy.default, node.args[:1], {"dtype": dtype}  # noqa: SLF001
    elif is_answer:
        node.target, node.args, node.kwargs = _ATEN.clone.default, node.args[:1], {}
    else:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        node.graph.erase_node(node)
