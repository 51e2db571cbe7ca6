"""Conditions are calm: a time moves only when a status flips, and nothing outgrows the schema."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from onnx_operator.core.conditions import ConditionType, Finding, clipped, instant, timestamp, written

THEN = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
LATER = THEN + timedelta(hours=1)


def finding(status: str, reason: str = "Because", message: str = "") -> Finding:
    return Finding(ConditionType.READY, status, reason, message)  # type: ignore[arg-type]


def test_a_new_reason_leaves_the_time_alone() -> None:
    before = written([finding("False", "One")], [], generation=1, now=THEN)
    (after,) = written([finding("False", "Two")], before, generation=2, now=LATER)
    assert after.last_transition_time == timestamp(THEN)
    assert (after.reason, after.observed_generation) == ("Two", 2)


def test_a_flip_takes_the_time_along() -> None:
    before = written([finding("False")], [], generation=1, now=THEN)
    (after,) = written([finding("True")], before, generation=1, now=LATER)
    assert after.last_transition_time == timestamp(LATER)


def test_a_message_that_is_too_long_for_the_schema_is_cut() -> None:
    (found,) = written([finding("False", message="x" * 5000)], [], generation=1, now=THEN)
    assert len(found.message) == 2048
    assert clipped("x" * 5000).endswith("…")
    assert len(clipped("x" * 5000)) == 1024


def test_times_that_steps_are_counted_from_keep_their_milliseconds() -> None:
    assert timestamp(THEN) == "2026-01-01T12:00:00Z"
    assert instant(THEN) == "2026-01-01T12:00:00.123Z"
    assert datetime.fromisoformat(instant(THEN)) <= THEN
