"""Reads golden requests: what a validated model was asked when it was accepted.

Refuses a file that is not one, naming the request and the field: a prober without questions would look like one that
found no difference. The answers in the file are not used but for their names, because the candidate is compared with
what stable answers now.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tritonclient.utils import triton_to_np_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray


class GoldenError(Exception):
    """The file holds no golden requests."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input as the inference protocol wants it."""

    datatype: str
    values: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Golden:
    """One request, and the outputs that its answer must hold; those of a language model are named only."""

    name: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, NDArray[Any] | None]
    #: (batch, positions): 0 where an answer is not compared.
    mask: NDArray[Any] | None = None


def read_golden(path: Path, digest: str | None = None) -> tuple[Golden, ...]:
    """Read all requests of a file, which must have the digest, if one is given."""
    try:
        data = _found(path).read_bytes()
    except OSError as error:
        where = "it lies beside stable's artifact, or else is a key of the ConfigMap that the folder is named for"
        raise GoldenError(f"{path} cannot be read: {error.strerror}; {where}") from error
    if digest is not None and (found := f"sha256:{hashlib.sha256(data).hexdigest()}") != digest:
        raise GoldenError(
            f"{path} has digest {found}, not {digest}: it was changed after it was published; put it back, or name "
            "requests of your own in rollout.analysis.goldenRequests"
        )
    try:
        document = json.loads(data)
    except ValueError as error:
        raise GoldenError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, list) or not document:
        raise GoldenError(f"{path} holds no list of requests")
    return tuple(_request(f"{path}, request {index}", each) for index, each in enumerate(document))


def _found(path: Path) -> Path:
    """Beside the artifact, where a revision whose record was lost cannot tell that it is not inside."""
    beside = path.parent.with_name(f"{path.parent.name}.{path.name}")
    return beside if not path.exists() and beside.exists() else path


def _request(where: str, entry: Any) -> Golden:
    if not isinstance(entry, dict) or not entry.get("inputs") or not entry.get("outputs"):
        raise GoldenError(f"{where}: has no inputs or no outputs")
    inputs = {name: _tensor(f"{where}, input {name}", tensor) for name, tensor in entry["inputs"].items()}
    compared = _tensor(f"{where}, compared", entry["compared"]) if "compared" in entry else inputs.get("attention_mask")
    return Golden(
        name=str(entry.get("name", where)),
        inputs=inputs,
        outputs={name: _answer(f"{where}, output {name}", each) for name, each in entry["outputs"].items()},
        mask=None if compared is None else compared.values,
    )


def _answer(where: str, tensor: Any) -> NDArray[Any] | None:
    return None if isinstance(tensor, dict) and "data" not in tensor else _tensor(where, tensor).values


def _tensor(where: str, tensor: Any) -> Tensor:
    try:
        dtype = triton_to_np_dtype(tensor["datatype"])
        if dtype is None:
            raise GoldenError(f"{where}: {tensor['datatype']!r} is no datatype of the inference protocol")
        values = _values(tensor, np.dtype(dtype)).reshape(tensor["shape"])
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise GoldenError(f"{where}: {error!r}; it needs datatype, shape and as much data as the shape says") from error
    return Tensor(tensor["datatype"], values)


def _values(tensor: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Written out, or the bytes of many numbers, little end first, as zlib packs them and base64 writes them."""
    if "deflated" not in tensor:
        return np.array(tensor["data"], dtype=dtype)
    size = math.prod(tensor["shape"]) * dtype.itemsize
    # No more than the shape says, whatever they grow to.
    unpacked = zlib.decompressobj().decompress(base64.b64decode(tensor["deflated"], validate=True), size + 1)
    return np.frombuffer(unpacked, dtype=dtype.newbyteorder("<"))
