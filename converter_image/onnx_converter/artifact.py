"""What an artifact is: a folder that its manifest describes to the byte, named by the manifest's digest.

Shared with the operator, so standard library only. Refuses a folder with a file missing, extra or changed, and
anything in it that is neither a regular file nor a folder. It never repairs.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from onnx_converter.digest import canonical_json, digest_of_bytes, is_digest, sha256_of
from onnx_converter.reasons import ARTIFACT_CORRUPT, StepFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SCHEMA: Final = "onnx-operator.io/artifact/v1alpha1"
MANIFEST: Final = "manifest.json"
MANIFEST_LIMIT: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the artifact."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Every file of an artifact but the manifest itself, and what they were made from."""

    lineage: Mapping[str, Any]
    files: tuple[Entry, ...]

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.files)


def describe(folder: Path, lineage: Mapping[str, Any]) -> Manifest:
    """The manifest of a folder as it is now."""
    entries = [
        Entry(path, sha256_of(folder / path), (folder / path).stat().st_size)
        for path in walk(folder)
        if path != MANIFEST
    ]
    return Manifest(lineage, tuple(sorted(entries, key=lambda entry: entry.path)))


def dump(manifest: Manifest) -> bytes:
    files = [{"path": entry.path, "sha256": entry.sha256, "size": entry.size} for entry in manifest.files]
    return canonical_json({"schema": SCHEMA, "lineage": manifest.lineage, "files": files})


def parse(data: bytes) -> Manifest:
    try:
        value = json.loads(data)
        schema = value["schema"]
        files = tuple(Entry(str(item["path"]), str(item["sha256"]), int(item["size"])) for item in value["files"])
        lineage = dict(value["lineage"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StepFailedError(
            ARTIFACT_CORRUPT, f"{MANIFEST} cannot be read ({error!r}): publish the artifact again"
        ) from error
    if schema != SCHEMA:
        raise StepFailedError(ARTIFACT_CORRUPT, f"{MANIFEST} has schema {schema!r}, this version reads {SCHEMA}")
    for entry in files:
        if not _stays_inside(entry.path):
            raise StepFailedError(ARTIFACT_CORRUPT, f"{MANIFEST} names {entry.path!r}, which leads out of the artifact")
    return Manifest(lineage, files)


def verify(folder: Path, digest: str) -> Manifest:
    """The manifest, once every byte under the folder was found as it says."""
    if not is_digest(digest):
        raise StepFailedError(ARTIFACT_CORRUPT, f"{digest!r} is no digest of the form sha256:<64 hexadecimal digits>")
    data = _read_manifest(folder)
    if (found := digest_of_bytes(data)) != digest:
        raise StepFailedError(
            ARTIFACT_CORRUPT,
            f"{MANIFEST} has digest {found}, not {digest}: the artifact was changed after it was published",
        )
    manifest = parse(data)
    present = frozenset(walk(folder)) - {MANIFEST}
    listed = frozenset(entry.path for entry in manifest.files)
    if missing := sorted(listed - present):
        raise StepFailedError(
            ARTIFACT_CORRUPT, f"{missing[0]} is missing from the artifact ({len(missing)} files are): publish it again"
        )
    if extra := sorted(present - listed):
        raise StepFailedError(
            ARTIFACT_CORRUPT, f"{extra[0]} lies in the artifact and not in its manifest: publish it again"
        )
    for entry in manifest.files:
        path = folder / entry.path
        if path.stat().st_size != entry.size or sha256_of(path) != entry.sha256:
            raise StepFailedError(
                ARTIFACT_CORRUPT, f"{entry.path} was changed after the artifact was published: publish it again"
            )
    return manifest


def walk(folder: Path) -> Iterator[str]:
    """Relative POSIX paths of all files below a folder; whatever is neither file nor folder is refused."""
    for parent, folders, names in os.walk(folder, followlinks=False):
        for name in [*folders, *names]:
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                yield path.relative_to(folder).as_posix()
            elif not stat.S_ISDIR(mode):
                raise StepFailedError(
                    ARTIFACT_CORRUPT,
                    f"{path.relative_to(folder).as_posix()} is neither a file nor a folder: publish the artifact again",
                )


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StepFailedError(
            ARTIFACT_CORRUPT, f"{MANIFEST} is missing: {folder} holds no published artifact"
        ) from error
    if not stat.S_ISREG(status.st_mode) or status.st_size > MANIFEST_LIMIT:
        raise StepFailedError(ARTIFACT_CORRUPT, f"{MANIFEST} is no regular file of at most {MANIFEST_LIMIT} bytes")
    return path.read_bytes()


def _stays_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and PurePosixPath(path).as_posix() == path
