"""Where there is no gateway: the servers are the weights, behind one Service."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_operator.core.actions import WantProber
from onnx_operator.core.analysis import Outcome
from onnx_operator.core.capacity import Capacity, Share, Shortage, Sides, by_ratio, shortage_by_ratio, towards
from onnx_operator.core.decide import decide
from onnx_operator.core.observation import ObjectName, ServiceSeen
from onnx_operator.core.traffic import Side, behind
from unit.core.worlds import CPU, CUDA, World, a_class, a_spec

NO_GATEWAY = {"drain": "10s"}
HALF = [{"weight": 50, "duration": "1m"}]


# ---- numbers


@pytest.mark.parametrize(
    ("capacity", "weight", "declared", "expected"),
    [
        pytest.param(Capacity(4, 4, 0), 10, None, Sides(4, 1), id="a tenth of four is one beside all of stable"),
        pytest.param(Capacity(4, 4, 0), 50, None, Sides(4, 4), id="half, with room for both in full"),
        pytest.param(Capacity(4, 4, 0), 75, None, Sides(1, 3), id="more than half takes servers of stable"),
        pytest.param(Capacity(4, 1, 0), 50, None, Sides(2, 2), id="half, with room for one more"),
        pytest.param(Capacity(4, 0, 1), 25, None, Sides(3, 1), id="a quarter, with no room and one given up"),
        pytest.param(Capacity(10, 10, 0), 30, None, Sides(10, 4), id="stable gives nothing up where it need not"),
        pytest.param(Capacity(5, 0, 1), 75, None, Sides(1, 3), id="one may be missing for the sake of the weight"),
        pytest.param(Capacity(1, 1, 0), 10, None, Sides(1, 1), id="one beside one is half"),
        pytest.param(Capacity(4, 4, 0), 99, None, Sides(1, 4), id="stable always has one"),
        pytest.param(Capacity(4, 4, 0), 10, 2, Sides(4, 2), id="a step that says how many"),
        pytest.param(Capacity(4, 1, 0), 0, None, Sides(4, 1), id="a preview"),
        pytest.param(Capacity(4, 0, 1), 0, None, Sides(3, 1), id="a preview in the place of one"),
        pytest.param(Capacity(4, 1, 0), 100, None, Sides(1, 4), id="all of the traffic"),
        pytest.param(Capacity(1, 0, 1), 100, None, Sides(0, 1), id="the only one stops"),
        pytest.param(Capacity(1, 0, 1), 50, None, None, id="the only one cannot be shared"),
        pytest.param(Capacity(1, 0, 1), 0, None, None, id="nor previewed"),
        pytest.param(Capacity(4, 0, 0), 25, None, None, id="nothing to give"),
        pytest.param(Capacity(4, 0, 1), 50, 4, None, id="a step that says too many"),
    ],
)
def test_what_comes_closest_to_a_weight(
    capacity: Capacity, weight: int, declared: int | None, expected: Sides | None
) -> None:
    assert by_ratio(capacity, weight, declared) == expected


CAPACITIES = st.integers(1, 12).flatmap(
    lambda replicas: st.builds(Capacity, st.just(replicas), st.integers(0, replicas), st.integers(0, replicas))
)


@given(CAPACITIES, st.integers(1, 99))
def test_no_other_numbers_are_closer_but_by_taking_more_of_stable(capacity: Capacity, weight: int) -> None:
    found = by_ratio(capacity, weight)
    pairs = [
        Sides(stable, candidate)
        for stable in range(1, capacity.replicas + 1)
        for candidate in range(1, capacity.replicas + 1)
        if capacity.least <= stable + candidate <= capacity.limit and capacity.surge + capacity.unavailable
    ]
    assert (found is None) == (not pairs)
    if found is not None:
        assert found in pairs
        off = abs(found.candidate / (found.stable + found.candidate) - weight / 100)
        others = [one for one in pairs if one.stable >= found.stable]
        assert all(off <= abs(one.candidate / (one.stable + one.candidate) - weight / 100) + 1e-9 for one in others)


@given(CAPACITIES, st.integers(0, 99), st.integers(1, 100))
def test_on_the_way_the_limit_holds_and_enough_servers_answer(capacity: Capacity, before: int, after: int) -> None:
    wanted, now = by_ratio(capacity, after), by_ratio(capacity, before)
    if wanted is None or now is None or (before == 0 and after == 100):
        return
    for _ in range(4 * capacity.limit):
        answering = now.candidate if before else 0
        then = towards(
            capacity,
            wanted,
            stable=Share(now.stable, now.stable),
            candidate=Share(now.candidate, answering),
            leaving=0,
        )
        assert then.stable + then.candidate <= capacity.limit
        # A new server of the candidate counts from the next look on.
        assert then.stable + min(then.candidate, answering) >= min(capacity.least, now.stable + answering)
        if then == now and before:
            break
        now, before = then, before or (after if then == now else 0)
    assert now == wanted


@pytest.mark.parametrize(
    ("capacity", "steps", "expected"),
    [
        pytest.param(Capacity(1, 1, 0), [(10, None), (50, None)], None, id="one and one more"),
        pytest.param(Capacity(4, 1, 0), [(10, None), (90, None)], None, id="one more is enough for any weight"),
        pytest.param(Capacity(4, 1, 0), [(0, None)], Shortage(None, 8, 8), id="but not for all of the traffic at once"),
        pytest.param(Capacity(1, 0, 1), [(100, None)], None, id="the only one stops before the next starts"),
        pytest.param(Capacity(1, 0, 1), [(50, None)], Shortage(0, 2, 2), id="the only one cannot be shared"),
        pytest.param(Capacity(2, 0, 0), [(50, None)], Shortage(0, 3, 3), id="nothing to give"),
        pytest.param(Capacity(4, 0, 1), [(50, 4)], Shortage(0, 5, 5), id="a step that says too many"),
    ],
)
def test_what_no_room_can_be_found_for(
    capacity: Capacity, steps: list[tuple[int, int | None]], expected: Shortage | None
) -> None:
    assert shortage_by_ratio(capacity, steps) == expected
    if expected is not None:
        enough = Capacity(capacity.replicas, expected.most - capacity.replicas, capacity.unavailable)
        assert shortage_by_ratio(enough, steps) is None


def test_a_service_shares_evenly_among_all_ready_servers() -> None:
    stable, candidate = Side("a", 1, (CPU, CUDA)), Side("b", 2, (CPU,))
    split = behind([(stable, (2, 1)), (candidate, (1,))]).split
    assert split.percent(candidate.services) == 25
    assert behind([(stable, (0, 0))]).split.percent(stable.services) == 100


# ---- stories


def a_world(*, replicas: int = 4, **rollout: Any) -> World:
    """A model without a gateway that serves, and rolls out its next spec in this way."""
    spec = a_spec(serving={"replicas": replicas}, rollout=rollout)
    world = World(spec=spec, classes=(a_class(traffic=NO_GATEWAY),))
    world.serve_first()
    return world


def sides(world: World) -> tuple[int, int]:
    """Servers of stable and of the candidate that are asked for."""
    stable, candidate = (world.servers[world.numbered(number).name, CPU].replicas for number in (1, 2))
    return stable, candidate


def lead(world: World, number: int | None) -> bool:
    return world.service == ServiceSeen(world.numbered(number).name if number else None)


def test_the_service_leads_to_stable_alone_and_is_all_there_is() -> None:
    world = a_world()
    assert lead(world, 1)
    assert world.split is None
    assert world.status.endpoint is not None
    assert world.status.endpoint.host == "minilm.shop.svc"
    assert world.status.stable is not None
    assert world.status.stable.weight == 100
    assert world.condition("TrafficProgrammed") == ("True", "TrafficProgrammed")


def test_a_candidate_gets_its_part_of_the_servers_and_then_all_of_them() -> None:
    world = a_world()
    world.change(opset=19)
    world.up_to_step(0)
    assert lead(world, None)
    assert sides(world) == (4, 1)
    world.settle()
    candidate = world.status.candidate
    assert candidate is not None
    assert candidate.weight == 20
    assert "at 10 %, made by 1 of 5 servers as 20 %," in world.message("Promoted")
    world.up_to_step(1)
    assert sides(world) == (4, 4)
    world.finish()
    assert lead(world, 2)
    assert world.stable_number == 2
    assert len(world.servers) == 1


def test_before_its_first_step_no_request_comes_to_the_candidate() -> None:
    world = a_world()
    world.change(opset=19)
    for _ in range(4):
        world.settle()
        world.end_jobs()
    assert world.status.candidate is not None
    assert sides(world) == (4, 1)
    assert lead(world, 1)
    assert world.weights() == {1: 100}


def test_what_is_bad_loses_its_traffic_at_once_and_its_servers_once_they_are_drained() -> None:
    world = a_world(steps=HALF)
    world.change(opset=19)
    world.up_to_step(0)
    world.goes_bad()
    assert lead(world, 1)
    assert world.condition("Promoted") == ("False", "AnalysisFailed")
    world.goes_on_for(20)
    assert [*world.servers] == [(world.numbered(1).name, CPU)]
    assert world.status.retiring == []


@pytest.mark.parametrize(
    ("replicas", "step"),
    [
        pytest.param(2, {"weight": 55}, id="one beside one comes closest, and 55 % of two are two"),
        pytest.param(4, {"weight": 90, "replicas": 1}, id="the step says how many"),
    ],
)
def test_a_step_whose_servers_are_fewer_than_its_weight_stands_for_is_passed(
    replicas: int, step: dict[str, Any]
) -> None:
    world = a_world(replicas=replicas, maxSurge=1, steps=[step | {"duration": "1m"}])
    world.change(opset=19)
    world.measure(0, 1000)
    world.finish()
    assert lead(world, 2)


def test_with_one_more_servers_change_sides_in_the_step_and_enough_answer_at_all_times() -> None:
    world = a_world(steps=HALF, maxSurge=1)
    world.change(opset=19)
    world.measure(0, 1000)
    for _ in range(40):
        world.settle()
        if world.status.candidate is not None:
            ready = sum(min(one.ready, one.replicas) for one in world.servers.values())
            assert ready >= 4
            assert world.asked_for()["CPUExecutionProvider"] <= 5
            if world.status.candidate.step_started_time is not None:
                break
        world.end_jobs()
        world.make_ready()
        world.wait(10)
    assert sides(world) == (2, 2)
    world.finish()
    assert world.servers[world.numbered(2).name, CPU].ready == 4


def test_a_rollback_gives_stable_its_servers_back_before_the_candidates_are_gone_where_there_is_room() -> None:
    world = a_world(steps=[{"weight": 75, "duration": "1m"}])
    world.change(opset=19)
    world.up_to_step(0)
    assert sides(world) == (1, 3)
    world.steer(abortToken="stop")
    world.settle()
    assert lead(world, 1)
    assert sides(world) == (4, 3)


@pytest.mark.parametrize("weight", [0, 10])
def test_a_step_that_is_given_all_requests_in_its_middle_waits_for_the_servers(weight: int) -> None:
    world = a_world(steps=[{"weight": weight, "duration": "5m"}])
    world.change(opset=19)
    world.up_to_step(0)
    before = world.service
    world.steer(steps=[{"weight": 100, "duration": "5m"}])
    world.settle()
    assert sides(world) == (4, 4)
    assert world.service == before, "one server of four is ready"
    assert world.condition("CandidateAvailable") == ("Unknown", "Starting")
    world.make_ready()
    world.settle()
    assert lead(world, 2)
    key = (world.numbered(2).name, CPU)
    world.servers[key] = replace(world.servers[key], ready=3)
    world.settle()
    assert lead(world, 2), "one that is lost changes nothing"


def test_a_bake_keeps_stable_warm_and_out_of_the_traffic() -> None:
    world = a_world(steps=HALF, bake={"duration": "10m"})
    world.change(opset=19)
    world.up_to_step(0)
    for _ in range(20):
        world.goes_on_for(10)
        world.make_ready()
        if world.status.candidate is not None and world.status.candidate.baking:
            break
    assert lead(world, 2)
    assert sides(world) == (4, 4)
    world.steer(abortToken="stop")
    world.settle()
    assert lead(world, 1)


def test_a_preview_is_reached_at_its_own_service_and_probed_there() -> None:
    metrics = [{"name": "disagreement", "maximum": "0.02"}]
    analysis = {"interval": "10s", "metrics": metrics}
    world = a_world(steps=[{"weight": 0, "pause": {}}], analysis=analysis)
    world.change(opset=19)
    for _ in range(6):
        world.settle()
        world.end_jobs()
        world.make_ready()
    world.settle()
    assert world.step == 0
    assert lead(world, 1)
    (want,) = (one for one in decide(world.observe(), world.now).actions if isinstance(one, WantProber))
    assert want.gateway is None


def test_a_server_that_is_lost_is_told_in_the_weight() -> None:
    world = a_world(steps=HALF)
    world.change(opset=19)
    world.up_to_step(0)
    key = (world.numbered(2).name, CPU)
    world.servers[key] = type(world.servers[key])(4, 1, is_current=True)
    world.settle()
    assert world.status.candidate is not None
    assert world.status.candidate.weight == 20


def test_weights_that_come_out_otherwise_are_told_before_anything_is_rolled_out() -> None:
    world = a_world(replicas=1)
    assert world.condition("Accepted") == ("True", "WeightsRounded")
    assert "1 of 2 servers, 50 %, for the 10 % of step 0" in world.message("Accepted")


def test_where_the_gateway_api_is_missing_a_gateway_that_is_named_is_done_without() -> None:
    world = World(has_gateway_api=False)
    world.serve_first()
    assert lead(world, 1)
    world.has_gateway_api = True
    world.settle()
    world.accept()
    world.settle()
    assert world.condition("Ready") == ("True", "Serving")
    world.change(opset=19)
    world.measure(0, 1000)
    world.finish()
    assert lead(world, 2), "callers may still be at the Service"
    service = ObjectName("Service", "minilm")
    del world.children[service]
    world.service = None
    world.settle()
    assert service not in world.children, "who deletes it knows that nobody is"


def test_a_class_that_gives_its_gateway_up_takes_the_routes_away_once_the_service_leads() -> None:
    world = World()
    world.serve_first()
    world.classes = (a_class(traffic=NO_GATEWAY),)
    world.settle()
    assert lead(world, 1)
    assert not any(name.kind.endswith("Route") for name in world.children)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rollout": {"steps": [{"weight": 0, "mirror": 5}, *HALF]}}, "rollout.steps[0].mirror"),
        (
            {"rollout": {"analysis": {"metrics": [{"name": "slowRatio", "slowerThan": "1s", "maximum": "0.1"}]}}},
            "rollout.analysis.metrics[name=slowRatio]",
        ),
        (
            {
                "rollout": {
                    "analysis": {"metrics": [{"name": "errorRatio", "provider": "prometheus", "maximum": "0.1"}]}
                }
            },
            "rollout.analysis.metrics[name=errorRatio].provider: prometheus",
        ),
        (
            {"serving": {"autoscaling": {"maxReplicas": 4, "target": {"queueTime": "20ms"}}}},
            "spec.serving.autoscaling",
        ),
        (
            {"executionProviders": [{"name": CPU, "weight": 3}, {"name": CUDA}]},
            "spec.executionProviders[].weight",
        ),
        (
            {
                "executionProviders": [
                    {"name": CPU, "schedules": [{"schedule": "0 8 * * *", "duration": "1h", "weight": 4}]},
                    {"name": CUDA},
                ]
            },
            "spec.executionProviders[name=CPUExecutionProvider].schedules",
        ),
    ],
    ids=["mirror", "slowRatio", "errors of the gateway", "autoscaling", "weights of pools", "schedules of pools"],
)
def test_what_only_a_gateway_can_do_is_refused_by_the_name_of_its_field(changes: dict[str, Any], field: str) -> None:
    offered = a_class(traffic=NO_GATEWAY, executionProviders=[{"name": CPU}, {"name": CUDA}])
    world = World(spec=a_spec(**changes), classes=(offered,))
    world.settle()
    assert world.condition("Accepted") == ("False", "GatewayNeeded")
    assert field in world.message("Accepted")


def test_errors_are_counted_by_the_servers_where_the_spec_does_not_say_by_whom() -> None:
    world = a_world(steps=HALF)
    world.change(opset=19)
    world.up_to_step(0, silence=Outcome.NO_DATA)
    world.measure(0, 1000)
    world.goes_on_for(20)
    assert world.status.candidate is not None
    assert world.status.candidate.measured_split is None, "the servers cannot tell who was asked"
