"""How the servers of a revision on one execution provider stand, from their Deployment and pods.

Refuses to call anything available of which the Deployment controller has not yet seen the latest generation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnx_operator.core import reasons
from onnx_operator.core.pods import Trouble, is_ready, trouble

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class ServerState:
    """The servers of one Deployment."""

    #: What the Deployment asks for now.
    replicas: int
    #: Ready pods.
    ready: int
    #: Whether the counts speak of the Deployment as it is now and no pod of an older template is left.
    is_current: bool
    trouble: Trouble | None = None

    def is_available(self, replicas: int) -> bool:
        """Whether all of the wanted servers are ready."""
        return self.is_current and self.replicas == replicas and self.ready >= replicas

    def has(self, least: int) -> bool:
        """Whether at least so many are ready; an autoscaler may be adding more."""
        return min(self.replicas, self.ready) >= least


def read_servers(deployment: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> ServerState:
    """How the Deployment's servers stand."""
    status = deployment.get("status") or {}
    replicas = int(deployment["spec"].get("replicas", 1))
    is_seen = int(status.get("observedGeneration", 0)) >= int(deployment["metadata"].get("generation", 0))
    ready = int(status.get("readyReplicas", 0))
    is_current = (
        is_seen and int(status.get("updatedReplicas", 0)) == replicas and int(status.get("replicas", 0)) == replicas
    )
    return ServerState(replicas, ready, is_current, _trouble(status, pods))


def _trouble(status: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> Trouble | None:
    # What is on its way out may be in any state.
    here = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp") and not is_ready(pod)]
    found = [one for pod in here if (one := trouble(pod)) is not None]
    if found:
        # What can never work says more than what may come right.
        return max(found, key=lambda one: (one.is_final, one.is_crash))
    for condition in status.get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            message = str(condition.get("message", ""))
            reason = reasons.QUOTA_EXCEEDED if "exceeded quota" in message else reasons.POD_REFUSED
            return Trouble(reason, f"the servers' pods are refused: {message}")
    return None
