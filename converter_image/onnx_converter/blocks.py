"""Layers and tables in whole numbers in blocks, each of which has a scale: what is computed with them is in floats.

The layers are onnxruntime's own quantizer's, one at a time. Refuses nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_converter import gptq
from onnx_converter.products import DOWN, UP
from onnx_converter.spec import Scheme

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_converter.spec import ConversionSpec

DOMAIN: Final = "com.microsoft"
#: Of the head and of tables. The head alone chooses among all words, often by little: with eight bits it does as with
#: all of them.
_EIGHT: Final = 8
#: Block that the operator of experts takes.
_SMALLEST: Final = 16
#: Numbers that are rounded at a time, in floats.
_AT_ONCE: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class Blocks:
    """Makes the layers of one graph."""

    spec: ConversionSpec
    head: str | None
    #: What goes into layers, where their rounding depends on it.
    inputs: gptq.Inputs | None
    #: By the name of a table that was turned: what multiplies by it.
    _tables: dict[str, onnx.NodeProto] = field(default_factory=dict)

    def product(self, product: onnx.NodeProto, weight: NDArray[Any]) -> onnx.GraphProto:
        """A MatMul by a weight; by one that rows are looked up in as well, if of as many bits, without its numbers."""
        bits = _EIGHT if product.name == self.head else self._bits
        if bits == _EIGHT and (known := self._tables.get(product.input[1])) is not None:
            node = helper.make_node(
                "MatMulNBits",
                [product.input[0], *known.input[1:]],
                product.output,
                name=f"{product.name}_Q{bits}" if product.name else "",
                domain=DOMAIN,
            )
            node.attribute.extend(known.attribute)
            return onnx.GraphProto(node=[node])
        layer = self._quantised(product, weight, bits)
        if self.inputs is not None and product.name != self.head:
            moment = self.inputs.moment(product.input[0])
            gptq.rounded(weight, moment, self._size, symmetric=bool(self.spec.symmetric)).fill(layer, self._size)
        return layer

    def looked_up(self, gather: onnx.NodeProto, table: NDArray[Any]) -> onnx.GraphProto | None:
        """A Gather of rows, which lie in blocks as the columns of a layer do: so one weight can be both.

        Looked up in two dimensions, such a weight would be copied when onnxruntime loads the graph; so its scales are.
        """
        if table.ndim != 2 or any(item.name == "axis" and item.i for item in gather.attribute):  # noqa: PLR2004
            return None
        (leaving,), turned, part = gather.output, f"{gather.input[0]}_turned", onnx.GraphProto()
        if turned not in self._tables:
            layer = self._quantised(helper.make_node("MatMul", ["", turned], [turned]), table.T, _EIGHT)
            self._tables[turned] = layer.node[0]
            part.initializer.extend(layer.initializer)
        codes, *grid = self._tables[turned].input[1:]
        last, found, rows, shape = (f"{leaving}_{name}" for name in ("last", "blocks", "rows", "shape"))
        by_block = [f"{leaving}_{name}" for name, _ in zip(("scales", "zeros"), grid, strict=False)]
        is_cut = table.shape[1] % self._size
        whole = f"{leaving}_whole" if is_cut else leaving
        part.node.extend(
            [
                *(helper.make_node("Unsqueeze", [one, last], [name]) for one, name in zip(grid, by_block, strict=True)),
                helper.make_node(
                    "GatherBlockQuantized",
                    [codes, gather.input[1], *by_block],
                    [found],
                    name=f"{gather.name or leaving}_Q{_EIGHT}",
                    domain=DOMAIN,
                    bits=_EIGHT,
                    block_size=self._size,
                    gather_axis=0,
                    quantize_axis=2,
                ),
                helper.make_node("Shape", [gather.input[1]], [rows]),
                helper.make_node("Concat", [rows, last], [shape], axis=0),
                helper.make_node("Reshape", [found, shape], [whole]),
            ]
        )
        numbers = {last: -1}
        if is_cut:
            begin, end = f"{leaving}_begin", f"{leaving}_end"
            numbers |= {begin: 0, end: table.shape[1]}
            part.node.append(helper.make_node("Slice", [whole, begin, end, last], [leaving]))
        part.initializer.extend(numpy_helper.from_array(np.array([one]), name) for name, one in numbers.items())
        return part

    def experts(self, node: onnx.NodeProto, weights: Mapping[str, NDArray[Any]]) -> onnx.GraphProto | None:
        """Each expert's two products, as layers are; as they are where no block fits into their widths.

        Text does not bring the same to each expert, so they are rounded plainly. In words of the oldest onnxruntime
        that serves: it knows of no zeros, nor how exactly to multiply.
        """
        size = math.gcd(self._size, *(weights[node.input[at]].shape[2] for at in (UP, DOWN)))
        if size < _SMALLEST:
            return None
        said = {"block_size": size, "symmetric": True}
        alone = replace(self, spec=self.spec.model_copy(update=said), inputs=None)
        part, read = onnx.GraphProto(), list[str]()
        for at in (UP, DOWN):
            name = node.input[at]
            product = helper.make_node("MatMul", ["", name], [name])
            layers = [alone.product(product, weight.T).initializer for weight in weights[name]]
            for tensors in zip(*layers, strict=True):
                # Of each expert a row for each column.
                held = np.stack([numpy_helper.to_array(tensor) for tensor in tensors])
                rows = held.reshape(len(held), weights[name].shape[1], -1)
                part.initializer.append(numpy_helper.from_array(rows, tensors[0].name))
                read.append(tensors[0].name)
        tokens, scores, _, bias_up, _, bias_down = (*node.input, "", "")[: DOWN + 2]
        made = helper.make_node(
            "QMoE",
            [tokens, scores, *read[:2], bias_up, *read[2:], bias_down],
            node.output,
            name=f"{node.name}_Q{self._bits}",
            domain=DOMAIN,
            expert_weight_bits=self._bits,
            block_size=size,
        )
        made.attribute.extend(node.attribute)
        part.node.append(made)
        return part

    @property
    def _bits(self) -> int:
        return 4 if self.spec.scheme is Scheme.INT4_WEIGHT_ONLY else 8

    @property
    def _size(self) -> int:
        assert self.spec.block_size is not None  # noqa: S101  weight-only schemes have one
        return self.spec.block_size

    def _quantised(self, product: onnx.NodeProto, weight: NDArray[Any], bits: int) -> onnx.GraphProto:
        if bits != self._bits:
            # The same weight may be there in both.
            product.input[1] += f"_{bits}"
        rows, columns = weight.shape
        step = max(1, _AT_ONCE // rows)
        # Columns have nothing in common, and the quantizer holds what it is given several times over.
        first, *others = (self._layer(product, weight[:, at : at + step], bits) for at in range(0, columns, step))
        if others:
            for at, tensor in enumerate(first.initializer):
                parts = [numpy_helper.to_array(layer.initializer[at]) for layer in (first, *others)]
                tensor.CopyFrom(numpy_helper.from_array(np.concatenate(parts), tensor.name))
            (many,) = (item for item in first.node[0].attribute if item.name == "N")
            many.i = columns
        return first

    def _layer(self, product: onnx.NodeProto, weight: NDArray[Any], bits: int) -> onnx.GraphProto:
        from onnxruntime.quantization.matmul_nbits_quantizer import (  # noqa: PLC0415  its import sets up logging for all
            DefaultWeightOnlyQuantConfig,
            MatMulNBitsQuantizer,
        )

        alone = helper.make_model(helper.make_graph([product], "layer", [], []))
        tensor = alone.graph.initializer.add(name=product.input[1], dims=weight.shape)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(weight.dtype)
        tensor.raw_data = weight.tobytes()
        options: dict[str, Any] = {
            "block_size": self._size,
            "is_symmetric": self.spec.symmetric,
            # The CPU multiplies in 8-bit integers: several times as fast as in floats, and the gate sees what it costs.
            "accuracy_level": 4,
            "bits": bits,
        }
        config = DefaultWeightOnlyQuantConfig(**options, op_types_to_quantize=("MatMul",))
        quantizer = MatMulNBitsQuantizer(alone, **options, algo_config=config)
        quantizer.process()
        layer: onnx.GraphProto = quantizer.model.model.graph
        return layer
