"""Container images as files: layers as uncompressed tars named by their digest, and a stream for `ctr import`.

buildah's own `push` writes every layer again, each time (a minute for the converter's image). Here a layer is
packed once, kept under its digest, and a stream carries only those blobs that the other side lacks: a changed
line of Python then costs the last, thin layer. Refuses nothing clever: no compression, no signatures, amd64.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True, slots=True)
class Image:
    """An image whose blobs lie in a `BlobStore`."""

    ref: str
    manifest: str  # the digest that containerd shows for the ref
    blobs: tuple[str, ...]  # manifest, config, layers


class BlobStore:
    """A folder of blobs named by their sha256."""

    def __init__(self, folder: Path) -> None:
        """Use this folder; it is made when missing."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where the blob of this `sha256:…` lies or would lie."""
        return self._folder / digest.removeprefix("sha256:")

    def has_all(self, digests: Iterable[str]) -> bool:
        """Whether all these blobs are here."""
        return all(self.path(digest).exists() for digest in digests)

    def put_bytes(self, data: bytes) -> str:
        """Keep these bytes and return their digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if not self.path(digest).exists():
            unfinished = self._folder / f".unfinished.{os.getpid()}"
            unfinished.write_bytes(data)
            unfinished.rename(self.path(digest))
        return digest

    def put_layer(self, fill: Callable[[tarfile.TarFile], None]) -> str:
        """Keep a tar that `fill` writes and return its digest."""
        unfinished = self._folder / f".unfinished.{os.getpid()}.layer"
        with tarfile.open(unfinished, mode="w", format=tarfile.PAX_FORMAT) as tar:
            fill(tar)
        with unfinished.open("rb") as written:
            digest = f"sha256:{hashlib.file_digest(written, 'sha256').hexdigest()}"
        unfinished.rename(self.path(digest))
        return digest

    def prune(self, keep: Iterable[str]) -> None:
        """Delete every blob but these."""
        kept = {self.path(digest).name for digest in keep}
        for path in self._folder.iterdir():
            if path.name not in kept:
                path.unlink()

    def put_image(self, ref: str, config: Mapping[str, Any], layers: tuple[str, ...]) -> Image:
        """Keep config and manifest of an image with these layers (digests of uncompressed tars)."""
        whole = {**config, "rootfs": {"type": "layers", "diff_ids": list(layers)}}
        config_bytes = json.dumps(whole, sort_keys=True).encode()
        config_digest = self.put_bytes(config_bytes)
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": _CONFIG, "digest": config_digest, "size": len(config_bytes)},
            "layers": [
                {"mediaType": _LAYER, "digest": layer, "size": self.path(layer).stat().st_size} for layer in layers
            ],
        }
        digest = self.put_bytes(json.dumps(manifest, sort_keys=True).encode())
        return Image(ref, digest, (digest, config_digest, *layers))

    def stream(self, images: Iterable[Image], held: frozenset[str], sink: IO[bytes]) -> None:
        """Write an OCI archive of these images to `sink`, without the blobs that the receiver holds."""
        listed = tuple(images)
        index = {
            "schemaVersion": 2,
            "manifests": [
                {
                    "mediaType": _MANIFEST,
                    "digest": image.manifest,
                    "size": self.path(image.manifest).stat().st_size,
                    "annotations": {"io.containerd.image.name": image.ref},
                    "platform": {"architecture": "amd64", "os": "linux"},
                }
                for image in listed
            ],
        }
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            _add_bytes(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            _add_bytes(tar, "index.json", json.dumps(index).encode())
            wanted = dict.fromkeys(blob for image in listed for blob in image.blobs)
            for digest in wanted:
                if digest in held and not any(digest == image.manifest for image in listed):
                    continue
                tar.add(self.path(digest), arcname=f"blobs/sha256/{self.path(digest).name}")


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def add_files(tar: tarfile.TarFile, files: Mapping[str, Path], folders: Iterable[str] = ()) -> None:
    """Fill a layer with these files, executable and owned by root, and with empty world-writable folders."""
    parents = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    for name in sorted(parents | set(folders)):
        entry = tarfile.TarInfo(name)
        entry.type = tarfile.DIRTYPE
        entry.mode = 0o1777 if name in folders else 0o755
        tar.addfile(entry)
    for name, source in sorted(files.items()):
        entry = tarfile.TarInfo(name)
        entry.size = source.stat().st_size
        entry.mode = 0o755
        with source.open("rb") as content:
            tar.addfile(entry, content)


def add_overlay_folder(tar: tarfile.TarFile, folder: Path, mount_points: Collection[str] = ()) -> None:
    """Fill a layer with an overlay file system's upper folder, its deletions in the words of OCI layers.

    Empty files at `mount_points` are what a build left where it had mounted something, and stay out.
    """
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        if here != folder:
            name = str(here.relative_to(folder))
            tar.addfile(_entry(tar, here, name))
            if _is_opaque(here):
                tar.addfile(tarfile.TarInfo(f"{name}/.wh..wh..opq"))
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = sorted(set(folders).difference(links))
        for file in sorted(files + links):
            name = str((here / file).relative_to(folder))
            if name not in mount_points or (here / file).lstat().st_size:
                _add_file(tar, here / file, name)


def _add_file(tar: tarfile.TarFile, path: Path, name: str) -> None:
    status = path.lstat()
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:  # overlay's way to say: deleted
        tar.addfile(tarfile.TarInfo(str(Path(name).with_name(f".wh.{path.name}"))))
        return
    if stat.S_ISSOCK(status.st_mode):
        return
    entry = _entry(tar, path, name)
    if not entry.isreg():
        tar.addfile(entry)
        return
    with path.open("rb") as content:
        tar.addfile(entry, content)


def _entry(tar: tarfile.TarFile, path: Path, name: str) -> tarfile.TarInfo:
    entry = tar.gettarinfo(path, arcname=name)
    entry.uname = entry.gname = ""
    entry.mtime = int(entry.mtime)
    for attribute in os.listxattr(path, follow_symlinks=False):
        if attribute == "security.capability":
            value = os.getxattr(path, attribute, follow_symlinks=False)
            entry.pax_headers = {f"SCHILY.xattr.{attribute}": value.decode("utf-8", "surrogateescape")}
    return entry


def _is_opaque(folder: Path) -> bool:
    try:
        return os.getxattr(folder, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False
