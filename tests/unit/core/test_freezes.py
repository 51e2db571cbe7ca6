"""Freeze windows: when they are open, and what they hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st

from onnx_operator.api.common import parse_duration
from onnx_operator.api.rollout import FreezeWindow
from onnx_operator.core.analysis import Outcome
from onnx_operator.core.freezes import frozen_until
from onnx_operator.core.windows import problem_of
from unit.core.worlds import World, a_class

if TYPE_CHECKING:
    from collections.abc import Callable

INT8 = {"scheme": "int8-dynamic"}
#: Open for the first half of every hour; stories begin at midnight.
HALF_HOURS = [{"schedule": "0 * * * *", "duration": "30m"}]
FROZEN = ("Unknown", "Frozen")


def window(schedule: str, duration: str, zone: str = "UTC") -> FreezeWindow:
    return FreezeWindow(schedule=schedule, duration=duration, time_zone=zone)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


WEEKEND = window("0 18 * * FRI", "62h")
NIGHTS = window("0 22 * * *", "8h", "Europe/Berlin")


# ---- when a window is open


@pytest.mark.parametrize(
    ("windows", "now", "until"),
    [
        pytest.param([], "2026-01-03T12:00", None, id="no windows, no freeze"),
        pytest.param([WEEKEND], "2026-01-02T17:59:59.999", None, id="just before it opens"),
        pytest.param([WEEKEND], "2026-01-02T18:00", "2026-01-05T08:00", id="the moment it opens"),
        pytest.param([WEEKEND], "2026-01-05T07:59:59.999", "2026-01-05T08:00", id="just before it closes"),
        pytest.param([WEEKEND], "2026-01-05T08:00", None, id="the moment it closes"),
        pytest.param([NIGHTS], "2026-01-01T21:30", "2026-01-02T05:00", id="a night in Berlin, in winter"),
        pytest.param([NIGHTS], "2026-07-01T20:30", "2026-07-02T04:00", id="a night in Berlin, in summer"),
        pytest.param([NIGHTS], "2026-03-28T21:30", "2026-03-29T05:00", id="the night that is an hour short"),
        pytest.param([NIGHTS], "2026-10-24T20:30", "2026-10-25T04:00", id="the night that is an hour long"),
        pytest.param(
            [window("30 2 * * *", "1h", "Europe/Berlin")],
            "2026-03-29T01:10",
            "2026-03-29T02:00",
            id="a time that the clocks skip opens when they have",
        ),
        pytest.param(
            [WEEKEND, window("0 0 * * MON", "24h")],
            "2026-01-03T12:00",
            "2026-01-06T00:00",
            id="windows that overlap are one",
        ),
        pytest.param(
            [window("0 8 * * *", "1h"), window("0 9 * * *", "1h")],
            "2026-01-03T08:30",
            "2026-01-03T10:00",
            id="windows that touch are one",
        ),
        pytest.param([window("0 0 L * *", "24h")], "2026-02-28T12:00", "2026-03-01T00:00", id="the end of a month"),
        pytest.param([window("0 0 * * TUE#2", "1h")], "2026-01-13T00:30", "2026-01-13T01:00", id="a second Tuesday"),
        pytest.param([window("0 0 29 2 *", "24h")], "2026-02-28T12:00", None, id="a leap day in another year"),
    ],
)
def test_a_window_is_open_from_its_schedule_for_its_duration(
    windows: list[FreezeWindow], now: str, until: str | None
) -> None:
    assert frozen_until(windows, at(now)) == (at(until) if until else None)


def test_a_window_that_never_closes_is_looked_at_again() -> None:
    found = frozen_until([window("* * * * *", "1h")], at("2026-01-01T00:00"))
    assert found is not None
    assert found > at("2026-01-01T01:00")


@given(
    window=st.sampled_from(
        [WEEKEND, NIGHTS, window("*/20 1-4 * * SUN", "7m", "Europe/Berlin"), window("15 3 * * *", "90m", "US/Eastern")]
    ),
    minutes=st.integers(0, 365 * 24 * 60),
)
def test_it_is_open_just_when_it_opened_less_than_its_duration_ago(window: FreezeWindow, minutes: int) -> None:
    now = at("2026-01-01T00:00") + timedelta(minutes=minutes)
    span = parse_duration(window.duration)
    before = (now - span).astimezone(ZoneInfo(window.time_zone or "UTC"))
    opens = next(CronSim(window.schedule, before))
    assert (frozen_until([window], now) is not None) == (opens.astimezone(UTC) <= now)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        pytest.param(window("61 * * * *", "1h"), "'61 * * * *' is no cron expression (Bad minute)", id="minute 61"),
        pytest.param(window("* * * *", "1h"), "does not have five fields", id="four fields"),
        pytest.param(window("0 0 0 * * *", "1h"), "does not have five fields", id="seconds"),
        pytest.param(window("0 0 30 2 *", "1h"), "no cron expression (Bad day-of-month)", id="a 30th of February"),
        pytest.param(window("0 5-1 * * *", "1h"), "no cron expression (Bad hour)", id="a range that runs backwards"),
        pytest.param(window("@daily", "1h"), "such as 0 18 * * FRI", id="a nickname"),
        pytest.param(window("0 0 * * *", "1h", "Mars/Olympus"), "timeZone 'Mars/Olympus' is not known", id="Mars"),
        pytest.param(window("0 0 * * *", "1h", "America"), "timeZone 'America' is not known", id="a continent"),
        pytest.param(window("0 0 * * *", "1h", "../etc/passwd"), "write an IANA name", id="a path"),
        pytest.param(window("0 0 * * *", "1h", ""), "write an IANA name", id="no zone"),
    ],
)
def test_what_cannot_be_read_is_told_by_its_field(bad: FreezeWindow, words: str) -> None:
    assert words in problem_of(bad)


# ---- what it holds


@pytest.fixture
def frozen() -> World:
    """Revision 2 is ready, half an hour before the window closes."""
    world = World()
    world.serve_first()
    world.change(quantization=INT8, rollout={"freezeWindows": HALF_HOURS})
    world.measure(0, 1000)
    for _ in range(6):
        world.settle()
        world.end_jobs()
        world.make_ready()
        world.accept()
    world.settle()
    return world


@pytest.fixture
def canary() -> World:
    """Revision 2 has 10 %, and a window opens."""
    world = World()
    world.serve_first()
    world.change(quantization=INT8)
    world.up_to_step(0)
    world.steer(freezeWindows=HALF_HOURS)
    world.settle()
    return world


def until_it_closes(world: World) -> None:
    while (world.now.minute, world.now.second) != (29, 50):
        world.goes_on_for(10)


def test_in_a_freeze_a_candidate_is_made_ready_and_gets_no_weight(frozen: World) -> None:
    assert frozen.condition("Promoted") == FROZEN
    assert frozen.condition("Reconciling") == ("True", "Frozen")
    assert frozen.condition("CandidateAvailable") == ("True", "Available")
    assert frozen.message("Promoted").endswith("until 2026-01-01T00:30:00Z")
    assert frozen.status.phase == "Frozen"
    assert frozen.weights() == {1: 100, 2: 0}
    assert frozen.look().look_again == 1800
    until_it_closes(frozen)
    assert frozen.weights() == {1: 100, 2: 0}
    frozen.goes_on_for(10)
    assert frozen.weights() == {1: 90, 2: 10}


def test_the_class_freezes_its_models_as_well(canary: World) -> None:
    canary.steer(freezeWindows=[])
    rollout = canary.classes[0].spec.rollout.model_dump(mode="json") if canary.classes[0].spec else {}
    canary.classes = (a_class(rollout=rollout | {"freezeWindows": HALF_HOURS}),)
    until_it_closes(canary)
    assert canary.step == 0
    assert canary.condition("Promoted") == FROZEN


def test_in_a_freeze_a_step_that_has_passed_is_held_and_not_late(canary: World) -> None:
    until_it_closes(canary)
    assert canary.step == 0
    assert canary.condition("Promoted") == FROZEN
    assert canary.status.candidate is not None
    assert canary.status.candidate.progress_time is None
    canary.goes_on_for(10)
    assert canary.step == 1


def test_the_deadline_begins_anew_when_the_window_closes(canary: World) -> None:
    canary.measure_nothing(Outcome.NO_DATA)
    until_it_closes(canary)
    canary.goes_on_for(600)
    assert canary.status.candidate is not None
    canary.goes_on_for(20)
    assert canary.condition("Promoted") == ("False", "AnalysisNoData")


@pytest.mark.parametrize("kind", ["in a step", "before the first step"])
def test_a_promote_token_is_kept_until_the_window_closes(canary: World, frozen: World, kind: str) -> None:
    world = canary if kind == "in a step" else frozen
    world.steer(promoteToken="now")
    until_it_closes(world)
    assert world.stable_number == 1
    assert world.condition("Promoted") == FROZEN
    assert world.status.handled_tokens.promote == "now"
    world.goes_on_for(10)
    assert world.stable_number == 2


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        pytest.param(lambda world: world.steer(abortToken="stop"), "Aborted", id="abort"),
        pytest.param(lambda world: world.measure(500, 1000), "AnalysisFailed", id="harm"),
    ],
)
def test_a_freeze_never_keeps_a_candidate_from_being_taken_back(
    canary: World, what: Callable[[World], Any], reason: str
) -> None:
    what(canary)
    canary.goes_on_for(20)
    assert canary.condition("Promoted") == ("False", reason)
    assert canary.weights() in ({1: 100, 2: 0}, {1: 100})


def test_in_a_freeze_a_person_may_change_their_mind(canary: World) -> None:
    canary.change(quantization={"scheme": "none"})
    canary.goes_on_for(60)
    assert canary.weights() == {1: 100}
    assert canary.condition("Ready") == ("True", "Serving")


def test_where_nothing_serves_a_freeze_has_nothing_to_protect() -> None:
    world = World(classes=(a_class(rollout={"freezeWindows": HALF_HOURS}),))
    world.serve_first()
    assert world.now.minute < 30


def test_a_window_that_cannot_be_read_is_told_and_nothing_is_rolled_out(canary: World) -> None:
    canary.steer(freezeWindows=[{"schedule": "0 0 30 2 *", "duration": "1h"}])
    canary.goes_on_for(600)
    assert canary.condition("Accepted") == ("False", "FreezeWindowInvalid")
    assert "spec.rollout.freezeWindows[0]: schedule '0 0 30 2 *'" in canary.message("Accepted")
    assert canary.weights() == {1: 100}
    canary.steer(freezeWindows=[])
    canary.finish()
    assert canary.stable_number == 2
