"""Process 1 of a cluster: makes the private mounts, runs containerd and the kubelet, reaps everything.

It runs in mount, process and network namespaces of its own; when it ends, by whatever signal, the kernel ends
every process of the cluster and takes the mounts, the cable and the pods' networks with them. It writes nothing
outside of the cluster's own folders: /etc, /opt and /var are overlays in memory, /run is a fresh tmpfs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_STATE = Path("/run/onebox")  # the cluster's state folder, as seen from inside
_OVERLAID = ("/etc", "/opt", "/var")
_CONTAINERD = ("containerd", "--config", "/etc/containerd/config.toml")
_CLEANUP_SOCKET = Path("/run/containerd-cleanup/containerd.sock")
_KUBELET_FLAGS = Path("/var/lib/kubelet/kubeadm-flags.env")
_KUBELET_CONFIG = Path("/var/lib/kubelet/config.yaml")
_POLL_SECONDS = 0.05
_RESTART_SECONDS = 1.0
_DEADLINE_SECONDS = 60.0


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def _make_mounts(state: Path, image_store: Path) -> None:
    _mount("--make-rshared", "/")
    _mount("-t", "tmpfs", "-o", "mode=0755", "onebox-run", "/run")
    for name, source in (("onebox", state), ("image-store", image_store)):
        Path("/run", name).mkdir()
        _mount("--bind", source, Path("/run", name))
    for lower in _OVERLAID:
        upper, work = (Path(f"/run/overlay{lower}/{name}") for name in ("upper", "work"))
        upper.mkdir(parents=True)
        work.mkdir()
        _mount("-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "onebox", lower)
    for source, target in (
        (_STATE / "kubernetes", "/etc/kubernetes"),
        (_STATE / "config", "/etc/onebox"),
        (_STATE / "kubelet", "/var/lib/kubelet"),
        (_STATE / "etcd", "/var/lib/etcd"),
        (_STATE / "log/pods", "/var/log/pods"),
        (_STATE / "volumes", "/opt/local-path-provisioner"),
        (Path("/run/image-store"), "/var/lib/containerd"),
    ):
        source.mkdir(parents=True, exist_ok=True)
        Path(target).mkdir(parents=True, exist_ok=True)
        _mount("--bind", source, target)
    for name, target in (
        ("containerd.toml", "/etc/containerd/config.toml"),
        ("cni.conflist", "/etc/cni/net.d/10-onebox.conflist"),
    ):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_STATE / "config" / name, target)
    shutil.rmtree("/var/lib/cni", ignore_errors=True)


def _wait_until(what: str, path_exists: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not path_exists.exists():
        if time.monotonic() > deadline:
            sys.exit(f"gave up after {_DEADLINE_SECONDS:.0f} s waiting for {what}")
        time.sleep(_POLL_SECONDS)


def _wait_for_network() -> None:
    """Wait until the starter has given this namespace its cable and default route."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not any(line.split()[1] == "00000000" for line in Path("/proc/net/route").read_text().splitlines()[1:]):
        if time.monotonic() > deadline:
            sys.exit("gave up waiting for the network: was `up` killed?")
        time.sleep(_POLL_SECONDS)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _forget_dead_containers() -> None:
    """Remove the containers of an earlier life from the image store that outlived them.

    With the CRI plugin off, or it would load them first and the kubelet would mourn them one by one.
    """
    if not Path("/var/lib/containerd/io.containerd.metadata.v1.bolt").exists():
        return
    log = (_STATE / "log/containerd-cleanup.log").open("w")
    daemon = subprocess.Popen(["containerd", "--config", "/etc/onebox/containerd-cleanup.toml"], stdout=log, stderr=log)
    _wait_until("containerd, to clean up", _CLEANUP_SOCKET)
    ctr = ("ctr", "--address", str(_CLEANUP_SOCKET), "--namespace", "k8s.io")
    listed = subprocess.run([*ctr, "containers", "list", "--quiet"], check=True, capture_output=True, text=True)
    if listed.stdout.split():
        subprocess.run([*ctr, "containers", "delete", *listed.stdout.split()], check=True, stdout=log, stderr=log)
    daemon.terminate()
    daemon.wait()


@dataclass(slots=True)
class _Service:
    name: str
    command: tuple[str, ...]
    pid: int | None = None
    started: float = 0.0

    def start(self) -> None:
        # Not subprocess: its bookkeeping and process 1's own reaping would take each other's children.
        log = str(_STATE / "log" / f"{self.name}.log")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        output = [(os.POSIX_SPAWN_OPEN, 1, log, flags, 0o644), (os.POSIX_SPAWN_DUP2, 1, 2)]
        self.pid = os.posix_spawnp(self.command[0], self.command, os.environ, file_actions=output, setsid=True)
        self.started = time.monotonic()


def _kubelet_command() -> tuple[str, ...]:
    flags = _KUBELET_FLAGS.read_text().partition("=")[2].strip().strip('"').split()
    return (
        "kubelet",
        f"--config={_KUBELET_CONFIG}",
        "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf",
        "--kubeconfig=/etc/kubernetes/kubelet.conf",
        *flags,
    )


def _reap() -> set[int]:
    """Collect what has died, also the orphans that process 1 inherits."""
    dead: set[int] = set()
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return dead
        if pid == 0:
            return dead
        dead.add(pid)


def _serve() -> None:
    """Keep the daemons running for ever; a kubelet needs the files that `kubeadm init` writes first."""
    services = [_Service("containerd", _CONTAINERD)]
    services[0].start()
    while True:
        if len(services) == 1 and _KUBELET_CONFIG.exists() and _KUBELET_FLAGS.exists():
            services.append(_Service("kubelet", _kubelet_command()))
            services[-1].start()
        dead = _reap()
        for service in services:
            if service.pid in dead:
                service.pid = None
            if service.pid is None and time.monotonic() - service.started > _RESTART_SECONDS:
                service.start()
        time.sleep(_POLL_SECONDS if len(services) == 1 else _RESTART_SECONDS / 4)


def main(state: Path, image_store: Path) -> None:
    """Build the cluster's world and stay."""
    _make_mounts(state, image_store)
    _wait_for_network()
    _forget_dead_containers()
    _serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
