"""Servers as the load asks for: who says how many there are, and what the autoscalers may never take away."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from onnx_operator.core.actions import WantRoutes, WantServers
from onnx_operator.core.autoscaling import read_autoscaler
from onnx_operator.core.observation import ObjectName
from unit.core.worlds import CPU, World, a_class

if TYPE_CHECKING:
    from onnx_operator.core.autoscaling import Autoscaler

SCALED = {"minReplicas": 2, "maxReplicas": 8, "target": {"queueTime": "20ms"}}
METRICS = {"interval": "10s", "metrics": [{"name": "errorRatio", "maximum": "0.05"}]}
STEPS = [{"weight": weight, "duration": "1m"} for weight in (25, 50)]


def a_world(**serving: Any) -> World:
    world = World(classes=(a_class(rollout={"analysis": METRICS, "progressDeadline": "10m", "steps": STEPS}),))
    world.change(serving=serving)
    world.serve_first()
    world.measure(0, 1000)
    return world


@pytest.fixture
def busy() -> World:
    """Revision 1 serves with four servers, to which its autoscaler has come."""
    world = a_world(autoscaling=SCALED)
    world.autoscale(4)
    world.make_ready()
    world.settle()
    return world


def servers(world: World, number: int) -> int:
    return world.servers[world.numbered(number).name, CPU].replicas


def bounds(world: World, number: int) -> tuple[int, int]:
    found: Autoscaler = world.autoscalers[world.numbered(number).name, CPU]
    return found.least, found.most


def autoscalers(world: World) -> set[str]:
    return {name.name for name in world.children if name.kind == "HorizontalPodAutoscaler"}


# ---- who owns the number


def test_a_model_starts_with_the_fewest_and_its_autoscaler_does_the_rest() -> None:
    world = a_world(autoscaling=SCALED)
    assert servers(world, 1) == 2
    assert bounds(world, 1) == (2, 8)
    world.autoscale(7)
    world.settle()
    assert servers(world, 1) == 7
    assert world.condition("Ready") == ("True", "Serving"), "more servers are on their way, and it serves all the same"


def test_whoever_takes_over_goes_on_from_the_servers_that_there_are() -> None:
    world = a_world(replicas=5)
    world.change(serving={"autoscaling": SCALED})
    world.settle()
    assert servers(world, 1) == 5
    world.autoscale(7)
    world.change(serving={"replicas": 6})
    world.settle()
    assert not world.autoscalers
    assert servers(world, 1) == 6


def test_there_are_never_more_servers_than_the_autoscaler_may_have() -> None:
    world = a_world(replicas=10)
    world.change(serving={"autoscaling": SCALED})
    world.settle()
    assert servers(world, 1) == 8


def test_what_somebody_scaled_to_nothing_is_brought_back(busy: World) -> None:
    key = (busy.numbered(1).name, CPU)
    busy.servers[key] = replace(busy.servers[key], replicas=0, ready=0)
    busy.autoscale(5)
    assert servers(busy, 1) == 0, "an autoscaler of nothing rests"
    busy.settle()
    assert servers(busy, 1) == 2


def test_a_deployment_that_somebody_deleted_comes_back_with_the_fewest(busy: World) -> None:
    name = f"{busy.numbered(1).name}-cpu"
    del busy.children[ObjectName("Deployment", name)]
    del busy.servers[busy.numbered(1).name, CPU]
    busy.settle()
    assert servers(busy, 1) == 2


def test_an_autoscaler_that_somebody_deleted_is_made_again_and_no_server_goes(busy: World) -> None:
    del busy.children[ObjectName("HorizontalPodAutoscaler", f"{busy.numbered(1).name}-cpu")]
    del busy.autoscalers[busy.numbered(1).name, CPU]
    busy.settle()
    assert servers(busy, 1) == 4
    assert bounds(busy, 1) == (2, 8)


def test_a_spec_that_may_not_be_acted_on_leaves_the_autoscaler_alone(busy: World) -> None:
    busy.steer(maxSurge=1)
    busy.settle()
    assert busy.condition("Accepted") == ("False", "AutoscalingWithoutRoom")
    busy.autoscale(6)
    busy.settle()
    assert servers(busy, 1) == 6


def test_what_goes_takes_its_autoscaler_along_before_its_servers(busy: World) -> None:
    first = f"{busy.numbered(1).name}-cpu"
    busy.change(opset=19)
    gone: list[str] = []
    for _ in range(60):
        before = set(busy.children)
        busy.settle()
        gone += sorted(name.kind for name in before - set(busy.children) if name.name == first)
        if busy.condition("Ready")[0] == "True":
            break
        busy.end_jobs()
        busy.make_ready()
        busy.accept()
        busy.wait(10)
    assert gone[0] == "HorizontalPodAutoscaler"
    assert "Deployment" in gone[1:]
    assert autoscalers(busy) == {f"{busy.numbered(2).name}-cpu"}


# ---- a rollout


def test_the_candidate_is_scaled_to_its_weight_of_what_stable_has_before_its_traffic_comes(busy: World) -> None:
    busy.change(opset=19)
    story: list[tuple[int, int, int]] = []
    for _ in range(80):
        busy.look()
        candidate = busy.status.candidate
        if candidate is None and story:
            break
        if candidate is not None:
            found = busy.servers.get((candidate.revision, CPU))
            now = (servers(busy, 1), found.ready if found is not None else 0, busy.weights().get(2, 0))
            story += [now] if story[-1:] != [now] else []
        busy.end_jobs()
        busy.make_ready()
        busy.accept()
        busy.wait(5)
    assert story == [(4, 0, 0), (4, 1, 0), (4, 1, 25), (4, 2, 25), (4, 2, 50)]
    assert (busy.stable_number, servers(busy, 2)) == (2, 4)


def test_it_waits_for_its_autoscaler_and_tells_so(busy: World) -> None:
    busy.change(opset=19)
    busy.up_to_step(0)
    busy.goes_on_for(60)
    assert bounds(busy, 2) == (2, 8)
    assert servers(busy, 2) == 1, "the number is the autoscaler's to write"
    assert busy.condition("Promoted")[1] == "Scaling"
    assert busy.step == 0
    busy.make_ready()
    busy.goes_on_for(10)
    assert busy.step == 1


def test_neither_side_is_scaled_down_while_requests_are_split(busy: World) -> None:
    busy.change(opset=19)
    busy.up_to_step(1)
    assert [bounds(busy, number) for number in (1, 2)] == [(4, 8), (2, 8)]
    busy.autoscale(1)
    assert [servers(busy, number) for number in (1, 2)] == [4, 2]
    busy.autoscale(6)
    busy.make_ready()
    busy.settle()
    assert [bounds(busy, number) for number in (1, 2)] == [(6, 8), (3, 8)]


def test_before_any_traffic_stable_is_scaled_by_its_load_alone(busy: World) -> None:
    busy.steer(paused=True)
    busy.change(opset=19)
    for _ in range(6):
        busy.settle()
        busy.end_jobs()
        busy.make_ready()
        busy.accept()
    assert bounds(busy, 1) == (2, 8)
    assert bounds(busy, 2) == (1, 8)


@pytest.mark.parametrize("ends", ["well", "badly", "without servers"])
def test_who_gets_all_requests_keeps_all_servers_until_the_metrics_know_of_it(busy: World, ends: str) -> None:
    busy.change(opset=19)
    busy.up_to_step(1)
    if ends == "badly":
        busy.goes_bad()
    elif ends == "without servers":
        key = (busy.numbered(2).name, CPU)
        busy.servers[key] = replace(busy.servers[key], ready=0)
        busy.settle()
    else:
        busy.finish()
    serving = 2 if ends == "well" else 1
    busy.accept()
    busy.settle()
    assert busy.weights()[serving] == 100
    assert busy.status.scale_down_after_time is not None
    for _ in range(3):
        busy.autoscale(1)
        busy.settle()
        busy.accept()
        busy.wait(60)
        assert servers(busy, serving) == 4
    busy.settle()
    found = busy.decide().look_again
    assert found is not None
    assert found <= 120


def test_then_it_is_scaled_by_its_load_again(busy: World) -> None:
    busy.change(opset=19)
    busy.finish()
    busy.goes_on_for(310)
    assert bounds(busy, 2) == (2, 8)
    busy.autoscale(1)
    busy.make_ready()
    busy.settle()
    assert servers(busy, 2) == 2
    assert busy.status.scale_down_after_time is None
    assert busy.condition("Ready") == ("True", "Serving")


def test_a_bake_keeps_warm_what_all_requests_would_need(busy: World) -> None:
    busy.steer(bake={"duration": "20m"})
    busy.change(opset=19)
    for _ in range(40):
        busy.settle()
        if busy.status.candidate is not None and busy.status.candidate.baking:
            break
        busy.end_jobs()
        busy.make_ready()
        busy.accept()
        busy.wait(10)
    assert bounds(busy, 1) == bounds(busy, 2) == (4, 8)


# ---- what is told


def test_an_autoscaler_that_sees_nothing_is_told_and_holds_nothing(busy: World) -> None:
    busy.blind = "FailedGetPodsMetric: no custom metrics API (custom.metrics.k8s.io) registered"
    busy.settle()
    assert busy.condition("CandidateAvailable") == ("True", "AutoscalerBlind")
    assert "revision 1 on CPUExecutionProvider says FailedGetPodsMetric" in busy.message("CandidateAvailable")
    assert busy.condition("Ready") == ("True", "Serving")
    busy.change(opset=19)
    busy.finish()
    assert busy.stable_number == 2
    busy.blind = ""
    busy.settle()
    assert busy.condition("CandidateAvailable") == ("True", "Available")


@pytest.mark.parametrize(
    ("conditions", "trouble"),
    [
        pytest.param([], "", id="it has not looked yet"),
        pytest.param([("AbleToScale", "True"), ("ScalingActive", "True"), ("ScalingLimited", "False")], "", id="well"),
        pytest.param([("AbleToScale", "True"), ("ScalingActive", "False")], "Why: it does not", id="no metrics"),
    ],
)
def test_only_what_keeps_it_from_scaling_is_a_trouble(conditions: list[tuple[str, str]], trouble: str) -> None:
    told = [{"type": kind, "status": status, "reason": "Why", "message": "it does not"} for kind, status in conditions]
    found = read_autoscaler({"spec": {"minReplicas": 3}, "status": {"conditions": told}})
    assert (found.least, found.trouble) == (3, trouble)


def test_an_autoscaler_that_is_refused_keeps_nobody_in_the_traffic(busy: World) -> None:
    busy.change(opset=19)
    busy.up_to_step(1)
    busy.steer(abortToken="stop")
    while not (actions := busy.decide().actions):
        busy.look()
    kinds = [type(one) for one in actions]
    assert kinds.index(WantRoutes) < kinds.index(WantServers), "nothing that comes after what is refused is done"
    assert isinstance(routes := actions[kinds.index(WantRoutes)], WantRoutes)
    assert routes.split.percent([f"{busy.numbered(1).name}-cpu"]) == 100


# ---- what is refused


@pytest.mark.parametrize(
    ("rollout", "said"),
    [
        ({"maxSurge": 7}, "takes room for both sides: set rollout.maxSurge to 100%"),
        ({"maxUnavailable": "25%"}, "rollout.maxUnavailable to 0"),
        ({"steps": [{"weight": 50, "replicas": 2}]}, "rollout step 0 has replicas: 2"),
    ],
)
def test_a_rollout_that_has_no_meaning_with_it_is_refused(rollout: dict[str, Any], said: str) -> None:
    world = World(classes=(a_class(),))
    world.change(serving={"autoscaling": SCALED}, rollout=rollout)
    world.settle()
    assert world.condition("Accepted") == ("False", "AutoscalingWithoutRoom")
    assert said in world.message("Accepted")


def test_more_than_the_class_allows_is_refused() -> None:
    world = World(classes=(a_class(limits={"maxReplicas": 4}),))
    world.change(serving={"autoscaling": SCALED})
    world.settle()
    assert world.condition("Accepted") == ("False", "ReplicasAboveLimit")
    assert "spec.serving.autoscaling.maxReplicas is 8, above the limit of 4" in world.message("Accepted")
