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
    from collections.abc import Iterable

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
    refs = {name: image.ref for name, image in project.items()}
    machine.cluster.images_file.write_text(json.dumps(refs, indent=2, sort_keys=True) + "\n")


def drop_old(machine: Machine, wanted: Iterable[Image]) -> None:
    """Delete images of earlier states of the project, which nothing in a new cluster can use."""
    refs = {image.ref for image in wanted}
    old = [ref for ref in _present(machine) if ref.startswith(f"{PREFIX}/") and ref not in refs]
    if old:
        machine.inside(*_CTR, "delete", *old)
