"""Which images there are, under which names, and when one is up to date.

An image's tag is the hash of all that goes into it: the Dockerfile, every file that it copies from the
repository, its base, its build arguments. Reads files; building is `imagebuild`'s, running is containerd's.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from onebox import imagebuild, packages, tools
from onebox.archive import BlobStore, Image, add_files
from onebox.console import OneboxError, run, stage
from onebox.places import HACK, REPOSITORY, onebox_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

PREFIX = "localhost/onnx-operator"
_UNTRACKED = {"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOBODY = "65532:65532"
_KEPT_STATES = 3  # of each image: enough to go back and forth between two states of the repository


@dataclass(frozen=True, slots=True)
class Recipe:
    """An image that a Dockerfile describes; the build context is always the repository's root."""

    name: str
    dockerfile: Path
    tools: tuple[str, ...] = ()  # binaries that it copies from the build context `tools`


#: The project's own images; one whose Dockerfile does not exist (yet) is passed over.
PROJECT = (
    Recipe("operator", REPOSITORY / "operator/Dockerfile"),
    Recipe("converter", REPOSITORY / "converter_image/Dockerfile"),
    Recipe("triton", REPOSITORY / "triton_image/Dockerfile"),
)
#: What the cluster itself needs and cannot do without a file system.
SYSTEM = (
    Recipe("kube-proxy", HACK / "images/kube-proxy.Dockerfile", tools=("kube-proxy",)),
    Recipe("envoy", HACK / "images/envoy.Dockerfile"),
)


def copied_paths(dockerfile: str) -> tuple[str, ...]:
    """The paths of the build context that a Dockerfile copies, adds or mounts."""
    joined = re.sub(r"\\\n", " ", dockerfile)
    found: list[str] = []
    for line in joined.splitlines():
        words = line.split()
        if not words:
            continue
        if words[0].upper() in {"COPY", "ADD"} and not any(word.startswith("--from=") for word in words):
            found += [word for word in words[1:-1] if not word.startswith("--")]
        for mount in re.findall(r"--mount=(\S+)", line):
            settings = dict(part.partition("=")[::2] for part in mount.split(","))
            if settings.get("type", "bind") == "bind" and "from" not in settings and "source" in settings:
                found.append(settings["source"])
    return tuple(dict.fromkeys(found))


def split_at_own_code(dockerfile: str) -> tuple[str, ...]:
    """Cut a Dockerfile before the first file of the repository that its last stage copies.

    What comes before (the dependencies) becomes an image of its own, from which the rest starts. The result is the
    same, but a changed line of our code then costs two seconds: buildah, asked for the whole, would first read
    through every dependency again to see that `COPY --from` copies the same as the last time.
    """
    lines = dockerfile.splitlines(keepends=True)
    stage = max(number for number, line in enumerate(lines) if line.upper().startswith("FROM "))
    own = next((number for number in range(stage, len(lines)) if copied_paths(lines[number])), None)
    head, tail = "".join(lines[:own]), "".join(lines[own:]) if own else ""
    in_one_piece = not tail or "--from=" in tail or re.search("^ARG ", "".join(lines[stage:own]), re.MULTILINE)
    return (dockerfile,) if in_one_piece else (head, f"ARG BASE_IMAGE=\nFROM ${{BASE_IMAGE}}\n{tail}")


def _files_below(path: Path) -> Iterator[Path]:
    if path.name in _UNTRACKED or path.suffix == ".pyc":
        return
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for child in sorted(path.iterdir()):
        yield from _files_below(child)


def content_hash(dockerfile: str, arguments: Mapping[str, str], tools_key: str = "") -> str:
    """Twelve hex digits over everything that shapes the image; `tools_key` only where it copies tools."""
    shape = hashlib.sha256(repr((dockerfile, sorted(arguments.items()), tools_key)).encode())
    for pattern in copied_paths(dockerfile):
        matches = sorted(REPOSITORY.glob(pattern.strip("/"))) if pattern.strip("./") else [REPOSITORY]
        if not matches:
            raise OneboxError(f"a Dockerfile copies {pattern}, and there is no such path in {REPOSITORY}")
        for file in (file for match in matches for file in _files_below(match)):
            content = str(file.readlink()).encode() if file.is_symlink() else file.read_bytes()
            name = f"{file.relative_to(REPOSITORY)} {file.lstat().st_mode & stat.S_IXUSR}"
            shape.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return shape.hexdigest()[:12]


class Catalogue:
    """The images that are built, remembered by ref and content in the cache."""

    def __init__(self) -> None:
        """Open the cache's records; they are made when missing."""
        self._records = onebox_cache() / "images"
        self._records.mkdir(parents=True, exist_ok=True)
        self.blobs = BlobStore(onebox_cache() / "blobs")

    def _record(self, ref: str, key: str) -> Path:
        return self._records / f"{re.sub(r'[^a-z0-9.-]+', '_', ref)}@{key}.json"

    def find(self, ref: str, key: str = "") -> Image | None:
        """The image, if it and all its blobs are there."""
        record = self._record(ref, key)
        if not record.exists():
            return None
        known = json.loads(record.read_text())
        image = Image(known["ref"], known["manifest"], tuple(known["blobs"]))
        if not self.blobs.has_all(image.blobs):
            return None
        record.touch()  # by which `_prune` knows what is in use
        return image

    def _keep(self, image: Image, key: str = "") -> Image:
        """Remember a built image."""
        record = self._record(image.ref, key)
        unfinished = record.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(asdict(image)))
        unfinished.rename(record)
        self._prune()
        return image

    def _prune(self) -> None:
        """Forget all but the newest states of each image; called with the lock for builds held."""
        states: dict[str, list[Path]] = {}
        for record in sorted(self._records.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
            states.setdefault(json.loads(record.read_text())["ref"].rpartition(":")[0], []).append(record)
        for old in (record for records in states.values() for record in records[_KEPT_STATES:]):
            old.unlink()
        kept = [json.loads(record.read_text()) for records in states.values() for record in records[:_KEPT_STATES]]
        self.blobs.prune(blob for image in kept for blob in image["blobs"])
        imagebuild.prune(PREFIX, frozenset(image["ref"] for image in kept))

    def blobs_of(self, present: Mapping[str, str]) -> frozenset[str]:
        """Every blob of those images, digest by ref, that are known here."""
        known = (json.loads(path.read_text()) for path in self._records.glob("*.json"))
        return frozenset(
            blob for image in known if present.get(image["ref"]) == image["manifest"] for blob in image["blobs"]
        )

    def base(self) -> Image:
        """The Debian base of all other images."""
        recipe = (HACK / "images/base.Dockerfile").read_text() + repr(imagebuild.BASE)
        ref = f"{PREFIX}/base:{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
        return self._found_or_built(ref, "", lambda: imagebuild.build_base(ref, self.blobs))

    def from_recipe(self, recipe: Recipe) -> Image:
        """The image of this recipe as the files are now; built if it is not there."""
        folder = tools.ensure(tuple(tool for tool in tools.ALL if tool.name in recipe.tools))
        key = folder.name if recipe.tools else ""
        *dependencies, last = split_at_own_code(recipe.dockerfile.read_text())
        image = self.base()
        for name, text in (*((f"{recipe.name}-dependencies", part) for part in dependencies), (recipe.name, last)):
            image = self._from_dockerfile(name, text, image.ref, folder, key)
        return image

    def _from_dockerfile(self, name: str, text: str, base: str, folder: Path, key: str) -> Image:
        arguments = {"BASE_IMAGE": base}
        ref = f"{PREFIX}/{name}:{content_hash(text, arguments, key)}"
        return self._found_or_built(ref, "", lambda: imagebuild.build(text, ref, arguments, folder, self.blobs))

    def from_binary(self, ref: str, binary: Path, key: str, entrypoint: tuple[str, ...], user: str = "") -> Image:
        """An image that holds one static binary and an empty /tmp, nothing else."""

        def build() -> Image:
            files = {f"usr/local/bin/{binary.name}": binary}
            layer = self.blobs.put_layer(lambda tar: add_files(tar, files, folders=("tmp",)))
            settings = {"Env": [_PATH], "Entrypoint": list(entrypoint), "User": user}
            return self.blobs.put_image(ref, {"architecture": "amd64", "os": "linux", "config": settings}, (layer,))

        return self._found_or_built(ref, key, build)

    def _found_or_built(self, ref: str, key: str, build: Callable[[], Image]) -> Image:
        found = self.find(ref, key)
        if found:
            return found
        with imagebuild.one_build_at_a_time():
            found = self.find(ref, key)  # somebody else may have built it while we waited
            if found:
                return found
            with stage(f"image {ref}"):
                return self._keep(build(), key)


def project_images(catalogue: Catalogue) -> dict[str, Image]:
    """Every image of the project whose Dockerfile exists, built where needed."""
    return {recipe.name: catalogue.from_recipe(recipe) for recipe in PROJECT if recipe.dockerfile.exists()}


@dataclass(frozen=True, slots=True)
class SystemImages:
    """What the cluster is made of; `control_plane` by the short names of kubeadm (etcd, pause…)."""

    control_plane: dict[str, Image]
    base: Image
    envoy: Image
    envoy_gateway: Image
    local_path_provisioner: Image
    prometheus: Image

    def all(self) -> tuple[Image, ...]:
        """Every one of them."""
        return (
            *self.control_plane.values(),
            self.base,
            self.envoy,
            self.envoy_gateway,
            self.local_path_provisioner,
            self.prometheus,
        )


def control_plane_refs(folder: Path, kubeadm_config: Path) -> dict[str, str]:
    """The names that kubeadm will ask for, by the last part of the path."""
    listed = run([folder / "kubeadm", "config", "images", "list", "--config", kubeadm_config]).split()
    return {ref.rpartition("/")[2].partition(":")[0]: ref for ref in listed}


def system_images(catalogue: Catalogue, refs: dict[str, str]) -> SystemImages:
    """The images of the cluster itself, built where needed; `refs` as `control_plane_refs` gives them."""
    folder = tools.ensure(tools.ALL)
    key = folder.name

    def own(name: str) -> Image:
        ref = f"{PREFIX}/{name}:{key[:12]}"
        return catalogue.from_binary(ref, folder / name, key, (name,), _NOBODY)

    recipes = {recipe.name: catalogue.from_recipe(recipe) for recipe in SYSTEM}
    catatonit = next(path for path in packages.CATATONIT if path.exists())
    control_plane: dict[str, Image] = {}
    for name, ref in refs.items():
        match name:
            case "pause":
                image = catalogue.from_binary(ref, catatonit.resolve(), key, ("catatonit", "-P"))
            case "kube-proxy":
                built = recipes[name]
                image = Image(ref, built.manifest, built.blobs)
            case _:
                image = catalogue.from_binary(ref, folder / name, key, (name,))
        control_plane[name] = image
    return SystemImages(
        control_plane=control_plane,
        base=catalogue.base(),
        envoy=recipes["envoy"],
        envoy_gateway=own("envoy-gateway"),
        local_path_provisioner=own("local-path-provisioner"),
        prometheus=own("prometheus"),
    )
