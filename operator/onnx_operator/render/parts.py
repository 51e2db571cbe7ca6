"""What all manifests have in common: who owns them, how they are labelled, and how little their pods may do.

Every pod passes Pod Security `restricted` by its own words, because a namespace's labels can be changed by whoever
may patch it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_operator.api.common import API_VERSION
from onnx_operator.core.names import (
    APPLIED_ANNOTATION,
    COMPONENT_LABEL,
    FIELD_MANAGER,
    MANAGED_BY_LABEL,
    MODEL_LABEL,
    PROVIDER_LABEL,
    REVISION_LABEL,
    digest_of,
)

if TYPE_CHECKING:
    from onnx_operator.api.common import ExecutionProvider, Resources
    from onnx_operator.core.names import Component
    from onnx_operator.core.observation import ModelSeen, RevisionSeen

Manifest = dict[str, Any]

HTTP_PORT = 8000
GRPC_PORT = 8001
ARTIFACTS = "artifacts"
TMP: Manifest = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108  (a mount of its own, in every pod)
TMP_VOLUME: Manifest = {"name": "tmp", "emptyDir": {}}


def labels(
    model: str,
    *,
    revision: str | None = None,
    component: Component | None = None,
    provider: ExecutionProvider | None = None,
) -> dict[str, str]:
    found = {MANAGED_BY_LABEL: FIELD_MANAGER, MODEL_LABEL: model}
    if revision is not None:
        found[REVISION_LABEL] = revision
    if component is not None:
        found[COMPONENT_LABEL] = str(component)
    if provider is not None:
        found[PROVIDER_LABEL] = provider.short
    return found


def metadata(owner: Manifest, namespace: str, name: str, labelled: dict[str, str]) -> Manifest:
    return {"namespace": namespace, "name": name, "labels": labelled, "ownerReferences": [owner]}


def owned_by_model(model: ModelSeen) -> Manifest:
    return _owner("OnnxModel", model.name, model.uid)


def owned_by_revision(revision: RevisionSeen) -> Manifest:
    return _owner("OnnxModelRevision", revision.name, revision.uid)


def _owner(kind: str, name: str, uid: str) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def stamped(manifest: Manifest) -> Manifest:
    """The manifest with the hash of itself: what tells later that something else is wanted."""
    annotations = {APPLIED_ANNOTATION: digest_of(manifest, 16)}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def pod_basics(*, grace_seconds: int) -> Manifest:
    """The parts of a pod's spec that every pod of ours has."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def container_basics() -> Manifest:
    """The parts of a container that every container of ours has."""
    return {
        "imagePullPolicy": "IfNotPresent",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def resources(amounts: Resources) -> Manifest:
    return {name: value for name, value in (("requests", amounts.requests), ("limits", amounts.limits)) if value}


def claim_volume(name: str, claim: str) -> Manifest:
    return {"name": name, "persistentVolumeClaim": {"claimName": claim}}


def config_map_volume(name: str, config_map: str) -> Manifest:
    """Optional, because the program says what is missing, and a pod whose volume is waited for says nothing."""
    return {"name": name, "configMap": {"name": config_map, "optional": True}}
