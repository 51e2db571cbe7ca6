"""A spec that goes back to a version which was stable not long ago: no Jobs, no steps, all requests at once."""

from __future__ import annotations

from typing import Any

import pytest

from onnx_operator.core.pods import Trouble
from unit.core.worlds import World, a_class

WINDOW = {"revisions": 2}
WENT_BACK = ("True", "WentBack")
FROZEN_DAYS = [{"schedule": "0 0 * * *", "duration": "24h"}]


def serve(world: World, threads: int) -> World:
    """The version with so many threads is promoted."""
    world.change(serving={"threads": threads})
    world.measure(0, 1000)
    world.finish()
    return world


def served(*versions: int, **rollout: Any) -> World:
    """A world in which the versions were stable one after the other; the first is revision 1."""
    world = World()
    world.change(serving={"threads": versions[0]}, rollout={"rollbackWindow": WINDOW} | rollout)
    world.serve_first()
    for version in versions[1:]:
        serve(world, version)
    return world


def go_back(world: World, threads: int) -> World:
    """The servers of the earlier version start, and the gateway answers; no time passes but that of the drain."""
    world.change(serving={"threads": threads})
    jobs = set(world.jobs)
    world.settle()
    world.make_ready()
    world.settle()
    world.accept()
    world.settle()
    assert set(world.jobs) <= jobs, "nothing is converted again"
    return world


def test_going_back_takes_all_requests_at_once() -> None:
    world = go_back(served(1, 2), 1)
    assert world.stable_number == 1
    assert world.weights() == {1: 100, 2: 0}
    assert {one.weight for split in world.history[-2:] for one in split.backends} <= {0, 100}, "no steps"
    world.finish()
    assert world.condition("Promoted") == WENT_BACK
    assert world.condition("Ready") == ("True", "Serving")
    assert world.status.stable is not None
    assert world.status.stable.rollback


def test_what_is_about_to_happen_is_told_while_servers_start() -> None:
    world = served(1, 2)
    world.change(serving={"threads": 1})
    world.settle()
    assert world.condition("CandidateAvailable") == ("Unknown", "Starting")
    assert "takes all requests as soon as they are" in world.message("Ready")
    assert world.weights() == {2: 100}


@pytest.mark.parametrize(
    ("served_before", "back_to", "is_fast"),
    [
        pytest.param((1, 2), 1, True, id="the one before"),
        pytest.param((1, 2, 3), 1, True, id="two before"),
        pytest.param((1, 2, 3, 4), 1, False, id="three before, where the window holds two"),
    ],
)
def test_the_window_counts_what_was_stable(served_before: tuple[int, ...], back_to: int, is_fast: bool) -> None:  # noqa: FBT001
    world = go_back(served(*served_before), back_to)
    assert (world.stable_number == 1) is is_fast
    if not is_fast:
        world.up_to_step(0)
        assert world.weights() == {1: 10, 4: 90}


def test_what_was_gone_back_from_is_not_known_to_be_good() -> None:
    world = go_back(served(1, 2), 1)
    world.finish()
    assert world.status.known_good == []
    world.change(serving={"threads": 2})
    world.up_to_step(0)
    assert world.weights() == {1: 90, 2: 10}
    world.change(serving={"threads": 3})
    world.finish()
    assert world.stable_number == 3
    assert [one.number for one in world.status.known_good] == [1]


def test_a_candidate_that_was_rolled_back_is_not_known_to_be_good() -> None:
    world = served(1)
    world.change(serving={"threads": 2})
    world.up_to_step(0)
    world.goes_bad()
    assert world.condition("Stalled") == ("True", "RolledBack")
    serve(world, 3)
    world.steer(retryToken="again")
    world.finish()
    world.change(serving={"threads": 2})
    world.settle()
    assert world.condition("Promoted")[0] == "False", "it is in quarantine"
    assert [one.number for one in world.status.known_good] == [1]


def test_a_known_good_one_that_fails_later_is_no_longer_known_to_be_good() -> None:
    world = served(1, 2)
    world.change(serving={"threads": 1})
    world.settle()
    corrupt = Trouble("ArtifactCorrupt", "changed", 29, is_crash=True, is_final=True)
    world.break_servers(world.numbered(1).name, corrupt)
    world.settle()
    assert world.condition("CandidateAvailable") == ("False", "ArtifactCorrupt")
    assert world.stable_number == 2
    assert world.status.known_good == []


def test_a_window_of_time_forgets() -> None:
    world = served(1, 2, rollbackWindow={"revisions": 2, "duration": "1h"})
    world.wait(3601)
    go_back(world, 1)
    assert world.stable_number == 2
    world.up_to_step(0)
    assert world.weights() == {1: 10, 2: 90}


def test_a_window_of_time_that_ends_on_the_way_lets_it_arrive() -> None:
    world = served(1, 2, rollbackWindow={"revisions": 2, "duration": "1h"})
    world.wait(3500)
    world.change(serving={"threads": 1})
    world.settle()
    world.wait(300)
    go_back(world, 1)
    assert world.stable_number == 1


def test_a_freeze_does_not_hold_what_goes_back() -> None:
    world = served(1, 2)
    world.steer(freezeWindows=FROZEN_DAYS)
    go_back(world, 1)
    assert world.stable_number == 1


def test_a_pause_holds_what_goes_back() -> None:
    world = served(1, 2)
    world.steer(paused=True)
    go_back(world, 1)
    assert world.stable_number == 2
    assert world.condition("Promoted") == ("Unknown", "Paused")
    world.steer(paused=False)
    world.settle()
    assert world.stable_number == 1


def test_no_person_no_bake_and_no_analysis_is_waited_for() -> None:
    world = served(1, 2)
    world.steer(steps=[{"weight": 10, "pause": {}}], bake={"duration": "1h"})
    world.measured = ()
    go_back(world, 1)
    assert world.stable_number == 1


def test_a_prober_without_a_gateway_does_not_hold_what_goes_back() -> None:
    world = served(1, 2)
    world.gateway = None
    world.steer(analysis={"metrics": [{"name": "disagreement", "maximum": "0.02"}]})
    go_back(world, 1)
    assert world.stable_number == 1


def test_an_abort_takes_out_what_goes_back() -> None:
    world = served(1, 2)
    world.change(serving={"threads": 1})
    world.settle()
    world.steer(abortToken="stop")
    world.settle()
    world.make_ready()
    world.settle()
    assert world.stable_number == 2
    assert world.status.known_good == []


@pytest.mark.parametrize("freezes", [[], FROZEN_DAYS], ids=["at any time", "in a freeze"])
def test_from_a_bake_it_goes_back_without_promoting_what_bakes(freezes: list[dict[str, str]]) -> None:
    world = served(1, 2)
    world.steer(bake={"duration": "1h"})
    world.change(serving={"threads": 3})
    for _ in range(60):
        world.settle()
        world.end_jobs()
        world.make_ready()
        world.accept()
        world.wait(10)
        if world.status.candidate is not None and world.status.candidate.baking:
            break
    assert world.weights() == {2: 0, 3: 100}
    world.steer(freezeWindows=freezes)
    world.change(serving={"threads": 1})
    world.settle()
    assert world.weights() == {2: 100, 3: 0}, "the warm one answers until servers have started"
    world.finish()
    assert world.stable_number == 1
    assert world.numbered(3).status.outcome == "Superseded"


def test_the_window_keeps_what_the_history_would_not() -> None:
    world = World()
    world.change(serving={"threads": 1}, rollout={"rollbackWindow": {"revisions": 3}}, revisionHistoryLimit=1)
    world.serve_first()
    for version in (2, 3, 4, 5, 6):
        serve(world, version)
    assert sorted(one.spec.number for one in world.revisions.values()) == [2, 3, 4, 5, 6], "3 to 5, and one more"
    go_back(world, 3)
    assert world.stable_number == 3


def test_no_more_is_remembered_than_the_status_holds() -> None:
    world = served(1, *range(2, 14), rollbackWindow={"revisions": 10})
    assert [one.number for one in world.status.known_good] == list(range(12, 2, -1))


def test_a_window_of_the_class_is_the_models_unless_it_says_otherwise() -> None:
    world = World(classes=(a_class(rollout={"rollbackWindow": WINDOW, "analysis": {"metrics": []}}),))
    world.change(serving={"threads": 1})
    world.serve_first()
    serve(world, 2)
    world.steer(rollbackWindow={"revisions": 0})
    go_back(world, 1)
    assert world.stable_number == 2
    world.change(serving={"threads": 2})
    world.finish()
    world.change(rollout={})
    go_back(world, 1)
    assert world.stable_number == 1
