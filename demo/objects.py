"""The Kubernetes objects that surround a model: namespace, claims, and the pods of the demo itself. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from demo.kubectl import Manifest

_CONTAINER_RIGHTS: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_POD: Final[dict[str, Any]] = {
    "automountServiceAccountToken": False,
    "enableServiceLinks": False,
    "terminationGracePeriodSeconds": 5,
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "fsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}
UPSTREAM_POLICY: Final = "onnx-demo-upstream"
_LABELS: Final = {"app.kubernetes.io/part-of": "onnx-operator-demo"}


def namespace(name: str) -> Manifest:
    """A namespace that admits nothing but restricted pods."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {**_LABELS, "pod-security.kubernetes.io/enforce": "restricted"}},
    }


def claim_keeper(claim_name: str, *, image: str) -> Manifest:
    """A pod that does nothing but hold a claim open, for `kubectl exec` to write into."""
    waits = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {15}); signal.sigwait({15})"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{claim_name}-keeper", "labels": _LABELS},
        "spec": {
            **_POD,
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "keeper",
                    "image": image,
                    "command": ["python3", "-c", waits],
                    "securityContext": _CONTAINER_RIGHTS,
                    "volumeMounts": [{"name": "claim", "mountPath": "/checkpoints"}],
                }
            ],
            "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": claim_name}}],
        },
    }


def load_pod(name: str, *, image: str, files: Mapping[str, str], arguments: Sequence[str]) -> tuple[Manifest, ...]:
    """The pod that sends steady traffic, with its script and requests beside it in a ConfigMap."""
    return (
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "labels": _LABELS},
            "data": dict(files),
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": _LABELS},
            "spec": {
                **_POD,
                "restartPolicy": "Never",
                "containers": [
                    {
                        "name": "load",
                        "image": image,
                        "command": ["python3", "/load/load.py", "--requests=/load/requests.json", *arguments],
                        "ports": [{"name": "http", "containerPort": 8080}],
                        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1},
                        "resources": {"requests": {"cpu": "100m", "memory": "96Mi"}},
                        "securityContext": _CONTAINER_RIGHTS,
                        "volumeMounts": [{"name": "load", "mountPath": "/load", "readOnly": True}],
                    }
                ],
                "volumes": [{"name": "load", "configMap": {"name": name}}],
            },
        },
    )


def upstream_in_answers(gateway: str, gateway_namespace: str) -> Manifest:
    """Lets the gateway say in every answer who gave it.

    So the demo can tell an error that a bad model answered from a request that was lost on the way.
    """
    headers = [
        {"name": "x-onnx-upstream", "value": "%UPSTREAM_CLUSTER%"},
        {"name": "x-onnx-details", "value": "%RESPONSE_CODE_DETAILS%"},
    ]
    return {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "ClientTrafficPolicy",
        "metadata": {"name": UPSTREAM_POLICY, "namespace": gateway_namespace, "labels": _LABELS},
        "spec": {
            "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": gateway}],
            "headers": {"lateResponseHeaders": {"set": headers}},
        },
    }
