"""Operators of onnxruntime's own, as a model calls them while it is traced; run as it is, it would compute nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_DOMAIN: Final = "com.microsoft"


def operator(name: str, inputs: Sequence[Tensor | None], shape: Sequence[int | torch.SymInt], **said: Any) -> Tensor:
    """Its first answer, in float32 and of that shape; `said` are its attributes."""
    return torch.onnx.ops.symbolic(f"{_DOMAIN}::{name}", inputs, said, dtype=torch.float32, shape=shape, version=1)
