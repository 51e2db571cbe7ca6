"""After the last step: the candidate answers everything, and the revision before is kept warm for a while."""

from __future__ import annotations

from typing import Any

import pytest

from onnx_operator.core.analysis import Measurement, Outcome, criteria
from onnx_operator.core.counts import Counts
from onnx_operator.core.observation import ObjectName
from onnx_operator.core.pods import Trouble
from unit.core.worlds import World, a_class

INT8 = {"scheme": "int8-dynamic"}
STEPS = [{"weight": 50, "duration": "1m"}]
BAKING = ("Unknown", "Baking")


def until_it_bakes(world: World) -> World:
    world.measure(0, 1000)
    for _ in range(60):
        world.settle()
        candidate = world.status.candidate
        if candidate is not None and candidate.baking and candidate.step_started_time is not None:
            return world
        world.end_jobs()
        world.make_ready()
        world.accept()
        world.wait(10)
    raise AssertionError(f"it never baked: {world.status}")


def rolling_out(**rollout: Any) -> World:
    world = World()
    world.serve_first()
    world.change(quantization=INT8, rollout={"steps": STEPS, "bake": {"duration": "20m"}} | rollout)
    return world


@pytest.fixture
def baking() -> World:
    """Revision 2 answers everything and bakes for twenty minutes, which is longer than the progress deadline."""
    return until_it_bakes(rolling_out())


def test_in_a_bake_the_candidate_answers_everything_and_the_old_one_is_warm(baking: World) -> None:
    assert baking.weights() == {1: 0, 2: 100}
    assert baking.split is not None
    assert [pin.track for pin in baking.split.pins] == ["candidate", "stable"]
    assert {name.name for name in baking.children if name.kind == "Deployment"} == {
        f"{baking.numbered(number).name}-cpu" for number in (1, 2)
    }
    assert baking.condition("Promoted") == BAKING
    assert baking.condition("Ready") == ("False", "Baking"), "the rollout is not over"
    assert baking.condition("Reconciling") == ("True", "Baking")
    assert baking.status.phase == "Baking"
    assert "keeps serving" not in baking.message("Ready")
    stable, candidate = baking.status.stable, baking.status.candidate
    assert stable is not None
    assert candidate is not None
    assert (stable.number, stable.weight, candidate.number, candidate.weight) == (1, 0, 2, 100)


def test_a_bake_lasts_its_time_whatever_the_progress_deadline_is(baking: World) -> None:
    baking.goes_on_for(1190)
    assert baking.condition("Promoted") == BAKING
    baking.goes_on_for(10)
    assert baking.stable_number == 2
    baking.finish()
    assert {name.name for name in baking.children if name.kind == "Deployment"} == {f"{baking.numbered(2).name}-cpu"}
    assert baking.numbered(2).status.outcome == "Stable"


def test_harm_in_a_bake_goes_back_to_the_warm_one_at_once(baking: World) -> None:
    baking.goes_bad()
    assert baking.weights() == {1: 100, 2: 0}
    assert baking.condition("Promoted") == ("False", "BakeFailed")
    assert baking.condition("Stalled") == ("True", "RolledBack")
    assert baking.status.last_failure is not None
    assert (baking.status.last_failure.stage, baking.status.last_failure.reason) == ("Rollout", "BakeFailed")
    assert baking.numbered(2).status.outcome == "RolledBack"
    assert ObjectName("Deployment", f"{baking.numbered(2).name}-cpu") in baking.children, "traffic first, then drain"


def test_a_crash_in_a_bake_goes_back_to_the_warm_one(baking: World) -> None:
    crash = Trouble("ContainerFailed", "pod x ended with exit code 139", 139, is_crash=True)
    baking.break_servers(baking.numbered(2).name, crash)
    baking.settle()
    assert baking.weights() == {1: 100, 2: 0}
    assert baking.condition("Promoted") == ("False", "CandidateCrashed")


def test_servers_lost_in_a_bake_leave_the_traffic_to_the_warm_one_and_begin_again(baking: World) -> None:
    baking.break_servers(baking.numbered(2).name, None)
    baking.settle()
    assert baking.weights() == {1: 100, 2: 0}
    assert baking.status.candidate is not None
    assert (baking.status.candidate.step, baking.status.candidate.baking) == (None, False)
    until_it_bakes(baking)


def test_abort_in_a_bake_goes_back_to_the_warm_one(baking: World) -> None:
    baking.steer(abortToken="stop", promoteToken="go")
    baking.settle()
    assert baking.weights() == {1: 100, 2: 0}
    assert baking.condition("Promoted") == ("False", "Aborted")


def test_the_promote_token_ends_a_bake(baking: World) -> None:
    baking.steer(promoteToken="enough")
    baking.settle()
    assert baking.stable_number == 2


def test_the_promote_token_skips_the_steps_and_not_the_bake() -> None:
    world = rolling_out()
    world.up_to_step(0)
    world.steer(promoteToken="now")
    world.settle()
    assert world.weights() == {1: 0, 2: 100}
    assert world.condition("TrafficProgrammed")[1] == "RoutesPending"
    world.accept()
    world.settle()
    assert world.condition("Promoted") == BAKING
    assert world.stable_number == 1


def test_blue_green_bakes_after_the_pause() -> None:
    world = rolling_out(steps=[{"weight": 0, "pause": {}}])
    world.up_to_step(0)
    world.goes_on_for(20)
    world.steer(promoteToken="green")
    until_it_bakes(world)
    world.finish(looks=200)
    assert world.stable_number == 2


def test_silence_at_the_end_of_a_bake_holds_it_and_is_given_up_in_the_end(baking: World) -> None:
    baking.measure_nothing(Outcome.PROVIDER_ERROR)
    baking.goes_on_for(1790)
    assert baking.condition("Promoted") == ("Unknown", "AnalysisHolds")
    assert baking.weights() == {1: 0, 2: 100}
    baking.goes_on_for(20)
    assert baking.condition("Promoted") == ("False", "AnalysisProviderError")
    assert baking.weights() in ({1: 100, 2: 0}, {1: 100})


def test_the_spec_before_comes_back_at_once_from_a_bake(baking: World) -> None:
    baking.change(quantization={"scheme": "none"})
    baking.settle()
    assert baking.weights() == {1: 100, 2: 0}
    baking.finish()
    assert baking.stable_number == 1
    assert baking.status.last_failure is None


def test_the_spec_before_comes_back_warm_even_where_it_has_to_be_fetched_again(baking: World) -> None:
    baking.change(source={"persistentVolumeClaim": {"claimName": "checkpoints", "path": "elsewhere"}})
    baking.settle()
    assert baking.weights() == {1: 0, 2: 100}, "nobody knows yet what the spec stands for"
    baking.change(quantization={"scheme": "none"})
    baking.settle()
    baking.end_jobs()
    baking.settle()
    assert baking.weights() == {1: 100, 2: 0}


def test_another_spec_ends_a_bake_and_is_compared_with_what_baked(baking: World) -> None:
    baking.change(opset=19)
    baking.settle()
    assert baking.stable_number == 2
    baking.up_to_step(0)
    assert baking.weights() == {2: 50, 3: 50}


def test_another_spec_waits_for_a_bake_that_is_paused(baking: World) -> None:
    baking.steer(paused=True)
    baking.change(opset=19)
    baking.goes_on_for(60)
    assert baking.stable_number == 1
    assert baking.weights() == {1: 0, 2: 100}
    baking.steer(paused=False)
    baking.settle()
    assert baking.stable_number == 2


def test_a_spec_that_cannot_be_accepted_leaves_a_bake_where_it_is(baking: World) -> None:
    baking.change(serving={"replicas": 50})
    baking.goes_on_for(3600)
    assert baking.condition("Accepted") == ("False", "ReplicasAboveLimit")
    assert baking.weights() == {1: 0, 2: 100}


def test_a_freeze_holds_the_end_of_a_bake_and_not_its_rollback(baking: World) -> None:
    baking.steer(freezeWindows=[{"schedule": "0 * * * *", "duration": "59m"}], promoteToken="enough")
    baking.goes_on_for(1500)
    assert baking.stable_number == 1
    assert baking.condition("Promoted") == ("Unknown", "Frozen")
    baking.goes_bad()
    assert baking.condition("Promoted") == ("False", "BakeFailed")


def test_a_bake_of_the_class_is_the_models_unless_it_says_otherwise() -> None:
    analysis = {"metrics": [{"name": "errorRatio", "maximum": "0.05"}]}
    world = World(classes=(a_class(rollout={"steps": STEPS, "analysis": analysis, "bake": {"duration": "5m"}}),))
    world.serve_first()
    world.change(quantization=INT8)
    until_it_bakes(world)
    world.steer(bake={"duration": "0s"})
    world.finish()
    assert world.stable_number == 2


def test_where_stable_gets_no_traffic_requests_are_not_compared_with_it() -> None:
    world = World(classes=(a_class(rollout={"analysis": {"metrics": [{"name": "errorRatio", "tolerance": "0.01"}]}}),))
    spec = world.classes[0].spec
    assert spec is not None
    (shared,), (alone,) = (criteria(spec.rollout.analysis, weight=weight) for weight in (99, 100))
    assert shared.tolerance is not None
    assert (alone.tolerance, alone.minimum_samples) == (None, 50)


def test_callers_mistakes_in_a_bake_are_not_held_against_the_candidate() -> None:
    world = rolling_out(
        analysis={"metrics": [{"name": "errorRatio", "maximum": "0.05", "tolerance": "0.01"}], "interval": "10s"}
    )
    until_it_bakes(world)
    ours, theirs = Counts(0, 10_000, disputed=1_000), Counts(0, 300)
    world.measured = (Measurement(world.measured[0].metric, Outcome.MEASURED, ours, theirs),)
    world.goes_on_for(60)
    assert world.condition("Promoted") == BAKING
