"""Safetensors files, checked to the byte before a library opens them.

Refuses a header that is too large, is no JSON, names a tensor twice, or does not describe the file exactly (gaps,
overlaps, a shape that does not fill its bytes, bytes left over), a dtype that no reader here knows, and any weight
that is NaN or infinite.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from onnx_converter.digest import open_regular
from onnx_converter.reasons import (
    HEADER_INVALID,
    TENSORS_OVERLAP,
    TRAILING_BYTES,
    WEIGHTS_CORRUPT,
    WEIGHTS_NOT_FINITE,
    WEIGHTS_TRUNCATED,
    Reason,
    StepFailedError,
)

if TYPE_CHECKING:
    from io import BufferedReader
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

#: A header has some 100 bytes a tensor; no encoder has more than some thousand tensors.
HEADER_LIMIT: Final = 16 << 20
_SIZES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
#: Bits of the exponent, all set in NaN and infinity alike.
_EXPONENTS: Final = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
_CHUNK: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as the header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of one file, in the order of their bytes, and where the bytes begin."""

    tensors: tuple[Tensor, ...]
    data_at: int


def check(folder: Path, name: str) -> Header:
    """The header of a file whose every weight is finite."""
    with open_regular(folder / name) as stream:
        header = read_header(stream, name)
        for tensor in header.tensors:
            _refuse_not_finite(stream, header, tensor, name)
    return header


def read_header(stream: BufferedReader, name: str) -> Header:
    size = stream.seek(0, 2)
    stream.seek(0)
    prefix = stream.read(8)
    if len(prefix) < 8:  # noqa: PLR2004  the format begins with a 64 bit length
        raise _truncated(name, f"is truncated: {size} bytes are too few for a header")
    (length,) = struct.unpack("<Q", prefix)
    if length > HEADER_LIMIT:
        raise _invalid(name, f"announces a header of {length} bytes, more than {HEADER_LIMIT}")
    if 8 + length > size:
        raise _truncated(name, f"is truncated: its header of {length} bytes does not fit into {size}")
    entries = _parse(stream.read(length), name)
    tensors = sorted(
        (_tensor(entry, value, name) for entry, value in entries.items()), key=lambda tensor: (tensor.begin, tensor.end)
    )
    _refuse_bad_layout(tensors, size - 8 - length, name)
    return Header(tuple(tensors), 8 + length)


def _parse(data: bytes, name: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            raise _invalid(name, "names a tensor twice in its header")
        return dict(pairs)

    try:
        value = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _invalid(name, "has a header that is no JSON") from error
    if not isinstance(value, dict):
        raise _invalid(name, "has a header that is no JSON object")
    value.pop("__metadata__", None)
    if not value:
        raise _invalid(name, "holds no tensor")
    return value


def _tensor(entry: str, value: object, name: str) -> Tensor:
    if not isinstance(value, dict):
        raise _invalid(name, f"describes tensor {entry!r} by no object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise _invalid(name, f"gives tensor {entry!r} the dtype {dtype!r}, known are {', '.join(_SIZES)}")
    if not _are_naturals(shape) or not _are_naturals(offsets) or len(offsets) != 2:  # noqa: PLR2004
        raise _invalid(name, f"gives tensor {entry!r} an impossible shape or data_offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * _SIZES[dtype]:
        raise _unsaved(
            WEIGHTS_CORRUPT,
            name,
            f"gives tensor {entry!r} of dtype {dtype} and shape {shape} {end - begin} bytes: its header lies",
        )
    return Tensor(entry, dtype, tuple(shape), begin, end)


def _are_naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _refuse_bad_layout(tensors: list[Tensor], available: int, name: str) -> None:
    if tensors[0].begin != 0:
        raise _unsaved(
            TENSORS_OVERLAP, name, f"leaves {tensors[0].begin} bytes unused before tensor {tensors[0].name!r}"
        )
    for before, after in pairwise(tensors):
        if after.begin < before.end:
            raise _unsaved(TENSORS_OVERLAP, name, f"has overlapping tensors {before.name!r} and {after.name!r}")
        if after.begin > before.end:
            raise _unsaved(TENSORS_OVERLAP, name, f"leaves a gap between tensors {before.name!r} and {after.name!r}")
    if tensors[-1].end > available:
        raise _truncated(
            name, f"is truncated: tensor {tensors[-1].name!r} ends {tensors[-1].end - available} bytes after the file"
        )
    if tensors[-1].end < available:
        raise StepFailedError(
            TRAILING_BYTES,
            f"{name} has {available - tensors[-1].end} bytes after its last tensor: save the file again",
        )


def _refuse_not_finite(stream: BufferedReader, header: Header, tensor: Tensor, name: str) -> None:
    if tensor.dtype not in _EXPONENTS:
        return
    import numpy as np  # noqa: PLC0415  the structural check above must not need it

    code, exponent = _EXPONENTS[tensor.dtype]
    stream.seek(header.data_at + tensor.begin)
    left = tensor.end - tensor.begin
    while left:
        data = stream.read(min(left, _CHUNK))
        if not data:
            raise _truncated(name, "was cut while it was read")
        left -= len(data)
        bits: NDArray[np.unsignedinteger[Any]] = np.frombuffer(data, dtype=code)
        if np.any((bits & bits.dtype.type(exponent)) == exponent):
            raise StepFailedError(
                WEIGHTS_NOT_FINITE,
                f"{name} holds NaN or infinity in tensor {tensor.name!r}: the training run that wrote it diverged",
            )


def _invalid(name: str, fault: str) -> StepFailedError:
    return _unsaved(HEADER_INVALID, name, fault)


def _unsaved(reason: Reason, name: str, fault: str) -> StepFailedError:
    return StepFailedError(reason, f"{name} {fault}: save the file again")


def _truncated(name: str, fault: str) -> StepFailedError:
    return StepFailedError(WEIGHTS_TRUNCATED, f"{name} {fault}: copy the file again")
