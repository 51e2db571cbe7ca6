"""The operator itself on the real API server, with the hands of the test in place of nodes and gateway."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from integration.apiserver import ROOT, find_binaries, wait_until
from integration.operator.hands import Fate, Hands
from integration.processes import OperatorProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from integration.apiserver import ControlPlane

Manifest = dict[str, Any]
GROUP = "/apis/onnx-operator.io/v1alpha1"


def gateway_crds() -> list[Manifest]:
    """The Gateway API's own CRDs, from the same cache as the binaries."""
    relative = Path("gateway-helm/charts/crds/crds/gatewayapi-crds.yaml")
    path = find_binaries() / relative
    if not path.exists():
        command = [sys.executable, "hack/onebox", "tools"]
        output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        path = Path(output.strip().splitlines()[-1]) / relative
    wanted = {"httproutes", "grpcroutes", "gateways"}
    return [
        one
        for one in yaml.safe_load_all(path.read_text())
        if one and one["kind"] == "CustomResourceDefinition" and one["spec"]["names"]["plural"] in wanted
    ]


@pytest.fixture(scope="session")
def plane(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with the Gateway API and a class."""
    add_gateway_and_class(control_plane)
    return control_plane


def add_gateway_and_class(plane: ControlPlane) -> None:
    for crd in gateway_crds():
        plane.install_crd(crd)
    if plane.admin.get(f"{GROUP}/onnxmodelclasses/standard") is None:
        plane.admin.create(f"{GROUP}/onnxmodelclasses", standard_class())


def standard_class(name: str = "standard", **spec: Any) -> Manifest:
    return {
        "apiVersion": "onnx-operator.io/v1alpha1",
        "kind": "OnnxModelClass",
        "metadata": {"name": name, "annotations": {"onnx-operator.io/is-default-class": "true"}},
        "spec": {
            "artifactStore": {"claimName": "artifacts"},
            "traffic": {"domain": "models.test", "gateway": {"name": "edge", "namespace": "gateway"}, "drain": "1s"},
            "rollout": {
                "steps": [{"weight": 20, "duration": "1s"}, {"weight": 60, "duration": "1s"}],
                "analysis": {"interval": "1s", "metrics": []},
            },
            **spec,
        },
    }


class World:
    """One namespace with its models, an operator, and hands."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path) -> None:
        self.plane = plane
        self.client = plane.admin
        self.namespace = namespace
        self.fate = Fate()
        self.hands = Hands(plane.admin, namespace, self.fate)
        self._folder = folder
        self._operators: list[OperatorProcess] = []

    # ---- operators

    def operator(self, name: str = "one", **settings: str) -> OperatorProcess:
        process = OperatorProcess(
            self.plane,
            name,
            self._folder,
            ["-m", "onnx_operator", "run"],
            {"WATCH_NAMESPACES": self.namespace, "POD_NAMESPACE": self.namespace, **settings},
        )
        self._operators.append(process)
        return process

    def close(self) -> None:
        for process in self._operators:
            process.end()
        self.hands.stop()

    def logs(self) -> str:
        return "\n".join(process.tail() for process in self._operators)

    # ---- what a user does

    def apply(self, name: str, **spec: Any) -> Manifest:
        spec = {"source": {"persistentVolumeClaim": {"claimName": "checkpoints", "path": "v1"}}} | spec
        manifest = {
            "apiVersion": "onnx-operator.io/v1alpha1",
            "kind": "OnnxModel",
            "metadata": {"namespace": self.namespace, "name": name},
            "spec": spec,
        }
        path = f"{GROUP}/namespaces/{self.namespace}/onnxmodels/{name}?fieldManager=user&force=true"
        return self.client.request("PATCH", path, manifest, content_type="application/apply-patch+yaml")

    def patch(self, name: str, spec: Manifest) -> Manifest:
        return self.client.merge(f"{GROUP}/namespaces/{self.namespace}/onnxmodels/{name}", {"spec": spec})

    def delete(self, name: str) -> None:
        self.client.delete(f"{GROUP}/namespaces/{self.namespace}/onnxmodels/{name}")

    # ---- what a user sees

    def model(self, name: str) -> Manifest:
        return self.client.get(f"{GROUP}/namespaces/{self.namespace}/onnxmodels/{name}") or {}

    def status(self, name: str) -> Manifest:
        status: Manifest = self.model(name).get("status") or {}
        return status

    def condition(self, name: str, kind: str) -> Manifest:
        conditions = self.status(name).get("conditions") or []
        return next((one for one in conditions if one["type"] == kind), {})

    def revisions(self) -> list[Manifest]:
        found = self.client.items(f"{GROUP}/namespaces/{self.namespace}/onnxmodelrevisions")
        return sorted(found, key=lambda one: int(one["spec"]["number"]))

    def revision(self, number: int) -> Manifest:
        return next((one for one in self.revisions() if one["spec"]["number"] == number), {})

    def items(self, path: str) -> list[Manifest]:
        """Objects of the namespace, such as `batch/v1/jobs` or `v1/pods`."""
        group, plural = path.rsplit("/", 1)
        root = "/api/" if "/" not in group else "/apis/"
        return self.client.items(f"{root}{group}/namespaces/{self.namespace}/{plural}")

    def names(self, path: str) -> list[str]:
        return sorted(one["metadata"]["name"] for one in self.items(path))

    def split(self, name: str, kind: str = "httproutes") -> dict[str, int]:
        route = self.client.get(f"/apis/gateway.networking.k8s.io/v1/namespaces/{self.namespace}/{kind}/{name}")
        if route is None:
            return {}
        return {one["name"]: one["weight"] for one in route["spec"]["rules"][0]["backendRefs"]}

    def until(self, check: Callable[[], Any], what: str, *, within: float = 180) -> Any:
        try:
            return wait_until(check, within=within, what=what, every=0.1)
        except AssertionError as error:
            states = [
                (one["metadata"]["name"], one.get("status"))
                for one in self.client.items(f"{GROUP}/namespaces/{self.namespace}/onnxmodels")
            ]
            raise AssertionError(f"{error}\n{yaml.safe_dump(states)}\n{self.logs()}") from None

    def until_condition(self, name: str, kind: str, status: str, reason: str = "", *, within: float = 180) -> Manifest:
        """Wait for a condition that speaks of the spec as it is now."""

        def check() -> Manifest | None:
            model = self.model(name)
            found = self.condition(name, kind)
            is_it = found.get("status") == status and (not reason or found.get("reason") == reason)
            return found if is_it and found["observedGeneration"] == model["metadata"]["generation"] else None

        found: Manifest = self.until(check, f"{name}: {kind} is {status} {reason}", within=within)
        return found

    def until_ready(self, name: str, *, within: float = 240) -> Manifest:
        self.until_condition(name, "Ready", "True", within=within)
        return self.status(name)


@pytest.fixture
def world(plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[World]:
    made = World(plane, namespace, tmp_path)
    made.hands.start()
    yield made
    made.close()
