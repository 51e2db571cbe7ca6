"""Evidence against a bound is gathered look by look; what it promises holds whatever the rates do meanwhile."""

from __future__ import annotations

from itertools import accumulate
from math import comb, exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_operator.core.counts import Counts
from onnx_operator.core.evidence import Claim, Evidence, beginning, weigh

COMPARED = beginning("tolerance", is_compared=True)
ABSOLUTE = beginning("maximum", is_compared=False)


def looks(candidate: list[Counts], stable: list[Counts], tolerance: float = 0.0) -> Evidence:
    """The evidence after looks that each brought this much new."""
    evidence = COMPARED
    for ours, theirs in zip(accumulate(candidate), accumulate(stable), strict=True):
        evidence = weigh(evidence, ours, theirs, tolerance)
    return evidence


def chance(counts: Counts, rate: float) -> float:
    good = counts.total - counts.bad
    return float(comb(counts.total, counts.bad) * rate**counts.bad * (1 - rate) ** good)


seen_before = st.tuples(st.integers(0, 60), st.integers(60, 2000), st.integers(0, 60), st.integers(60, 2000))


@given(seen_before, st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.2]))
def test_no_look_is_expected_to_win_against_a_candidate_within_tolerance(
    before: tuple[int, int, int, int], ours: int, theirs: int, rate: float, tolerance: float
) -> None:
    """Exactly, by summing over all that can happen, for any history and any rate of that look."""
    was = Evidence("tolerance", 0.0, Counts(*before[:2]), Counts(*before[2:]))
    expected = 0.0
    for bad, beside in ((bad, beside) for bad in range(ours + 1) for beside in range(theirs + 1)):
        ending = weigh(was, was.candidate + Counts(bad, ours), Counts(*before[2:]) + Counts(beside, theirs), tolerance)
        probability = chance(Counts(bad, ours), min(rate + tolerance, 1.0)) * chance(Counts(beside, theirs), rate)
        expected += probability * exp(ending.strength)
    assert expected <= 1 + 1e-9


@given(seen_before, st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.floats(0, 1))
def test_no_look_is_expected_to_prove_a_candidate_within_a_tolerance_that_it_is_beyond(
    before: tuple[int, int, int, int], ours: int, theirs: int, rate: float, worse: float
) -> None:
    was, tolerance = Evidence("within", 0.0, Counts(*before[:2]), Counts(*before[2:])), 0.1
    stable = rate * (1 - tolerance)
    candidate = stable + tolerance + worse * (1 - stable - tolerance)
    expected = 0.0
    for bad, beside in ((bad, beside) for bad in range(ours + 1) for beside in range(theirs + 1)):
        now = was.candidate + Counts(bad, ours), Counts(*before[2:]) + Counts(beside, theirs)
        probability = chance(Counts(bad, ours), min(candidate, 1.0)) * chance(Counts(beside, theirs), stable)
        expected += probability * exp(weigh(was, *now, tolerance, Claim.WITHIN).strength)
    assert expected <= 1 + 1e-9


@given(seen_before, st.integers(1, 40), st.sampled_from([1e-3, 0.05, 0.5]), st.floats(0, 1))
def test_no_look_is_expected_to_prove_a_candidate_below_a_maximum_that_it_is_above(
    before: tuple[int, int, int, int], ours: int, maximum: float, worse: float
) -> None:
    was = Evidence("within", 0.0, Counts(*before[:2]), None)
    expected = sum(
        chance(Counts(bad, ours), maximum + worse * (1 - maximum))
        * exp(weigh(was, was.candidate + Counts(bad, ours), None, maximum, Claim.WITHIN).strength)
        for bad in range(ours + 1)
    )
    assert expected <= 1 + 1e-9


@given(seen_before, st.integers(1, 40), st.sampled_from([1e-3, 0.05, 0.5]), st.floats(0, 1))
def test_no_look_is_expected_to_win_against_a_candidate_below_its_maximum(
    before: tuple[int, int, int, int], ours: int, maximum: float, share: float
) -> None:
    was = Evidence("maximum", 0.0, Counts(*before[:2]), None)
    expected = sum(
        chance(Counts(bad, ours), maximum * share)
        * exp(weigh(was, was.candidate + Counts(bad, ours), None, maximum).strength)
        for bad in range(ours + 1)
    )
    assert expected <= 1 + 1e-9


def test_a_shock_that_both_sides_share_is_no_evidence() -> None:
    quiet, shock = Counts(1, 100), Counts(60, 100)
    assert looks([quiet] * 5 + [shock] * 5, [quiet] * 5 + [shock] * 5).strength < 1


def test_a_split_that_moves_with_the_rate_is_no_evidence() -> None:
    """By day much traffic and many errors, by night only the prober's, half to half: pooled counts mislead."""
    night, day = (Counts(0, 90), Counts(0, 90)), (Counts(90, 300), Counts(10, 30))
    evidence = looks([night[0], day[0]] * 10, [night[1], day[1]] * 10)
    assert evidence.candidate.ratio > 2.5 * (evidence.stable or Counts(0, 0)).ratio
    assert evidence.strength < 1


def test_answers_of_one_side_wait_for_those_of_the_other() -> None:
    alone = weigh(COMPARED, Counts(9, 10), Counts(0, 0), 0.0)
    assert alone == COMPARED
    assert weigh(alone, Counts(9, 10), Counts(0, 90), 0.0).strength > 8


def test_the_same_counts_seen_twice_are_bet_on_once() -> None:
    once = weigh(COMPARED, Counts(5, 100), Counts(1, 100), 0.0)
    assert weigh(once, Counts(5, 100), Counts(1, 100), 0.0) == once


def test_a_bad_answer_that_was_counted_and_uncounted_is_not_counted_again() -> None:
    steady = flickering = weigh(ABSOLUTE, Counts(5, 100), None, 0.01)
    for usual, odd in ((Counts(5, 110), Counts(4, 110)), (Counts(5, 120), Counts(5, 120))):
        steady, flickering = weigh(steady, usual, None, 0.01), weigh(flickering, odd, None, 0.01)
    assert flickering == steady


def test_fewer_answers_than_before_begin_anew() -> None:
    """Such as after Prometheus lost its data."""
    before = weigh(ABSOLUTE, Counts(50, 1000), None, 0.01)
    assert weigh(before, Counts(0, 10), None, 0.01) == weigh(ABSOLUTE, Counts(0, 10), None, 0.01)


@pytest.mark.parametrize("limit", [0.0, 1e-9, 0.05, 1.0])
@pytest.mark.parametrize("ours", [Counts(0, 1), Counts(1, 1), Counts(0, 10**6), Counts(10**6, 10**6)])
@pytest.mark.parametrize("claim", Claim)
@pytest.mark.parametrize("theirs", [None, Counts(0, 1), Counts(1, 1), Counts(0, 10**6), Counts(10**6, 10**6)])
def test_nothing_overflows(limit: float, ours: Counts, theirs: Counts | None, claim: Claim) -> None:
    evidence = beginning("any", is_compared=theirs is not None)
    for times in (1, 2, 5):
        beside = theirs and Counts(theirs.bad * times, theirs.total * times)
        evidence = weigh(evidence, Counts(ours.bad * times, ours.total * times), beside, limit, claim)
        assert -500 <= evidence.strength <= 500
