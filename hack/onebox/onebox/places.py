"""Where everything lies, and the numbers that keep two clusters apart. Pure: touches no file.

Refuses a cluster name or index that would not fit into an interface name, a cgroup or a subnet.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

HACK = Path(__file__).resolve().parent.parent
REPOSITORY = HACK.parent.parent
_NAME = re.compile(r"[a-z][a-z0-9]{0,9}")
_MOST_CLUSTERS = 8


def cache_root() -> Path:
    """The project's cache on this machine; everything in it can be deleted and is made anew."""
    chosen = os.environ.get("ONNX_OPERATOR_CACHE")
    if chosen:
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "onnx-operator"


def onebox_cache() -> Path:
    """The part of the cache that is onebox's."""
    return cache_root() / "onebox"


@dataclass(frozen=True, slots=True)
class Cluster:
    """One cluster's name and everything that follows from its name and index."""

    name: str
    index: int
    home: Path

    def __post_init__(self) -> None:
        """Guard the name and index."""
        if not _NAME.fullmatch(self.name):
            message = f"--name {self.name!r}: at most 10 lower-case letters and digits, a letter first"
            raise ValueError(message)
        if not 0 <= self.index < _MOST_CLUSTERS:
            message = f"--index {self.index}: 0 to {_MOST_CLUSTERS - 1}"
            raise ValueError(message)

    @property
    def state(self) -> Path:
        """What lives and dies with the cluster: certificates, etcd, kubelet, volumes, logs."""
        return self.home / "clusters" / self.name

    @property
    def image_store(self) -> Path:
        """The root folder of containerd; outlives the cluster, so that an image is imported only once."""
        return self.home / "containerd" / self.name

    @property
    def kubeconfig(self) -> Path:
        """The admin kubeconfig, good from the host."""
        return self.state / "kubeconfig"

    @property
    def images_file(self) -> Path:
        """The refs of the project's images in this cluster, by name."""
        return self.state / "images.json"

    @property
    def addons(self) -> Path:
        """The addons' manifests as they were applied."""
        return self.state / "addons"

    @property
    def node_hash(self) -> Path:
        """Written last by a successful `up`: without it the cluster is not whole."""
        return self.state / "node-hash"

    @property
    def veth(self) -> str:
        """The host's end of the cable into the cluster's network namespace."""
        return f"onebox-{self.index}"

    @property
    def host_address(self) -> str:
        """The host, as the cluster sees it."""
        return f"10.251.{self.index}.1"

    @property
    def node_address(self) -> str:
        """The node and its API server, as the host sees them."""
        return f"10.251.{self.index}.2"

    @property
    def pod_subnet(self) -> str:
        """Differs by index, so that the host can have routes to the pods of several clusters."""
        return f"10.{208 + self.index}.0.0/16"

    @property
    def service_subnet(self) -> str:
        """Differs by index for the same reason."""
        return f"10.{216 + self.index}.0.0/16"

    @property
    def api_service_address(self) -> str:
        """The API server, as pods see it: the first address of the Service range."""
        return f"10.{216 + self.index}.0.1"

    @property
    def dns_address(self) -> str:
        """The cluster DNS: kubeadm takes the tenth address of the Service range."""
        return f"10.{216 + self.index}.0.10"

    @property
    def cgroup(self) -> str:
        """The folder in every cgroup hierarchy below which all pods of this cluster are."""
        return f"onebox-{self.name}"

    @property
    def mark(self) -> str:
        """The environment entry by which the cluster's processes are found; unique on a machine."""
        return f"ONEBOX_CLUSTER={self.state}"
