"""A running cluster as seen from the host: programs run inside of it, kubectl run against it, conditions awaited."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onebox import leftovers
from onebox.console import OneboxError, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from onebox.places import Cluster

_POLL_SECONDS = 0.1
_DEADLINE_SECONDS = 120.0


def wait_for(what: str, happened: Callable[[], bool], seconds: float = _DEADLINE_SECONDS) -> None:
    """Poll until it happened; give up with an error that names it."""
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

    def inside(self, *words: str | Path) -> str:
        """Run a program within the cluster's namespaces."""
        return run([*self.entrance(), *words], env={"PATH": self.search_path})

    def entrance(self) -> list[str]:
        """The words in front of a command that runs within the cluster's namespaces."""
        pid = leftovers.supervisor(self.cluster)
        if pid is None:
            message = f"cluster {self.cluster.name} is not running: `python3 hack/onebox up --name {self.cluster.name}`"
            raise OneboxError(message)
        return ["nsenter", "--target", str(pid), "--mount", "--net", "--pid", "--"]

    def kubectl(self, *words: str | Path) -> str:
        """Run kubectl from the host, as admin."""
        return run([self.binaries / "kubectl", "--kubeconfig", self.cluster.kubeconfig, *words])

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
