"""The cluster that the demo runs on: the one of this machine, or one of the user's own.

On a cluster of the user's own nothing is brought up: it must have a Gateway and a Prometheus, and reach the images.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from demo.kubectl import Kubectl
from demo.waiting import until

ROOT: Final = Path(__file__).resolve().parent.parent
EXAMPLES: Final = ROOT / "examples"
CHART: Final = ROOT / "charts" / "onnx-operator"
_ONEBOX: Final = ROOT / "hack" / "onebox"
IMAGES: Final = ("operator", "converter", "triton")


class SiteError(Exception):
    """The cluster cannot be used; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where models are reached from inside the cluster."""

    address: str
    http_port: int
    grpc_port: int


@dataclass(frozen=True, slots=True)
class Site:
    """A cluster with everything that is needed to install the chart.

    `images` are those of our own making; the chart knows where any other comes from.
    """

    kubectl: Kubectl
    helm: Path
    images: dict[str, str]
    prometheus_url: str = "http://prometheus.monitoring.svc.cluster.local:9090"
    values: Path | None = None


def release() -> str:
    """The version that the chart installs, which is also the tag of its images."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    return str(chart["appVersion"])


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
    # The chart's own default for Triton is NVIDIA's image, which such a cluster can pull.
    images = {image: f"{registry}/onnx-operator/{image}:{tag}" for image in ("operator", "converter")}
    return Site(
        Kubectl(Path(str(found["kubectl"])), kubeconfig.absolute()),
        Path(str(found["helm"])),
        images,
        values=values,
    )


def gateway_of_class() -> dict[str, str]:
    """The Gateway that examples/class.yaml names; on a cluster of your own, name yours there."""
    declared = yaml.safe_load((EXAMPLES / "class.yaml").read_text())
    gateway: dict[str, str] = declared["spec"]["traffic"]["gateway"]
    return gateway


def gateway_of(site: Site) -> Gateway:
    """The address and ports of the Gateway, once it has them."""
    named = gateway_of_class()
    inside = site.kubectl.within(named["namespace"])

    def look() -> Gateway | None:
        found = inside.get("gateway", named["name"])
        if found is None:
            raise SiteError(
                f"there is no Gateway {named['namespace']}/{named['name']}, which examples/class.yaml names"
            )
        ports = {listener["name"]: listener["port"] for listener in found["spec"]["listeners"]}
        addresses = found.get("status", {}).get("addresses", [])
        if not addresses:
            return None
        return Gateway(addresses[0]["value"], ports[named["httpListener"]], ports[named["grpcListener"]])

    return until("the gateway to have an address", look, seconds=60)
