"""Images on their way from the cache into a cluster's containerd, and out of it when they are old.

Never pulls: what is not in the cache cannot get in.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import IO, TYPE_CHECKING, cast

from onebox.console import OneboxError, say
from onebox.images import PREFIX, Catalogue

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from onebox.archive import Image
    from onebox.machine import Machine

_CTR = ("ctr", "--namespace", "k8s.io", "images")


def _present(machine: Machine) -> dict[str, str]:
    """The images in the cluster, digest by ref."""
    rows = [line.split() for line in machine.inside(*_CTR, "list").splitlines()[1:]]
    return {row[0]: row[2] for row in rows}


def import_missing(machine: Machine, catalogue: Catalogue, wanted: Iterable[Image]) -> None:
    """Bring these images into containerd; those that it has in the same bytes cost nothing."""
    present = _present(machine)
    missing = tuple(image for image in wanted if present.get(image.ref) != image.manifest)
    if not missing:
        return
    for image in missing:
        say(f"importing {image.ref}")
    held = catalogue.blobs_of(present)
    try:
        _stream(machine, catalogue, missing, held)
    except OneboxError:
        if not held:
            raise
        # containerd has thrown away a blob that was counted on: once more, with everything.
        _stream(machine, catalogue, missing, frozenset())


def _stream(machine: Machine, catalogue: Catalogue, missing: tuple[Image, ...], held: frozenset[str]) -> None:
    with subprocess.Popen(
        [*machine.entrance(), *_CTR, "import", "--local", "-"],
        env={**os.environ, "PATH": machine.search_path},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as importer:
        try:
            with cast("IO[bytes]", importer.stdin) as sink:
                catalogue.blobs.stream(missing, held, sink)
        except BrokenPipeError:
            pass  # it died; its own words say why
        words = cast("IO[bytes]", importer.stderr).read().decode(errors="replace")
    if importer.returncode != 0:
        message = f"`ctr images import` ended with {importer.returncode}: {words.strip()}"
        raise OneboxError(message)


def load_project(machine: Machine, catalogue: Catalogue, project: dict[str, Image]) -> None:
    """Bring the project's images in and write their refs, by name, to images.json in the cluster's folder."""
    import_missing(machine, catalogue, project.values())
    file = machine.cluster.images_file
    before = json.loads(file.read_text()) if file.exists() else {}
    refs = {name: image.ref for name, image in project.items()}
    file.write_text(json.dumps(refs, indent=2, sort_keys=True) + "\n")
    names = tuple(f"{PREFIX}/{name}:" for name in project)
    drop_unused(machine, names, {*refs.values(), *before.values()})


def drop_unused(machine: Machine, prefixes: tuple[str, ...], keep: Collection[str]) -> None:
    """Delete images with these prefixes that are not to be kept and of which no container was made."""
    rows = machine.inside("ctr", "--namespace", "k8s.io", "containers", "list").splitlines()[1:]
    used = {row.split()[1] for row in rows}
    present = _present(machine)
    old = {ref for ref in present if ref.startswith(prefixes) and ref not in keep and ref not in used}
    if not old:
        return
    held = {digest for ref, digest in present.items() if ref not in old and not ref.startswith("sha256:")}
    # The CRI plugin's own names of an image would keep its bytes.
    nicknames = {ref for ref, digest in present.items() if ref.startswith("sha256:") and digest not in held}
    machine.inside(*_CTR, "delete", *old, *nicknames)
