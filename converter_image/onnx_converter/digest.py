"""Content addresses: digests of files, of trees, and the one JSON form that is hashed.

Standard library only. Refuses to follow a link: what is hashed is the file that the name stands for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from typing import TYPE_CHECKING, Any, Final

from onnx_converter.reasons import LINK_REFUSED, StepFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from io import BufferedReader
    from pathlib import Path

CHUNK: Final = 1 << 20
#: Large, since between two of them a thread waits for one that computes.
_HASHED: Final = 8 << 20
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def hex_of(digest: str) -> str:
    """The hexadecimal part, which names folders."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise ValueError(f"{digest!r} is no digest of the form sha256:<64 hexadecimal digits>")
    return match.group(1)


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file, and nothing that merely leads to one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if path.is_symlink():
            raise StepFailedError(LINK_REFUSED, f"{path.name} is a symbolic link: put the file itself there") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StepFailedError(LINK_REFUSED, f"{path.name} is not a regular file: remove it from the source")
    return os.fdopen(descriptor, "rb")


def chunks_of(stream: BufferedReader) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        yield chunk


def sha256_of(path: Path) -> str:
    """The bare hexadecimal sha256 of a regular file."""
    found, chunk = hashlib.sha256(), memoryview(bytearray(_HASHED))
    with open_regular(path) as stream:
        while size := stream.readinto(chunk):
            found.update(chunk[:size])
    return found.hexdigest()


def tree_digest(files: Mapping[str, str]) -> str:
    """The digest of a folder, from relative POSIX path to the file's hexadecimal sha256."""
    lines = sorted(f"{sha256}  {path}\n" for path, sha256 in files.items())
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value that is hashed and written."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def digest_of_bytes(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
