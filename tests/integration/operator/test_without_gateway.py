"""Rollouts in a cluster that has never heard of the Gateway API: which pods the model's Service leads to."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from integration.apiserver import running_control_plane
from integration.conftest import USERS
from integration.operator.conftest import GROUP, World, standard_class
from integration.operator.phases import V2
from onnx_operator.core.pods import is_ready

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.apiserver import ControlPlane

REVISION = "onnx-operator.io/revision"
KINDS = ("v1/services", "apps/v1/deployments", "v1/pods")
_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of its own: what the other one has heard of cannot be taken back."""
    with running_control_plane(tmp_path_factory.mktemp("bare"), USERS) as plane:
        plane.install_crds()
        plane.admin.create(f"{GROUP}/onnxmodelclasses", standard_class())
        yield plane


@pytest.fixture
def world(bare: ControlPlane, tmp_path: Path) -> Iterator[World]:
    name = f"bare-{next(_NUMBERS)}"
    bare.admin.create("/api/v1/namespaces", {"metadata": {"name": name}})
    made = World(bare, name, tmp_path)
    made.hands.start()
    made.operator().supervise()
    yield made
    made.close()


def behind_the_service(world: World) -> dict[str, int]:
    """Ready pods by revision that the model's Service selects: what its requests are shared among."""
    service = world.client.get(f"/api/v1/namespaces/{world.namespace}/services/minilm")
    if service is None:
        return {}
    selector = service["spec"]["selector"].items()
    pods = [one for one in world.items("v1/pods") if selector <= one["metadata"]["labels"].items()]
    return dict(
        Counter(
            one["metadata"]["labels"][REVISION]
            for one in pods
            if is_ready(one) and "deletionTimestamp" not in one["metadata"]
        )
    )


def serve(world: World, *steps: dict[str, Any], **rollout: Any) -> str:
    """A first revision that serves with four servers; its name."""
    world.apply("minilm", serving={"replicas": 4}, rollout={"steps": list(steps), **rollout})
    stable: str = world.until_ready("minilm")["stable"]["revision"]
    world.until(lambda: behind_the_service(world) == {stable: 4}, "the Service leads to all servers of stable")
    return stable


def test_a_revision_is_promoted_by_the_number_of_its_servers(world: World) -> None:
    first = serve(world, {"weight": 10, "pause": {}}, {"weight": 50, "pause": {}})
    world.patch("minilm", V2)
    world.until_condition("minilm", "Promoted", "Unknown", "WaitingForPromoteToken")
    candidate = world.status("minilm")["candidate"]
    second = candidate["revision"]
    world.until(lambda: behind_the_service(world) == {first: 4, second: 1}, "one of five is the candidate's")
    assert candidate["weight"] == 20
    assert world.status("minilm")["stable"]["weight"] == 80
    assert world.condition("minilm", "Accepted")["reason"] == "WeightsRounded"
    world.patch("minilm", {"rollout": {"promoteToken": "on to the second step"}})
    world.until(lambda: behind_the_service(world) == {first: 4, second: 4}, "half of them are the candidate's")
    world.until_condition("minilm", "Promoted", "Unknown", "WaitingForPromoteToken")
    world.patch("minilm", {"rollout": {"promoteToken": "and through"}})
    world.until_ready("minilm")
    world.until(lambda: behind_the_service(world) == {second: 4}, "only the new one is behind the Service")
    assert world.names("v1/services") == ["minilm", f"{second}-cpu"]


def test_a_rollback_takes_the_requests_first_and_then_the_servers(world: World) -> None:
    first = serve(world, {"weight": 50, "pause": {}}, maxSurge="1")
    world.patch("minilm", V2)
    world.until_condition("minilm", "Promoted", "Unknown", "WaitingForPromoteToken")
    second = world.status("minilm")["candidate"]["revision"]
    world.until(lambda: behind_the_service(world) == {first: 2, second: 2}, "two have made room for two")
    world.patch("minilm", {"rollout": {"abortToken": "stop"}})

    def is_out() -> bool:
        servers = {one["metadata"]["name"]: one["spec"]["replicas"] for one in world.items("apps/v1/deployments")}
        selected = world.client.request("GET", f"/api/v1/namespaces/{world.namespace}/services/minilm")
        is_selected = selected["spec"]["selector"].get(REVISION) == first
        assert is_selected or servers[f"{second}-cpu"] == 2, "servers went before their requests did"
        return bool(is_selected)

    world.until(is_out, "the Service leads to stable alone")
    world.until_condition("minilm", "Stalled", "True", "RolledBack")
    world.until(lambda: behind_the_service(world) == {first: 4}, "stable has all its servers again")
    world.until(lambda: world.names("apps/v1/deployments") == [f"{first}-cpu"], "only stable's servers are left")


def test_what_a_person_changes_of_the_service_is_put_back_and_a_deleted_model_takes_it_along(world: World) -> None:
    first = serve(world, {"weight": 50, "duration": "1s"})
    path = f"/api/v1/namespaces/{world.namespace}/services/minilm"
    world.client.merge(path, {"spec": {"selector": {REVISION: "nobody"}}})
    world.until(lambda: world.client.request("GET", path)["spec"]["selector"][REVISION] == first, "it is put back")
    world.until_ready("minilm")
    world.delete("minilm")
    world.until(lambda: not any(world.items(kind) for kind in KINDS), "nothing is left")
