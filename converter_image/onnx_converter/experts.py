"""Layers of experts, of which each token asks a few: all of them at once, or as an operator of onnxruntime's own.

transformers asks a registered function for what the experts make of tokens that are routed already; ours stand in while
a model is traced, as its own asks experts one after the other, by who was asked. Refuses nothing: whatever the operator
does not compute is computed of every expert, and most of it weighed with nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import onnx_ir
import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.integrations import moe

from onnx_converter.operators import operator
from onnx_converter.products import EXPERTS, UP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

#: As transformers knows the functions.
_DENSE: Final = "onnx"
_FUSED: Final = "onnxruntime"
#: As it knows its own.
_EAGER: Final = "eager"
#: What an expert that was not asked scores; the best of the others are asked, and the exponential of this is nothing.
_UNASKED: Final = -1e4
#: The order of the gate and what it gates: a row of each in turn, or all of one and then all of the other.
_ORDER: Final = "swiglu_fusion"
_IN_TURN: Final = 1
_APART: Final = 2


def has_experts(model: nn.Module) -> bool:
    """Whether any layer is of a class that asks a registered function, which transformers marks so."""
    return any(hasattr(module, "is_concatenated") for module in model.modules())


@contextmanager
def traced(model: PreTrainedModel, *, as_operator: bool) -> Iterator[None]:
    """Inside, an export of the model has no loop over its experts."""
    if not has_experts(model):
        yield
        return
    name, function = (_FUSED, _fused) if as_operator else (_DENSE, _dense)
    moe.ALL_EXPERTS_FUNCTIONS.register(name, function)
    model.set_experts_implementation(name)
    try:
        yield
    finally:
        model.set_experts_implementation(_EAGER)


def _dense(experts: Any, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    """(tokens, width) of the same, by each token's chosen experts and their shares, (tokens, few)."""
    kind = "gate_up" if experts.has_gate else "up"
    made = _each(experts, kind, hidden.unsqueeze(0))
    made = _each(experts, "down", experts._apply_gate(made) if experts.has_gate else experts.act_fn(made))  # noqa: SLF001
    if experts.has_post_expert_norm:
        made = experts.post_expert_norm(made)
    weighed = torch.zeros_like(hidden[:, :1]).expand(-1, experts.num_experts).scatter(1, chosen, shares.to(made.dtype))
    return (made * weighed.mT.unsqueeze(-1)).sum(0).to(hidden.dtype)


def _each(experts: Any, kind: str, tokens: Tensor) -> Tensor:
    """(experts, tokens, width) of what goes into each."""
    weight, bias = _weights(experts, kind)
    made = torch.matmul(tokens, weight.mT)
    return made if bias is None else made + bias.unsqueeze(1)


def _weights(experts: Any, kind: str) -> tuple[Tensor, Tensor | None]:
    """(experts, width that goes out, width that goes in), and (experts, width that goes out)."""
    weight = getattr(experts, f"{kind}_proj")
    bias = getattr(experts, f"{kind}_proj_bias") if experts.has_bias else None
    return weight.mT if experts.is_transposed else weight, bias


def _fused(experts: Any, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    """The operator chooses again, the best by their scores, and shares by the exponential of those: given logarithms it
    comes to what the model chose, whatever it chose by, but that the shares of a token come to one.
    """
    if not _is_known(experts):
        return _dense(experts, hidden, chosen, shares)
    scores = torch.full_like(hidden[:, :1], _UNASKED).expand(-1, experts.num_experts)
    scores = scores.scatter(1, chosen, shares.clamp(min=torch.finfo(shares.dtype).tiny).log())
    (up, bias_up), (down, bias_down) = _weights(experts, "gate_up"), _weights(experts, "down")
    made = operator(
        EXPERTS,
        (hidden, scores, up, bias_up, down, bias_down),
        hidden.shape,
        k=chosen.shape[1],
        activation_type="swiglu",
        activation_alpha=1.0,
        activation_beta=0.0,
        swiglu_fusion=_APART,
        normalize_routing_weights=1,
    )
    return made * shares.sum(-1, keepdim=True)


def _is_known(experts: Any) -> bool:
    """Whether the operator gates as these do: by x times its sigmoid, of rows that lie apart."""
    return (
        experts.has_gate
        and type(experts)._apply_gate is moe._default_apply_gate  # noqa: SLF001
        and isinstance(experts.act_fn, SiLUActivation | nn.SiLU)
        and not (experts.is_transposed or experts.has_post_expert_norm)
    )


def settle(model: onnx_ir.Model) -> None:
    """Rows of the gate and of what it gates in turn, as the CPU's kernel reads them."""
    for node in model.graph:
        if node.op_type == EXPERTS and node.attributes.get_int(_ORDER) == _APART:
            for at in (UP, UP + 1):
                if (weight := node.inputs[at]) is not None:
                    node.replace_input_with(at, _in_turn(model.graph, weight))
                    model.graph.initializers.pop(str(weight.name))
            node.attributes[_ORDER] = onnx_ir.AttrInt64(_ORDER, _IN_TURN)


def _in_turn(graph: onnx_ir.Graph, weight: onnx_ir.Value) -> onnx_ir.Value:
    """(experts, twice as many rows, ...), made of what the model holds when it is written."""
    held, name = weight.const_value, f"{weight.name}_in_turn"
    assert held is not None  # noqa: S101  it is a weight of the model

    def make() -> onnx_ir.TensorProtocol:
        rows = held.numpy()
        halves = rows.reshape(len(rows), 2, rows.shape[1] // 2, *rows.shape[2:])
        return onnx_ir.tensor(halves.swapaxes(1, 2).reshape(rows.shape), name=name)

    shape = onnx_ir.Shape(held.shape.numpy())
    tensor = onnx_ir.LazyTensor(make, held.dtype, shape, name=name)
    value = onnx_ir.Value(name=name, shape=shape, type=weight.type, const_value=tensor)
    graph.register_initializer(value)
    return value
