"""Writes docs/gitops/argocd-cm.yaml from the scripts beside it: `python hack/gitops.py`.

Argo CD reads scripts either from folders in its own image, which is how they lie in docs/gitops/argocd and are tested,
or from its ConfigMap, which is how users get them.
"""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "docs" / "gitops" / "argocd" / "onnx-operator.io" / "OnnxModel"
TARGET = ROOT / "docs" / "gitops" / "argocd-cm.yaml"

HEAD = """\
# For Argo CD's ConfigMap: health and actions of OnnxModels. Rendered from argocd/ by `make crds`; edit the scripts.
#   kubectl patch configmap argocd-cm -n argocd --patch-file docs/gitops/argocd-cm.yaml
"""


class _Block(str):
    """Text that is shown line by line."""

    __slots__ = ()


yaml.SafeDumper.add_representer(
    _Block, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
)


def patch() -> str:
    """The ConfigMap's part."""
    actions = {
        "discovery.lua": _script("actions/discovery.lua"),
        "definitions": [
            {"name": path.parent.name, "action.lua": _script(f"actions/{path.parent.name}/action.lua")}
            for path in sorted(SCRIPTS.glob("actions/*/action.lua"))
        ],
    }
    data = {
        "resource.customizations.health.onnx-operator.io_OnnxModel": _script("health.lua"),
        "resource.customizations.actions.onnx-operator.io_OnnxModel": _Block(_dumped(actions)),
    }
    return HEAD + _dumped({"data": data})


def _script(name: str) -> _Block:
    return _Block((SCRIPTS / name).read_text())


def _dumped(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, width=200)


if __name__ == "__main__":
    TARGET.write_text(patch(), encoding="utf-8")
