"""Helm as the tests call it: the pinned version, the project's chart, nothing of the user's own configuration."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts" / "onnx-operator"
RELEASE = "onnx-operator"
NAMESPACE = "onnx-operator-system"

Manifest = dict[str, Any]


class HelmError(Exception):
    """Helm ended with an error; the message is its own."""


@cache
def find_helm() -> Path:
    """$HELM where it is set, else the pinned one from onebox's cache, built when missing."""
    if given := os.environ.get("HELM"):
        return Path(given)
    command = [sys.executable, "hack/onebox", "tools", "--only", "helm"]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return Path(output.strip().splitlines()[-1]) / "helm"


@dataclass(frozen=True, slots=True)
class Helm:
    """One user of helm; `home` keeps its files, `kubeconfig` is needed for what talks to a cluster."""

    home: Path
    kubeconfig: Path | None = None

    def run(self, *arguments: str, timeout: float = 120) -> str:
        """What helm says on stdout."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
        environment |= {f"HELM_{kind}_HOME": str(self.home / kind) for kind in ("CACHE", "CONFIG", "DATA")}
        # Without a kubeconfig of its own a test must not find the user's.
        environment["KUBECONFIG"] = str(self.kubeconfig or self.home / "no-kubeconfig")
        done = subprocess.run(
            [str(find_helm()), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise HelmError(f"{done.stdout}\n{done.stderr}".strip())
        return done.stdout

    def template(self, *flags: str) -> list[Manifest]:
        """The manifests that the chart renders to."""
        rendered = self.run("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *flags)
        return [manifest for manifest in yaml.safe_load_all(rendered) if manifest]
