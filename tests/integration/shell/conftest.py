"""What the tests of the shell share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from integration.processes import OperatorProcess
from onnx_operator.adapters import kube

if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.apiserver import ControlPlane

PROGRAM = Path(__file__).with_name("operator_process.py")


class StartOperator(Protocol):
    def __call__(self, name: str = "one", **settings: str) -> OperatorProcess: ...


@pytest.fixture
def operator(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[StartOperator]:
    """Makes operator processes that serve the test's namespace; all are gone when the test ends."""
    made: list[OperatorProcess] = []

    def make(name: str = "one", **settings: str) -> OperatorProcess:
        process = OperatorProcess(
            control_plane,
            name,
            tmp_path,
            [str(PROGRAM)],
            {"WATCH_NAMESPACES": namespace, "POD_NAMESPACE": namespace, **settings},
        )
        made.append(process)
        return process

    yield make
    for process in made:
        process.end()


@pytest.fixture
def models(control_plane: ControlPlane, namespace: str) -> Models:
    return Models(control_plane, namespace)


class Models:
    """The OnnxModels of the test's namespace, as a user sees them."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self._control_plane = control_plane
        self.namespace = namespace

    def create(self, *names: str) -> None:
        for name in names:
            self._control_plane.admin.create(kube.ONNX_MODEL.path(self.namespace), model(self.namespace, name))

    def get(self, name: str) -> dict[str, Any] | None:
        return self._control_plane.admin.get(kube.ONNX_MODEL.path(self.namespace, name))

    def delete(self, name: str) -> None:
        self._control_plane.admin.delete(kube.ONNX_MODEL.path(self.namespace, name))

    def change(self, name: str, *, opset: int) -> None:
        self._control_plane.admin.merge(kube.ONNX_MODEL.path(self.namespace, name), {"spec": {"opset": opset}})

    def key(self, name: str) -> str:
        return f"{self.namespace}/{name}"

    def is_settled(self, name: str) -> bool:
        """Whether the operator wrote the status of the model's latest generation."""
        found = self.get(name) or {"status": {}, "metadata": {"generation": -1}}
        return bool(found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"])


def model(namespace: str, name: str) -> dict[str, Any]:
    return {
        "apiVersion": kube.ONNX_MODEL.api_version,
        "kind": "OnnxModel",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "source": {"persistentVolumeClaim": {"claimName": "c", "path": "p"}},
            "executionProviders": [{"name": "CPUExecutionProvider"}],
        },
    }
