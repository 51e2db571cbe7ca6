"""Whether a product of a quantised graph takes much longer than the product of floats that it stands for.

Some run by no kernel of their own: weights are made floats again for every call, and nobody is told. Of each kind and
shape of product one is taken out of the graph with all that rounds for it, and timed beside floats of that shape on the
provider that will serve it, on one thread, in turns. Small ones are left out: a call takes as long as their work. So is
TensorRT, which makes one kernel of many layers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_converter import placement, wire
from onnx_converter.reasons import KERNEL_SLOW, StepFailedError
from onnx_converter.spec import Provider

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

#: Numbers of a matrix that is worth a look, and of one that is made in floats to be compared with: 16 MB, or of a model
#: whose original takes far more, a sixteenth of it.
_LEAST: Final = 1 << 16
_MOST: Final = 1 << 22
_SHARE: Final = 16
#: Of the largest, as many kinds and shapes.
_TIMED: Final = 4
#: One token, and a text: a kernel may be made for either.
_ROWS: Final = (1, 32)
_TURNS: Final = 20
#: Kernels of whole numbers took 0.3 to 1.8 times as long as floats, on an idle machine and a busy one, and what has no
#: kernel 2.3 to 15 times; at both numbers of rows, so that neither noise nor a shape alone refuses a graph.
_SLOW: Final = 3.0
_WHOLE: Final = frozenset({TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4})
_QUANTISED: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


@dataclass(frozen=True, slots=True)
class Product:
    """A layer's product: from a value in floats to one in floats, by a matrix of (inner, outer) numbers."""

    layer: str
    given: str
    answer: str
    inner: int
    outer: int
    nodes: Sequence[onnx.NodeProto]

    @property
    def size(self) -> int:
        return self.inner * self.outer

    @property
    def kind(self) -> tuple[object, ...]:
        return (*sorted(node.op_type for node in self.nodes), self.inner, self.outer)


def refuse_slow(placed: Iterable[tuple[Path, Provider]]) -> dict[str, float]:
    """By layer, how many times as long as of floats the products of graphs take, at the better number of rows."""
    found: dict[str, float] = {}
    for path, provider in placed:
        if provider is Provider.TENSORRT:
            continue
        model = wire.outline(path)
        known = list(products(model))
        most = max(_MOST, sum(one.size for one in known) // _SHARE)
        kinds = {one.kind: one for one in known if _LEAST <= one.size <= most}
        for one in sorted(kinds.values(), key=lambda one: -one.size)[:_TIMED]:
            ratios = _ratios(_alone(model, one, path.parent), one, provider)
            found[one.layer] = min(ratios)
            if min(ratios) > _SLOW:
                told = " and ".join(f"{ratio:.1f} times for {rows}" for ratio, rows in zip(ratios, _ROWS, strict=True))
                raise StepFailedError(
                    KERNEL_SLOW,
                    f"{path.name}: {one.layer}, a matrix of {one.inner} x {one.outer}, takes {told} rows as long on "
                    f"{provider} as floats do: it has no kernel there; choose another scheme",
                )
    return found


def products(model: onnx.ModelProto) -> Iterator[Product]:
    """Those of floats by weights in whole numbers."""
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    read: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            read.setdefault(name, []).append(node)
    held = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMulNBits" and held[node.input[2]].data_type == TensorProto.FLOAT:
            said = {one.name: one.i for one in node.attribute}
            given, answer, shape = node.input[0], node.output[0], (said["K"], said["N"])
        elif node.op_type in ("MatMul", "Gemm", "MatMulInteger"):
            weight = held.get(_origin(node.input[1], made))
            given, answer = _origin(node.input[0], made), node.output[0]
            if weight is None or weight.data_type not in _WHOLE or len(weight.dims) != 2:  # noqa: PLR2004
                continue
            turned = any(one.name == "transB" and one.i for one in node.attribute)
            shape = (weight.dims[1], weight.dims[0]) if turned else (weight.dims[0], weight.dims[1])
            if node.op_type == "MatMulInteger":
                # Sums of whole numbers are made floats, and what they are.
                for wanted in ("Cast", "Mul"):
                    answer = next((one.output[0] for one in read.get(answer, ()) if one.op_type == wanted), answer)
        else:
            continue
        nodes = _between(given, answer, made)
        yield Product(node.name or node.output[0], given, answer, *shape, nodes)


def _origin(name: str, made: dict[str, onnx.NodeProto]) -> str:
    """What a value was before it was rounded."""
    while name in made and made[name].op_type in _QUANTISED:
        name = made[name].input[0]
    return name


def _between(given: str, answer: str, made: dict[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Every node that the answer needs, in their order, but for what makes what is given."""
    found: dict[str, onnx.NodeProto] = {}

    def visit(name: str) -> None:
        if name == given or name not in made or made[name].output[0] in found:
            return
        for one in made[name].input:
            visit(one)
        found[made[name].output[0]] = made[name]

    visit(answer)
    return list(found.values())


def _alone(model: onnx.ModelProto, product: Product, folder: Path) -> bytes:
    needed = {name for node in product.nodes for name in node.input}
    weights = [
        numpy_helper.from_array(np.ascontiguousarray(wire.mapped(tensor, folder)), tensor.name)
        for tensor in model.graph.initializer
        if tensor.name in needed
    ]
    return _model(product.nodes, weights, product, model.opset_import)


def _floats(product: Product) -> bytes:
    weight = numpy_helper.from_array(np.full((product.inner, product.outer), 0.5, np.float32), "floats")
    nodes = [helper.make_node("MatMul", [product.given, "floats"], [product.answer])]
    return _model(nodes, [weight], product, [helper.make_opsetid("", 18)])


def _model(
    nodes: Sequence[onnx.NodeProto], weights: Sequence[TensorProto], product: Product, opsets: Iterable[Any]
) -> bytes:
    given = helper.make_tensor_value_info(product.given, TensorProto.FLOAT, ["rows", product.inner])
    answer = helper.make_tensor_value_info(product.answer, TensorProto.FLOAT, ["rows", product.outer])
    graph = helper.make_graph(list(nodes), "product", [given], [answer], list(weights))
    data: bytes = helper.make_model(graph, opset_imports=list(opsets), ir_version=10).SerializeToString()
    return data


def _ratios(quantised: bytes, product: Product, provider: Provider) -> list[float]:
    sessions = [placement.session(model, provider, 1) for model in (quantised, _floats(product))]
    ratios = []
    for rows in _ROWS:
        asked = {product.given: np.random.default_rng(0).standard_normal((rows, product.inner), dtype=np.float32)}
        least = [float("inf")] * 2
        for _ in range(_TURNS):
            for number, session in enumerate(sessions):
                began = time.perf_counter()
                session.run(None, asked)
                least[number] = min(least[number], time.perf_counter() - began)
        ratios.append(least[0] / least[1])
    return ratios
