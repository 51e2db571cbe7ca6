"""A candidate that gets copies of the traffic: what the routes say, and clusters whose Gateway API cannot say it."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest

from integration.apiserver import ApiAnswer
from integration.operator.conftest import gateway_crds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.apiserver import ControlPlane
    from integration.operator.conftest import World

ROUTES = "/apis/gateway.networking.k8s.io/v1/namespaces/{}/{}"
INT8 = {"scheme": "int8-dynamic"}
SHADOW = {"weight": 0, "mirror": 25}


def mirrors(world: World, kind: str = "httproutes") -> dict[str, Any]:
    """The percentage by Service."""
    route = world.client.get(f"{ROUTES.format(world.namespace, kind)}/minilm")
    assert route is not None
    found = (one["requestMirror"] for one in route["spec"]["rules"][0].get("filters") or ())
    return {one["backendRef"]["name"]: one["percent"] for one in found}


def service_of(world: World, number: int) -> str:
    return f"{world.revision(number)['metadata']['name']}-cpu"


def begin(world: World, **rollout: Any) -> None:
    """A first revision serves, and a second one is on its way."""
    world.operator().supervise()
    world.apply("minilm", rollout=rollout)
    world.until_ready("minilm")
    world.patch("minilm", {"quantization": INT8})


def test_both_routes_mirror_to_a_shadow_and_stop_with_it(world: World) -> None:
    begin(world, steps=[SHADOW | {"pause": {}}])
    world.until(
        lambda: (world.status("minilm").get("candidate") or {}).get("mirror") == 25, "the gateway mirrors to it"
    )
    stable, candidate = service_of(world, 1), service_of(world, 2)
    assert mirrors(world) == mirrors(world, "grpcroutes") == {candidate: 25}
    assert world.split("minilm") == world.split("minilm", "grpcroutes") == {stable: 100, candidate: 0}
    world.until_condition("minilm", "Promoted", "Unknown", "WaitingForPromoteToken")
    assert world.condition("minilm", "TrafficProgrammed")["status"] == "True", "what is read back is what was written"

    world.patch("minilm", {"rollout": {"abortToken": "stop"}})
    world.until_condition("minilm", "Stalled", "True", "RolledBack")
    # Decided and told first, and then done.
    world.until(lambda: mirrors(world) == mirrors(world, "grpcroutes") == {}, "no copies are sent any more")
    world.until(lambda: world.names("v1/services") == [stable], "only stable's Service is left")


@pytest.fixture
def old_gateway_api(plane: ControlPlane) -> Iterator[None]:
    """The HTTPRoute of a Gateway API that mirrors all or nothing."""
    (crd,) = (one for one in gateway_crds() if one["spec"]["names"]["plural"] == "httproutes")
    old = deepcopy(crd)
    for version in old["spec"]["versions"]:
        rule = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["rules"]["items"]["properties"]
        for filters in (rule["filters"], rule["backendRefs"]["items"]["properties"]["filters"]):
            mirror = filters["items"]["properties"]["requestMirror"]
            del mirror["properties"]["percent"], mirror["properties"]["fraction"], mirror["x-kubernetes-validations"]
    plane.install_crd(old)
    yield
    plane.install_crd(crd)


def knows_percentages(world: World) -> bool:
    mirror = {"backendRef": {"name": "any", "port": 80}, "percent": 25}
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "any", "namespace": world.namespace},
        "spec": {"rules": [{"filters": [{"type": "RequestMirror", "requestMirror": mirror}]}]},
    }
    path = f"{ROUTES.format(world.namespace, 'httproutes')}/any?dryRun=All&fieldManager=tests"
    try:
        world.client.request("PATCH", path, route, content_type="application/apply-patch+yaml")
    except ApiAnswer:
        return False
    return True


@pytest.mark.usefixtures("old_gateway_api")
def test_a_gateway_api_that_knows_no_percentage_is_told_and_costs_stable_nothing(world: World) -> None:
    world.until(lambda: not knows_percentages(world), "the API server to know nothing of percentages")
    begin(world, steps=[SHADOW | {"duration": "1s"}], progressDeadline="20s")
    told = world.until_condition("minilm", "TrafficProgrammed", "False", "MirrorNotSupported")
    assert "install version 1.3 or later, or take mirror out of rollout.steps" in told["message"]

    world.until_condition("minilm", "Stalled", "True", "RolledBack")
    assert "requestMirror.percent" in world.status("minilm")["lastFailure"]["message"]
    stable = service_of(world, 1)
    world.until(lambda: world.split("minilm") == {stable: 100}, "stable answers everything")
    world.until_condition("minilm", "TrafficProgrammed", "True")
