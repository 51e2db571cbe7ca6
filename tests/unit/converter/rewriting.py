"""Rewrites of a graph, as the converter does them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir

if TYPE_CHECKING:
    from collections.abc import Callable


def rewritten(graph: onnx.ModelProto, rewrite: Callable[[onnx_ir.Model], object]) -> onnx.ModelProto:
    """What becomes of it, which onnx's own checker takes."""
    model = onnx_ir.from_proto(graph)
    rewrite(model)
    made = onnx_ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    return made
