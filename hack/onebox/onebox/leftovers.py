"""Finding a cluster's processes and removing what a cluster, killed at any moment, can leave behind.

Processes are found by a mark in their environment and by their process namespace, never by name. Refuses to
delete files below which something is still mounted.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from onebox.console import OneboxError, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onebox.places import Cluster

_CGROUPS = Path("/sys/fs/cgroup")
_DEADLINE_SECONDS = 30.0
_POLL_SECONDS = 0.05


def _all_pids() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def _environment(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def _namespace(pid: int, kind: str) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/{kind}").readlink())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def marked(cluster: Cluster) -> list[int]:
    """The processes that carry the cluster's mark in their environment."""
    return [pid for pid in _all_pids() if cluster.mark in _environment(pid)]


def supervisor(cluster: Cluster) -> int | None:
    """The host's number for process 1 of the cluster, if it lives."""
    outside = _namespace(os.getpid(), "pid")
    for pid in marked(cluster):
        if _namespace(pid, "pid") == outside:
            continue
        with suppress(FileNotFoundError, ProcessLookupError):
            numbers = next(
                line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid:")
            ).split()
            if numbers[-1] == "1":
                return pid
    return None


def processes_named(cluster: Cluster, name: str) -> list[int]:
    """The cluster's processes whose program has this name, by the host's numbers."""
    inner = supervisor(cluster)
    if inner is None:
        return []
    space = _namespace(inner, "pid")
    found: list[int] = []
    for pid in _all_pids():
        if _namespace(pid, "pid") != space:
            continue
        with suppress(FileNotFoundError, ProcessLookupError):
            program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            if Path(program).name == name:
                found.append(pid)
    return found


def clear(cluster: Cluster) -> None:
    """End and remove everything of the cluster but its image store."""
    _kill(cluster)
    _remove_cable(cluster)
    _remove_cgroups(cluster)
    _remove_files(cluster.state)


def _kill(cluster: Cluster) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while alive := marked(cluster) + _in_cgroups(cluster):
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            message = f"processes {alive} of cluster {cluster.name} do not die (look at /proc/PID/stack)"
            raise OneboxError(message)
        time.sleep(_POLL_SECONDS)


def _in_cgroups(cluster: Cluster) -> list[int]:
    found: set[int] = set()
    for root in _cgroup_roots(cluster):
        for folder, _, _ in os.walk(root):
            with suppress(OSError):
                found.update(int(line) for line in Path(folder, "cgroup.procs").read_text().split())
    return sorted(found - {0})


def _remove_cable(cluster: Cluster) -> None:
    if Path("/sys/class/net", cluster.veth).exists():
        with suppress(OneboxError):  # the kernel may be about to remove it itself
            run(["ip", "link", "delete", cluster.veth])


def _cgroup_roots(cluster: Cluster) -> list[Path]:
    """The cluster's folder in every hierarchy of cgroup v1, or the one of v2."""
    return [path for path in (_CGROUPS / cluster.cgroup, *_CGROUPS.glob(f"*/{cluster.cgroup}")) if path.is_dir()]


def _remove_cgroups(cluster: Cluster) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    for root in _cgroup_roots(cluster):
        while root.exists():
            for folder, _, _ in os.walk(root, topdown=False):
                with suppress(OSError):  # busy for a moment after its last process has died
                    Path(folder).rmdir()
            if time.monotonic() > deadline:
                message = f"{root} cannot be removed: something still runs in it"
                raise OneboxError(message)
            if root.exists():
                time.sleep(_POLL_SECONDS)


def _remove_files(state: Path) -> None:
    below = f"{state}/"
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    inside = [path for path in mounted if path.startswith(below)]
    if inside:
        message = f"still mounted, so nothing below {state} is deleted: {', '.join(inside)}"
        raise OneboxError(message)
    if state.exists():
        shutil.rmtree(state)
