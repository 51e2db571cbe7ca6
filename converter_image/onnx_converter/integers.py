"""Layers and tables in whole numbers: weights of seven bits, and what goes in rounded to eight while the graph runs.

The nodes and the numbers of onnxruntime's quantize_dynamic, which holds all weights several times over; here one at a
time. Refuses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Seven bits for weights: on processors without VNNI the sum of two products of full range saturates, silently, and the
#: gate runs on another machine than the one that will serve.
_LARGEST: Final = 64
_HIGHEST: Final = 255
#: Numbers that are rounded at a time, in floats.
_AT_ONCE: Final = 1 << 22


class _Names(NamedTuple):
    """Of a tensor in whole numbers."""

    codes: str
    scale: str
    zero: str

    @classmethod
    def of(cls, name: str) -> _Names:
        return cls(f"{name}_quantized", f"{name}_scale", f"{name}_zero_point")


@dataclass(frozen=True, slots=True)
class Integers:
    """Makes the layers of one graph, in their order."""

    #: What goes into layers and is in whole numbers already.
    _known: dict[str, _Names] = field(default_factory=dict)

    def product(self, product: onnx.NodeProto, weight: NDArray[Any]) -> onnx.GraphProto:
        """A MatMul by a weight, each column of which has a scale."""
        part = onnx.GraphProto()
        (entering, name), (leaving,) = product.input, product.output
        if entering not in self._known:
            self._known[entering] = _Names.of(entering)
            part.node.append(
                helper.make_node(
                    "DynamicQuantizeLinear", [entering], self._known[entering], name=f"{entering}_QuantizeLinear"
                )
            )
        left, right, made = self._known[entering], _Names.of(name), f"{product.name or leaving}_quant"
        whole, scales = f"{leaving}_output_quantized", f"{made}_scales_mul:0"
        in_floats = f"{whole}_cast_output"
        part.node.extend(
            [
                helper.make_node("MatMulInteger", [left.codes, right.codes, left.zero, right.zero], [whole], name=made),
                helper.make_node("Cast", [whole], [in_floats], name=f"{whole}_cast", to=TensorProto.FLOAT),
                helper.make_node("Mul", [left.scale, right.scale], [scales], name=f"{made}_scales_mul"),
                helper.make_node("Mul", [in_floats, scales], [leaving], name=f"{made}_output_scale_mul"),
            ]
        )
        rows = tuple(range(weight.ndim - 1))
        scale = np.maximum(weight.max(axis=rows), -weight.min(axis=rows)) / np.float32(_LARGEST)
        scale[scale < np.finfo(np.float32).tiny] = 1
        _fill(part, right, weight, scale, np.zeros(len(scale), np.int8))
        return part

    def looked_up(self, gather: onnx.NodeProto, table: NDArray[Any]) -> onnx.GraphProto:
        """A Gather of rows, which have one scale and one zero for all."""
        name, (leaving,) = gather.input[0], gather.output
        # A layer may read the same matrix, by columns.
        rows, found = _Names.of(f"{name}_table"), f"{leaving}_quantized"
        self._known[leaving] = _Names(found, rows.scale, rows.zero)
        part = onnx.GraphProto()
        node = part.node.add()
        node.CopyFrom(gather)
        node.input[0], node.output[0] = rows.codes, found
        part.node.append(
            helper.make_node(
                "DequantizeLinear", [found, rows.scale, rows.zero], [leaving], name=f"{found}_DequantizeLinear"
            )
        )
        low, high = (np.float64(limit) for limit in (min(table.min(), 0), max(table.max(), 0)))
        scale = (high - low) / _HIGHEST
        scale = scale if scale >= np.finfo(np.float32).tiny else np.float64(1)
        zero = np.asarray(np.rint(-low / scale), np.uint8)
        _fill(part, rows, table, np.asarray(scale, np.float32), zero)
        return part


def _fill(
    part: onnx.GraphProto, names: _Names, numbers: NDArray[Any], scale: NDArray[np.float32], zero: NDArray[Any]
) -> None:
    bounds, codes = np.iinfo(zero.dtype), np.empty(numbers.shape, zero.dtype)
    step = max(1, _AT_ONCE * len(numbers) // max(1, numbers.size))
    for at in range(0, len(numbers), step):
        some = slice(at, at + step)
        codes[some] = np.clip(np.rint(numbers[some] / scale) + zero, bounds.min, bounds.max)
    tensors = zip(names, (codes, scale, zero), strict=True)
    part.initializer.extend(numpy_helper.from_array(values, name) for name, values in tensors)
