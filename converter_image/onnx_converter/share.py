"""One file for the weights of several graphs: what two of them hold lies there once.

Refuses nothing: the graphs are judged afterwards, as they then are.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import onnx
from onnx import TensorProto

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FILE: Final = "weights.data"
#: What is smaller stays in the graph, where runtimes look at it while they optimise.
_LEAST_BYTES: Final = 1024
#: Of every weight in the file: enough for any instruction that reads many numbers at once.
_ALIGNMENT: Final = 64


def share(folder: Path, names: Iterable[str]) -> None:
    """Takes the weights out of the graphs of these names, and out of the files beside them."""
    places: dict[str, int] = {}
    with (folder / FILE).open("wb") as stream:
        for name in names:
            model = onnx.load(folder / name)
            for tensor in model.graph.initializer:
                if len(data := tensor.raw_data) < _LEAST_BYTES:
                    continue
                digest = hashlib.sha256(data).hexdigest()
                if digest not in places:
                    stream.write(bytes(-stream.tell() % _ALIGNMENT))
                    places[digest] = stream.tell()
                    stream.write(data)
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                del tensor.external_data[:]
                for key, value in (("location", FILE), ("offset", places[digest]), ("length", len(data))):
                    tensor.external_data.add(key=key, value=str(value))
            (folder / name).write_bytes(model.SerializeToString(deterministic=True))
            (folder / f"{name}.data").unlink(missing_ok=True)
