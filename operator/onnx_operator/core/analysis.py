"""Judges a candidate: measurements in, verdicts out. What a verdict means for the rollout is told by `moves`.

Pure: no client, no clock, nothing remembered. What is measured and how is `measure`'s business, when to look again
the reconciler's.

Whatever is measured is a pair of counts, so a side is a stream of good and bad answers. A candidate fails a bound when
its counts are beyond it and chance does not explain that: the `evidence` gathered look by look reaches 1/alpha. alpha
is the promise of the spec, `maxFalseRollback`, shared evenly by the steps and by the bounds that act. One unlucky error
proves nothing, twenty in twenty prove everything, and neither needs a special case.

Limit: failures that cluster on one side for reasons that are not the model, such as one bad node, look like the
model's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from math import ceil, log
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from onnx_operator.api.common import parse_duration
from onnx_operator.api.rollout import MetricName, Proof
from onnx_operator.core.evidence import Claim, beginning, samples_to_see, weigh

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import timedelta

    from onnx_operator.api.rollout import Analysis
    from onnx_operator.core.counts import Counts
    from onnx_operator.core.evidence import Evidence


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
class Criterion:
    """What one metric must fulfil."""

    metric: MetricName
    minimum_samples: int
    maximum: Decimal | None = None
    tolerance: Decimal | None = None
    slower_than: timedelta | None = None
    detect: Decimal | None = None
    is_dry_run: bool = False
    is_to_be_proved: bool = False

    @property
    def in_preview(self) -> Criterion:
        """The same where only those requests count that were pinned to the candidate.

        Nobody owes a preview any number of requests, and those it gets come from other callers than stable's, so
        that a comparison would compare callers. What the prober sends, it sends to both sides alike.
        """
        if self.metric is MetricName.DISAGREEMENT:
            return self
        return replace(self.alone, minimum_samples=0, detect=None, is_to_be_proved=False)

    @property
    def alone(self) -> Criterion:
        """The same where stable gets no shared traffic, so that a comparison would compare callers as well.

        What was to be detected beyond the tolerance goes with it.
        """
        if self.metric is MetricName.DISAGREEMENT or self.tolerance is None:
            return self
        return replace(self, tolerance=None, detect=None)

    @property
    def bounds(self) -> int:
        """How many bounds the candidate is held to."""
        return (self.maximum is not None) + (self.tolerance is not None)

    @property
    def words(self) -> str:
        """The bounds for a person."""
        parts = [] if self.maximum is None else [f"at most {_percent(self.maximum)}"]
        parts += [] if self.tolerance is None else [f"at most {_percent(self.tolerance)} above stable"]
        slow = "" if self.slower_than is None else f"; slow is over {_milliseconds(self.slower_than)}"
        return (", ".join(parts) or "no bound in this step") + slow


def criteria(analysis: Analysis, *, weight: int) -> tuple[Criterion, ...]:
    """The criteria that a spec declares, for a candidate with so many percent of the traffic."""
    declared = (
        Criterion(
            metric=metric.name,
            minimum_samples=analysis.minimum_samples,
            maximum=None if metric.maximum is None else Decimal(metric.maximum),
            tolerance=None if metric.tolerance is None else Decimal(metric.tolerance),
            slower_than=None if metric.slower_than is None else parse_duration(metric.slower_than),
            detect=None if metric.detect is None else Decimal(metric.detect),
            is_dry_run=bool(metric.dry_run),
            is_to_be_proved=analysis.proof is Proof.PROVE,
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
    evidence: tuple[Evidence, ...] = ()
    """What the next look goes on from."""
    is_dry_run: bool = False
    """Judged to be told, not to be followed."""


def judge_all(
    wanted: tuple[Criterion, ...],
    measured: Iterable[Measurement],
    *,
    steps: int,
    promise: float,
    before: Mapping[MetricName, tuple[Evidence, ...]] = MappingProxyType({}),
) -> tuple[Judgement, ...]:
    """Judge every criterion by its measurement; a criterion that nobody measured has NoData.

    `promise` is the chance of a false rollback over all `steps` of the rollout and all metrics that it follows;
    `before` the evidence of the earlier looks of this step.
    """
    found: Mapping[MetricName, Measurement] = {measurement.metric: measurement for measurement in measured}
    bounds = sum(criterion.bounds for criterion in wanted if not criterion.is_dry_run)
    alpha = promise / max(1, steps * bounds)
    return tuple(
        judge(
            criterion,
            found.get(criterion.metric)
            or Measurement(criterion.metric, Outcome.NO_DATA, message="it was not measured"),
            alpha=alpha,
            before=before.get(criterion.metric, ()),
        )
        for criterion in wanted
    )


def overall(judgements: Iterable[Judgement]) -> Verdict:
    """The verdict that the rollout follows."""
    return worst(one.verdict for one in judgements if not one.is_dry_run)


def judge(wanted: Criterion, seen: Measurement, *, alpha: float, before: tuple[Evidence, ...] = ()) -> Judgement:
    """Judge one metric, with a chance of at most `alpha` per bound of failing a candidate that keeps to it."""
    evidence = before

    def judged(verdict: Verdict, message: str) -> Judgement:
        noted = f"{message}; {seen.message}" if seen.message else message
        return Judgement(wanted.metric, verdict, noted, seen.candidate, seen.stable, evidence, wanted.is_dry_run)

    if seen.outcome is Outcome.PROVIDER_ERROR:
        return judged(Verdict.PROVIDER_ERROR, f"{wanted.metric} could not be measured")
    if seen.outcome is Outcome.NO_DATA or seen.candidate is None:
        lacks = f"{wanted.metric} has no data"
        owes_none = wanted.minimum_samples == 0
        return (
            judged(Verdict.PASS, f"{lacks}, and a preview owes none") if owes_none else judged(Verdict.NO_DATA, lacks)
        )

    bounds = tuple(_bounds(wanted, seen.candidate, seen.stable))
    against = tuple(one.weighed(before, Claim.BEYOND) for one in bounds)
    within = tuple(one.weighed(before, Claim.WITHIN) for one in bounds if wanted.is_to_be_proved)
    evidence, enough = (*against, *within), log(1 / alpha)
    for bound, gathered in zip(bounds, against, strict=True):
        # Proof does not wait for minimum samples: the test knows by itself how many it needs.
        if bound.breach and gathered.strength >= enough:
            return judged(Verdict.FAIL, bound.breach)
    if lacking := _lacking(wanted, seen.candidate, seen.stable, alpha):
        return judged(Verdict.NO_DATA, lacking)
    said = f"{wanted.metric} is within bounds: {_both(seen.candidate, seen.stable)}"
    doubts = [f"{one.breach}, but that may be chance" for one in bounds if one.breach and not one.is_slight]
    if any(one.strength < enough for one in within):
        doubts.append(f"{said}, but that is not proved yet")
    if doubts:
        return judged(Verdict.INCONCLUSIVE, doubts[0])
    slight = f"but by less than the {_percent(wanted.detect or Decimal(0))} that would have been seen"
    return judged(Verdict.PASS, next((f"{one.breach}, {slight}" for one in bounds if one.breach), said))


@dataclass(frozen=True, slots=True)
class _Bound:
    """One bound of a metric, and how the counts of the step stand to it."""

    words: str
    limit: Decimal
    ours: Counts
    theirs: Counts | None
    breach: str
    """How the counts are beyond the bound; empty while they keep to it."""
    is_slight: bool
    """Beyond it by less than what was to be detected."""

    def weighed(self, before: tuple[Evidence, ...], claim: Claim) -> Evidence:
        """The evidence for the claim, gathered before and in this look."""
        words = self.words if claim is Claim.BEYOND else f"within {self.words}"
        known = next((one for one in before if one.bound == words), None)
        known = known or beginning(words, is_compared=self.theirs is not None)
        return weigh(known, self.ours, self.theirs, float(self.limit), claim)


def _bounds(wanted: Criterion, candidate: Counts, stable: Counts | None) -> Iterator[_Bound]:
    """The bounds of a metric, the absolute one first."""
    suffix = "" if wanted.slower_than is None else f" over {_milliseconds(wanted.slower_than)}"
    if wanted.maximum is not None:
        ours, maximum, breach = candidate.lenient, wanted.maximum, ""
        if ours.bad > maximum * ours.total:
            breach = f"{wanted.metric} is {_both(candidate, stable)}: above the maximum of {_percent(maximum)}"
        is_slight = wanted.tolerance is None and ours.ratio < float(maximum + (wanted.detect or 0))
        yield _Bound(f"maximum {maximum}{suffix}", maximum, ours, None, breach, is_slight)
    if wanted.tolerance is not None and stable is not None:
        ours, theirs, tolerance, breach = candidate.strict, stable.strict, wanted.tolerance, ""
        if theirs.total > 0 and ours.ratio > theirs.ratio + float(tolerance):
            breach = (
                f"{wanted.metric} is {_both(candidate, stable)}: more than the tolerance of "
                f"{_percent(tolerance)} above stable"
            )
        is_slight = ours.ratio < theirs.ratio + float(tolerance + (wanted.detect or 0))
        yield _Bound(f"tolerance {tolerance}{suffix}", tolerance, ours, theirs, breach, is_slight)


def _lacking(wanted: Criterion, candidate: Counts, stable: Counts | None, alpha: float) -> str:
    """What is missing before anything good may be said; empty when nothing is."""
    if candidate.total < wanted.minimum_samples:
        return f"{wanted.metric} has {candidate.total} of {wanted.minimum_samples} samples of the candidate"
    if wanted.tolerance is not None and (stable is None or stable.total < wanted.minimum_samples):
        have = 0 if stable is None else stable.total
        return f"{wanted.metric} has {have} of {wanted.minimum_samples} samples of stable to compare with"
    if wanted.detect is None:
        return ""
    if wanted.tolerance is not None and stable is not None:
        need = samples_to_see(float(wanted.detect), float(wanted.tolerance), candidate.strict, stable.strict, alpha)
    else:
        need = samples_to_see(float(wanted.detect), float(wanted.maximum or 1), candidate.lenient, None, alpha)
    if candidate.total >= need:
        return ""
    return (
        f"{wanted.metric} has {candidate.total} of about {ceil(need)} samples of the candidate with which "
        f"{_percent(wanted.detect)} beyond its bound would have been seen"
    )


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


def _milliseconds(duration: timedelta) -> str:
    return f"{duration.total_seconds() * 1000:g} ms"
