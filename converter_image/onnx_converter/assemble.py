"""The step before Triton starts: check the artifact to the byte, then lay out a model repository of links into it.

Runs as init container in the operator's image, so standard library only. Refuses an artifact that differs from its
digest in anything, and a provider it was not made for.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from onnx_converter import artifact
from onnx_converter.reasons import SPEC_IMPOSSIBLE, USAGE, StepFailedError

#: Triton takes the folder's name for the model's; ours are Kubernetes names.
_MODEL_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
CONFIG: Final = "config.pbtxt"


@dataclass(frozen=True, slots=True)
class Assembly:
    """What to lay out, and from where."""

    artifact: Path
    digest: str
    provider: str
    model_name: str
    version: int
    repository: Path


def run(assembly: Assembly) -> dict[str, Any]:
    """Verifies, links, and tells what was linked. Doing it twice leaves the same."""
    if _MODEL_NAME.fullmatch(assembly.model_name) is None:
        raise StepFailedError(USAGE, f"--model-name {assembly.model_name!r} must be a lower-case DNS name")
    if assembly.version < 1:
        raise StepFailedError(USAGE, f"--version {assembly.version} must be 1 or more")
    manifest = artifact.verify(assembly.artifact, assembly.digest)
    base = f"triton/{assembly.provider}/model"
    paths = [entry.path for entry in manifest.files if entry.path.startswith(f"{base}/")]
    if not paths:
        made_for = sorted(
            {PurePosixPath(entry.path).parts[1] for entry in manifest.files if entry.path.startswith("triton/")}
        )
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"the artifact has no graph for {assembly.provider}, only for {', '.join(made_for) or 'none'}",
        )
    model = assembly.repository / assembly.model_name
    # A restarted init container finds its own earlier work.
    shutil.rmtree(model, ignore_errors=True)
    for path in paths:
        target = model / _place(path.removeprefix(f"{base}/"), assembly.version)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(assembly.artifact.absolute() / path)
    return {"digest": assembly.digest, "provider": assembly.provider, "files": len(paths), "bytes": manifest.size}


def _place(path: str, version: int) -> str:
    """Inside the artifact every graph is version 1; in the repository it is the revision's number."""
    return f"{version}/{path.removeprefix('1/')}" if path.startswith("1/") else path
