"""What a graph computes on the way to its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnxruntime
from onnx import helper

from onnx_converter import wire

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def session_of(source: Path, names: Iterable[str]) -> onnxruntime.InferenceSession:
    """Answers with tensors of floats inside of the graph; the weights stay in its file."""
    model, bare = wire.outline(source), source.with_name(f"inner-{source.name}")
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    onnx.save(model, bare)
    try:
        return onnxruntime.InferenceSession(bare, providers=["CPUExecutionProvider"])
    finally:
        bare.unlink()
