"""Building one image with buildah, in a storage of its own, and taking it out of that storage as blobs.

The host's settings for pip and uv and its certificates reach the build as mounts and leave no trace in the image.
A build that is killed leaves no process and no mount: it runs in namespaces that die with it.
"""

from __future__ import annotations

import configparser
import json
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onebox.archive import BlobStore, Image, add_overlay_folder
from onebox.console import OneboxError, heartbeat, one_at_a_time, run, stage
from onebox.places import HACK, REPOSITORY, onebox_cache

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

# A killed command takes its build along: the lock that it held would be free while the build went on.
_NAMESPACES = (
    "setpriv",
    "--pdeathsig",
    "KILL",
    "unshare",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--",
)
_RUN_FOLDER = Path("/run/onebox-buildah")
_PIP = Path("/etc/pip.conf")
_UV = Path("/etc/uv/uv.toml")
_MOUNT_POINTS = {str(path.relative_to("/")) for path in (_PIP, _UV, Path("/etc/hosts"), Path("/etc/resolv.conf"))}
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True, slots=True)
class Base:
    """What mmdebstrap puts into the base image."""

    suite: str
    packages: tuple[str, ...]


BASE = Base(
    suite="bookworm",
    packages=(
        "ca-certificates",
        "libgomp1",
        "libpython3.11",  # Triton's Python backend links against it
        "libstdc++6",
        "python3",
        "python3-venv",
        "tini",
    ),
)


def one_build_at_a_time() -> AbstractContextManager[None]:
    """Hold the machine's one lock for builds and for the storage."""
    return one_at_a_time(onebox_cache() / "images.lock", "another image build is under way")


def _storage() -> Path:
    return onebox_cache() / "buildah"


def _buildah(*words: str | Path) -> str:
    if os.geteuid() != 0:
        message = "images are built as root (buildah with chroot isolation): run as root"
        raise OneboxError(message)
    storage = ("--root", _storage(), "--runroot", _RUN_FOLDER, "--storage-driver", "overlay")
    return run([*_NAMESPACES, "buildah", *storage, *words])


def build_base(ref: str, blobs: BlobStore) -> Image:
    """Make the base image out of Debian packages."""
    with tempfile.TemporaryDirectory(dir=onebox_cache()) as temporary:
        context = Path(temporary)
        with stage("base image from Debian packages"), heartbeat("mmdebstrap"):
            run(
                [
                    *_NAMESPACES,
                    "mmdebstrap",
                    "--mode=root",
                    "--variant=minbase",
                    f"--include={','.join(BASE.packages)}",
                    *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "info", "locale", "man")),
                    BASE.suite,
                    context / "base.tar",
                ],
                env={"TMPDIR": temporary, "SOURCE_DATE_EPOCH": "0"},
            )
        _buildah("build", "--isolation", "chroot", "-f", HACK / "images/base.Dockerfile", "-t", ref, context)
    return _taken_out(ref, blobs)


def build(dockerfile: str, ref: str, arguments: Mapping[str, str], tools: Path, blobs: BlobStore) -> Image:
    """Build a Dockerfile's text with the repository's root as context."""
    with tempfile.TemporaryDirectory(dir=onebox_cache()) as temporary, heartbeat(f"building {ref}"):
        written = Path(temporary, "Dockerfile")
        written.write_text(dockerfile)
        mounts = [f"--volume={source}:{target}:ro" for source, target in _settings(Path(temporary))]
        _buildah(
            "build",
            "--isolation=chroot",
            "--network=host",
            "--layers=false",  # one layer per image; what is worth caching is an image of its own
            "--pull-never",
            f"--ignorefile={HACK / 'images/ignore'}",
            f"--build-context=tools={tools}",
            *(f"--build-arg={name}={value}" for name, value in arguments.items()),
            *mounts,
            f"--file={written}",
            f"--tag={ref}",
            REPOSITORY,
        )
    return _taken_out(ref, blobs)


def _settings(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield what a build needs of the host's package settings, as (file here, path there)."""
    if _CERTIFICATES.exists():
        yield _CERTIFICATES, _CERTIFICATES
    pip = configparser.RawConfigParser()
    pip.add_section("global")
    for line in run(["python3", "-m", "pip", "config", "list"]).splitlines():
        name, _, value = line.partition("=")
        pip.set("global", name.rpartition(".")[2], value.strip("'\""))
    local = {
        Path(value)
        for name, value in pip.items("global")
        if name in {"cert", "client-cert", "find-links"} and Path(value).exists()
    }
    yield from ((path, path) for path in local - {_CERTIFICATES})
    with (folder / "pip.conf").open("w") as file:
        pip.write(file)
    yield folder / "pip.conf", _PIP
    uv = {
        "index-url": os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL"),
        "extra-index-url": (os.environ.get("UV_EXTRA_INDEX_URL") or "").split() or None,
    }
    (folder / "uv.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in uv.items() if value))
    yield folder / "uv.toml", _UV


def _taken_out(ref: str, blobs: BlobStore) -> Image:
    """Pack those layers of an image in buildah's storage that are not packed yet."""
    described = json.loads(_buildah("inspect", "--type", "image", ref))
    storage = _storage()
    images = json.loads((storage / "overlay-images/images.json").read_text())
    layers = {layer["id"]: layer for layer in json.loads((storage / "overlay-layers/layers.json").read_text())}
    top = next(image["layer"] for image in images if image["id"] == described["FromImageID"])
    chain: list[str] = []
    while top:
        chain.insert(0, top)
        top = layers[top].get("parent", "")
    digests = tuple(_packed_layer(identity, blobs) for identity in chain)
    config = described["OCIv1"]
    config.pop("rootfs", None)
    config.pop("history", None)  # it counts buildah's layers, and says where the build ran
    return blobs.put_image(ref, config, digests)


def _packed_layer(identity: str, blobs: BlobStore) -> str:
    known = onebox_cache() / "layers" / identity
    if known.exists() and blobs.has_all([known.read_text()]):
        return known.read_text()
    folder = _storage() / "overlay" / identity / "diff"
    digest = blobs.put_layer(partial(add_overlay_folder, folder=folder, mount_points=_MOUNT_POINTS))
    known.parent.mkdir(parents=True, exist_ok=True)
    unfinished = known.with_suffix(".unfinished")
    unfinished.write_text(digest)
    unfinished.rename(known)
    return digest


def prune(prefix: str, keep: frozenset[str]) -> None:
    """Delete the images with this prefix that are not to be kept, and what killed builds have left."""
    _buildah("rm", "--all")
    listed = _buildah("images", "--format", "{{.Name}}:{{.Tag}}").split()
    old = [ref for ref in listed if ref.startswith(f"{prefix}/") and ref not in keep]
    if old:
        _buildah("rmi", *old)
    _buildah("rmi", "--prune")
