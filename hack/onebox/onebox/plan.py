"""What a cluster is made from, as text: rendered from ../templates and hashed. Starts and writes nothing."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING

from onebox import images, tools
from onebox.places import HACK, Cluster

if TYPE_CHECKING:
    from pathlib import Path

_TEMPLATES = HACK / "templates"
_CRI_PLUGINS = '"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"'


def _rendered(template: str, /, **values: str) -> str:
    return Template((_TEMPLATES / template).read_text()).substitute(values)


def _kubeadm_config(cluster: Cluster) -> str:
    return _rendered(
        "kubeadm.yaml",
        name=cluster.name,
        node_address=cluster.node_address,
        kubernetes_version=tools.kubernetes_version(),
        etcd_tag=tools.pinned_version("go.etcd.io/etcd/server/v3").removeprefix("v") + "-0",
        coredns_tag=tools.pinned_version("github.com/coredns/coredns"),
        service_subnet=cluster.service_subnet,
        pod_subnet=cluster.pod_subnet,
        cgroup=cluster.cgroup,
    )


def addon_manifests(system: images.SystemImages) -> dict[str, str]:
    """The manifests of the addons, by name."""
    return {
        "namespaces.yaml": _rendered("namespaces.yaml"),
        "coredns.yaml": _rendered("coredns.yaml"),
        "storage.yaml": _rendered(
            "storage.yaml",
            base_image=system.base.ref,
            provisioner_image=system.local_path_provisioner.ref,
            config_digest=_hash_of((_TEMPLATES / "storage.yaml").read_text())[:12],
        ),
        "monitoring.yaml": _rendered(
            "monitoring.yaml",
            prometheus_image=system.prometheus.ref,
            config_digest=_hash_of((_TEMPLATES / "monitoring.yaml").read_text())[:12],
        ),
        "gateway-values.yaml": _rendered(
            "gateway-values.yaml", gateway_image=system.envoy_gateway.ref, envoy_image=system.envoy.ref
        ),
        "gateway.yaml": _rendered("gateway.yaml", envoy_image=system.envoy.ref),
    }


def node_config(cluster: Cluster, system: images.SystemImages) -> dict[str, str]:
    """The files of the node, by name."""
    pause = system.control_plane["pause"].ref
    return {
        "kubeadm.yaml": _kubeadm_config(cluster),
        "containerd.toml": _rendered(
            "containerd.toml", pause_image=pause, disabled_plugins="", socket="/run/containerd/containerd.sock"
        ),
        # Runs for a moment before the real one, where nobody takes it for that.
        "containerd-cleanup.toml": _rendered(
            "containerd.toml",
            pause_image=pause,
            disabled_plugins=_CRI_PLUGINS,
            socket="/run/containerd-cleanup/containerd.sock",
        ),
        "cni.conflist": _rendered("cni.conflist", node_pod_subnet=cluster.pod_subnet.replace("/16", "/24")),
        "resolv.conf": _rendered("resolv.conf", host_address=cluster.host_address),
    }


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a cluster is made from. Another node means a new cluster; other addons are only applied."""

    system: images.SystemImages
    node: dict[str, str]
    addons: dict[str, str]

    @property
    def node_hash(self) -> str:
        """Changes with everything that a running node cannot take up."""
        supervisor = (HACK / "onebox/supervisor.py").read_text()
        manifests = [image.manifest for image in self.system.control_plane.values()]
        return _hash_of([sorted(self.node.items()), manifests, supervisor])

    @property
    def addons_hash(self) -> str:
        """Changes with every manifest, and through their tags with every image in them."""
        return _hash_of(sorted(self.addons.items()))


def _hash_of(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def plan_of(cluster: Cluster, catalogue: images.Catalogue, binaries: Path) -> Plan:
    """All that this cluster is to be made from; builds the system images where needed."""
    draft = cluster.home / f"{cluster.name}.kubeadm.yaml"
    draft.write_text(_kubeadm_config(cluster))
    refs = images.control_plane_refs(binaries, draft)
    draft.unlink()
    system = images.system_images(catalogue, refs)
    return Plan(system, node_config(cluster, system), addon_manifests(system))
