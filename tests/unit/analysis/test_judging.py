"""The verdict on one metric, and what verdicts mean for the rollout."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_operator.api.rollout import Analysis, Metric, MetricName
from onnx_operator.core.analysis import (
    Criterion,
    Measurement,
    Outcome,
    Verdict,
    criteria,
    judge,
    judge_all,
    overall,
    worst,
)
from onnx_operator.core.counts import Counts

if TYPE_CHECKING:
    from onnx_operator.core.analysis import Judgement

ALPHA = 1e-4
ERRORS = Criterion(MetricName.ERROR_RATIO, 50, maximum=Decimal("0.05"), tolerance=Decimal("0.01"))
ONLY_MAXIMUM = replace(ERRORS, tolerance=None)
ONLY_TOLERANCE = replace(ERRORS, maximum=None)
PAIRS = Criterion(MetricName.DISAGREEMENT, 50, maximum=Decimal("0.02"))


def measured(candidate: Counts, stable: Counts | None = None) -> Measurement:
    return Measurement(MetricName.ERROR_RATIO, Outcome.MEASURED, candidate, stable)


def verdict(wanted: Criterion, candidate: Counts, stable: Counts | None = None) -> Verdict:
    return judge(wanted, measured(candidate, stable), alpha=ALPHA).verdict


@pytest.mark.parametrize(
    ("wanted", "candidate", "stable", "expected"),
    [
        pytest.param(ERRORS, Counts(0, 50), Counts(0, 450), Verdict.PASS, id="no errors and just enough samples pass"),
        pytest.param(ERRORS, Counts(0, 49), Counts(0, 450), Verdict.NO_DATA, id="one sample too few is no data"),
        pytest.param(ERRORS, Counts(0, 0), Counts(0, 450), Verdict.NO_DATA, id="silence is no data"),
        pytest.param(ERRORS, Counts(0, 50), Counts(0, 49), Verdict.NO_DATA, id="too little of stable to compare with"),
        pytest.param(ERRORS, Counts(0, 50), None, Verdict.NO_DATA, id="no stable to compare with"),
        pytest.param(ERRORS, Counts(1, 1), Counts(0, 450), Verdict.NO_DATA, id="one unlucky error proves nothing"),
        pytest.param(
            ERRORS, Counts(1, 50), Counts(0, 450), Verdict.INCONCLUSIVE, id="one error in fifty may be chance"
        ),
        pytest.param(ERRORS, Counts(10, 10), Counts(0, 90), Verdict.FAIL, id="a crash fails before the minimum"),
        pytest.param(ERRORS, Counts(25, 100), Counts(0, 900), Verdict.FAIL, id="a quarter of a hundred is proof"),
        pytest.param(ERRORS, Counts(45, 1000), Counts(30, 9000), Verdict.FAIL, id="ten times stable's rate is proof"),
        pytest.param(ERRORS, Counts(13, 1000), Counts(40, 9000), Verdict.PASS, id="worse by less than the tolerance"),
        pytest.param(
            ERRORS, Counts(300, 1000), Counts(2700, 9000), Verdict.FAIL, id="as bad as stable, beyond maximum"
        ),
        pytest.param(
            ONLY_TOLERANCE, Counts(300, 1000), Counts(2700, 9000), Verdict.PASS, id="as bad as stable, no maximum"
        ),
        pytest.param(ONLY_MAXIMUM, Counts(2, 50), None, Verdict.PASS, id="a maximum needs no stable"),
        pytest.param(ONLY_MAXIMUM, Counts(3, 50), None, Verdict.INCONCLUSIVE, id="slightly above the maximum"),
        pytest.param(
            ERRORS,
            Counts(0, 1000, disputed=300),
            Counts(0, 9000, disputed=2700),
            Verdict.PASS,
            id="callers' mistakes on both sides are nobody's fault",
        ),
        pytest.param(
            ERRORS,
            Counts(0, 100, disputed=30),
            Counts(0, 900, disputed=1),
            Verdict.FAIL,
            id="a candidate that refuses what stable accepts",
        ),
        pytest.param(
            ONLY_MAXIMUM, Counts(0, 100, disputed=100), None, Verdict.PASS, id="disputes don't count against a maximum"
        ),
        pytest.param(
            replace(ONLY_MAXIMUM, maximum=Decimal(0)),
            Counts(1, 10),
            None,
            Verdict.FAIL,
            id="a maximum of zero means none",
        ),
        pytest.param(
            replace(ONLY_MAXIMUM, maximum=Decimal(1)),
            Counts(60, 60),
            None,
            Verdict.PASS,
            id="a maximum of one is no bound",
        ),
    ],
)
def test_the_verdict_when(wanted: Criterion, candidate: Counts, stable: Counts | None, expected: Verdict) -> None:
    assert verdict(wanted, candidate, stable) is expected


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [(Outcome.NO_DATA, Verdict.NO_DATA), (Outcome.PROVIDER_ERROR, Verdict.PROVIDER_ERROR)],
)
def test_what_was_not_measured_is_not_judged_by_leftover_counts(outcome: Outcome, expected: Verdict) -> None:
    seen = Measurement(MetricName.ERROR_RATIO, outcome, Counts(0, 900), Counts(0, 900), message="connection refused")
    judged = judge(ERRORS, seen, alpha=ALPHA)
    assert judged.verdict is expected
    assert judged.message.endswith("connection refused")


@pytest.mark.parametrize(
    ("wanted", "candidate", "stable", "message"),
    [
        pytest.param(
            ERRORS,
            Counts(64, 300),
            Counts(3, 2700),
            "errorRatio is 21.33% (64 of 300) for the candidate, 0.11% (3 of 2700) for stable: above the maximum of 5%",
            id="a maximum",
        ),
        pytest.param(
            ONLY_TOLERANCE,
            Counts(60, 300, disputed=4),
            Counts(3, 2700),
            "errorRatio is 20.00% (60 of 300) for the candidate and 4 disputed, 0.11% (3 of 2700) for stable: "
            "more than the tolerance of 1% above stable",
            id="a tolerance",
        ),
        pytest.param(
            PAIRS,
            Counts(80, 80),
            None,
            "disagreement is 100.00% (80 of 80) for the candidate: above the maximum of 2%",
            id="a metric without another side",
        ),
    ],
)
def test_a_failure_names_metric_values_samples_and_bound(
    wanted: Criterion, candidate: Counts, stable: Counts | None, message: str
) -> None:
    judged = judge(wanted, measured(candidate, stable), alpha=ALPHA)
    assert (judged.verdict, judged.message) == (Verdict.FAIL, message)


def test_what_a_reader_must_know_follows_the_judgement() -> None:
    seen = replace(measured(Counts(0, 99), Counts(0, 99)), message="slower than 250 ms")
    assert judge(ERRORS, seen, alpha=ALPHA).message.endswith("; slower than 250 ms")


def test_a_criterion_that_nobody_measured_has_no_data() -> None:
    judged = judge_all((ERRORS, PAIRS), [measured(Counts(0, 99), Counts(0, 99))], steps=2, promise=0.001)
    assert [each.verdict for each in judged] == [Verdict.PASS, Verdict.NO_DATA]


def test_more_bounds_and_steps_need_more_proof() -> None:
    """The promise is for the whole rollout, so the same counts must convince more where there are more looks."""
    seen = measured(Counts(16, 60))

    def judged(steps: int) -> Judgement:
        return judge_all((ONLY_MAXIMUM,), [seen], steps=steps, promise=0.001)[0]

    assert judged(1).verdict is Verdict.FAIL
    assert judged(10_000).verdict is Verdict.INCONCLUSIVE


def test_the_api_s_analysis_becomes_criteria() -> None:
    analysis = Analysis(
        minimum_samples=7,
        metrics=[
            Metric(name=MetricName.SLOW_RATIO, maximum="1e-2", slower_than="1m30s", dry_run=True),
            Metric(name=MetricName.ERROR_RATIO, tolerance="0", detect="0.01"),
        ],
    )
    assert criteria(analysis, weight=10) == (
        Criterion(
            MetricName.SLOW_RATIO, 7, maximum=Decimal("0.01"), slower_than=timedelta(seconds=90), is_dry_run=True
        ),
        Criterion(MetricName.ERROR_RATIO, 7, tolerance=Decimal(0), detect=Decimal("0.01")),
    )


STRICT = replace(ONLY_TOLERANCE, tolerance=Decimal(0), detect=Decimal("0.01"))


@pytest.mark.parametrize(
    ("wanted", "candidate", "stable", "expected"),
    [
        pytest.param(
            STRICT, Counts(10, 1000), Counts(90, 9000), Verdict.NO_DATA, id="too few to have seen a doubling of 1 %"
        ),
        pytest.param(STRICT, Counts(80, 8000), Counts(720, 72_000), Verdict.PASS, id="enough to have seen it"),
        pytest.param(STRICT, Counts(0, 2000), Counts(0, 18_000), Verdict.PASS, id="a quiet stable needs fewer"),
        pytest.param(
            replace(STRICT, detect=Decimal("0.2")), Counts(1, 100), Counts(9, 900), Verdict.PASS, id="great harm, too"
        ),
        pytest.param(
            replace(STRICT, detect=Decimal("0.9")),
            Counts(0, 49),
            Counts(9, 900),
            Verdict.NO_DATA,
            id="not below 50",
        ),
        pytest.param(STRICT, Counts(85, 8000), Counts(720, 72_000), Verdict.PASS, id="slightly worse passes"),
        pytest.param(
            replace(STRICT, detect=None),
            Counts(85, 8000),
            Counts(720, 72_000),
            Verdict.INCONCLUSIVE,
            id="unset: held",
        ),
        pytest.param(STRICT, Counts(1600, 8000), Counts(720, 72_000), Verdict.FAIL, id="proved harm fails"),
        pytest.param(
            replace(ONLY_MAXIMUM, detect=Decimal("0.05")),
            Counts(55, 1000),
            None,
            Verdict.PASS,
            id="slightly above maximum",
        ),
        pytest.param(
            replace(ONLY_MAXIMUM, detect=Decimal("0.05")), Counts(5, 100), None, Verdict.NO_DATA, id="few for a maximum"
        ),
        pytest.param(
            replace(ERRORS, detect=Decimal("0.05")),
            Counts(210, 4000),
            Counts(1890, 36_000),
            Verdict.INCONCLUSIVE,
            id="beside a tolerance a maximum is strict",
        ),
        pytest.param(
            replace(STRICT, detect=Decimal(1)),
            Counts(1, 60),
            Counts(1, 540),
            Verdict.PASS,
            id="more than all is nothing",
        ),
    ],
)
def test_with_something_to_detect_the_verdict_is(
    wanted: Criterion, candidate: Counts, stable: Counts | None, expected: Verdict
) -> None:
    assert verdict(wanted, candidate, stable) is expected


TO_BE_PROVED = replace(ERRORS, is_to_be_proved=True)
PREVIEWED = ERRORS.in_preview


@pytest.mark.parametrize(
    ("candidate", "stable", "expected"),
    [
        pytest.param(Counts(0, 0), Counts(0, 450), Verdict.PASS, id="a preview owes no samples"),
        pytest.param(Counts(0, 3), None, Verdict.PASS, id="nor a comparison"),
        pytest.param(Counts(0, 400, 400), Counts(0, 450), Verdict.PASS, id="its callers' mistakes are not stable's"),
        pytest.param(Counts(1, 3), Counts(0, 450), Verdict.INCONCLUSIVE, id="an error that was seen is not overlooked"),
        pytest.param(Counts(10, 10), Counts(0, 450), Verdict.FAIL, id="a crash fails in a preview, too"),
    ],
)
def test_a_preview_is_judged_by_what_came_by_its_header(
    candidate: Counts, stable: Counts | None, expected: Verdict
) -> None:
    assert verdict(PREVIEWED, candidate, stable) is expected


def test_silence_passes_in_a_preview_alone_and_an_outage_nowhere() -> None:
    silence = Measurement(MetricName.ERROR_RATIO, Outcome.NO_DATA, message="no series")
    assert judge(PREVIEWED, silence, alpha=ALPHA).verdict is Verdict.PASS
    assert judge(ERRORS, silence, alpha=ALPHA).verdict is Verdict.NO_DATA
    outage = replace(silence, outcome=Outcome.PROVIDER_ERROR)
    assert judge(PREVIEWED, outage, alpha=ALPHA).verdict is Verdict.PROVIDER_ERROR


def test_a_shadow_is_judged_as_a_step_with_traffic_is_by_everything_that_is_mirrored() -> None:
    analysis = Analysis(
        minimum_samples=7,
        metrics=[
            Metric(name=MetricName.ERROR_RATIO, maximum="0.05", tolerance="0.01", detect="0.1"),
            Metric(name=MetricName.DISAGREEMENT, maximum="0.02"),
        ],
    )
    errors, pairs = criteria(analysis, weight=50)
    assert criteria(analysis, weight=0, mirror=25) == (replace(errors, mirror=25), pairs)


SHADOWED = replace(ERRORS, mirror=25)


@pytest.mark.parametrize(
    ("copies", "expected", "words"),
    [
        pytest.param(
            0,
            Verdict.NO_DATA,
            "0 of 50 mirrored samples; the step mirrors 25 % of stable's requests: does the gateway support",
            id="a gateway that ignores mirrors, though the prober sends a lot",
        ),
        pytest.param(49, Verdict.NO_DATA, "49 of 50 mirrored samples", id="too few of them yet"),
        pytest.param(50, Verdict.PASS, "within bounds", id="enough"),
        pytest.param(
            900,
            Verdict.PASS,
            "900 requests were mirrored, 100% of stable's, where 25% are wanted",
            id="a gateway that does not know of shares",
        ),
    ],
)
def test_a_shadow_owes_mirrored_requests(copies: int, expected: Verdict, words: str) -> None:
    seen = Measurement(MetricName.ERROR_RATIO, Outcome.MEASURED, Counts(0, 500), Counts(0, 900), mirrored=copies)
    judged = judge(SHADOWED, seen, alpha=ALPHA)
    assert judged.verdict is expected
    assert words in judged.message


def test_harm_in_a_shadow_does_not_wait_for_samples() -> None:
    seen = Measurement(MetricName.ERROR_RATIO, Outcome.MEASURED, Counts(20, 20), Counts(0, 900), mirrored=20)
    assert judge(SHADOWED, seen, alpha=ALPHA).verdict is Verdict.FAIL


def test_what_the_prober_sends_is_judged_in_a_preview_as_anywhere() -> None:
    analysis = Analysis(metrics=[Metric(name=MetricName.DISAGREEMENT, maximum="0.02")])
    assert criteria(analysis, weight=0) == criteria(analysis, weight=50) == (PAIRS,)


@pytest.mark.parametrize(
    ("candidate", "stable", "expected"),
    [
        pytest.param(Counts(0, 49), Counts(0, 450), Verdict.NO_DATA, id="too few samples"),
        pytest.param(Counts(0, 100), Counts(0, 900), Verdict.INCONCLUSIVE, id="no errors in a hundred prove little"),
        pytest.param(Counts(0, 4000), Counts(0, 36_000), Verdict.PASS, id="no errors in four thousand prove enough"),
        pytest.param(Counts(60, 4000), Counts(180, 36_000), Verdict.INCONCLUSIVE, id="as bad as just allowed"),
        pytest.param(Counts(90, 4000), Counts(180, 36_000), Verdict.INCONCLUSIVE, id="a little beyond"),
        pytest.param(Counts(400, 4000), Counts(180, 36_000), Verdict.FAIL, id="harm fails all the same"),
    ],
)
def test_when_it_is_to_be_proved_harmless_the_verdict_is(candidate: Counts, stable: Counts, expected: Verdict) -> None:
    assert verdict(TO_BE_PROVED, candidate, stable) is expected


def test_what_is_not_proved_yet_says_so() -> None:
    judged = judge(TO_BE_PROVED, measured(Counts(0, 100), Counts(0, 900)), alpha=ALPHA)
    assert judged.message.endswith("0.00% (0 of 900) for stable, but that is not proved yet")
    assert [one.bound for one in judged.evidence] == [
        *("maximum 0.05", "tolerance 0.01"),
        *("within maximum 0.05", "within tolerance 0.01"),
    ]


def test_how_many_samples_are_awaited_is_told() -> None:
    judged = judge(STRICT, measured(Counts(10, 1000), Counts(90, 9000)), alpha=ALPHA)
    assert judged.message == (
        "errorRatio has 1000 of about 5380 samples of the candidate with which 1% beyond its bound would have been seen"
    )


def test_a_dry_run_is_judged_and_not_followed() -> None:
    dry = replace(PAIRS, is_dry_run=True)
    found = [measured(Counts(0, 99), Counts(0, 99)), Measurement(dry.metric, Outcome.MEASURED, Counts(99, 99))]
    judged = judge_all((ERRORS, dry), found, steps=1, promise=0.001)
    assert [one.verdict for one in judged] == [Verdict.PASS, Verdict.FAIL]
    assert overall(judged) is Verdict.PASS
    assert overall(judge_all((dry,), found, steps=1, promise=0.001)) is Verdict.PASS


def test_a_dry_run_takes_nothing_of_the_promise() -> None:
    beside = (replace(PAIRS, is_dry_run=True), replace(ERRORS, is_dry_run=True))
    seen = [Measurement(ONLY_MAXIMUM.metric, Outcome.MEASURED, Counts(16, 60))]
    for extra in ((), beside[:1]):
        assert judge_all((ONLY_MAXIMUM, *extra), seen, steps=1, promise=0.001)[0].verdict is Verdict.FAIL


@pytest.mark.parametrize("impossible", [(-1, 3, 0), (4, 3, 0), (2, 3, 2), (0, 3, -1)])
def test_counts_that_cannot_be_are_refused(impossible: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        Counts(*impossible)


SEVERITY = list(Verdict)
bounds = st.sampled_from([None, *(Decimal(text) for text in ("0", "1e-3", "0.01", "0.05", "0.5", "1"))])


@st.composite
def some_counts(draw: st.DrawFn, most: int = 3000) -> Counts:
    total = draw(st.integers(0, most))
    bad = draw(st.integers(0, total))
    return Counts(bad, total, draw(st.integers(0, total - bad)))


@st.composite
def some_criterion(draw: st.DrawFn) -> Criterion:
    maximum, tolerance = draw(bounds), draw(bounds)
    if maximum is None and tolerance is None:
        maximum = Decimal("0.05")
    return Criterion(MetricName.ERROR_RATIO, draw(st.integers(1, 500)), maximum, tolerance)


@given(some_criterion(), some_counts(), st.none() | some_counts())
def test_it_never_passes_without_the_minimum_of_samples(
    wanted: Criterion, candidate: Counts, stable: Counts | None
) -> None:
    if verdict(wanted, candidate, stable) is Verdict.PASS:
        assert candidate.total >= wanted.minimum_samples
        assert wanted.tolerance is None or (stable is not None and stable.total >= wanted.minimum_samples)


@given(some_criterion(), some_counts(), st.none() | some_counts())
def test_one_more_bad_answer_never_makes_the_verdict_milder(
    wanted: Criterion, candidate: Counts, stable: Counts | None
) -> None:
    if candidate.bad + candidate.disputed < candidate.total:
        worse = replace(candidate, bad=candidate.bad + 1)
        before, after = verdict(wanted, candidate, stable), verdict(wanted, worse, stable)
        assert SEVERITY.index(after) >= SEVERITY.index(before)


@given(some_criterion(), some_counts(), some_counts())
def test_a_worse_stable_never_makes_the_verdict_harsher(wanted: Criterion, candidate: Counts, stable: Counts) -> None:
    if stable.bad + stable.disputed < stable.total:
        worse = replace(stable, bad=stable.bad + 1)
        before, after = verdict(wanted, candidate, stable), verdict(wanted, candidate, worse)
        assert SEVERITY.index(after) <= SEVERITY.index(before)


@given(some_criterion(), some_counts(), st.none() | some_counts())
def test_it_never_fails_a_candidate_whose_own_counts_keep_to_the_bounds(
    wanted: Criterion, candidate: Counts, stable: Counts | None
) -> None:
    within_maximum = wanted.maximum is None or candidate.ratio <= float(wanted.maximum)
    within_tolerance = (
        wanted.tolerance is None
        or stable is None
        or candidate.strict.ratio <= stable.strict.ratio + float(wanted.tolerance)
    )
    if within_maximum and within_tolerance:
        assert verdict(wanted, candidate, stable) in {Verdict.PASS, Verdict.NO_DATA}


@pytest.mark.parametrize("rate", [0.01, 0.2])
def test_looking_all_the_time_does_not_break_the_promise(rate: float) -> None:
    """A/A streams at the bound, looked at after every 5 requests: at most alpha of them may fail (here far fewer)."""
    chance = random.Random(20260701)  # noqa: S311  (a seeded simulation)
    alpha, runs, failed = 0.05, 400, 0
    for wanted in (replace(ONLY_TOLERANCE, tolerance=Decimal(0)), replace(ONLY_MAXIMUM, maximum=Decimal(str(rate)))):
        for _ in range(runs):
            candidate, stable = Counts(0, 0), Counts(0, 0)
            for _ in range(40):
                candidate += Counts(sum(chance.random() < rate for _ in range(5)), 5)
                stable += Counts(sum(chance.random() < rate for _ in range(20)), 20)
                if judge(wanted, measured(candidate, stable), alpha=alpha).verdict is Verdict.FAIL:
                    failed += 1
                    break
    assert failed <= alpha * runs * 2


def test_a_crash_level_regression_fails_within_seconds_of_traffic() -> None:
    """A quarter of a tenth of 40 requests a second: all of 200 runs fail within a minute, half of them within 15 s."""
    chance = random.Random(7)  # noqa: S311  (a seeded simulation)
    seconds = []
    for _ in range(200):
        candidate, stable = Counts(0, 0), Counts(0, 0)
        for second in range(1, 200):
            candidate += Counts(sum(chance.random() < 0.25 for _ in range(4)), 4)
            stable += Counts(sum(chance.random() < 0.001 for _ in range(36)), 36)
            judged = judge_all((ERRORS, PAIRS), [measured(candidate, stable)], steps=3, promise=0.001)
            if judged[0].verdict is Verdict.FAIL:
                seconds.append(second)
                break
    assert len(seconds) == 200
    assert sorted(seconds)[100] <= 15
    assert max(seconds) <= 60


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        pytest.param([], Verdict.PASS, id="no metrics promote by time and readiness"),
        pytest.param([Verdict.PASS, Verdict.INCONCLUSIVE], Verdict.INCONCLUSIVE, id="doubt outweighs a pass"),
        pytest.param([Verdict.INCONCLUSIVE, Verdict.NO_DATA], Verdict.NO_DATA, id="silence outweighs doubt"),
        pytest.param(
            [Verdict.NO_DATA, Verdict.PROVIDER_ERROR], Verdict.PROVIDER_ERROR, id="an outage outweighs silence"
        ),
        pytest.param(
            [Verdict.PROVIDER_ERROR, Verdict.FAIL, Verdict.PASS], Verdict.FAIL, id="harm outweighs everything"
        ),
    ],
)
def test_the_worst_verdict_wins(verdicts: list[Verdict], expected: Verdict) -> None:
    assert worst(verdicts) is expected
