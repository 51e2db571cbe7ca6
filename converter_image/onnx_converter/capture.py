"""torch's exporter without its second and third trace, and with a table of operators that is made once.

What it has captured it traces once more, since ONNX has no words for some operators, and that takes as long as the
capture did. A language model has so few of those that each can be replaced where it stands. A program with any other
is decomposed as ever. Then it runs each node to see which types are mixed, though all but those that it changes for
that say already what they come to. And it reads the source of each of its translations for a name that nobody asks for.
What it keeps of each operator's shapes, in case that one of the same sizes is met again, takes it as long as to ask the
operator; of sizes that are symbols none are met again but in another layer.
Its optimizer holds each of its rules against each node, with much ado before it looks at the node's own operator.
Where torch or onnxscript are no longer as they are described here, an export takes longer and is the same.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import torch
from torch._dynamo import config
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram
from torch.fx import Interpreter

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

#: What looks for mixed types, by its name since torch keeps it to itself.
_MIXED: Final = "_TypePromotionInterpreter"

#: The setting of torch by which it keeps what operators made of shapes.
_KEPT: Final = "fake_tensor_cache_enabled"
#: Layers for which that does not pay: with 6 it does, with 4 it does not.
_FEW: Final = 4

_decompose = ExportedProgram.run_decompositions
_run_node = Interpreter.run_node


@contextmanager
def once(module: torch.nn.Module) -> Iterator[None]:
    """Inside, an export of the module decomposes and runs what has to be, and nothing else."""
    depth = max((len(each) for each in module.modules() if isinstance(each, torch.nn.ModuleList)), default=0)
    with ExitStack() as stack:
        stack.enter_context(patch.object(ExportedProgram, "run_decompositions", _run))
        stack.enter_context(patch.object(Interpreter, "run_node", _known))
        if hasattr(config, _KEPT):
            stack.enter_context(config.patch({_KEPT: depth > _FEW}))
        if (registry := _registry()) is not None:
            table = functools.partial(_table, registry.from_torchlib)
            stack.enter_context(patch.object(registry, "from_torchlib", table))
        if (rewriter := _rewriter()) is not None:
            matcher = rewriter.SimplePatternMatcher
            match = functools.partialmethod(_match, matcher.match, rewriter.MatchResult)
            stack.enter_context(patch.object(matcher, "match", match))
        yield


def _registry() -> Any:
    """The class of torch's tables, which it keeps to itself."""
    try:
        from torch.onnx._internal.exporter import _registration  # noqa: PLC0415
    except ImportError:
        return None
    found = getattr(_registration, "ONNXRegistry", None)
    return found if hasattr(found, "from_torchlib") else None


def _rewriter() -> Any:
    """The module of the rules of onnxscript's optimizer."""
    try:
        from onnxscript.rewriter import pattern  # noqa: PLC0415
    except ImportError:
        return None
    matcher = getattr(pattern, "SimplePatternMatcher", None)
    return pattern if hasattr(matcher, "match") and hasattr(pattern, "MatchResult") else None


def _match(matcher: Any, match: Callable[..., Any], result: Callable[[], Any], *given: Any, **options: Any) -> Any:
    """What a rule finds at a node: nothing, where the node's operator is not the one that the rule begins with."""
    try:
        _model, _graph, node = given
        if not matcher.pattern.output_nodes[0].op.matches(node.op_type):
            return result().fail("another operator", node)
    except (AttributeError, IndexError, TypeError, ValueError):
        # It is called otherwise, or keeps what it looks for elsewhere.
        pass
    return match(matcher, *given, **options)


@functools.cache
def _table(make: Callable[..., Any], opset_version: int) -> Any:
    """Translations of all operators; an export reads them, and adds none of its own."""
    from onnxscript import values  # noqa: PLC0415  only an export needs it

    traced: Any = getattr(values, "TracedOnnxFunction", object)
    read = vars(traced).get("function_ir")
    if not isinstance(read, property):
        return make(opset_version=opset_version)
    with patch.object(traced, "function_ir", property(functools.partial(_Unread, read))):
        return make(opset_version=opset_version)


class _Unread:
    """What the source of a translation says, read if more of it is asked for than the domain of its operators."""

    def __init__(self, read: property, function: Any) -> None:
        self.domain = function.opset.domain
        self._given = (read, function)

    def __getattr__(self, name: str) -> Any:
        read, function = self._given
        return getattr(read.__get__(function), name)


def _known(interpreter: Interpreter, node: Node) -> Any:
    """What a node comes to: what it says, where nothing of it was changed since the types are looked at."""
    if type(interpreter).__name__ != _MIXED:
        return _run_node(interpreter, node)
    found = vars(interpreter).setdefault("_as_captured", {})
    if not found:
        found |= {each: _told(each) for each in interpreter.graph.nodes}
    if node.op == "call_function" and "val" in node.meta and found.get(node) == _told(node):
        return node.meta["val"]
    return _run_node(interpreter, node)


def _told(node: Node) -> tuple[Any, ...]:
    return node.target, node.args, node.kwargs


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
