"""One model on two execution providers: what each of them answers, and what happens when one is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from integration.operator.hands import crashed_pod, unschedulable_pod
from integration.operator.phases import make_class
from integration.operator.test_rollback import LONG

if TYPE_CHECKING:
    from integration.operator.conftest import World

POOLS = [{"name": "CPUExecutionProvider", "weight": 1}, {"name": "CUDAExecutionProvider", "weight": 3}]
INT8 = {"scheme": "int8-weight-only"}
LOST = unschedulable_pod("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")


@pytest.fixture
def fleet(world: World) -> World:
    """Revision 1 serves on both."""
    offered = make_class(world, "both", executionProviders=[{"name": one["name"]} for one in POOLS])
    world.operator().supervise()
    world.apply("minilm", className=offered, executionProviders=POOLS, rollout=LONG)
    world.until_ready("minilm")
    return world


def pool(world: World, number: int, short: str) -> str:
    return f"{world.revision(number)['metadata']['name']}-{short}"


def lose(world: World, service: str) -> Any:
    """The pods of one Deployment are replaced by ones for which there is no node."""
    ready = world.fate.server
    world.fate.server = lambda pod: LOST if pod["metadata"]["name"].startswith(service) else ready(pod)
    for pod in world.items("v1/pods"):
        if pod["metadata"]["name"].startswith(service):
            path = f"/api/v1/namespaces/{world.namespace}/pods/{pod['metadata']['name']}"
            world.client.delete(f"{path}?gracePeriodSeconds=0")
    return ready


def percents(world: World) -> list[tuple[int, int]]:
    return [(one["percent"], one["readyReplicas"]) for one in world.status("minilm")["pools"]]


def test_a_pool_that_is_lost_gets_no_requests_until_it_is_back(fleet: World) -> None:
    cpu, cuda = pool(fleet, 1, "cpu"), pool(fleet, 1, "cuda")
    # What the gateway has accepted is told in a look of its own.
    fleet.until(lambda: percents(fleet) == [(25, 1), (75, 1)], "both pools answer")
    assert fleet.split("minilm") == {cpu: 100, cuda: 300} == fleet.split("minilm", "grpcroutes")
    ready = lose(fleet, cuda)
    fleet.until_condition("minilm", "TrafficProgrammed", "True", "PoolWithoutPods")
    assert fleet.split("minilm") == {cpu: 100, cuda: 0} == fleet.split("minilm", "grpcroutes")
    fleet.until(lambda: percents(fleet) == [(100, 1), (0, 0)], "one pool answers all")
    events = fleet.until(
        lambda: [one for one in fleet.items("events.k8s.io/v1/events") if one.get("reason") == "PoolWithoutPods"],
        "there is an Event",
    )
    assert events[0]["type"] == "Warning"
    assert "CUDAExecutionProvider of revision 1" in events[0]["note"]
    fleet.fate.server = ready
    fleet.until(lambda: percents(fleet) == [(25, 1), (75, 1)], "both pools answer again")
    assert fleet.split("minilm") == {cpu: 100, cuda: 300}


def test_weights_and_windows_move_requests_without_a_new_revision_or_step(fleet: World) -> None:
    fleet.patch("minilm", {"quantization": INT8})
    fleet.until(lambda: (fleet.status("minilm").get("candidate") or {}).get("weight") == 20, "the candidate has 20 %")
    before = fleet.status("minilm")["candidate"]
    always = {"schedule": "* * * * *", "duration": "24h", "weight": 0}
    fleet.patch("minilm", {"executionProviders": [POOLS[0], {**POOLS[1], "schedules": [always]}]})
    wanted = {
        pool(fleet, 1, "cpu"): 80,
        pool(fleet, 1, "cuda"): 0,
        pool(fleet, 2, "cpu"): 20,
        pool(fleet, 2, "cuda"): 0,
    }
    fleet.until(lambda: fleet.split("minilm") == wanted, "all of both sides goes to the CPUs")
    fleet.until_condition("minilm", "TrafficProgrammed", "True", "TrafficProgrammed")
    after = fleet.status("minilm")["candidate"]
    assert (after["step"], after["stepStartedTime"], after["weight"]) == (0, before["stepStartedTime"], 20)
    assert len(fleet.revisions()) == 2


def test_a_candidate_that_loses_a_pool_leaves_stable_with_all_requests(fleet: World) -> None:
    fleet.patch("minilm", {"quantization": INT8})
    fleet.until(lambda: (fleet.status("minilm").get("candidate") or {}).get("weight") == 20, "the candidate has 20 %")
    ready = lose(fleet, pool(fleet, 2, "cuda"))
    fleet.until(lambda: fleet.status("minilm")["candidate"]["weight"] == 0, "the candidate has nothing")
    assert "step" not in fleet.status("minilm")["candidate"]
    fleet.fate.server = ready
    fleet.until(lambda: fleet.status("minilm")["candidate"]["weight"] == 20, "the candidate has 20 % again")


def test_a_candidate_that_crashes_in_one_pool_is_taken_back_from_both(fleet: World) -> None:
    fleet.patch("minilm", {"quantization": INT8})
    fleet.until(lambda: (fleet.status("minilm").get("candidate") or {}).get("weight") == 20, "the candidate has 20 %")
    ready, bad = fleet.fate.server, pool(fleet, 2, "cuda")
    crashed = crashed_pod(139, "signal: segmentation fault")
    fleet.fate.server = lambda pod: crashed if pod["metadata"]["name"].startswith(bad) else ready(pod)
    fleet.until_condition("minilm", "Promoted", "False", "CandidateCrashed")
    stable = sorted([pool(fleet, 1, "cpu"), pool(fleet, 1, "cuda")])
    fleet.until(lambda: fleet.names("apps/v1/deployments") == stable, "only stable's servers are left")
    assert fleet.split("minilm") == {stable[0]: 100, stable[1]: 300}
