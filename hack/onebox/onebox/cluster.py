"""A cluster's life: made, found healthy or not, stopped in parts for tests, removed.

Every command may be killed at any moment: the next `up` or `down` finds and removes what is there. Knows nothing
of the project's chart; only the addons that any user's cluster would have are installed here.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from onebox import addons, imports, leftovers, tools
from onebox.console import OneboxError, one_at_a_time, run, say, stage
from onebox.images import PREFIX, Catalogue, project_images
from onebox.machine import Machine, wait_for
from onebox.places import HACK, Cluster, onebox_cache
from onebox.plan import Plan, plan_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

_CGROUPS = Path("/sys/fs/cgroup")
_API_PORT = 6443
#: What is away with the API server, itself first.
_WITHOUT_LEASE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
_PATIENCE_SECONDS = 60  # what came back from an outage gets this long before it counts as broken
#: client-go asks a server that is away at most every 30 s, and up to twice as long by chance: a minute, and some more.
_INFORMER_PATIENCE_SECONDS = 90
_WEIGHT = 10  # the cluster's share of the processors, in ordinary processes of the host
_USUAL_INDEX = {"demo": 0, "e2e": 1}


def cluster_named(name: str, index: int | None) -> Cluster:
    """The cluster of this name; its index is remembered from its `up` when it is not given."""
    home = onebox_cache()
    remembered = home / "clusters" / name / "index"
    if index is None:
        index = int(remembered.read_text()) if remembered.exists() else _USUAL_INDEX.get(name, 2)
    return Cluster(name, index, home)


def _one_command_at_a_time(cluster: Cluster) -> AbstractContextManager[None]:
    return one_at_a_time(cluster.home / f"{cluster.name}.lock", f"another command works on cluster {cluster.name}")


def up(cluster: Cluster) -> None:
    """Bring the cluster up, or only refresh the addons and images of one that is up and well."""
    if os.geteuid() != 0:
        message = "a cluster needs root (namespaces, mounts, cgroups): run as root"
        raise OneboxError(message)
    machine = Machine(cluster, tools.ensure(tools.ALL))
    catalogue = Catalogue()
    with _one_command_at_a_time(cluster):
        with stage("system images and configuration"):
            plan = plan_of(cluster, catalogue, machine.binaries)
        why = _why_not_well(machine, plan)
        if why:
            say(f"cluster {cluster.name}: {why}; starting it anew")
            with stage(f"cluster {cluster.name} is up"):
                _start(machine, plan, catalogue)
            return
        say(f"cluster {cluster.name} is up and well")
        imports.import_missing(machine, catalogue, plan.system.all())
        addons.apply(machine, plan)
        imports.load_project(machine, catalogue, project_images(catalogue))


def _why_not_well(machine: Machine, plan: Plan) -> str | None:
    cluster = machine.cluster
    if leftovers.supervisor(cluster) is None:
        return "not running"
    if not cluster.node_hash.exists():
        return "an earlier `up` did not end"
    if cluster.node_hash.read_text() != plan.node_hash:
        return "made from another configuration"
    try:
        start_apiserver(cluster)  # a test that was killed may have left it stopped
        addons.are_available(machine, _PATIENCE_SECONDS)
    except OneboxError as trouble:
        return f"not well ({trouble})"
    return None


def _start(machine: Machine, plan: Plan, catalogue: Catalogue) -> None:
    cluster = machine.cluster
    with stage("clean-up of what was there"):
        leftovers.clear(cluster)
    _write_state(cluster, plan)
    with ThreadPoolExecutor() as pool:
        # The project's images may take minutes to build; nothing but their import waits for them.
        building = pool.submit(project_images, catalogue)
        with stage("namespaces and containerd"):
            _spawn(machine)
            wait_for("containerd", machine.containerd_answers)
        with stage("control plane's images"):
            imports.import_missing(machine, catalogue, plan.system.control_plane.values())
        importing = pool.submit(imports.import_missing, machine, catalogue, plan.system.all())
        with stage("kubeadm init"):
            config = "--config=/etc/onebox/kubeadm.yaml"
            (cluster.state / "log/kubeadm.log").write_text(
                machine.inside("kubeadm", "init", "--ignore-preflight-errors=all", config)
            )
        shutil.copy(cluster.state / "kubernetes/admin.conf", cluster.kubeconfig)
        importing.result()
        with stage("addons"):
            addons.apply(machine, plan)
        project = building.result()
    with stage("project's images"):
        imports.load_project(machine, catalogue, project)
        wanted = {image.ref for image in (*plan.system.all(), *project.values())}
        imports.drop_unused(machine, (f"{PREFIX}/",), wanted)
    cluster.node_hash.write_text(plan.node_hash)


def load_images(cluster: Cluster) -> Path:
    """Build what has changed of the project's images, import what is missing; return the file with their refs."""
    machine = Machine(cluster, tools.ensure(tools.ALL))
    catalogue = Catalogue()
    project = project_images(catalogue)
    with _one_command_at_a_time(cluster):
        imports.load_project(machine, catalogue, project)
    return cluster.images_file


def _write_state(cluster: Cluster, plan: Plan) -> None:
    for folder in ("config", "log", "kubelet", "kubernetes", "etcd", "volumes"):
        (cluster.state / folder).mkdir(parents=True)
    cluster.state.chmod(0o700)
    (cluster.state / "etcd").chmod(0o700)
    cluster.image_store.mkdir(parents=True, exist_ok=True)
    (cluster.state / "index").write_text(str(cluster.index))
    for name, content in plan.node.items():
        (cluster.state / "config" / name).write_text(content)
    _make_cgroups(cluster)


def _make_cgroups(cluster: Cluster) -> None:
    """Make the kubelet's root cgroup, which must exist, and give the cluster the weight of a machine.

    With the weight of a new folder, all pods and the API server together would count as much as one busy process of
    the host, and every probe would time out beside a compiler.
    """
    unified = _CGROUPS / "cgroup.controllers"
    if unified.exists():
        controllers = " ".join(f"+{name}" for name in unified.read_text().split())
        (_CGROUPS / "cgroup.subtree_control").write_text(controllers)
        (cluster_cgroup := _CGROUPS / cluster.cgroup).mkdir(exist_ok=True)
        (cluster_cgroup / "cpu.weight").write_text(str(100 * _WEIGHT))
        return
    for hierarchy in (path for path in _CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()):
        folder = hierarchy / cluster.cgroup
        folder.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):  # not inherited in v1
            if (folder / name).exists():
                (folder / name).write_text((hierarchy / name).read_text())
        if (folder / "cpu.shares").exists():
            (folder / "cpu.shares").write_text(str(1024 * _WEIGHT))


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
    wait_for("the cluster's first process", lambda: leftovers.supervisor(cluster) is not None)
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
    if not cluster.node_hash.exists():
        return "starting"
    return "running" if _api_accepts(cluster) else "unreachable"


def _api_accepts(cluster: Cluster) -> bool:
    return _accepts(cluster.node_address, _API_PORT)


def _accepts(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False


def stop_apiserver(cluster: Cluster) -> None:
    """Take its manifest away and those of its clients here; the kubelet then stops them, and nothing starts them again.

    In a larger cluster the controllers and the scheduler are elected, and end when they cannot renew their lease. A
    controller manager that lived on was seen to have forgotten a pod, which nobody ended then.
    """
    for name in _WITHOUT_LEASE:
        _manifest(cluster, name).replace(_parked(cluster, name))
    wait_for("the API server to stop", lambda: not _api_accepts(cluster))


def start_apiserver(cluster: Cluster) -> None:
    """Give the manifests back and wait until the API server is ready, for pods as well.

    Pods reach it through its Service. On its way out it took its endpoint from there, and kube-proxy, which asks less
    and less often while nobody answers, may take a minute more to hear that it is back.
    """
    # Its own last: where this breaks off, the cluster is not well, and is made anew.
    for name in reversed(_WITHOUT_LEASE):
        if _parked(cluster, name).exists():
            _parked(cluster, name).replace(_manifest(cluster, name))
    machine = Machine(cluster, tools.ensure(tools.ALL))

    def ready() -> bool:
        try:
            machine.kubectl("get", "--raw", "/readyz", "--request-timeout=5s")
        except OneboxError:
            return False
        return True

    wait_for("the API server to be ready", ready, _PATIENCE_SECONDS)
    service = cluster.api_service_address
    wait_for("kube-proxy to know it again", lambda: _accepts(service, 443), _INFORMER_PATIENCE_SECONDS)


def _manifest(cluster: Cluster, name: str) -> Path:
    return cluster.state / f"kubernetes/manifests/{name}.yaml"


def _parked(cluster: Cluster, name: str) -> Path:
    return cluster.state / f"kubernetes/{name}.yaml"


def send_signal(cluster: Cluster, program: str, name: str) -> list[int]:
    """Send a signal to the cluster's processes of this program; a killed kubelet or containerd is restarted."""
    found = leftovers.processes_named(cluster, program)
    if not found:
        message = f"no process {program} in cluster {cluster.name}"
        raise OneboxError(message)
    for pid in found:
        os.kill(pid, signal.Signals[f"SIG{name}"])
    return found
