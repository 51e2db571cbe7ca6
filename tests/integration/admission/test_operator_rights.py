"""The operator lives on the rights that the chart gives it, under its policies and Pod Security `restricted`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helm import CHART, NAMESPACE, RELEASE
from integration.admission.conftest import SECOND, Installation
from integration.operator.conftest import World, gateway_crds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 180
QUICK = {"steps": [{"weight": 50, "duration": "1s"}], "analysis": {"interval": "1s", "metrics": []}}
OWNED = (
    "batch/v1/jobs",
    "apps/v1/deployments",
    "v1/services",
    "policy/v1/poddisruptionbudgets",
    "autoscaling/v2/horizontalpodautoscalers",
    "networking.k8s.io/v1/networkpolicies",
    "gateway.networking.k8s.io/v1/httproutes",
    "gateway.networking.k8s.io/v1/grpcroutes",
    "onnx-operator.io/v1alpha1/onnxmodelrevisions",
)


@pytest.fixture
def world(installation: Installation, namespace: str, tmp_path: Path) -> Iterator[World]:
    for definition in gateway_crds():
        installation.plane.install_crd(definition)
    # Left by other tests; an operator for the whole cluster would be at work on them first.
    installation.kubectl("delete", "onnxmodels", "--all", "--all-namespaces")
    made = World(installation.plane, namespace, tmp_path)
    made.hands.start()
    yield made
    made.close()


@pytest.fixture(params=["the whole cluster", "one namespace"])
def rights(
    request: pytest.FixtureRequest, installation: Installation, namespace: str, tmp_path: Path
) -> Iterator[dict[str, str]]:
    """The settings of an operator process that is who the chart says and serves what the chart says."""
    is_cluster_wide = request.param == "the whole cluster"
    account = RELEASE if is_cluster_wide else SECOND
    if not is_cluster_wide:
        installation.helm.run(
            *("install", SECOND, str(CHART), f"--namespace={NAMESPACE}", "--set=images.registry=registry.example.com"),
            *(f"--set=fullnameOverride={SECOND}", f"--set=watchNamespaces={{{namespace}}}"),
        )
    yield {
        "KUBECONFIG": str(installation.kubeconfig_of_operator(tmp_path, account)),
        "WATCH_NAMESPACES": "" if is_cluster_wide else namespace,
        "POD_NAMESPACE": NAMESPACE,
        "LEASE_NAME": account,
    }
    if not is_cluster_wide:
        installation.helm.run("uninstall", SECOND, f"--namespace={NAMESPACE}")


def test_a_model_lives_and_dies_and_nothing_was_forbidden(world: World, rights: dict[str, str]) -> None:
    operator = world.operator(**rights).start()
    world.apply("minilm", rollout=QUICK)
    world.until_ready("minilm", within=PATIENCE)
    world.apply("minilm", rollout=QUICK, quantization={"scheme": "int8-dynamic"})
    world.until_ready("minilm", within=PATIENCE)
    assert world.status("minilm")["stable"]["number"] == 2
    events = world.items("events.k8s.io/v1/events")
    assert {event["reason"] for event in events if event["reportingController"].startswith("onnx-operator.io/")}

    world.delete("minilm")
    world.until(
        lambda: [path for path in OWNED if world.items(path)] == [], "all that it owned is gone", within=PATIENCE
    )
    said = operator.log.read_text()
    assert "forbidden" not in said.lower()
    assert operator.page("/healthz")[0] == 200
