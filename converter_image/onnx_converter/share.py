"""One file for the weights of several graphs: what two of them hold is written there once.

Refuses nothing: the graphs are judged afterwards, as they then are.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx.external_data_helper import uses_external_data

from onnx_converter import wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

FILE: Final = "weights.data"
#: What is smaller stays in the graph, where runtimes look at it while they optimise.
_LEAST_BYTES: Final = 1024
#: Of every weight in the file: enough for any instruction that reads many numbers at once.
_ALIGNMENT: Final = 64


class Weights:
    """The file, which begins empty, and where in it each weight is."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._file.write_bytes(b"")
        self._places: dict[str, int] = {}

    def write(self, model: onnx.ModelProto, path: Path, numbers_of: Callable[[onnx.TensorProto], NDArray[Any]]) -> None:
        """A graph without its weights, and those that no graph before it had; one at a time is in memory."""
        for tensor in model.graph.initializer:
            if uses_external_data(tensor):
                data = np.ascontiguousarray(numbers_of(tensor)).reshape(-1).view(np.uint8)
            elif len(tensor.raw_data) >= _LEAST_BYTES:
                data = np.frombuffer(tensor.raw_data, np.uint8)
            else:
                continue
            if len(data) >= _LEAST_BYTES:
                wire.refer(tensor, FILE, self._place(data.data), len(data))
                continue
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = data.tobytes()
        path.write_bytes(model.SerializeToString(deterministic=True))

    def _place(self, data: memoryview) -> int:
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._places:
            with self._file.open("ab") as stream:
                stream.write(bytes(-stream.tell() % _ALIGNMENT))
                self._places[digest] = stream.tell()
                stream.write(data)
        return self._places[digest]
