"""Judges a candidate: measurements in, verdicts out. What a verdict means for the rollout is told by `moves`.

Pure: no client, no clock, nothing remembered. What is measured and how is `measure`'s business, when to look again
the reconciler's.

The test. Whatever is measured is a pair of counts, so a side is a stream of good and bad answers with an unknown
rate. For a rate p, the ratio of how likely the counts are under a mixture of all rates (Jeffreys' prior, the
Krichevsky-Trofimov mixture) to how likely they are under p is a martingale of mean 1 if p is true, so by Ville's
inequality it ever reaches 1/alpha with a chance of at most alpha. It depends on the counts alone, so nothing has to
be kept between looks, and looking every few seconds does not add to the chance of a false alarm as it does with
binomial or Fisher tests. Two sides multiply; the candidate fails when even the most favourable pair of rates that
the bound allows reaches 1/alpha. A pleasant consequence: one unlucky error proves nothing, twenty in twenty prove
everything, and neither needs a special case. alpha is `FALSE_ROLLBACK` for a whole rollout, shared evenly by its
steps and by the bounds of its metrics.

Limits: rates must be steady within a step (counts start anew with each), and failures that cluster on one side for
reasons that are not the model, such as one bad node, look like the model's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from math import inf, lgamma, log, log1p
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from onnx_operator.api.common import parse_duration
from onnx_operator.api.rollout import MetricName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import timedelta

    from onnx_operator.api.rollout import Analysis

FALSE_ROLLBACK: Final = 0.001
"""The chance that a rollout of a candidate exactly as good as its bounds allow is taken back all the same."""


_EVERYTHING: Final = 100


class Verdict(StrEnum):
    """What a measurement says about the candidate, mildest first."""

    PASS = "Pass"  # noqa: S105  (a verdict, not a password)
    """Enough samples, and the candidate is within its bounds."""
    INCONCLUSIVE = "Inconclusive"
    """Enough samples, and the candidate is beyond a bound, but by so little that chance explains it."""
    NO_DATA = "NoData"
    """Too few samples to say anything. Silence is never good news."""
    PROVIDER_ERROR = "ProviderError"
    """What should have measured did not answer. Says nothing about the candidate."""
    FAIL = "Fail"
    """The candidate is beyond a bound, and chance does not explain it."""


_SEVERITY: Final = {verdict: rank for rank, verdict in enumerate(Verdict)}


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The most severe verdict; Pass for none, because no metrics means to promote by time and readiness alone."""
    return max(verdicts, key=_SEVERITY.__getitem__, default=Verdict.PASS)


@dataclass(frozen=True, slots=True)
class Counts:
    """Bad answers among all answers of one side.

    `disputed` answers may be the caller's own fault (a 4xx, a caller that hung up). They are not held against an
    absolute bound. In a comparison they count as bad: both sides hear the same callers in random order, so their
    mistakes fall on both alike, and an excess on one side is that side's doing.
    """

    bad: int
    total: int
    disputed: int = 0

    def __post_init__(self) -> None:
        if min(self.bad, self.disputed) < 0 or self.bad + self.disputed > self.total:
            raise ValueError(f"{self.bad} bad and {self.disputed} disputed of {self.total} answers cannot be")

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.bad + other.bad, self.total + other.total, self.disputed + other.disputed)

    @override
    def __str__(self) -> str:
        return f"{self.ratio:.2%} ({self.bad} of {self.total})"

    @property
    def ratio(self) -> float:
        """The share of bad answers; 0 of 0 is 0, so look at `total` first."""
        return self.bad / self.total if self.total else 0.0

    @property
    def strict(self) -> Counts:
        """The same with every disputed answer called bad."""
        return Counts(self.bad + self.disputed, self.total)


@dataclass(frozen=True, slots=True)
class Criterion:
    """What one metric must fulfil."""

    metric: MetricName
    minimum_samples: int
    maximum: Decimal | None = None
    tolerance: Decimal | None = None
    slower_than: timedelta | None = None

    @property
    def in_preview(self) -> Criterion:
        """The same where only those requests count that were pinned to the candidate.

        Nobody owes a preview any number of requests, and those it gets come from other callers than stable's, so
        that a comparison would compare callers. What the prober sends, it sends to both sides alike.
        """
        return self if self.metric is MetricName.DISAGREEMENT else replace(self.alone, minimum_samples=0)

    @property
    def alone(self) -> Criterion:
        """The same where stable gets no shared traffic, so that a comparison would compare callers as well."""
        return self if self.metric is MetricName.DISAGREEMENT else replace(self, tolerance=None)

    @property
    def bounds(self) -> int:
        """How many bounds the candidate is held to."""
        return (self.maximum is not None) + (self.tolerance is not None)


def criteria(analysis: Analysis, *, weight: int) -> tuple[Criterion, ...]:
    """The criteria that a spec declares, for a candidate with so many percent of the traffic."""
    declared = (
        Criterion(
            metric=metric.name,
            minimum_samples=analysis.minimum_samples,
            maximum=None if metric.maximum is None else Decimal(metric.maximum),
            tolerance=None if metric.tolerance is None else Decimal(metric.tolerance),
            slower_than=None if metric.slower_than is None else parse_duration(metric.slower_than),
        )
        for metric in analysis.metrics
    )
    if weight == 0:
        return tuple(one.in_preview for one in declared)
    return tuple(one.alone for one in declared) if weight == _EVERYTHING else tuple(declared)


class Outcome(StrEnum):
    """Whether there is something to judge."""

    MEASURED = "Measured"
    NO_DATA = "NoData"
    PROVIDER_ERROR = "ProviderError"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One metric of both sides over the same minutes.

    `stable` is None for metrics that are comparisons by themselves. `message` says why nothing was measured, or
    what a reader must know to understand the counts.
    """

    metric: MetricName
    outcome: Outcome
    candidate: Counts | None = None
    stable: Counts | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on one metric, with what it rests on."""

    metric: MetricName
    verdict: Verdict
    message: str
    candidate: Counts | None = None
    stable: Counts | None = None


def judge_all(wanted: tuple[Criterion, ...], measured: Iterable[Measurement], *, steps: int) -> tuple[Judgement, ...]:
    """Judge every criterion by its measurement; a criterion that nobody measured has NoData."""
    found: Mapping[MetricName, Measurement] = {measurement.metric: measurement for measurement in measured}
    bounds = sum(criterion.bounds for criterion in wanted)
    alpha = FALSE_ROLLBACK / max(1, steps * bounds)
    return tuple(
        judge(
            criterion,
            found.get(criterion.metric)
            or Measurement(criterion.metric, Outcome.NO_DATA, message="it was not measured"),
            alpha=alpha,
        )
        for criterion in wanted
    )


def judge(wanted: Criterion, seen: Measurement, *, alpha: float) -> Judgement:
    """Judge one metric, with a chance of at most `alpha` per bound of failing a candidate that keeps to it."""

    def judged(verdict: Verdict, message: str) -> Judgement:
        noted = f"{message}; {seen.message}" if seen.message else message
        return Judgement(wanted.metric, verdict, noted, seen.candidate, seen.stable)

    if seen.outcome is Outcome.PROVIDER_ERROR:
        return judged(Verdict.PROVIDER_ERROR, f"{wanted.metric} could not be measured")
    if seen.outcome is Outcome.NO_DATA or seen.candidate is None:
        lacks = f"{wanted.metric} has no data"
        owes_none = wanted.minimum_samples == 0
        return (
            judged(Verdict.PASS, f"{lacks}, and a preview owes none") if owes_none else judged(Verdict.NO_DATA, lacks)
        )

    breaches = _breaches(wanted, seen.candidate, seen.stable)
    for breach in breaches:
        # Proof does not wait for minimum samples: the test knows by itself how many it needs.
        if breach.evidence >= log(1 / alpha):
            return judged(Verdict.FAIL, breach.sentence)
    if lacking := _lacking(wanted, seen.candidate, seen.stable):
        return judged(Verdict.NO_DATA, lacking)
    for breach in breaches:
        return judged(Verdict.INCONCLUSIVE, f"{breach.sentence}, but that may be chance")
    return judged(Verdict.PASS, f"{wanted.metric} is within bounds: {_both(seen.candidate, seen.stable)}")


@dataclass(frozen=True, slots=True)
class _Breach:
    """A bound that the candidate's own counts are beyond; `evidence` is the log of how badly chance explains it."""

    sentence: str
    evidence: float


def _breaches(wanted: Criterion, candidate: Counts, stable: Counts | None) -> tuple[_Breach, ...]:
    """The bounds that the counts are beyond, the absolute one first."""
    found = []
    if wanted.maximum is not None and candidate.bad > wanted.maximum * candidate.total:
        sentence = f"{wanted.metric} is {_both(candidate, stable)}: above the maximum of {_percent(wanted.maximum)}"
        found.append(_Breach(sentence, _evidence(candidate, float(wanted.maximum))))
    if wanted.tolerance is not None and stable is not None and stable.total > 0:
        ours, theirs, tolerance = candidate.strict, stable.strict, float(wanted.tolerance)
        if ours.ratio > theirs.ratio + tolerance:
            sentence = (
                f"{wanted.metric} is {_both(candidate, stable)}: more than the tolerance of "
                f"{_percent(wanted.tolerance)} above stable"
            )
            found.append(_Breach(sentence, _evidence_of_excess(ours, theirs, tolerance)))
    return tuple(found)


def _lacking(wanted: Criterion, candidate: Counts, stable: Counts | None) -> str:
    """What is missing before anything good may be said; empty when nothing is."""
    if candidate.total < wanted.minimum_samples:
        return f"{wanted.metric} has {candidate.total} of {wanted.minimum_samples} samples of the candidate"
    if wanted.tolerance is None:
        return ""
    if stable is None or stable.total < wanted.minimum_samples:
        have = 0 if stable is None else stable.total
        return f"{wanted.metric} has {have} of {wanted.minimum_samples} samples of stable to compare with"
    return ""


def _both(candidate: Counts, stable: Counts | None) -> str:
    ours = f"{candidate} for the candidate"
    if candidate.disputed:
        ours += f" and {candidate.disputed} disputed"
    if stable is None:
        return ours
    theirs = f"{stable} for stable"
    return f"{ours}, {theirs} and {stable.disputed} disputed" if stable.disputed else f"{ours}, {theirs}"


def _percent(bound: Decimal) -> str:
    return f"{(bound * 100).normalize():f}%"


def _evidence(counts: Counts, rate: float) -> float:
    """Log of the ratio of the Jeffreys mixture's likelihood to that of `rate`; 6.9 is one chance in a thousand."""
    good = counts.total - counts.bad
    if (counts.bad and rate <= 0) or (good and rate >= 1):
        return inf  # cannot happen under this rate
    likelihood = (counts.bad * log(rate) if counts.bad else 0.0) + (good * log1p(-rate) if good else 0.0)
    return _log_beta(counts.bad + 0.5, good + 0.5) - _log_beta(0.5, 0.5) - likelihood


def _evidence_of_excess(candidate: Counts, stable: Counts, tolerance: float) -> float:
    """Evidence that the candidate's rate is above stable's by more than `tolerance`, whatever stable's rate is.

    The sum is convex in stable's rate, and the best excuse lies between what either side shows by itself.
    """

    def evidence(rate: float) -> float:
        return _evidence(candidate, rate + tolerance) + _evidence(stable, rate)

    low, high = stable.ratio, candidate.ratio - tolerance
    for _ in range(60):
        third = (high - low) / 3
        if evidence(low + third) < evidence(high - third):
            high -= third
        else:
            low += third
    return evidence((low + high) / 2)


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
