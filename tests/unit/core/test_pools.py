"""Pools: how requests are shared among the execution providers of one model."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from onnx_operator.api.model import ExecutionProviderRequest
from onnx_operator.core.pools import next_change, parts, weights
from unit.core.worlds import CPU, CUDA, World, a_class, a_spec

INT8 = {"scheme": "int8-weight-only"}
BOTH = (CPU, CUDA)
#: Stories begin at midnight, when half an hour on CPU begins.
HALF_HOURS = {"schedule": "0 * * * *", "duration": "30m"}
NIGHTS = {"schedule": "0 22 * * *", "duration": "8h", "timeZone": "Europe/Berlin"}


def pools(cpu: dict[str, Any], cuda: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": CPU, **cpu}, {"name": CUDA, **cuda}]


def declared(*given: dict[str, Any]) -> list[ExecutionProviderRequest]:
    return [ExecutionProviderRequest.model_validate(one) for one in given]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# ---- what a pool weighs


@pytest.mark.parametrize(
    ("pool", "now", "weight", "change"),
    [
        pytest.param({}, "2026-01-01T00:00", 1, None, id="nothing is said"),
        pytest.param({"weight": 0}, "2026-01-01T00:00", 0, None, id="no requests"),
        pytest.param(
            {"weight": 7, "schedules": [{**NIGHTS, "weight": 0}]},
            "2026-01-01T20:59:59",
            7,
            "2026-01-01T21:00",
            id="before a night in Berlin",
        ),
        pytest.param(
            {"weight": 7, "schedules": [{**NIGHTS, "weight": 0}]},
            "2026-01-01T21:00",
            0,
            "2026-01-02T05:00",
            id="the moment it begins",
        ),
        pytest.param(
            {"weight": 7, "schedules": [{**NIGHTS, "weight": 0}]},
            "2026-07-02T04:00",
            7,
            "2026-07-02T20:00",
            id="the moment it is over, in summer",
        ),
        pytest.param(
            {"schedules": [{**HALF_HOURS, "weight": 3}, {"schedule": "10 * * * *", "duration": "1h", "weight": 5}]},
            "2026-01-01T00:15",
            3,
            "2026-01-01T00:30",
            id="the first of two open windows counts",
        ),
        pytest.param(
            {"schedules": [{**HALF_HOURS, "weight": 3}, {"schedule": "10 * * * *", "duration": "1h", "weight": 5}]},
            "2026-01-01T00:45",
            5,
            "2026-01-01T01:00",
            id="the second until the first opens again",
        ),
        pytest.param(
            {"weight": 2, "schedules": [{"schedule": "0 0 30 2 *", "duration": "1h", "weight": 5}]},
            "2026-01-01T00:00",
            2,
            None,
            id="a window that cannot be read never opens",
        ),
    ],
)
def test_a_pool_weighs_what_its_first_open_window_says(
    pool: dict[str, Any], now: str, weight: int, change: str | None
) -> None:
    found = declared({"name": CPU, **pool})
    assert weights(found, at(now)) == {CPU: weight}
    assert next_change(found, at(now)) == (at(change) if change else None)


@pytest.mark.parametrize(
    ("wanted", "ready", "shares"),
    [
        pytest.param((3, 1), (True, True), (3, 1), id="all ready"),
        pytest.param((300, 100), (True, True), (3, 1), id="in lowest terms"),
        pytest.param((3, 1), (False, True), (0, 1), id="one lost"),
        pytest.param((3, 1), (False, False), (3, 1), id="all lost"),
        pytest.param((3, 0), (False, True), (0, 1), id="the one with the weight lost"),
        pytest.param((3, 0), (True, True), (1, 0), id="one without weight"),
        pytest.param((0, 0), (True, True), (1, 1), id="none with weight"),
        pytest.param((0, 0), (True, False), (1, 0), id="none with weight, one lost"),
        pytest.param((0,), (False,), (1,), id="a single one"),
    ],
)
def test_requests_go_by_weight_to_what_is_ready(
    wanted: tuple[int, ...], ready: tuple[bool, ...], shares: tuple[int, ...]
) -> None:
    assert parts(wanted, ready) == shares


# ---- what becomes of it


@pytest.fixture
def fleet() -> World:
    """Revision 1 serves, three quarters of it on CUDA."""
    offered = a_class(executionProviders=[{"name": CPU}, {"name": CUDA}])
    world = World(spec=a_spec(executionProviders=pools({}, {"weight": 3})), classes=(offered,))
    world.serve_first()
    return world


@pytest.fixture
def canary(fleet: World) -> World:
    """Revision 2 has 10 %."""
    fleet.change(quantization=INT8)
    fleet.up_to_step(0)
    return fleet


def lose(world: World, number: int, *providers: str) -> None:
    for key, state in world.servers.items():
        if key[0] == world.numbered(number).name and key[1] in providers:
            world.servers[key] = replace(state, ready=0)


def shares(world: World, number: int) -> dict[str, float]:
    """Percent of all requests by pool of a revision, as written."""
    assert world.split is not None
    total, name = sum(one.weight for one in world.split.backends), world.numbered(number).name
    return {
        one.service.removeprefix(f"{name}-"): 100 * one.weight / total
        for one in world.split.backends
        if one.service.startswith(name)
    }


def pinned(world: World, number: int) -> dict[str, int]:
    assert world.split is not None
    name = world.numbered(number).name
    return {
        one.service.removeprefix(f"{name}-"): one.weight
        for pin in world.split.pins
        for one in pin.backends
        if one.service.startswith(name)
    }


def told(world: World) -> list[tuple[str, int, int, int]]:
    return [(one.provider, one.weight, one.percent, one.ready_replicas) for one in world.status.pools]


def test_requests_are_shared_by_the_weights_and_told(fleet: World) -> None:
    assert shares(fleet, 1) == {"cpu": 25, "cuda": 75}
    assert pinned(fleet, 1) == {"cpu": 1, "cuda": 1}
    assert told(fleet) == [(CPU, 1, 25, 1), (CUDA, 3, 75, 1)]


def test_other_weights_move_requests_and_make_no_revision(fleet: World) -> None:
    fleet.change(executionProviders=pools({"weight": 3}, {"weight": 7, "schedules": [{**HALF_HOURS, "weight": 2}]}))
    fleet.settle()
    assert shares(fleet, 1) == {"cpu": 60, "cuda": 40}
    assert fleet.condition("TrafficProgrammed") == ("Unknown", "RoutesPending")
    fleet.accept()
    fleet.settle()
    assert fleet.condition("Ready") == ("True", "Serving")
    assert len(fleet.revisions) == 1


def test_a_candidate_shares_as_stable_does(canary: World) -> None:
    assert shares(canary, 1) == {"cpu": 22.5, "cuda": 67.5}
    assert shares(canary, 2) == {"cpu": 2.5, "cuda": 7.5}
    assert canary.weights() == {1: 90, 2: 10}


def test_a_window_moves_requests_for_its_time(fleet: World) -> None:
    fleet.change(executionProviders=pools({}, {"weight": 0, "schedules": [{**HALF_HOURS, "weight": 1}]}))
    for minutes, expected in (
        (40, {"cpu": 50, "cuda": 50}),
        (30, {"cpu": 100, "cuda": 0}),
        (20, {"cpu": 50, "cuda": 50}),
    ):
        fleet.settle()
        fleet.accept()
        fleet.settle()
        assert shares(fleet, 1) == expected
        assert pinned(fleet, 1) == {"cpu": 1, "cuda": 1}, "golden requests must reach every pool"
        fleet.wait(minutes * 60)


def test_a_settled_model_stays_ready_while_requests_move_between_its_pools() -> None:
    world = World(classes=(a_class(executionProviders=[{"name": CPU}, {"name": CUDA}]),))
    world.change(executionProviders=pools({"weight": 3, "schedules": [{**HALF_HOURS, "weight": 1}]}, {}))
    world.serve_first()
    world.wait(1800)
    world.settle()
    assert world.condition("TrafficProgrammed") == ("Unknown", "RoutesPending")
    assert world.condition("Ready")[0] == "True"
    world.accept()
    world.settle()
    assert world.condition("TrafficProgrammed")[0] == world.condition("Ready")[0] == "True"


def test_the_next_look_is_when_a_window_opens_or_closes(fleet: World) -> None:
    fleet.change(executionProviders=pools({}, {"schedules": [{**HALF_HOURS, "weight": 0}]}))
    fleet.accept()
    found = fleet.settle().look_again
    assert found is not None
    assert fleet.now + timedelta(seconds=found) in {at("2026-01-01T00:30"), at("2026-01-01T01:00")}


def test_a_window_in_mid_step_costs_the_candidate_nothing(canary: World) -> None:
    before = canary.status.candidate
    canary.change(executionProviders=pools({}, {"weight": 3, "schedules": [{**HALF_HOURS, "weight": 0}]}))
    canary.settle()
    assert canary.weights() == {1: 90, 2: 10}
    assert shares(canary, 2) == {"cpu": 10, "cuda": 0}
    canary.accept()
    canary.settle()
    after = canary.status.candidate
    assert before is not None
    assert after is not None
    assert (after.step, after.step_started_time) == (before.step, before.step_started_time)
    canary.finish()
    assert canary.stable_number == 2


def test_a_pool_that_is_lost_gets_nothing_until_it_is_back(fleet: World) -> None:
    lose(fleet, 1, CUDA)
    fleet.settle()
    assert shares(fleet, 1) == {"cpu": 100, "cuda": 0}
    assert pinned(fleet, 1) == {"cpu": 1, "cuda": 0}
    fleet.accept()
    fleet.settle()
    assert fleet.condition("TrafficProgrammed") == ("True", "PoolWithoutPods")
    assert "no pod of CUDAExecutionProvider of revision 1 is ready" in fleet.message("TrafficProgrammed")
    assert told(fleet) == [(CPU, 1, 100, 1), (CUDA, 3, 0, 0)]
    fleet.make_ready()
    fleet.finish()
    assert shares(fleet, 1) == {"cpu": 25, "cuda": 75}
    fleet.accept()
    fleet.settle()
    assert fleet.condition("TrafficProgrammed") == ("True", "TrafficProgrammed")


def test_where_every_pool_is_lost_nothing_moves(fleet: World) -> None:
    lose(fleet, 1, CPU, CUDA)
    written = len(fleet.history)
    fleet.settle()
    assert len(fleet.history) == written


def test_the_weight_of_a_candidate_stays_when_stable_loses_a_pool(canary: World) -> None:
    lose(canary, 1, CUDA)
    canary.settle()
    assert canary.weights() == {1: 90, 2: 10}
    assert shares(canary, 1) == {"cpu": 90, "cuda": 0}
    assert shares(canary, 2) == {"cpu": 2.5, "cuda": 7.5}


def test_a_candidate_that_lost_a_pool_gives_its_weight_back_and_begins_anew_with_all_of_them(canary: World) -> None:
    lose(canary, 2, CPU)
    canary.settle()
    assert canary.weights() == {1: 100, 2: 0}
    assert pinned(canary, 2) == {"cpu": 0, "cuda": 1}
    canary.accept()
    canary.settle()
    assert canary.step is None
    canary.finish()
    assert canary.stable_number == 2


def test_a_candidate_takes_no_step_before_all_of_its_pools_are_ready(fleet: World) -> None:
    fleet.change(quantization=INT8)
    for _ in range(8):
        fleet.settle()
        fleet.end_jobs()
        fleet.make_ready()
        fleet.accept()
        if len(fleet.revisions) == 2:
            lose(fleet, 2, CUDA)
    fleet.settle()
    assert fleet.step is None
    assert fleet.condition("CandidateAvailable")[0] == "Unknown"
    assert fleet.weights() == {1: 100}


def test_pools_that_schedules_leave_without_weight_share_evenly_and_say_so(fleet: World) -> None:
    nothing = [{**HALF_HOURS, "weight": 0}]
    fleet.change(executionProviders=pools({"schedules": nothing}, {"weight": 0}))
    fleet.settle()
    fleet.accept()
    fleet.settle()
    assert shares(fleet, 1) == {"cpu": 50, "cuda": 50}
    assert fleet.condition("TrafficProgrammed") == ("True", "PoolsWithoutWeight")


def test_a_pool_that_the_spec_names_no_more_keeps_its_weight_until_it_is_gone(fleet: World) -> None:
    fleet.change(executionProviders=[{"name": CPU, "weight": 1}])
    fleet.up_to_step(0)
    assert shares(fleet, 1) == {"cpu": 22.5, "cuda": 67.5}
    assert shares(fleet, 2) == {"cpu": 10}
    fleet.finish()
    assert told(fleet) == [(CPU, 1, 100, 1)]


def test_a_window_that_cannot_be_read_is_told_and_the_others_are_followed(fleet: World) -> None:
    bad = {"schedule": "0 0 30 2 *", "duration": "1h", "weight": 5}
    fleet.change(executionProviders=pools({"schedules": [bad, {**HALF_HOURS, "weight": 3}]}, {"weight": 3}))
    fleet.settle()
    assert fleet.condition("Accepted") == ("False", "PoolScheduleInvalid")
    assert "spec.executionProviders[name=CPUExecutionProvider].schedules[0]: schedule" in fleet.message("Accepted")
    assert shares(fleet, 1) == {"cpu": 50, "cuda": 50}
