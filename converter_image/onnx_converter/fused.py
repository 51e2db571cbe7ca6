"""Attention and rotation of a language model as operators of onnxruntime's own, one each instead of dozens of nodes.

transformers asks a registered function for attention and calls a function of the model's file for the rotation; both
are ours while a model is traced. Refuses what the operators would compute otherwise, or not at all.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from onnx_converter import experts
from onnx_converter.operators import operator
from onnx_converter.route import Route
from onnx_converter.spec import Provider, Task

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from onnx_converter.load import Checkpoint
    from onnx_converter.route import Goal

#: As transformers knows the function for attention.
_NAME: Final = "onnxruntime"
_ROTATION: Final = "apply_rotary_pos_emb"


def misses(checkpoint: Checkpoint, goal: Goal) -> str | None:
    """What has no operator, in the code or the configuration of a model, or where it is to run."""
    model = checkpoint.model
    if checkpoint.task is not Task.TEXT_GENERATION:
        return "is for language models that only write"
    if goal.provider is not Provider.CPU:
        return f"its operators were never timed on {goal.provider}"
    if model.dtype is not torch.float32:
        return "its operators are told to answer in float32"
    code = vars(sys.modules[type(model).__module__])
    if "ALL_ATTENTION_FUNCTIONS" not in code:
        return "its attention is part of its own code and cannot be replaced"
    if getattr(model.config, "attn_logit_softcapping", None):
        return "attn_logit_softcapping bounds its scores, which MultiHeadAttention does not"
    return None


@contextmanager
def traced(model: PreTrainedModel) -> Iterator[None]:
    """Inside, an export of the model has the operators; run as it is, the model would compute nothing."""
    operators = Operators()
    AttentionInterface.register(_NAME, operators.attend)
    AttentionMaskInterface.register(_NAME, eager_mask)
    code = vars(sys.modules[type(model).__module__])
    model.set_attn_implementation(_NAME)
    try:
        # Without a function of this name positions are added to words, or the rotation stays as it is.
        with (
            patch.dict(code, {_ROTATION: operators.rotate} if _ROTATION in code else {}),
            experts.traced(model, as_operator=True),
        ):
            yield
    finally:
        model.set_attn_implementation("eager")


ROUTE: Final = Route("fused-attention", misses, traced)


class Operators:
    """What a model calls while it is traced."""

    def __init__(self) -> None:
        #: What all layers of a kind share, by the identity of what it is made of; that is kept, so the identity is too.
        self._shared: dict[int, tuple[Tensor, Sequence[Tensor]]] = {}

    def attend(
        self,
        _module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        *,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """(batch, heads, new tokens, width) against the cache's fewer heads, both of the same width.

        The operator knows no groups. Queries that share a head of the cache are told apart by nothing but their place,
        so they stand one after the other as if they were more tokens, with the mask as often, and nothing is copied.
        """
        batch, heads, length, width = query.shape
        kept = key.shape[1]
        group = heads // kept
        rows = group * length
        if group > 1:
            (mask,) = self._once(mask, lambda: (mask.repeat(1, 1, group, 1),))
        queries = query.reshape(batch, kept, rows, width).transpose(1, 2).reshape(batch, rows, kept * width)
        answer = operator(
            "MultiHeadAttention",
            (queries, key, value, None, None, mask),
            (batch, rows, kept * width),
            num_heads=kept,
            scale=width**-0.5 if scaling is None else scaling,
        )
        if group == 1:
            return answer.reshape(batch, length, heads, width), None
        # Heads of groups as two axes, since every model that has them joins all axes but the first two next.
        return answer.reshape(batch, group, length, kept, width).permute(0, 2, 3, 1, 4), None

    def rotate(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """By the angles that the model computes, one row for each token of the batch; the rest of a head stays."""
        half = cos.shape[-1] // 2

        def table() -> Sequence[Tensor]:
            batch, length = cos.shape[:2]
            rows = torch.arange(batch * length).reshape(batch, length)
            return rows, *(angles[..., :half].reshape(batch * length, half) for angles in (cos, sin))

        rows = self._once(cos, table)
        return _rotated(query, half, rows), _rotated(key, half, rows)

    def _once(self, source: Tensor, make: Any) -> Sequence[Tensor]:
        if id(source) not in self._shared:
            self._shared[id(source)] = source, make()
        return self._shared[id(source)][1]


def _rotated(heads: Tensor, half: int, table: Sequence[Tensor]) -> Tensor:
    part = {} if heads.shape[3] == 2 * half else {"num_heads": heads.shape[1], "rotary_embedding_dim": 2 * half}
    return operator("RotaryEmbedding", (heads, *table), heads.shape, **part)
