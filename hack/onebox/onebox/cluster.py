"""A cluster's life: made, found healthy or not, stopped in parts for tests, removed.

Every command may be killed at any moment: the next `up` or `down` finds and removes what is there. Knows nothing
of the project's chart; only the addons that any user's cluster would have are installed here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template

from onebox import images, leftovers, tools
from onebox.archive import Image
from onebox.console import OneboxError, run, say, stage
from onebox.places import HACK, Cluster, onebox_cache

_TEMPLATES = HACK / "templates"
_CGROUPS = Path("/sys/fs/cgroup")
_API_PORT = 6443
_POLL_SECONDS = 0.1
_DEADLINE_SECONDS = 120.0
_PROJECT_PREFIX = "localhost/onnx-operator/"
_CRI_PLUGINS = '"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"'


def cluster_named(name: str, index: int | None) -> Cluster:
    """The cluster of this name; its index is remembered from its `up` when it is not given."""
    home = onebox_cache()
    remembered = home / "clusters" / name / "index"
    if index is None:
        index = int(remembered.read_text()) if remembered.exists() else {"demo": 0, "e2e": 1}.get(name, 2)
    return Cluster(name, index, home)


@contextmanager
def _one_command_at_a_time(cluster: Cluster) -> Iterator[None]:
    lock = cluster.home / f"{cluster.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another command works on cluster {cluster.name}: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _wait_for(what: str, happened: Callable[[], bool], seconds: float = _DEADLINE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            message = f"waited {seconds:.0f} s in vain for {what}"
            raise OneboxError(message)
        time.sleep(_POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class Machine:
    """A cluster with the folder of its binaries: what every command below needs."""

    cluster: Cluster
    binaries: Path

    def inside(self, *words: str | Path, stdin: str | None = None) -> str:
        """Run a program within the cluster's namespaces."""
        pid = leftovers.supervisor(self.cluster)
        if pid is None:
            message = f"cluster {self.cluster.name} is not running: `python3 hack/onebox up --name {self.cluster.name}`"
            raise OneboxError(message)
        enter = ["nsenter", "--target", str(pid), "--mount", "--net", "--pid", "--"]
        return run([*enter, *words], env={"PATH": self.search_path}, stdin=stdin)

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl from the host, as admin."""
        return run([self.binaries / "kubectl", "--kubeconfig", self.cluster.kubeconfig, *words], stdin=stdin)

    @property
    def search_path(self) -> str:
        """The PATH of everything in the cluster."""
        return f"{self.binaries}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

    def containerd_answers(self) -> bool:
        """Whether containerd takes calls."""
        try:
            self.inside("ctr", "version")
        except OneboxError:
            return False
        return True


# --- configuration -------------------------------------------------------------------------------------------


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


def _addon_manifests(system: images.SystemImages) -> dict[str, str]:
    return {
        "coredns.yaml": _rendered("coredns.yaml"),
        "storage.yaml": _rendered(
            "storage.yaml", base_image=system.base.ref, provisioner_image=system.local_path_provisioner.ref
        ),
        "monitoring.yaml": _rendered("monitoring.yaml", prometheus_image=system.prometheus.ref),
        "gateway-values.yaml": _rendered(
            "gateway-values.yaml", gateway_image=system.envoy_gateway.ref, envoy_image=system.envoy.ref
        ),
        "gateway.yaml": _rendered("gateway.yaml", envoy_image=system.envoy.ref),
    }


def _node_config(cluster: Cluster, system: images.SystemImages) -> dict[str, str]:
    pause = system.control_plane["pause"].ref
    return {
        "kubeadm.yaml": _kubeadm_config(cluster),
        "containerd.toml": _rendered("containerd.toml", pause_image=pause, disabled_plugins=""),
        "containerd-cleanup.toml": _rendered(
            "containerd.toml", pause_image=pause, disabled_plugins=_CRI_PLUGINS
        ),
        "cni.conflist": _rendered("cni.conflist", node_pod_subnet=cluster.pod_subnet.replace("/16", "/24")),
        "resolv.conf": _rendered("resolv.conf", host_address=cluster.host_address),
    }


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a cluster is made from; a running one with another hash is made anew."""

    system: images.SystemImages
    files: dict[str, str]

    @property
    def hash(self) -> str:
        """Changes with every file and every system image."""
        supervisor = (HACK / "onebox/supervisor.py").read_text()
        contents = [sorted(self.files.items()), [image.manifest for image in self.system.all()], supervisor]
        return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _plan(cluster: Cluster, catalogue: images.Catalogue, binaries: Path) -> Plan:
    draft = cluster.home / f"{cluster.name}.kubeadm.yaml"
    draft.write_text(_kubeadm_config(cluster))
    refs = images.control_plane_refs(binaries, draft)
    draft.unlink()
    system = images.system_images(catalogue, refs)
    return Plan(system, {**_node_config(cluster, system), **_addon_manifests(system)})


# --- up ------------------------------------------------------------------------------------------------------


def up(cluster: Cluster) -> None:
    """Bring the cluster up, or only refresh the images of one that is up and well."""
    if os.geteuid() != 0:
        message = "a cluster needs root (namespaces, mounts, cgroups): run as root"
        raise OneboxError(message)
    binaries = tools.ensure(tools.ALL)
    machine = Machine(cluster, binaries)
    catalogue = images.Catalogue()
    with _one_command_at_a_time(cluster):
        with stage("system images and configuration"):
            plan = _plan(cluster, catalogue, binaries)
        why = _why_not_well(machine, plan)
        if why is None:
            say(f"cluster {cluster.name} is up and well")
            _load(machine, images.project_images(catalogue))
            return
        say(f"cluster {cluster.name}: {why}; starting it anew")
        began = time.monotonic()
        _start(machine, plan, catalogue)
        say(f"cluster {cluster.name} is up: {time.monotonic() - began:.1f} s")


def _why_not_well(machine: Machine, plan: Plan) -> str | None:
    cluster = machine.cluster
    if leftovers.supervisor(cluster) is None:
        return "not running"
    recorded = cluster.state / "plan"
    if not recorded.exists():
        return "an earlier `up` did not end"
    if recorded.read_text() != plan.hash:
        return "made from another configuration"
    try:
        machine.kubectl("get", "--raw", "/readyz", "--request-timeout=5s")
        machine.kubectl("wait", "--for=condition=Ready", "node/onebox", "--timeout=5s")
        for namespace in ("kube-system", "envoy-gateway-system", "monitoring", "local-path-storage"):
            machine.kubectl(
                "wait", "--for=condition=Available", "deployment", "--all", "-n", namespace, "--timeout=5s"
            )
    except OneboxError as trouble:
        return f"not well ({trouble})"
    return None


def _start(machine: Machine, plan: Plan, catalogue: images.Catalogue) -> None:
    cluster = machine.cluster
    with stage("clean-up of what was there"):
        leftovers.clear(cluster)
    _write_state(cluster, plan)
    with ThreadPoolExecutor() as pool:
        # The project's images may take minutes to build; the cluster does not wait for them before its own end.
        building = pool.submit(images.project_images, catalogue)
        with stage("namespaces and containerd"):
            _spawn(machine)
            _wait_for("containerd", machine.containerd_answers)
        with stage("system images into containerd"):
            _import(machine, plan.system.all())
        with stage("kubeadm init"):
            machine.inside("kubeadm", "init", "--ignore-preflight-errors=all", "--config", "/etc/onebox/kubeadm.yaml")
        shutil.copy(cluster.state / "kubernetes/admin.conf", cluster.kubeconfig)
        with stage("addons"):
            _install_addons(machine, plan)
        project = building.result()
        with stage("project images into containerd"):
            _load(machine, project)
    _drop_old_images(machine, (*plan.system.all(), *project.values()))
    (cluster.state / "plan").write_text(plan.hash)


def _write_state(cluster: Cluster, plan: Plan) -> None:
    for folder in ("config", "log", "kubelet", "kubernetes", "etcd", "volumes"):
        (cluster.state / folder).mkdir(parents=True)
    cluster.state.chmod(0o700)
    (cluster.state / "etcd").chmod(0o700)
    cluster.image_store.mkdir(parents=True, exist_ok=True)
    (cluster.state / "index").write_text(str(cluster.index))
    for name, content in plan.files.items():
        (cluster.state / "config" / name).write_text(content)
    _make_cgroups(cluster)


def _make_cgroups(cluster: Cluster) -> None:
    """The kubelet wants its root cgroup to exist; cpuset of v1 wants its values copied down by hand."""
    unified = _CGROUPS / "cgroup.controllers"
    if unified.exists():
        controllers = " ".join(f"+{name}" for name in unified.read_text().split())
        (_CGROUPS / "cgroup.subtree_control").write_text(controllers)
        (_CGROUPS / cluster.cgroup).mkdir(exist_ok=True)
        return
    for hierarchy in (path for path in _CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()):
        folder = hierarchy / cluster.cgroup
        folder.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (folder / name).exists():
                (folder / name).write_text((hierarchy / name).read_text())


def _spawn(machine: Machine) -> None:
    """Start process 1 in its namespaces and lay the cable to it."""
    cluster = machine.cluster
    log = (cluster.state / "log/supervisor.log").open("w")
    name, _, value = cluster.mark.partition("=")
    namespaces = ["--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    started = subprocess.Popen(
        [
            *("unshare", *namespaces, "--"),
            *(sys.executable, "-m", "onebox.supervisor", cluster.state, cluster.image_store),
        ],
        cwd="/",
        env={"PATH": machine.search_path, "PYTHONPATH": str(HACK), name: value},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    _wait_for("the cluster's first process", lambda: leftovers.supervisor(cluster) is not None)
    network = str(started.pid)
    enter = ["nsenter", "--target", network, "--net", "--"]
    run(["ip", "link", "add", cluster.veth, "type", "veth", "peer", "name", "eth0", "netns", network])
    run(["ip", "address", "add", f"{cluster.host_address}/30", "dev", cluster.veth])
    run(["ip", "link", "set", cluster.veth, "up"])
    run([*enter, "ip", "link", "set", "lo", "up"])
    run([*enter, "ip", "address", "add", f"{cluster.node_address}/30", "dev", "eth0"])
    run([*enter, "ip", "link", "set", "eth0", "up"])
    run([*enter, "ip", "route", "add", "default", "via", cluster.host_address])
    for subnet in (cluster.pod_subnet, cluster.service_subnet):
        # A convenience for people and tests on this host: pod and Service addresses answer from here, too.
        run(["ip", "route", "replace", subnet, "via", cluster.node_address, "dev", cluster.veth])


# --- images --------------------------------------------------------------------------------------------------


def _present(machine: Machine) -> dict[str, str]:
    """The images in the cluster, digest by ref."""
    lines = machine.inside("ctr", "--namespace", "k8s.io", "images", "list").splitlines()[1:]
    return {words[0]: words[2] for words in (line.split() for line in lines)}


def _import(machine: Machine, wanted: tuple[Image, ...]) -> None:
    present = _present(machine)
    missing = tuple(image for image in wanted if present.get(image.ref) != image.manifest)
    if not missing:
        return
    catalogue = images.Catalogue()
    held = catalogue.blobs_of(present)
    for image in missing:
        say(f"importing {image.ref}")
    try:
        _stream_into(machine, catalogue, missing, held)
    except OneboxError:
        if not held:
            raise
        # containerd has thrown away a blob that we counted on: once more, with everything.
        _stream_into(machine, catalogue, missing, frozenset())


def _stream_into(
    machine: Machine, catalogue: images.Catalogue, missing: tuple[Image, ...], held: frozenset[str]
) -> None:
    pid = leftovers.supervisor(machine.cluster)
    enter = ["nsenter", "--target", str(pid), "--mount", "--net", "--pid", "--"]
    command = [*enter, "ctr", "--namespace", "k8s.io", "images", "import", "--local", "-"]
    log = machine.cluster.state / "log/import.log"
    with log.open("w") as output, subprocess.Popen(
        command,
        env={**os.environ, "PATH": machine.search_path},
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
    ) as importer:
        assert importer.stdin is not None
        try:
            catalogue.blobs.stream(missing, held, importer.stdin)
            importer.stdin.close()
        except BrokenPipeError:
            pass  # its own words are in the log
    if importer.returncode != 0:
        message = f"`ctr images import` ended with {importer.returncode}:\n{log.read_text()}"
        raise OneboxError(message)


def _load(machine: Machine, project: dict[str, Image]) -> None:
    _import(machine, tuple(project.values()))
    listed = json.dumps({name: image.ref for name, image in project.items()}, indent=2, sort_keys=True) + "\n"
    (machine.cluster.state / "images.json").write_text(listed)


def _drop_old_images(machine: Machine, wanted: tuple[Image, ...]) -> None:
    refs = {image.ref for image in wanted}
    old = [ref for ref in _present(machine) if ref.startswith(_PROJECT_PREFIX) and ref not in refs]
    if old:
        machine.inside("ctr", "--namespace", "k8s.io", "images", "delete", *old)


def load_images(cluster: Cluster) -> Path:
    """Build what has changed of the project's images, import what is missing; return the file with their refs."""
    machine = Machine(cluster, tools.ensure(tools.ALL))
    project = images.project_images(images.Catalogue())
    with _one_command_at_a_time(cluster):
        _load(machine, project)
    return cluster.state / "images.json"


# --- addons --------------------------------------------------------------------------------------------------


def _install_addons(machine: Machine, plan: Plan) -> None:
    config = machine.cluster.state / "config"
    machine.kubectl("apply", "-f", str(config / "coredns.yaml"))
    machine.kubectl("scale", "deployment/coredns", "-n", "kube-system", "--replicas=1")
    machine.kubectl("apply", "-f", str(config / "storage.yaml"), "-f", str(config / "monitoring.yaml"))
    with stage("Envoy Gateway's chart"):
        _install_gateway(machine)
    machine.kubectl("apply", "-f", str(config / "gateway.yaml"))
    machine.kubectl("wait", "--for=condition=Ready", "node/onebox", "--timeout=120s")
    for namespace in ("kube-system", "local-path-storage", "monitoring", "envoy-gateway-system"):
        machine.kubectl(
            "wait", "--for=condition=Available", "deployment", "--all", "-n", namespace, "--timeout=120s"
        )
    machine.kubectl(
        "wait", "--for=condition=Programmed", "gateway/edge", "-n", "gateway-system", "--timeout=120s"
    )


def _install_gateway(machine: Machine) -> None:
    run(
        [
            *(machine.binaries / "helm", "--kubeconfig", machine.cluster.kubeconfig),
            *("upgrade", "--install", "eg", tools.gateway_chart()),
            *("--namespace", "envoy-gateway-system", "--create-namespace"),
            *("--values", machine.cluster.state / "config/gateway-values.yaml", "--timeout=180s"),
        ]
    )


# --- the rest of a life --------------------------------------------------------------------------------------


def down(cluster: Cluster, *, purge: bool = False) -> None:
    """Remove the cluster; `purge` also removes the images that were imported for it."""
    with _one_command_at_a_time(cluster), stage(f"cluster {cluster.name} removed"):
        leftovers.clear(cluster)
        if purge and cluster.image_store.exists():
            shutil.rmtree(cluster.image_store)


def status(cluster: Cluster) -> str:
    """One word for scripts: absent, starting, unreachable or running."""
    if leftovers.supervisor(cluster) is None:
        return "absent"
    if not (cluster.state / "plan").exists():
        return "starting"
    return "running" if _api_accepts(cluster) else "unreachable"


def _api_accepts(cluster: Cluster) -> bool:
    try:
        with socket.create_connection((cluster.node_address, _API_PORT), timeout=1):
            return True
    except OSError:
        return False


def stop_apiserver(cluster: Cluster) -> None:
    """Take the API server's manifest away; the kubelet then stops it, and nothing starts it again."""
    _manifest(cluster).replace(_parked(cluster))
    _wait_for("the API server to stop", lambda: not _api_accepts(cluster))


def start_apiserver(cluster: Cluster) -> None:
    """Give the manifest back and wait until the API server is ready."""
    if _parked(cluster).exists():
        _parked(cluster).replace(_manifest(cluster))
    machine = Machine(cluster, tools.ensure(tools.ALL))

    def ready() -> bool:
        try:
            machine.kubectl("get", "--raw", "/readyz", "--request-timeout=5s")
        except OneboxError:
            return False
        return True

    _wait_for("the API server to be ready", ready)


def _manifest(cluster: Cluster) -> Path:
    return cluster.state / "kubernetes/manifests/kube-apiserver.yaml"


def _parked(cluster: Cluster) -> Path:
    return cluster.state / "kubernetes/kube-apiserver.yaml"


def send_signal(cluster: Cluster, program: str, name: str) -> list[int]:
    """Send a signal to the cluster's processes of this program; a killed kubelet or containerd is restarted."""
    found = leftovers.processes_named(cluster, program)
    if not found:
        message = f"no process {program} in cluster {cluster.name}"
        raise OneboxError(message)
    for pid in found:
        os.kill(pid, signal.Signals[f"SIG{name}"])
    return found
