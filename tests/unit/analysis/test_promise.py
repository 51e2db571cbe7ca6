"""What docs/concepts/verdicts.md promises, on a small part of `make bench-verdicts`. Seeded, so it never flickers."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bench.verdicts.__main__ import DETECTING, STRICT, fixed_sample, looks_to_prove
from bench.verdicts.rules import Fate, Ours, fates, play
from bench.verdicts.streams import FIVEFOLD, NONE, STEADY, STREAMS, generate
from onnx_operator.api.rollout import MetricName
from onnx_operator.core.analysis import Criterion, Measurement, Outcome, Verdict, judge_all, overall
from onnx_operator.core.counts import Counts
from onnx_operator.core.evidence import samples_to_see

if TYPE_CHECKING:
    from bench.verdicts.streams import Stream
    from onnx_operator.core.evidence import Evidence


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_good_candidates_are_rolled_back_no_more_often_than_promised_when_traffic_is(stream: Stream) -> None:
    """One in ten is promised instead of one in a thousand, so that fifty rollouts can break it."""
    traffic = generate(stream, NONE, rollouts=50, seed=11)
    counted = fates(list(play(traffic, partial(Ours, STRICT, promise=0.1))))
    assert counted[Fate.ROLLED_BACK] <= 5


def test_the_promise_is_for_all_metrics_together() -> None:
    """Three metrics that each stand on their bound; each alone could use up the promise."""
    wanted = (
        Criterion(MetricName.ERROR_RATIO, 50, tolerance=Decimal(0)),
        Criterion(MetricName.SLOW_RATIO, 50, tolerance=Decimal(0), slower_than=timedelta(seconds=1)),
        Criterion(MetricName.DISAGREEMENT, 50, maximum=Decimal("0.1")),
    )
    chance, failed = np.random.default_rng(15), 0
    for _ in range(60):
        drawn = np.cumsum(chance.binomial([20, 180], 0.1, size=(3, 40, 2)), axis=1).tolist()
        before: dict[str, tuple[Evidence, ...]] = {}
        for look in range(40):
            measured = [
                Measurement(
                    one.metric,
                    Outcome.MEASURED,
                    Counts(drawn[number][look][0], 20 * (look + 1)),
                    None if one.tolerance is None else Counts(drawn[number][look][1], 180 * (look + 1)),
                )
                for number, one in enumerate(wanted)
            ]
            judged = judge_all(wanted, measured, steps=1, promise=0.1, before=before)
            before = {one.metric: one.evidence for one in judged}
            if overall(judged) is Verdict.FAIL:
                failed += 1
                break
    assert failed <= 6


def test_with_something_to_detect_good_candidates_are_promoted() -> None:
    traffic = generate(STEADY, NONE, rollouts=30, seed=12)
    assert fates(list(play(traffic, partial(Ours, DETECTING)))) == {Fate.PROMOTED: 30}


def test_five_times_the_errors_are_never_promoted() -> None:
    traffic = generate(STEADY, FIVEFOLD, rollouts=30, seed=13)
    assert fates(list(play(traffic, partial(Ours, STRICT)))) == {Fate.ROLLED_BACK: 30}


@pytest.mark.parametrize(("ratio", "per_look"), [(1, 100), (9, 20)])
def test_a_doubled_error_ratio_is_proved_with_the_requests_of_a_test_that_looks_once(ratio: int, per_look: int) -> None:
    needed = fmean(per_look * looks_to_prove(ratio, 0.01, 0.02, per_look, seed) for seed in range(40))
    assert needed <= 1.1 * fixed_sample(0.01, 0.02, ratio)


@pytest.mark.parametrize(("ratio", "theirs", "harm", "per_look"), [(9, 0.01, 0.03, 20), (1, 0.05, 0.1, 20)])
def test_what_was_to_be_detected_is_found_nine_times_in_ten(
    ratio: int, theirs: float, harm: float, per_look: int
) -> None:
    stable = Counts(round(100_000 * ratio * theirs), 100_000 * ratio)
    awaited = samples_to_see(harm, 0.0, Counts(0, 100_000), stable, alpha=0.001)
    needed = [per_look * looks_to_prove(ratio, theirs, theirs + harm, per_look, seed) for seed in range(100)]
    assert sum(one <= awaited for one in needed) >= 88


def test_a_crash_is_rolled_back_within_two_intervals() -> None:
    """A quarter of 40 requests of the candidate in each."""
    assert max(looks_to_prove(9, 0.01, 0.25, 40, seed) for seed in range(100)) <= 2
