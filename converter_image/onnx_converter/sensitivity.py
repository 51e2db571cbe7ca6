"""How far the answer of each layer moves when int8-static rounds what goes into it.

Of each layer alone, on exact inputs, so that one pass over the texts tells it of all; what the rounding of earlier
layers adds is the gate's to see. Refuses nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from onnx_converter import inner, wire
from onnx_converter.products import turned_in
from onnx_converter.spec import Activations

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from onnx_converter.ranges import Ranges

#: Steps between the smallest and the largest value; of weights as with reduce_range.
_STEPS: Final = {Activations.UINT8: 255, Activations.UINT16: 65_535}
_WEIGHT_STEPS: Final = {Activations.UINT8: 64, Activations.UINT16: 127}


def errors(
    source: Path,
    layers: Sequence[str],
    requests: Iterable[dict[str, NDArray[Any]]],
    measured: Ranges,
    activations: Activations,
    *,
    is_symmetric: bool = False,
) -> dict[str, float]:
    """For each layer the length of what its answer moves by, as a share of the length of the answer, over all texts.

    With zero in the middle of each range weights have all of their bits.
    """
    graph = wire.outline(source).graph
    nodes = {node.name: node for node in graph.node if node.name in layers}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    turned = turned_in(graph, constants)
    given = list(measured)
    session = inner.session_of(source, given)
    if is_symmetric:
        measured = {name: (-max(-low, high), max(-low, high)) for name, (low, high) in measured.items()}
    weights = {}
    for layer in layers:
        name = nodes[layer].input[1]
        matrix = wire.mapped(constants[turned.get(name, name)], source.parent)
        is_turned = any(item.name == "transB" and item.i for item in nodes[layer].attribute) != (name in turned)
        weights[layer] = matrix.T if is_turned else matrix
    steps = _WEIGHT_STEPS[Activations.UINT16 if is_symmetric else activations]
    rounded = {layer: _rounded_weights(matrix, steps) for layer, matrix in weights.items()}
    moved, whole = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    for request in requests:
        exact = dict(zip(given, session.run(given, request), strict=True))
        close = {name: _rounded(values, *measured[name], _STEPS[activations]) for name, values in exact.items()}
        for layer in layers:
            name = nodes[layer].input[0]
            answer = exact[name] @ weights[layer]
            moved[layer] += float(np.square(close[name] @ rounded[layer] - answer).sum(dtype=np.float64))
            whole[layer] += float(np.square(answer).sum(dtype=np.float64))
    return {layer: float(np.sqrt(moved[layer] / whole[layer])) if whole[layer] else 0.0 for layer in layers}


def _rounded(values: NDArray[np.float32], low: float, high: float, steps: int) -> NDArray[np.float32]:
    scale = (high - low) / steps or 1.0
    zero = round(-low / scale)
    return np.asarray((np.clip(np.rint(values / scale) + zero, 0, steps) - zero) * scale, dtype=np.float32)


def _rounded_weights(matrix: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
    """A scale for each column, zero in the middle."""
    scales = np.abs(matrix).max(axis=0, keepdims=True) / steps
    scales[scales == 0] = 1.0
    return np.asarray(np.rint(matrix / scales) * scales, dtype=np.float32)
