"""What is kept of a rollout for those who ask afterwards: all of it, in little room."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_operator.api.revision import RecordedMetric, RecordedMoment, RolloutEnd, RolloutRecord
from onnx_operator.api.rollout import MetricName
from onnx_operator.core.analysis import Measurement, Outcome, Verdict
from onnx_operator.core.counts import Counts
from onnx_operator.core.pods import Trouble
from onnx_operator.core.record import MOST_CHARACTERS, MOST_POINTS, Point, Sample, read, thinned
from unit.core.worlds import START, World, a_class

if TYPE_CHECKING:
    from collections.abc import Sequence

INT8 = {"scheme": "int8-dynamic"}
MOST_BYTES = 16 * 1024


@pytest.fixture
def canary() -> World:
    """Revision 2 has 10 % and its clock runs."""
    world = World()
    world.serve_first()
    world.change(quantization=INT8)
    world.up_to_step(0)
    return world


def record_of(world: World, number: int = 2) -> RolloutRecord:
    found = world.numbered(number).status.rollout
    assert found is not None
    return found


def reasons_of(record: RolloutRecord) -> list[str]:
    return [one.reason for one in record.moments]


def size_of(record: RolloutRecord) -> int:
    return len(json.dumps(record.model_dump(mode="json", exclude_none=True), ensure_ascii=False).encode())


def seconds_of(lines: Sequence[str]) -> list[int]:
    return [read(line).seconds for line in lines]


# ---- stories


def test_a_promoted_revision_tells_its_steps_and_why_it_was_promoted(canary: World) -> None:
    canary.finish()
    record = record_of(canary)
    assert [(one.weight, one.reason) for one in record.moments] == [
        (0, "Converting"),
        (0, "Validating"),
        (0, "Publishing"),
        (0, "Starting"),
        (0, "StepStarting"),
        (10, "StepRunning"),
        (10, "StepStarting"),
        (50, "StepRunning"),
    ]
    assert record.end is not None
    assert (record.end.outcome, record.end.reason) == ("Promoted", "Promoted")
    assert record.end.message == "step 2 of 2 at 50 % has passed"
    assert {read(line).weight for line in record.points} == {10, 50}
    assert [one.bound for one in record.metrics] == ["at most 5%"]


def test_a_clock_that_is_behind_the_one_before_writes_no_time_before_the_beginning(canary: World) -> None:
    canary.goes_on_for(10)
    canary.wait(-3600)
    candidate = canary.status.candidate
    assert candidate is not None
    anew = candidate.model_copy(update={"verdict_time": None, "step_started_time": None})
    canary.status = canary.status.model_copy(update={"candidate": anew})
    canary.goes_on_for(20)
    assert seconds_of(record_of(canary).points) == [0], "the API server takes no negative ones"


def test_a_rolled_back_revision_ends_with_the_judgement_that_did_it(canary: World) -> None:
    canary.goes_bad()
    record = record_of(canary)
    assert read(record.points[-1]).samples == (Sample(Verdict.FAIL, Counts(1000, 2000), Counts(0, 18000)),)
    assert record.end is not None
    assert (record.end.outcome, record.end.reason) == ("RolledBack", "AnalysisFailed")
    assert "above the maximum of 5%" in record.end.message
    assert reasons_of(record)[-1] == "StepRunning"


def test_a_value_is_recorded_as_the_number_it_is_with_both_of_its_bounds(canary: World) -> None:
    memory = {"name": "memory", "maximumValue": "128Mi", "maximumOfStable": "1.5"}
    canary.steer(analysis={"interval": "10s", "metrics": [memory]})
    canary.wait(10)
    canary.settle()
    record = record_of(canary)
    (declared,) = [one for one in record.metrics if one.name == "memory"]
    assert (declared.bound, declared.maximum) == ("at most 128.0Mi, at most 1.5 times stable's", "134217728")
    assert read(record.points[-1]).samples[-1] == Sample(Verdict.PASS, 6.71089e7, 6.71089e7)


def test_an_abort_is_an_end(canary: World) -> None:
    canary.steer(abortToken="stop")
    canary.settle()
    end = record_of(canary).end
    assert end is not None
    assert (end.outcome, end.reason) == ("RolledBack", "Aborted")


def test_what_a_person_promotes_says_so(canary: World) -> None:
    canary.steer(promoteToken="go")
    canary.settle()
    end = record_of(canary).end
    assert end is not None
    assert (end.outcome, end.message) == ("Promoted", "rollout.promoteToken changed")


def test_a_revision_that_another_spec_replaced_was_superseded(canary: World) -> None:
    canary.change(opset=19)
    canary.settle()
    canary.end_jobs()
    canary.settle()
    end = record_of(canary).end
    assert end is not None
    assert (end.outcome, end.reason) == ("Superseded", "Superseded")


def test_a_first_revision_has_moments_and_an_end_and_nothing_to_compare(canary: World) -> None:
    record = record_of(canary, 1)
    assert record.points == []
    assert record.end is not None
    assert record.end.message == "the first revision takes all requests"


def test_a_revision_that_fails_before_it_has_traffic_ends_as_failed() -> None:
    world = World()
    world.settle()
    world.end_jobs()
    world.settle()
    world.fail_job("convert", "UnsupportedArchitecture")
    world.settle()
    end = record_of(world, 1).end
    assert end is not None
    assert (end.outcome, end.reason) == ("Failed", "UnsupportedArchitecture")


def test_servers_that_were_lost_in_mid_rollout_are_a_moment_at_no_weight(canary: World) -> None:
    canary.break_servers(canary.numbered(2).name, Trouble("Evicted", "the node went"))
    canary.settle()
    last = record_of(canary).moments[-1]
    assert (last.weight, last.reason) == (0, "Evicted")


def test_another_rollout_of_the_same_revision_begins_a_new_record(canary: World) -> None:
    canary.goes_bad()
    before = record_of(canary)
    canary.steer(retryToken="again")
    canary.measure(0, 1000)
    for _ in range(6):
        canary.settle()
        canary.end_jobs()
        canary.make_ready()
        canary.accept()
        canary.wait(10)
    after = record_of(canary)
    assert after.started_time > before.started_time
    assert after.end is None
    assert max(seconds_of(after.points)) < 60


def test_only_a_judgement_adds_a_point_and_a_look_without_one_writes_nothing(canary: World) -> None:
    canary.wait(10)
    canary.settle()
    points, writes = record_of(canary).points, canary.writes
    for _ in range(3):
        canary.wait(1)
        canary.settle()
    assert (record_of(canary).points, canary.writes) == (points, writes)


def test_a_look_that_died_before_the_model_was_written_leaves_one_point_and_not_two(canary: World) -> None:
    canary.wait(10)
    canary.look(dies_after=len(canary.decide().actions) + 1)
    died = record_of(canary).points
    canary.look()
    assert record_of(canary).points == died
    assert len(died) == 1


def test_a_metric_that_is_declared_in_mid_rollout_gets_the_next_place(canary: World) -> None:
    canary.wait(10)
    canary.settle()
    earlier = record_of(canary).points
    metrics = [
        {"name": "disagreement", "maximum": "0.02"},
        {"name": "errorRatio", "maximum": "0.1", "tolerance": "0.01"},
    ]
    canary.steer(analysis={"interval": "10s", "metrics": metrics})
    canary.measured += (Measurement(MetricName.DISAGREEMENT, Outcome.MEASURED, Counts(1, 100)),)
    canary.wait(10)
    canary.settle()
    record = record_of(canary)
    assert [(one.name, one.bound) for one in record.metrics] == [
        ("errorRatio", "at most 10%, at most 1% above stable"),
        ("disagreement", "at most 2%"),
    ]
    assert record.points[:-1] == earlier
    assert read(record.points[-1]).samples == (
        Sample(Verdict.PASS, Counts(0, 1000), Counts(0, 9000)),
        Sample(Verdict.PASS, Counts(1, 100), None),
    )


def test_the_model_tells_the_bound_that_holds_in_this_step() -> None:
    analysis = {"interval": "10s", "metrics": [{"name": "errorRatio", "maximum": "0.05", "tolerance": "0.01"}]}
    rollout = {"steps": [{"weight": 0, "duration": "1m"}, {"weight": 50, "duration": "1m"}], "analysis": analysis}
    world = World(classes=(a_class(rollout=rollout),))
    world.serve_first()
    world.change(quantization=INT8)
    bounds = []
    for step in (0, 1):
        world.up_to_step(step)
        world.wait(10)
        world.settle()
        assert world.status.candidate is not None
        bounds += [one.bound for one in world.status.candidate.analysis]
    assert bounds == ["at most 5%", "at most 5%, at most 1% above stable"]


# ---- room


def a_line(seconds: int, weight: int = 10, part: str = "P 3/410 5/1630") -> str:
    return f"{seconds} {weight} | {part}"


def test_a_point_that_fits_stays() -> None:
    lines = [a_line(seconds) for seconds in range(0, 10 * MOST_POINTS, 10)]
    assert thinned(lines) == lines


def test_what_is_too_much_is_halved_and_stays_even() -> None:
    lines: list[str] = []
    for seconds in range(0, 100_000, 10):
        lines = thinned([*lines, a_line(seconds)])
    gaps = [after - before for before, after in zip(seconds_of(lines), seconds_of(lines)[1:], strict=False)]
    assert len(lines) > MOST_POINTS / 3
    assert max(gaps) <= 4 * 100_000 / MOST_POINTS


@given(
    st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 100), st.integers(0, 3)), min_size=1, max_size=400),
    st.booleans(),
)
def test_however_long_it_lasts_it_fits_and_keeps_its_ends_and_its_order(
    looks: list[tuple[int, int, int]],
    weights_ascend: bool,  # noqa: FBT001
) -> None:
    lines: list[str] = []
    written, seconds = [], 0
    for place, (gap, weight, length) in enumerate(looks):
        seconds += gap
        step = place * 16 // len(looks)
        line = a_line(
            seconds,
            step if weights_ascend else weight,
            " | ".join(["P 123456/123456789 123456/123456789"] * (2 * length + 1)),
        )
        written.append(line)
        lines = thinned([*lines, line])
        assert len(lines) <= MOST_POINTS
        assert sum(map(len, lines)) <= MOST_CHARACTERS
        assert lines[0] == written[0]
        assert lines[-1] == line
        assert seconds_of(lines) == sorted(set(seconds_of(lines)))
        assert set(lines) <= set(written)
        assert thinned(lines) == lines
    if weights_ascend:
        assert {read(line).weight for line in lines} == {read(line).weight for line in written}


def test_a_weight_is_left_only_with_what_was_known_then() -> None:
    written = [a_line(seconds, 10 if seconds < 9007 else 50) for seconds in range(1, 20_000)]
    lines: list[str] = []
    for line in written:
        lines = thinned([*lines, line])
    assert a_line(9006, 10) in lines


def test_the_largest_record_stays_small() -> None:
    most = "F 1000000+1000000/10000000000 1000000+1000000/10000000000"
    lines = [a_line(1_000_000 + seconds, 100, " | ".join([most] * 8)) for seconds in range(500)]
    time = "2026-01-01T00:00:00Z"
    record = RolloutRecord(
        started_time=time,
        metrics=[RecordedMetric(name="n" * 20, bound="b" * 80, maximum="0.0001", tolerance="0.0001") for _ in range(8)],
        points=thinned(lines),
        moments=[
            RecordedMoment(time=time, weight=100, reason="ProgressDeadlineExceeded", message="m" * 160)
            for _ in range(30)
        ],
        end=RolloutEnd(time=time, outcome="RolledBack", reason="ProgressDeadlineExceeded", message="m" * 512),
    )
    assert size_of(record) < MOST_BYTES


def test_a_rollout_that_goes_to_and_fro_for_hours_with_much_to_say_stays_small(canary: World) -> None:
    canary.steer(progressDeadline="24h")
    name, step_began = canary.numbered(2).name, record_of(canary).moments[5]
    assert step_began.reason == "StepRunning"
    for turn in range(100):
        canary.break_servers(name, Trouble("Evicted" if turn % 2 else "Unschedulable", "字" * 2000))
        canary.settle()
        if turn % 10 == 0:
            canary.up_to_step(0)
            canary.goes_on_for(60)
        canary.wait(60)
    record = record_of(canary)
    assert len(record.moments) == 30
    assert record.moments[0].reason == "Converting"
    assert size_of(record) < MOST_BYTES
    assert (canary.now - START).total_seconds() > 6000


# ---- reading


@pytest.mark.parametrize(
    ("line", "point"),
    [
        ("0 0", Point(0, 0, ())),
        ("132 20 | P 3/410 5/1630", Point(132, 20, (Sample(Verdict.PASS, Counts(3, 410), Counts(5, 1630)),))),
        ("9 1 | I 3+2/410 -", Point(9, 1, (Sample(Verdict.INCONCLUSIVE, Counts(3, 410, 2), None),))),
        ("9 1 | - - - | E - -", Point(9, 1, (None, Sample(Verdict.PROVIDER_ERROR, None, None)))),
        ("9 1 | P 0.125 12.5", Point(9, 1, (Sample(Verdict.PASS, 0.125, 12.5),))),
    ],
)
def test_a_point_is_read_as_it_was_written(line: str, point: Point) -> None:
    assert read(line) == point


@pytest.mark.parametrize("line", ["", "1", "a b", "1 2 | X 1/2 1/2", "1 2 | P 1/2", "1 2 | P 3/2 -", "1 2 | P a b"])
def test_what_nobody_wrote_is_not_read(line: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read(line)


@pytest.mark.parametrize(
    "metric",
    [
        {"name": "errorRatio", "maximum": "1e-99", "tolerance": "1e-99"},
        {"name": "memory", "maximumValue": "0.123456789012345678Gi"},
        {"name": "memory", "maximumValue": "1e99"},
    ],
)
def test_a_bound_of_many_digits_does_not_keep_harm_from_being_judged(canary: World, metric: dict[str, Any]) -> None:
    canary.steer(analysis={"interval": "10s", "metrics": [metric, {"name": "disagreement", "maximum": "0.02"}]})
    canary.goes_on_for(10)
    bad = Measurement(MetricName.DISAGREEMENT, Outcome.MEASURED, Counts(500, 1000))
    canary.measured = (*canary.measured, bad)
    canary.goes_on_for(10)
    bad = Measurement(MetricName.DISAGREEMENT, Outcome.MEASURED, Counts(1500, 2000))
    canary.measured = (canary.measured[0], bad)
    canary.goes_on_for(10)
    assert canary.condition("Promoted") == ("False", "AnalysisFailed")
