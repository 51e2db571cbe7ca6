"""The state of a cluster as text, for whoever must understand a failure without the cluster. Never fails itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from demo.kubectl import KubectlError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.kubectl import Kubectl

_OBJECTS = "onnxmodels,onnxmodelrevisions,jobs,deployments,pods,services,httproutes,grpcroutes,persistentvolumeclaims"
_LOG_LINES = 60


def of(kubectl: Kubectl, *, operator_namespace: str) -> Iterator[tuple[str, str]]:
    """Titles and texts: what is there, what the models say, what happened, and the last log lines."""
    yield "objects", _said(kubectl, "get", _OBJECTS, "--all-namespaces", "--output=wide")
    yield "models", _said(kubectl, "get", "onnxmodels", "--all-namespaces", "--output=yaml")
    yield "events", _said(kubectl, "get", "events", "--all-namespaces", "--sort-by=.lastTimestamp")
    for namespace, pod in _pods(kubectl, operator_namespace):
        for when in ("--previous=false", "--previous"):
            log = _said(
                kubectl.within(namespace), "logs", pod, "--all-containers", "--prefix", f"--tail={_LOG_LINES}", when
            )
            if "previous terminated container" not in log:
                yield f"log of {namespace}/{pod} {when}", log


def _pods(kubectl: Kubectl, operator_namespace: str) -> list[tuple[str, str]]:
    """The operator's pods and those of models."""
    try:
        ours = kubectl.within(operator_namespace).list("pods")
        theirs = kubectl.list("pods", selector="app.kubernetes.io/managed-by=onnx-operator", everywhere=True)
    except KubectlError:
        return []
    return [(pod["metadata"]["namespace"], pod["metadata"]["name"]) for pod in (*ours, *theirs)]


def _said(kubectl: Kubectl, *arguments: str) -> str:
    try:
        return kubectl.run(*arguments, timeout=20)
    except KubectlError as trouble:
        return str(trouble)
