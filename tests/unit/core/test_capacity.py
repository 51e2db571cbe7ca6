"""Where there are not servers enough for two: who gives up when, and what cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_operator.core.analysis import Outcome
from onnx_operator.core.capacity import Capacity, Goal, Shortage, Sides, allot, amount, shortage
from onnx_operator.core.pods import Trouble
from unit.core.worlds import CPU, World, a_class

QUARTERS = [{"weight": weight, "duration": "1m"} for weight in (25, 50, 75)]
NO_SURGE = {"maxSurge": 0, "maxUnavailable": 1}
METRICS = {"interval": "10s", "metrics": [{"name": "errorRatio", "maximum": "0.05"}]}


# ---- numbers


@pytest.mark.parametrize(
    ("text", "replicas", "up", "down"),
    [("0", 4, 0, 0), ("2", 4, 2, 2), ("25%", 4, 1, 1), ("25%", 5, 2, 1), ("100%", 3, 3, 3), ("1%", 3, 1, 0)],
)
def test_a_surge_is_rounded_up_and_what_may_be_missing_down(text: str, replicas: int, up: int, down: int) -> None:
    assert amount(text, replicas, rounds_up=True) == up
    assert amount(text, replicas, rounds_up=False) == down


@pytest.mark.parametrize(
    ("capacity", "weights", "expected"),
    [
        pytest.param(Capacity(1, 1, 0), [10, 50], None, id="both in full always fit"),
        pytest.param(Capacity(4, 1, 0), [25, 50, 75], None, id="one more, a quarter at a time"),
        pytest.param(Capacity(4, 1, 0), [25, 75], Shortage(1, 6, 6), id="one more is too few for half of it at once"),
        pytest.param(Capacity(4, 1, 0), [25, 50], Shortage(None, 6, 6), id="too few for what comes after the last"),
        pytest.param(Capacity(4, 0, 1), [10, 50], None, id="none more, one given up"),
        pytest.param(Capacity(10, 0, 1), [10, 50], Shortage(1, 12, 13), id="one given up of ten, for half at once"),
        pytest.param(Capacity(2, 0, 0), [50], Shortage(0, 3, 3), id="nothing to give"),
        pytest.param(Capacity(1, 0, 1), [100], None, id="the only one stops before the next starts"),
        pytest.param(Capacity(1, 0, 1), [50], Shortage(0, 2, 2), id="the only one cannot be shared"),
        pytest.param(Capacity(1, 0, 1), [0], Shortage(0, 2, 2), id="nor previewed"),
    ],
)
def test_what_no_room_can_be_found_for(capacity: Capacity, weights: list[int], expected: Shortage | None) -> None:
    steps = [(weight, weight) for weight in weights]
    assert shortage(capacity, steps) == expected
    if expected is not None:
        enough = Capacity(capacity.replicas, expected.most - capacity.replicas, capacity.unavailable)
        assert shortage(enough, steps) is None


@given(st.data())
def test_servers_are_moved_within_the_limit_until_the_goal_is_reached(data: st.DataObject) -> None:
    replicas = data.draw(st.integers(1, 12))
    capacity = Capacity(replicas, data.draw(st.integers(0, replicas)), data.draw(st.integers(0, replicas)))
    before, after = sorted(data.draw(st.tuples(st.integers(0, 100), st.integers(1, 100))))
    stable = data.draw(st.integers(capacity.need(100 - before), replicas))
    now = Sides(stable, data.draw(st.integers(0, min(replicas, capacity.limit - stable))))
    goal = Goal(0, after, max(1, capacity.share(after)), replicas)
    for _ in range(5):
        then = allot(capacity, now, goal, weight=before, leaving=())
        assert then.stable + then.candidate <= capacity.limit
        assert then.stable >= min(now.stable, capacity.need(100 - before))
        if then == now:
            break
        now = then
    else:
        raise AssertionError("never settles")
    if capacity.to_move(before, after) <= capacity.limit:
        assert now.candidate >= max(1, capacity.need(after))


# ---- stories


def sides(world: World) -> tuple[int, int]:
    """Servers of stable and of the candidate that are asked for."""
    found = [world.status.stable, world.status.candidate]
    states = [world.servers.get((one.revision, CPU)) if one is not None else None for one in found]
    stable, candidate = [state.replicas if state is not None else 0 for state in states]
    return stable, candidate


def rolling(replicas: int, **rollout: Any) -> World:
    """Revision 1 serves with so many servers, and revision 2 is about to come."""
    world = World(classes=(a_class(rollout={"analysis": METRICS, "progressDeadline": "10m"}),))
    world.change(serving={"replicas": replicas}, rollout={"steps": QUARTERS} | rollout)
    world.serve_first()
    world.measure(0, 1000)
    world.change(opset=19)
    return world


def told(world: World, looks: int = 80) -> list[tuple[int, int, int]]:
    """Servers of both sides and the candidate's accepted weight, each time one changes until the rollout ends."""
    story: list[tuple[int, int, int]] = []
    for _ in range(looks):
        world.look()
        candidate = world.status.candidate
        if candidate is not None:
            now = (*sides(world), candidate.weight)
            story += [now] if story[-1:] != [now] else []
        elif story:
            return story
        world.end_jobs()
        world.make_ready()
        world.accept()
        world.wait(5)
    raise AssertionError(story)


def test_without_a_surge_servers_change_sides_one_by_one() -> None:
    world = rolling(4, **NO_SURGE)
    before, first = [(4, 0, 0), (3, 0, 0), (3, 1, 0)], [(3, 1, 25), (2, 1, 25), (2, 2, 25)]
    second, third = [(2, 2, 50), (1, 2, 50), (1, 3, 50)], [(1, 3, 75)]
    assert told(world) == [*before, *first, *second, *third]
    assert world.stable_number == 2
    world.finish()
    assert sides(world) == (4, 0)
    assert world.peak[CPU] == 4, "what is drained takes room until it is gone"


def test_with_one_more_no_side_is_ever_below_what_it_needs() -> None:
    world = rolling(4, maxSurge=1)
    story = told(world)
    starts_and_ends = [(4, 1, 25), (3, 2, 25), (3, 2, 50), (2, 3, 50), (2, 3, 75), (1, 4, 75)]
    assert [one for one in story if one in starts_and_ends] == starts_and_ends
    assert max(stable + candidate for stable, candidate, _ in story) == 5
    for stable, candidate, weight in story:
        assert stable >= 4 * (100 - weight) / 100
        assert candidate >= 4 * weight / 100
    world.finish()
    assert sides(world) == (4, 0)


def test_by_default_both_have_all_servers() -> None:
    assert told(rolling(3)) == [(3, 0, 0), (3, 3, 0), (3, 3, 25), (3, 3, 50), (3, 3, 75)]


def test_the_only_server_stops_before_the_next_one_starts() -> None:
    world = rolling(1, **NO_SURGE, steps=[{"weight": 100, "duration": "1m"}])
    assert told(world) == [(1, 0, 0), (0, 0, 0), (0, 1, 0), (0, 1, 100)]
    world.finish()
    assert sides(world) == (1, 0)


def test_the_only_server_comes_back_after_harm() -> None:
    world = rolling(1, **NO_SURGE, steps=[{"weight": 100, "duration": "1m"}])
    world.up_to_step(0)
    world.goes_bad()
    assert world.weights() == {1: 100, 2: 0}
    world.accept()
    world.goes_on_for(20)
    world.make_ready()
    world.settle()
    assert world.condition("Stalled") == ("True", "RolledBack")
    assert sides(world) == (1, 0)


def test_harm_takes_the_traffic_at_once_and_the_servers_after_the_drain() -> None:
    world = rolling(4, **NO_SURGE)
    world.up_to_step(2)
    assert sides(world) == (1, 3)
    world.goes_bad()
    assert world.weights() == {1: 100, 2: 0}
    assert sides(world) == (1, 0), "what leaves has its servers until it is drained"
    world.accept()
    world.goes_on_for(20)
    assert sides(world) == (4, 0)


def test_servers_that_were_lost_under_traffic_are_given_back() -> None:
    world = rolling(4, **NO_SURGE)
    world.up_to_step(2)
    world.break_servers(world.numbered(2).name, None)
    world.settle()
    assert world.weights() == {1: 100, 2: 0}
    assert sides(world) == (3, 1)


def test_what_the_next_step_waits_for_is_told_and_given_up_in_the_end() -> None:
    world = rolling(4, **NO_SURGE)
    world.up_to_step(0)
    world.goes_on_for(60)
    assert world.condition("Promoted") == ("Unknown", "Scaling")
    assert "1 servers are ready, 2 are asked for by now, for 50 % of the requests" in world.message("Promoted")
    assert world.condition("CandidateAvailable") == ("True", "Available")
    assert sides(world) == (2, 2)
    world.goes_on_for(600)
    assert world.condition("CandidateAvailable")[1] != "Scaling"
    assert world.condition("Stalled") == ("True", "RolledBack")
    assert world.status.last_failure is not None
    assert world.status.last_failure.reason == "ProgressDeadlineExceeded"


@pytest.mark.parametrize("brake", [{"paused": True}, {"freezeWindows": [{"schedule": "* * * * *", "duration": "1h"}]}])
def test_stable_gives_up_nothing_while_nothing_may_begin(brake: dict[str, Any]) -> None:
    world = rolling(4, **NO_SURGE, **brake)
    for _ in range(6):
        world.settle()
        world.end_jobs()
        world.make_ready()
    assert sides(world) == (4, 0)
    assert world.condition("Promoted")[1] in {"Paused", "Frozen"}
    world.steer(paused=False, freezeWindows=[])
    world.finish(looks=120)
    assert world.stable_number == 2


def test_a_promotion_goes_through_the_steps_as_fast_as_servers_start() -> None:
    world = rolling(4, **NO_SURGE)
    world.up_to_step(0)
    world.measured = ()
    world.steer(promoteToken="now")
    began = world.now
    for _ in range(30):
        world.settle()
        world.make_ready()
        world.accept()
        if world.stable_number == 2:
            break
    assert world.stable_number == 2
    assert world.now == began, "neither time nor samples were waited for"
    assert {25, 50, 75, 0} <= {one.weight for split in world.history for one in split.backends}


def test_what_goes_back_goes_through_the_steps_as_fast_as_servers_start() -> None:
    world = rolling(4, **NO_SURGE, rollbackWindow={"revisions": 1})
    world.finish(looks=120)
    world.measured = ()
    world.change(opset=18)
    began = world.now
    for _ in range(40):
        world.settle()
        world.make_ready()
        world.accept()
        if world.stable_number == 1:
            break
    assert world.stable_number == 1
    assert world.now == began


def test_what_goes_back_is_sent_no_copies_on_its_way() -> None:
    shadowed = [{"weight": 0, "mirror": 25, "duration": "1m"}, {"weight": 50, "duration": "1m"}]
    world = rolling(4, **NO_SURGE, steps=shadowed, rollbackWindow={"revisions": 1})
    world.finish(looks=120)
    world.history.clear()
    world.change(opset=18)
    world.finish(looks=120)
    assert world.stable_number == 1
    assert 50 in {one.weight for split in world.history for one in split.backends}, "it went through the steps"
    assert [split for split in world.history if split.mirrors] == []


def test_a_step_says_how_many_servers_the_candidate_has() -> None:
    steps = [{"weight": 10, "duration": "1m", "replicas": 1}, {"weight": 50, "duration": "1m", "replicas": 3}]
    story = told(rolling(4, steps=steps))
    assert story == [(4, 0, 0), (4, 1, 0), (4, 1, 10), (4, 3, 10), (4, 3, 50), (4, 4, 50)]


@pytest.mark.parametrize(
    ("share", "before", "after"),
    [({"weight": 75}, 25, 75), ({"weight": 0, "mirror": 75}, 25, 0)],
    ids=["weight", "mirror"],
)
def test_a_share_that_is_raised_in_mid_step_waits_for_the_servers(
    share: dict[str, Any], before: int, after: int
) -> None:
    world = rolling(4, **NO_SURGE)
    world.up_to_step(0)
    candidate = world.numbered(2).name
    assert world.servers[candidate, CPU].ready == 1
    raised = [share, {"weight": 80}, {"weight": 90, "duration": "1m"}]
    world.steer(maxSurge=2, steps=raised)
    world.settle()
    assert world.servers[candidate, CPU].replicas == 3, "they are asked for"
    assert world.weights()[2] == min(before, after)
    assert world.split is not None
    assert not world.split.mirrors
    assert world.condition("CandidateAvailable") == ("Unknown", "Starting")
    world.goes_on_for(120)
    assert world.step == 0
    world.make_ready()
    world.settle()
    assert world.weights()[2] == after
    assert round(100 * sum(one.share for one in world.split.mirrors)) == share.get("mirror", 0)


def test_a_share_for_which_there_can_be_no_servers_is_given_up_at_the_deadline() -> None:
    world = rolling(4, maxSurge=1, steps=[{"weight": weight, "duration": "1m"} for weight in (10, 15, 25, 50, 75)])
    world.up_to_step(1)
    world.steer(steps=QUARTERS)
    world.settle()
    assert sides(world) == (4, 1), "at 15 % stable can do without none of its servers"
    world.make_ready()
    world.goes_on_for(300)
    assert world.weights() == {1: 85, 2: 15}
    world.goes_on_for(400)
    assert world.condition("Stalled") == ("True", "RolledBack")
    assert "no progress within" in world.message("Stalled")


def test_a_share_that_is_lowered_in_mid_step_is_followed_at_once() -> None:
    world = rolling(4, **NO_SURGE)
    world.up_to_step(2)
    world.break_servers(world.numbered(2).name, None)
    world.servers[world.numbered(2).name, CPU] = replace(world.servers[world.numbered(2).name, CPU], ready=1)
    world.steer(steps=[{"weight": 10}, {"weight": 20}, {"weight": 50}])
    world.look()
    assert world.weights() == {1: 50, 2: 50}


def test_nothing_is_taken_from_the_candidate_for_a_stable_that_has_no_server_left() -> None:
    half, all_of_it = {"weight": 50, "duration": "1m"}, {"weight": 100, "duration": "5m"}
    world = rolling(4, **NO_SURGE, steps=[half, all_of_it])
    world.up_to_step(1)
    world.settle()
    assert sides(world) == (0, 4)
    world.steer(steps=[half, {"weight": 50, "duration": "5m"}])
    world.settle()
    assert sides(world) == (1, 3), "one of stable is asked for"
    assert world.weights() == {1: 0, 2: 100}
    world.make_ready()
    world.settle()
    assert world.weights() == {1: 50, 2: 50}


def test_a_server_that_crashes_beyond_what_the_step_needs_is_told_at_once_and_ends_the_next_one() -> None:
    world = rolling(4, maxUnavailable=1)
    world.up_to_step(1)
    candidate = world.numbered(2).name
    crash = Trouble("ContainerFailed", "pod p ended with exit code 139", 139, is_crash=True)
    world.servers[candidate, CPU] = replace(world.servers[candidate, CPU], ready=3, trouble=crash)
    world.settle()
    assert world.condition("CandidateAvailable") == ("True", "AvailableInPart")
    assert "3 servers of revision 2 are ready, enough for now; one that is not: ContainerFailed: pod p" in (
        world.message("CandidateAvailable")
    )
    assert world.step == 1
    world.goes_on_for(700)
    assert world.condition("Stalled") == ("True", "RolledBack")
    assert "ContainerFailed: pod p ended with exit code 139" in world.message("Stalled")


def test_replicas_that_change_in_mid_rollout_are_followed_on_both_sides() -> None:
    world = rolling(4, **NO_SURGE)
    world.up_to_step(1)
    world.change(serving={"replicas": 8}, rollout=world.spec.rollout.model_dump(mode="json") | {"maxSurge": 2})
    world.finish(looks=120)
    assert world.stable_number == 2
    assert sides(world) == (8, 0)


def test_a_shadow_has_servers_for_the_copies_that_it_gets() -> None:
    world = rolling(4, maxSurge=2, steps=[{"weight": 0, "mirror": 50, "duration": "1m"}, *QUARTERS])
    world.up_to_step(0)
    assert sides(world) == (4, 2)


def test_a_shadow_without_servers_for_its_copies_is_refused() -> None:
    world = rolling(4, **NO_SURGE)
    world.steer(steps=[{"weight": 0, "mirror": 100, "duration": "1m"}, *QUARTERS])
    world.settle()
    assert world.condition("Accepted") == ("False", "StepWithoutRoom")
    assert "rollout step 0 takes 6 servers" in world.message("Accepted")
    world.steer(maxSurge=2)
    world.up_to_step(0)
    stable, candidate = sides(world)
    assert stable >= 3
    assert candidate >= 3


@pytest.mark.parametrize("bad", [0, 53], ids=["passed late", "in doubt at the deadline"])
def test_servers_for_the_next_step_have_a_deadline_of_their_own(bad: int) -> None:
    world = rolling(4, **NO_SURGE, analysis=METRICS | {"onInconclusive": "proceed"})
    world.up_to_step(0)
    world.measure_nothing(Outcome.NO_DATA)
    world.goes_on_for(580)
    world.measure(bad, 1000)
    world.goes_on_for(40)
    assert world.condition("Promoted") == ("Unknown", "Scaling")
    world.goes_on_for(300)
    world.make_ready()
    world.goes_on_for(10)
    assert world.step == 1


def test_what_is_in_doubt_does_not_wait_for_servers_for_ever() -> None:
    world = rolling(4, **NO_SURGE, analysis=METRICS | {"onInconclusive": "proceed"})
    world.up_to_step(0)
    world.measure(53, 1000)
    world.goes_on_for(610)
    assert world.condition("Promoted") == ("Unknown", "Scaling")
    world.goes_on_for(610)
    assert world.condition("Stalled") == ("True", "RolledBack")
