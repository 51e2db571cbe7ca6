"""How many threads and how much memory the container may really use.

A library that counts the node's cores and starts as many threads under a small CPU limit spends its time being
throttled. Standard library only, since it has to run before torch is imported. Refuses to guess above what the
kernel grants.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

_V2: Final = Path("/sys/fs/cgroup/cpu.max")
_V1: Final = Path("/sys/fs/cgroup/cpu")
_MEMORY_V2: Final = Path("/sys/fs/cgroup/memory.max")
_MEMORY_V1: Final = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
#: The older interface says no limit by a number that no machine has.
_NO_LIMIT: Final = 1 << 60
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def quota_of(v2: Path = _V2, v1: Path = _V1) -> float | None:
    """Cores granted by the cgroup, or None where there is no limit."""
    try:
        quota, period = v2.read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (v1 / "cpu.cfs_quota_us").read_text().strip()
            period = (v1 / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)


def memory_of(v2: Path = _MEMORY_V2, v1: Path = _MEMORY_V1) -> int | None:
    """Bytes that the cgroup grants, or None where there is no limit."""
    for path in (v2, v1):
        try:
            granted = int(path.read_text())
        except (OSError, ValueError):
            continue
        return granted if granted < _NO_LIMIT else None
    return None


def threads() -> int:
    """At least one, at most the cores this process may be scheduled on."""
    cores = len(os.sched_getaffinity(0))
    quota = quota_of()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def limit_libraries() -> int:
    """Tells the numeric libraries before they are imported; an operator's own setting wins."""
    count = threads()
    for name in _THREAD_VARIABLES:
        os.environ.setdefault(name, str(count))
    # A thread that spins while it waits takes its core from the servers on the same node.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return count
