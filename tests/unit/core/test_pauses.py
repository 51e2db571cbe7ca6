"""Steps that wait for a person, and previews that only a header reaches."""

from __future__ import annotations

import pytest

from onnx_operator.core.analysis import Outcome
from onnx_operator.core.pods import Trouble
from unit.core.worlds import World

INT8 = {"scheme": "int8-dynamic"}
BLUE_GREEN = [{"weight": 0, "pause": {}}]
CANARY = [{"weight": 10, "pause": {}}, {"weight": 50, "duration": "1m"}]
HELD = ("Unknown", "WaitingForPromoteToken")


def with_steps(steps: list[dict[str, object]]) -> World:
    world = World()
    world.serve_first()
    world.change(quantization=INT8, rollout={"steps": steps})
    return world


@pytest.fixture
def preview() -> World:
    """Revision 2 has passed its analysis at weight 0 and waits for a person."""
    world = with_steps(BLUE_GREEN)
    world.up_to_step(0)
    world.goes_on_for(20)
    return world


@pytest.fixture
def held() -> World:
    """Revision 2 has passed its analysis at 10 % and waits for a person."""
    world = with_steps(CANARY)
    world.up_to_step(0)
    world.goes_on_for(20)
    return world


def test_a_step_with_pause_waits_for_a_person_beyond_any_deadline(held: World) -> None:
    held.goes_on_for(3600)
    assert held.condition("Promoted") == HELD
    assert held.condition("Reconciling") == ("True", "WaitingForPromoteToken")
    assert held.condition("Stalled")[0] == "False"
    assert held.weights() == {1: 90, 2: 10}
    assert held.status.phase == "Held"
    assert "no deadline counts" in held.message("Promoted")
    candidate = held.status.candidate
    assert candidate is not None
    assert candidate.held_time is not None
    assert candidate.progress_time is None


def test_the_token_lets_a_held_step_go_on_to_the_next_one_and_no_further(held: World) -> None:
    held.steer(promoteToken="go")
    held.settle()
    assert held.step == 1
    assert held.weights() == {1: 50, 2: 50}
    assert held.status.handled_tokens.promote == "go"
    assert held.status.candidate is not None
    assert (held.status.candidate.held_time, held.status.candidate.promotion_asked_time) == (None, None)
    held.accept()
    held.goes_on_for(50)
    assert held.stable_number == 1, "the second step takes its time"
    held.finish()
    assert held.stable_number == 2


def test_one_token_ends_one_pause() -> None:
    world = with_steps([{"weight": 0, "pause": {}}, {"weight": 10, "pause": {}}])
    world.up_to_step(0)
    world.goes_on_for(20)
    world.steer(promoteToken="go")
    world.goes_on_for(300)
    assert world.step == 1
    assert world.condition("Promoted") == HELD
    world.steer(promoteToken="go on")
    world.finish()
    assert world.stable_number == 2


def test_the_token_does_not_skip_the_analysis_of_a_step_with_pause() -> None:
    world = with_steps(CANARY)
    world.up_to_step(0, silence=Outcome.NO_DATA)
    world.goes_on_for(20)
    world.steer(promoteToken="go")
    world.goes_on_for(60)
    assert world.step == 0
    assert world.condition("Promoted") == ("Unknown", "AnalysisHolds")
    assert world.status.candidate is not None
    assert world.status.candidate.promotion_asked_time is not None, "it is kept"
    world.measure(0, 1000)
    world.goes_on_for(10)
    assert world.step == 1


def test_a_pause_whose_analysis_never_passes_has_its_deadline() -> None:
    world = with_steps(CANARY)
    world.up_to_step(0, silence=Outcome.NO_DATA)
    world.goes_on_for(700)
    assert world.condition("Promoted") == ("False", "AnalysisNoData")


def test_metrics_that_fall_silent_do_not_end_a_wait_for_a_person(held: World) -> None:
    held.measure_nothing(Outcome.PROVIDER_ERROR)
    held.goes_on_for(3600)
    assert held.condition("Promoted") == HELD
    held.steer(promoteToken="go")
    held.goes_on_for(590)
    assert held.step == 0, "the analysis has to pass again"
    held.goes_on_for(20)
    assert held.condition("Promoted") == ("False", "AnalysisProviderError")


def test_harm_ends_a_wait_for_a_person(held: World) -> None:
    held.goes_bad()
    assert held.condition("Promoted") == ("False", "AnalysisFailed")
    assert held.weights() in ({1: 100, 2: 0}, {1: 100})


def test_abort_wins_over_the_token_of_a_held_step(held: World) -> None:
    held.steer(promoteToken="go", abortToken="stop")
    held.settle()
    assert held.condition("Promoted") == ("False", "Aborted")
    assert held.status.handled_tokens.promote == "go"
    held.steer(retryToken="again")
    held.up_to_step(0)
    held.goes_on_for(60)
    assert held.condition("Promoted") == HELD, "the token that lost is spent"


def test_a_token_before_the_first_step_counts_for_that_step() -> None:
    world = with_steps(BLUE_GREEN)
    world.steer(promoteToken="as soon as it passes")
    world.up_to_step(0, silence=Outcome.PROVIDER_ERROR)
    assert world.condition("Promoted") == ("Unknown", "AnalysisHolds")
    world.measure(0, 1000)
    world.finish()
    assert world.stable_number == 2


def test_a_token_that_is_kept_ends_with_its_candidate() -> None:
    world = with_steps(BLUE_GREEN)
    world.up_to_step(0, silence=Outcome.PROVIDER_ERROR)
    world.steer(promoteToken="for revision 2")
    world.settle()
    world.change(opset=19)
    world.up_to_step(0)
    world.goes_on_for(60)
    assert world.status.candidate is not None
    assert world.status.candidate.number == 3
    assert world.condition("Promoted") == HELD


def test_servers_lost_in_a_held_step_begin_again_with_a_clock(held: World) -> None:
    held.break_servers(held.numbered(2).name, None)
    held.settle()
    assert held.weights() == {1: 100, 2: 0}
    assert held.status.candidate is not None
    assert held.status.candidate.held_time is None
    held.goes_on_for(700)
    assert held.condition("Stalled") == ("True", "ProgressDeadlineExceeded")


def test_paused_keeps_the_token_of_a_held_step_for_later(held: World) -> None:
    held.steer(paused=True, promoteToken="go")
    held.goes_on_for(60)
    assert held.step == 0
    assert held.condition("Promoted") == ("Unknown", "Paused")
    held.steer(paused=False)
    held.settle()
    assert held.step == 1


def test_a_pause_taken_out_of_the_spec_lets_the_step_end_by_time(held: World) -> None:
    held.steer(steps=[{"weight": 10, "duration": "1m"}, {"weight": 50, "duration": "1m"}])
    held.finish()
    assert held.stable_number == 2


# ---- weight 0


def test_a_preview_is_reached_by_its_header_alone(preview: World) -> None:
    assert preview.weights() == {1: 100, 2: 0}
    assert preview.split is not None
    assert [pin.track for pin in preview.split.pins] == ["candidate", "stable"]
    assert preview.condition("Promoted") == HELD


def test_blue_green_goes_from_nothing_to_everything_in_one_write(preview: World) -> None:
    preview.steer(promoteToken="green")
    preview.settle()
    assert preview.weights() == {1: 0, 2: 100}
    preview.finish()
    assert preview.stable_number == 2
    shares = {tuple(sorted(one.weight for one in split.backends)) for split in preview.history}
    assert shares == {(100,), (0, 100)}


def test_a_preview_that_nobody_calls_can_be_left() -> None:
    world = with_steps(BLUE_GREEN)
    world.up_to_step(0, silence=Outcome.NO_DATA)
    world.goes_on_for(20)
    assert world.condition("Promoted") == HELD


def test_a_preview_before_steps_with_traffic_may_end_by_time() -> None:
    world = with_steps([{"weight": 0, "duration": "1m"}, {"weight": 50, "duration": "1m"}])
    world.up_to_step(0, silence=Outcome.NO_DATA)
    world.goes_on_for(70)
    assert world.step == 1
    world.goes_on_for(300)
    assert world.step == 1, "where there is shared traffic, silence does not promote"


def test_a_crash_in_a_preview_is_a_rollback(preview: World) -> None:
    crash = Trouble("ContainerFailed", "pod x ended with exit code 139", 139, is_crash=True)
    preview.break_servers(preview.numbered(2).name, crash)
    preview.settle()
    assert preview.condition("Promoted") == ("False", "CandidateCrashed")
