"""ONNX files read and written weight by weight, so that all weights are never in memory at once.

protobuf's own reader and writer hold a file several times over. Here a large weight stays where it is, and the graph
refers to it as ONNX refers to weights in another file. Refuses a file that is no protobuf.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import (
    ExternalDataInfo,
    set_external_data,
    uses_external_data,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Buffer = bytes | memoryview | mmap.mmap

_GRAPH: Final = ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER: Final = type(ModelProto().graph).INITIALIZER_FIELD_NUMBER
_RAW: Final = TensorProto.RAW_DATA_FIELD_NUMBER
#: Smaller ones, numbers of shapes above all, are read and written with the graph.
LARGE: Final = 4096
_BYTES: Final = 2
#: FALLOC_FL_PUNCH_HOLE with FALLOC_FL_KEEP_SIZE.
_PUNCH: Final = 3
#: Bytes of a field by its wire type; the others tell theirs.
_FIXED: Final = {1: 8, 5: 4}
_fallocate = ctypes.CDLL(None).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def outline(path: Path) -> ModelProto:
    """The model of a file, each of its large weights referred to as bytes of that very file."""
    model = ModelProto()
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for number, begin, body, end in _fields(data, 0, len(data)):
            if number != _GRAPH:
                model.MergeFromString(data[begin:end])
                continue
            rest = bytearray()
            for inner, inner_begin, inner_body, inner_end in _fields(data, body, end):
                if inner == _INITIALIZER:
                    model.graph.initializer.append(_outlined(data, inner_body, inner_end, path.name))
                else:
                    rest += data[inner_begin:inner_end]
            model.graph.MergeFromString(bytes(rest))
    return model


def _outlined(data: Buffer, begin: int, end: int, location: str) -> TensorProto:
    if end - begin <= LARGE:
        return TensorProto.FromString(data[begin:end])
    kept, raw = bytearray(), (0, 0)
    for number, field_begin, body, field_end in _fields(data, begin, end):
        if number == _RAW:
            raw = body, field_end
        else:
            kept += data[field_begin:field_end]
    tensor = TensorProto.FromString(bytes(kept))
    if raw[1]:
        refer(tensor, location, raw[0], raw[1] - raw[0])
    return tensor


def refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Tells of a weight without bytes where they are."""
    # onnx tells it only of what has some.
    tensor.raw_data = b""
    set_external_data(tensor, location, offset=offset, length=length)
    tensor.ClearField("raw_data")


def lifted(tensor: TensorProto) -> tuple[TensorProto, bytes]:
    """A weight that says how many bytes it has, and those: a message copies all that is in it whenever it is moved."""
    raw, bare = tensor.raw_data, TensorProto()
    tensor.ClearField("raw_data")
    bare.CopyFrom(tensor)
    refer(bare, "", 0, len(raw))
    return bare, raw


def write(model: ModelProto, path: Path, put: Callable[[TensorProto, BinaryIO], object]) -> None:
    """One file of everything: `put` writes the bytes of a weight that the model only refers to."""
    data = memoryview(model.SerializeToString())
    with path.open("wb") as stream:
        for number, begin, body, end in _fields(data, 0, len(data)):
            if number != _GRAPH:
                stream.write(data[begin:end])
                continue
            parts = [_part(data, *field) for field in _fields(data, body, end)]
            stream.write(_head(_GRAPH, sum(len(before) + size + len(after) for before, _, size, after in parts)))
            for before, tensor, size, after in parts:
                stream.write(before)
                expected = stream.tell() + size
                if tensor is not None:
                    put(tensor, stream)
                if stream.tell() != expected:
                    raise ValueError(f"{path.name}: a weight has another size than it was said to have")
                stream.write(after)


def _part(
    data: memoryview, number: int, begin: int, body: int, end: int
) -> tuple[Buffer, TensorProto | None, int, Buffer]:
    """A field of the graph as it is written: before the bytes of a weight, the weight, how many bytes, and after."""
    if number != _INITIALIZER:
        return data[begin:end], None, 0, b""
    tensor = TensorProto.FromString(data[body:end])
    if not uses_external_data(tensor):
        return data[begin:end], None, 0, b""
    size = int(ExternalDataInfo(tensor).length)
    bare = TensorProto()
    bare.CopyFrom(tensor)
    bare.ClearField("external_data")
    bare.ClearField("data_location")
    fields, before, after = bare.SerializeToString(), bytearray(), bytearray()
    for field, field_begin, _, field_end in _fields(fields, 0, len(fields)):
        side = before if field < _RAW else after
        side += fields[field_begin:field_end]
    before += _head(_RAW, size)
    return _head(_INITIALIZER, len(before) + size + len(after)) + bytes(before), tensor, size, bytes(after)


def mapped(tensor: TensorProto, folder: Path) -> NDArray[Any]:
    """The numbers of a weight; those that are in a file of the folder stay there."""
    if not uses_external_data(tensor):
        inline: NDArray[Any] = numpy_helper.to_array(tensor)
        return inline
    info, dtype = ExternalDataInfo(tensor), helper.tensor_dtype_to_np_dtype(tensor.data_type)
    there: NDArray[Any] = np.memmap(folder / info.location, dtype, "r", info.offset or 0, tuple(tensor.dims))
    return there


def give_back(tensors: Iterable[TensorProto], folder: Path, kept: Iterable[TensorProto] = ()) -> None:
    """What weights in files of the folder take on disk; the files stay as long as they were, and read as zeros there.

    Where one of those that are kept lies, nothing is given back: a file that holds no weight twice has one for both.

    Where the file system cannot, they stay as they are: space is all that is at stake.
    """
    taken = {place_of(tensor) for tensor in kept}
    for tensor in tensors:
        if uses_external_data(tensor) and place_of(tensor) not in taken:
            info = ExternalDataInfo(tensor)
            descriptor = os.open(folder / info.location, os.O_RDWR)
            try:
                _fallocate(descriptor, _PUNCH, info.offset or 0, info.length)
            finally:
                os.close(descriptor)


def place_of(tensor: TensorProto) -> tuple[str, int]:
    info = ExternalDataInfo(tensor)
    return info.location, info.offset or 0


def _fields(data: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, where it begins, where its bytes begin and end, of each field of a message."""
    while at < end:
        begin = at
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == 0:
            stop = _varint(data, at, end)[1]
        elif kind == _BYTES:
            size, at = _varint(data, at, end)
            stop = at + size
        elif kind in _FIXED:
            stop = at + _FIXED[kind]
        else:
            raise ValueError(f"it is no protobuf: byte {begin} begins no field")
        if stop > end:
            raise ValueError(f"it is cut: the field at byte {begin} ends {stop - end} bytes after its message")
        yield tag >> 3, begin, at, stop
        at = stop


def _varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:  # noqa: PLR2004  the highest bit says that there is more
            return value, at
    raise ValueError(f"it is cut at byte {end}")


def _head(number: int, size: int) -> bytes:
    written = bytearray()
    for value in (number << 3 | _BYTES, size):
        left = value
        while left > 0x7F:  # noqa: PLR2004  seven bits a byte
            written.append(left & 0x7F | 0x80)
            left >>= 7
        written.append(left)
    return bytes(written)
