"""The cluster that the demo runs on: the one of this machine, or one of the user's own.

A cluster of the user's own is never changed beyond what helm installs and what the demo's namespace holds.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo.kubectl import Kubectl
from demo.waiting import until

ROOT: Final = Path(__file__).resolve().parent.parent
EXAMPLES: Final = ROOT / "examples"
_ONEBOX: Final = ROOT / "hack" / "onebox"
IMAGES: Final = ("operator", "converter", "triton")


class SiteError(Exception):
    """The cluster cannot be used; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A Gateway of Envoy Gateway with mergeBackends, and its listeners' ports."""

    namespace: str = "gateway-system"
    name: str = "edge"
    http_port: int = 80
    grpc_port: int = 9000


@dataclass(frozen=True, slots=True)
class Site:
    """A cluster with everything that is needed to install the chart."""

    kubectl: Kubectl
    helm: Path
    images: dict[str, str]
    gateway: Gateway = Gateway()
    prometheus_url: str = "http://prometheus.monitoring.svc.cluster.local:9090"
    access_mode: str = "ReadWriteOnce"
    values: Path | None = None


def onebox(name: str, index: int | None = None) -> Site:
    """The one-machine cluster of this name; brought up, and its images built, when needed."""
    chosen = ("--name", name, *(() if index is None else ("--index", str(index))))
    kubeconfig = Path(_onebox("up", *chosen).split()[-1])
    images = json.loads(_onebox("load-images", *chosen))
    tools = Path(_onebox("tools").split()[-1])
    missing = [image for image in IMAGES if image not in images]
    if missing:
        raise SiteError(f"onebox built no image {', '.join(missing)}: is its Dockerfile there?")
    return Site(Kubectl(tools / "kubectl", kubeconfig), tools / "helm", images)


def onebox_down(name: str) -> None:
    """Remove the one-machine cluster of this name."""
    _onebox("down", "--name", name)


def _onebox(*arguments: str) -> str:
    """Run onebox: it tells its progress on standard error, for the user to see, and its answer on standard output."""
    done = subprocess.run([sys.executable, _ONEBOX, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SiteError(f"python3 hack/onebox {' '.join(arguments)} ended with exit code {done.returncode}")
    return done.stdout


def own_cluster(kubeconfig: Path, *, registry: str, tag: str, values: Path | None) -> Site:
    """A cluster of the user's own, with images that it can pull."""
    found = {tool: shutil.which(tool) for tool in ("kubectl", "helm")}
    missing = [tool for tool, path in found.items() if path is None]
    if missing:
        raise SiteError(f"{' and '.join(missing)} must be on the PATH to use a cluster of your own")
    images = {image: f"{registry}/onnx-operator/{image}:{tag}" for image in IMAGES}
    return Site(
        Kubectl(Path(str(found["kubectl"])), kubeconfig.absolute()),
        Path(str(found["helm"])),
        images,
        values=values,
    )


def gateway_address(site: Site) -> str:
    """The address of the gateway, as a pod reaches it."""

    def look() -> str | None:
        found = site.kubectl.within(site.gateway.namespace).get("gateway", site.gateway.name)
        if found is None:
            raise SiteError(f"there is no Gateway {site.gateway.name} in namespace {site.gateway.namespace}")
        addresses = found.get("status", {}).get("addresses", [])
        return str(addresses[0]["value"]) if addresses else None

    return until("the gateway to have an address", look, seconds=60)
