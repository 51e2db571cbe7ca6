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
#: What the model is called inside the artifact; its steps, where it has some, have more to their name.
_MODEL: Final = "model"
_CONFIG_OF: Final = re.compile(rf"{_MODEL}(-[a-z]+)?/{re.escape(CONFIG)}")
_STEP: Final = re.compile(rf'model_name: "({_MODEL}-[a-z]+)"')


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
    base = f"triton/{assembly.provider}"
    paths = [entry.path for entry in manifest.files if entry.path.startswith(f"{base}/{_MODEL}/")]
    if not paths:
        made_for = sorted(
            {PurePosixPath(entry.path).parts[1] for entry in manifest.files if entry.path.startswith("triton/")}
        )
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"the artifact has no graph for {assembly.provider}, only for {', '.join(made_for) or 'none'}",
        )
    artifact_folder = assembly.artifact.absolute()
    # Inside the artifact every graph is version 1; in the repository it is the revision's number.
    graphs = [path for path in paths if path.startswith(f"{base}/{_MODEL}/1/")]
    configs = [entry.path for entry in manifest.files if _CONFIG_OF.fullmatch(entry.path.removeprefix(f"{base}/"))]
    for config in configs:
        folder = assembly.repository / _renamed(PurePosixPath(config).parent.name, assembly.model_name)
        # A restarted init container finds its own earlier work.
        shutil.rmtree(folder, ignore_errors=True)
        (folder / str(assembly.version)).mkdir(parents=True)
        for path in graphs:
            (folder / str(assembly.version) / PurePosixPath(path).name).symlink_to(artifact_folder / path)
        _lay_config(artifact_folder / config, folder / CONFIG, assembly.model_name)
    return {
        "digest": assembly.digest,
        "provider": assembly.provider,
        "files": len(configs) + len(graphs),
        "bytes": manifest.size,
    }


def _lay_config(source: Path, target: Path, name: str) -> None:
    """A link, but for a model whose steps are other models: those are renamed with it."""
    text = source.read_text(encoding="utf-8")
    renamed = _STEP.sub(lambda match: f'model_name: "{_renamed(match[1], name)}"', text)
    if renamed == text:
        target.symlink_to(source)
    else:
        target.write_text(renamed, encoding="utf-8")


def _renamed(folder: str, name: str) -> str:
    return name + folder.removeprefix(_MODEL)
