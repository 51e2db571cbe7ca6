"""Objects to be admitted or refused, as changes of ones that are fine."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

Manifest = dict[str, Any]

GROUP: Final = "/apis/onnx-operator.io/v1alpha1"
API_VERSION: Final = "onnx-operator.io/v1alpha1"
CLAIM: Final[Manifest] = {"persistentVolumeClaim": {"claimName": "checkpoints"}}
HUB: Final[Manifest] = {"huggingFace": {"repository": "team/encoder", "revision": "0" * 40}}
ABSENT: Final = object()
"""Take the field out."""


@dataclass(frozen=True, slots=True)
class Bad:
    """A change that must be refused; the refusal names `path` and holds `word`."""

    change: Manifest
    path: str
    word: str


def changed(manifest: Manifest, change: Manifest) -> Manifest:
    """The manifest with other values at some paths, such as `spec.rollout.steps`."""
    result = deepcopy(manifest)
    for path, value in change.items():
        *parents, name = path.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is ABSENT:
            del place[name]
        else:
            place[name] = value
    return result


def model(name: str = "minilm", **spec: Any) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": "OnnxModel",
        "metadata": {"name": name},
        "spec": {"source": deepcopy(CLAIM), **spec},
    }


def model_class(name: str = "standard", **spec: Any) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": "OnnxModelClass",
        "metadata": {"name": name},
        "spec": {
            "artifactStore": {"claimName": "onnx-artifacts"},
            "traffic": {"domain": "models.example", "gateway": {"name": "edge", "namespace": "gateway-system"}},
            **spec,
        },
    }


def revision(name: str = "minilm-1") -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": "OnnxModelRevision",
        "metadata": {"name": name, "labels": {"onnx-operator.io/model": "minilm"}},
        "spec": {
            "modelName": "minilm",
            "number": 1,
            "source": deepcopy(CLAIM),
            "sourceDigest": f"sha256:{'0' * 64}",
            "task": "sentence-embedding",
            "opset": 18,
            "quantization": {"scheme": "none"},
            "parity": {},
            "executionProviders": [{"name": "CPUExecutionProvider"}],
            "batching": {},
            "instances": 1,
            "threads": 1,
            "converterImage": "registry.example.com/converter:1",
            "serverImage": "registry.example.com/triton:1",
            "operatorImage": "registry.example.com/operator:1",
            "artifactClaimName": "onnx-artifacts",
            "artifactKey": "0123456789abcdef",
        },
    }
