"""What torch's exporter need not trace twice is translated as it was captured, and answers as the module does."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript.rewriter.pattern import MatchResult, SimplePatternMatcher
from torch._dynamo import config
from torch.onnx._internal.exporter._registration import ONNXRegistry

from onnx_converter import capture
from onnx_converter.spec import Provider

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.fx import Interpreter, Node

_NUMBERS = torch.linspace(-2, 2, 12).reshape(3, 4)


class Of(torch.nn.Module):
    """A function that is traced."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function
        self.register_buffer("count", torch.zeros(1))


def _in_place(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0] = 1
    return y.add_(x)


def _branches(x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))  # type: ignore[no-any-return]


#: What it computes, and whether the exporter has to trace it again.
PROGRAMS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "products and norms": (lambda x: torch.nn.functional.layer_norm(x.mT @ x, (4,)), False),
    "a cast": (lambda x: (x * 3).to(torch.int64).to(torch.float32) / 2, False),
    "a cast to what it is": (lambda x: (x * 3).to(torch.float32) + 1, False),
    "an answer that is cast to what it is": (lambda x: (x * 3).to(torch.float32), False),
    "an input that is answered as it is": (lambda x: x.to(torch.float32), False),
    "another device": (lambda x: torch.arange(4).to(x.device) + x, False),
    "something detached": (lambda x: x.detach() * 2, False),
    "the smaller and the larger of two": (lambda x: torch.max(torch.min(x, -x), x / 2), False),
    "masks of which all or one must hold": (lambda x: torch.where((x > -1) & (x < 1) | (x > 1.5), x, 0.0), False),
    "numbers that are written into a tensor": (_in_place, True),
    "one of two programs": (_branches, True),
    "an operator that ONNX lacks": (lambda x: torch.nn.functional.huber_loss(x, x * 2, reduction="none"), True),
}


def exported(function: Callable[[Tensor], Tensor]) -> bytes:
    """The graph of a function, with nothing in it of where it was traced."""
    module = Of(function).eval()
    with warnings.catch_warnings(), torch.no_grad(), capture.once(module):
        warnings.simplefilter("ignore")  # deprecations inside torch
        program = torch.onnx.export(
            module,
            (_NUMBERS,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            opset_version=18,
            verbose=False,
        )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)
    return bytes(onnx_ir.to_proto(program.model).SerializeToString())


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_traced_again_only_where_it_has_to_be(name: str) -> None:
    function, is_decomposed = PROGRAMS[name]
    with patch.object(capture, "_decompose", side_effect=capture._decompose) as decompose:
        graph = exported(function)
    assert decompose.called is is_decomposed
    session = onnxruntime.InferenceSession(graph, providers=[Provider.CPU])
    for rows in (_NUMBERS, torch.cat([_NUMBERS, -2 * _NUMBERS])):
        (answer,) = session.run(None, {session.get_inputs()[0].name: rows.numpy()})
        assert np.allclose(answer, function(rows.clone()).numpy(), atol=1e-5)


#: What it computes, and whether an operator of it needs another type than it is given.
MIXED: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "floats alone": (lambda x: torch.nn.functional.layer_norm(x.mT @ x, (4,)) * 2.0, False),
    "a whole number beside floats": (lambda x: (x + 1) * x, True),
    "whole numbers of which the root is taken": (lambda x: torch.sqrt((x * x).to(torch.int64)) / 2.0, True),
    "halves beside floats": (lambda x: x.half() * 2.0 + x, True),
    "halves alone": (lambda x: torch.sigmoid(x.half()).float(), False),
}


@pytest.mark.parametrize("name", MIXED)
def test_only_an_operator_of_mixed_types_is_run_again_and_the_graph_is_the_same(name: str) -> None:
    function, is_mixed = MIXED[name]
    run, ran = capture._run_node, set[str]()

    def counted(interpreter: Interpreter, node: Node) -> object:
        if type(interpreter).__name__ == capture._MIXED and node.op == "call_function":
            ran.add(node.name)
        return run(interpreter, node)

    with patch.object(capture, "_run_node", counted):
        found = exported(function)
    assert bool(ran) is is_mixed, ran
    with patch.object(capture, "_known", run):
        assert found == exported(function)


@pytest.mark.parametrize("layers", [2, 6])
def test_what_becomes_of_shapes_is_kept_where_many_layers_meet_them_again(layers: int) -> None:
    module = torch.nn.ModuleDict({"stack": torch.nn.ModuleList([torch.nn.Identity()] * layers)})
    with capture.once(module):
        assert config.fake_tensor_cache_enabled == (layers > 4)
    assert config.fake_tensor_cache_enabled


def test_the_table_of_translations_is_torchs_own_though_no_source_is_read() -> None:
    make = ONNXRegistry.from_torchlib
    capture._table.cache_clear()
    with patch.object(inspect, "getsource", side_effect=AssertionError("a source is read")):
        found = capture._table(make, opset_version=18)
    assert capture._table(make, opset_version=18) is found
    assert found.functions == make(opset_version=18).functions
    assert len(found.functions) > 400


def test_where_torch_keeps_its_tables_elsewhere_an_export_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    function, _ = MIXED["a whole number beside floats"]
    found = exported(function)
    monkeypatch.setattr(capture, "_registry", lambda: None)
    monkeypatch.setattr(capture, "_MIXED", "called otherwise")
    monkeypatch.setattr(capture, "_rewriter", lambda: None)
    assert exported(function) == found


def test_a_rule_is_held_against_nodes_of_its_operator_alone_and_the_graph_is_the_same() -> None:
    match, asked = SimplePatternMatcher.match, set[bool]()

    def turned(x: Tensor) -> Tensor:
        return x.mT.mT + 1

    def counted(matcher: SimplePatternMatcher, *given: Any, **options: Any) -> object:
        asked.add(matcher.pattern.output_nodes[0].op.matches(given[2].op_type))
        return match(matcher, *given, **options)

    with patch.object(SimplePatternMatcher, "match", counted):
        found = exported(turned)
        assert asked == {True}
        with patch.object(capture, "_rewriter", lambda: None):
            assert found == exported(turned)
    assert asked == {True, False}
    assert b"Transpose" not in found  # since a rule was followed


class Elsewhere:
    """A matcher that keeps its pattern under another name."""


@pytest.mark.parametrize("given", [("model", "graph", "node"), ("node",)], ids=["another name", "another signature"])
def test_a_rule_that_is_described_otherwise_is_held_against_every_node(given: tuple[str, ...]) -> None:
    matcher = Elsewhere()
    called = capture._match(matcher, lambda *given, **options: (given, options), MatchResult, *given, verbose=1)
    assert called == ((matcher, *given), {"verbose": 1})
