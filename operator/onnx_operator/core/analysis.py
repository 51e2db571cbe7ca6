"""Judges a candidate: measurements in, verdicts out. What a verdict means for the rollout is told by `moves`.

Pure: no client, no clock, nothing remembered. What is measured and how is `measure`'s business, when to look again
the reconciler's.

Whatever is measured is a pair of counts, so a side is a stream of good and bad answers. A candidate fails a bound when
its counts are beyond it and chance does not explain that: the `evidence` gathered look by look reaches 1/alpha. alpha
is the promise of the spec, `maxFalseRollback`, shared evenly by the steps and by the bounds that act. One unlucky error
proves nothing, twenty in twenty prove everything, and neither needs a special case.

A value, such as memory, is the exception: one number a look has no theory of chance, so it takes no part in the promise
and fails when it is beyond its bound in three looks running, or at once where a Job has taken its time to measure it.

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

from onnx_operator.api.common import parse_duration, parse_quantity
from onnx_operator.api.rollout import MetricName, Proof, Provider
from onnx_operator.core.conditions import clipped
from onnx_operator.core.counts import Counts
from onnx_operator.core.evidence import Claim, Evidence, beginning, samples_to_see, weigh

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from datetime import timedelta

    from onnx_operator.api.rollout import Analysis, AnalysisJob, Metric, PrometheusQuery
    from onnx_operator.core.scrapes import Scrapes, Tallies


_EVERYTHING: Final = 100
_OF_TRAFFIC: Final = frozenset({MetricName.ERROR_RATIO, MetricName.SLOW_RATIO, MetricName.LATENCY_QUANTILE})
"""What is counted of requests that may be mirrored."""
_MOST_WORDS: Final = 128
"""Of the bounds of a metric, in status."""
_LOOKS_TO_FAIL: Final = 3
"""One look may fall into a reload or a large batch; three running, an interval apart, are how the servers are."""


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

    metric: str
    minimum_samples: int
    maximum: Decimal | None = None
    tolerance: Decimal | None = None
    slower_than: timedelta | None = None
    detect: Decimal | None = None
    is_dry_run: bool = False
    is_to_be_proved: bool = False
    provider: Provider = Provider.PROMETHEUS
    query: PrometheusQuery | None = None
    """For a metric of the user's own."""
    job: AnalysisJob | None = None
    """The same. A Job asks both sides by itself, whatever their weights: what it says is judged in every step alike."""
    maximum_value: Decimal | None = None
    minimum_value: Decimal | None = None
    maximum_of_stable: Decimal | None = None
    minimum_of_stable: Decimal | None = None
    mirror: int = 0
    """Percent of stable's requests that are mirrored to the candidate: the only ones that count as samples, then."""

    @property
    def in_preview(self) -> Criterion:
        """The same where only those requests count that were pinned to the candidate.

        Nobody owes a preview any number of requests, and those it gets come from other callers than stable's, so
        that a comparison would compare callers. What the prober sends, it sends to both sides alike.
        """
        match self.metric:
            case _ if self.job is not None:
                return self
            case MetricName.DISAGREEMENT:
                return self
            case MetricName.MEMORY:
                return self.alone
            case MetricName.THROUGHPUT_PER_REPLICA:
                return replace(self, minimum_samples=0, minimum_value=None)
            case _:
                return replace(self.alone, minimum_samples=0, detect=None, is_to_be_proved=False)

    @property
    def alone(self) -> Criterion:
        """The same where stable gets no shared traffic, so that a comparison would compare callers as well.

        What was to be detected beyond the tolerance goes with it.
        """
        if self.metric == MetricName.DISAGREEMENT or self.job is not None:
            return self
        detect = self.detect if self.tolerance is None else None
        return replace(self, tolerance=None, detect=detect, maximum_of_stable=None, minimum_of_stable=None)

    @property
    def bounds(self) -> int:
        """How many bounds the candidate is held to that share in the promise."""
        return (self.maximum is not None) + (self.tolerance is not None)

    @property
    def is_value(self) -> bool:
        """Whether there is a number to be held to a bound."""
        bounds = (self.maximum_value, self.minimum_value, self.maximum_of_stable, self.minimum_of_stable)
        return any(one is not None for one in bounds)

    @property
    def words(self) -> str:
        """The bounds for a person."""
        parts = [] if self.maximum is None else [f"at most {_percent(self.maximum)}"]
        parts += [] if self.tolerance is None else [f"at most {_percent(self.tolerance)} above stable"]
        parts += [] if self.maximum_value is None else [f"at most {in_words(self.metric, float(self.maximum_value))}"]
        parts += [] if self.minimum_value is None else [f"at least {in_words(self.metric, float(self.minimum_value))}"]
        parts += [] if self.maximum_of_stable is None else [f"at most {self.maximum_of_stable} times stable's"]
        parts += [] if self.minimum_of_stable is None else [f"at least {self.minimum_of_stable} times stable's"]
        parts += ["exit code 0"] if self.job is not None and not parts else []
        slow = "" if self.slower_than is None else f"; slow is over {_milliseconds(self.slower_than)}"
        # A bound such as 1e-99 is a long story.
        return clipped((", ".join(parts) or "no bound in this step") + slow, _MOST_WORDS)


def criteria(
    analysis: Analysis, *, weight: int, mirror: int = 0, followed: Collection[str] | None = None
) -> tuple[Criterion, ...]:
    """The criteria that a spec declares, for a candidate with so many percent of the traffic, or copies of it.

    Those not named in `followed` are told only: golden requests are counted through all steps. None follows all.
    """
    declared = tuple(
        replace(_criterion(metric, analysis, mirror), is_dry_run=bool(metric.dry_run) or not is_followed)
        for metric in analysis.metrics
        if (is_followed := followed is None or metric.name in followed) or metric.job is None
    )
    if weight == 0 and not mirror:
        return tuple(one.in_preview for one in declared)
    return tuple(one.alone for one in declared) if weight == _EVERYTHING else declared


def _criterion(metric: Metric, analysis: Analysis, mirror: int) -> Criterion:
    maximum = _decimal(metric.maximum)
    if metric.quantile is not None:
        # The 99th percentile is above a duration exactly when more than 1 % of the answers are.
        maximum = 1 - Decimal(metric.quantile)
    default = Provider.TRITON if metric.name == MetricName.THROUGHPUT_PER_REPLICA else Provider.PROMETHEUS
    provider = metric.provider or (default if metric.job is None else Provider.JOB)
    return Criterion(
        metric=metric.name,
        minimum_samples=analysis.minimum_samples,
        maximum=maximum,
        tolerance=_decimal(metric.tolerance),
        slower_than=None if metric.slower_than is None else parse_duration(metric.slower_than),
        detect=_decimal(metric.detect),
        is_to_be_proved=analysis.proof is Proof.PROVE,
        provider=provider,
        query=metric.prometheus,
        job=metric.job,
        maximum_value=None if metric.maximum_value is None else parse_quantity(metric.maximum_value),
        minimum_value=None if metric.minimum_value is None else parse_quantity(metric.minimum_value),
        maximum_of_stable=_decimal(metric.maximum_of_stable),
        minimum_of_stable=_decimal(metric.minimum_of_stable),
        mirror=mirror if metric.name in _OF_TRAFFIC else 0,
    )


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


class Outcome(StrEnum):
    """Whether there is something to judge."""

    MEASURED = "Measured"
    PASSED = "Passed"
    """What measured has judged as well: good."""
    FAILED = "Failed"
    """The same: bad."""
    NO_DATA = "NoData"
    PROVIDER_ERROR = "ProviderError"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One metric of both sides over the same minutes.

    A value is a float: bytes, answers per second, or what the user's query gave. `stable` is None for metrics that are
    comparisons by themselves, and where stable could not be measured. `message` says why nothing was measured, or
    what a reader must know to understand the counts.
    """

    metric: str
    outcome: Outcome
    candidate: Counts | float | None = None
    stable: Counts | float | None = None
    message: str = ""
    scrapes: Scrapes | None = None
    """What the servers themselves have counted, from which follows the rest."""
    mirrored: int = 0
    """How many of the candidate's answers are to mirrored requests."""


def counted(seen: Measurement, before: Tallies) -> Measurement:
    """The measurement with what its scrapes come to, after those of the step's earlier looks."""
    if seen.scrapes is None:
        return seen
    if seen.metric == MetricName.THROUGHPUT_PER_REPLICA:
        candidate, stable = before.rates(seen.scrapes)
        if candidate is None:
            return replace(seen, outcome=Outcome.NO_DATA, message="the candidate's servers are counted from now on")
        return replace(seen, candidate=candidate, stable=stable)
    after = before.then(seen.scrapes)
    return replace(
        seen,
        candidate=None if after.candidate is None else after.candidate.step,
        stable=None if after.stable is None or seen.scrapes.stable is None else after.stable.step,
    )


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on one metric, with what it rests on."""

    metric: str
    verdict: Verdict
    message: str
    candidate: Counts | float | None = None
    stable: Counts | float | None = None
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
    before: Mapping[str, tuple[Evidence, ...]] = MappingProxyType({}),
) -> tuple[Judgement, ...]:
    """Judge every criterion by its measurement; a criterion that nobody measured has NoData.

    `promise` is the chance of a false rollback over all `steps` of the rollout and all metrics that it follows;
    `before` the evidence of the earlier looks of this step.
    """
    found: Mapping[str, Measurement] = {measurement.metric: measurement for measurement in measured}
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


def limit_of(analysis: Analysis, verdict: str | None) -> str | None:
    """How long this verdict may last by the spec; None where the progress deadline alone counts."""
    limits = analysis.limits
    limited = {
        Verdict.NO_DATA: limits.no_data,
        Verdict.PROVIDER_ERROR: limits.provider_error,
        Verdict.INCONCLUSIVE: limits.inconclusive,
    }
    return None if verdict is None else limited.get(Verdict(verdict))


def judge(wanted: Criterion, seen: Measurement, *, alpha: float, before: tuple[Evidence, ...] = ()) -> Judgement:
    """Judge one metric, with a chance of at most `alpha` per bound of failing a candidate that keeps to it."""
    evidence = before

    def judged(verdict: Verdict, message: str) -> Judgement:
        noted = "; ".join(filter(None, (message, _mirrored(wanted, seen), seen.message)))
        return Judgement(wanted.metric, verdict, noted, seen.candidate, seen.stable, evidence, wanted.is_dry_run)

    if seen.outcome is Outcome.PROVIDER_ERROR:
        return judged(Verdict.PROVIDER_ERROR, f"{wanted.metric} could not be measured")
    if seen.outcome is Outcome.FAILED:
        return judged(Verdict.FAIL, f"{wanted.metric} found the candidate bad")
    if seen.outcome is Outcome.PASSED:
        return judged(Verdict.PASS, f"{wanted.metric} found the candidate good")
    if seen.outcome is Outcome.NO_DATA or seen.candidate is None:
        lacks = f"{wanted.metric} has no data"
        owes_none = wanted.minimum_samples == 0
        return (
            judged(Verdict.PASS, f"{lacks}, and a preview owes none") if owes_none else judged(Verdict.NO_DATA, lacks)
        )

    if isinstance(seen.candidate, Counts):
        theirs = seen.stable if isinstance(seen.stable, Counts) else None
        verdict, message, evidence = _judge_counts(
            wanted, seen.candidate, theirs, before, mirrored=seen.mirrored, alpha=alpha
        )
    else:
        value = seen.stable if isinstance(seen.stable, float) else None
        verdict, message, evidence = _judge_value(wanted, seen.candidate, value, before)
    return judged(verdict, message)


_Finding = tuple[Verdict, str, tuple[Evidence, ...]]


def _judge_counts(
    wanted: Criterion,
    candidate: Counts,
    stable: Counts | None,
    before: tuple[Evidence, ...],
    *,
    mirrored: int,
    alpha: float,
) -> _Finding:
    if wanted.query is not None and _is_stuck(candidate, stable, before, may_rest=not wanted.minimum_samples):
        said = f"{wanted.metric} has counted nothing since the look before: {_both(candidate, stable)}"
        return Verdict.NO_DATA, said, before
    bounds = tuple(_bounds(wanted, candidate, stable))
    against = tuple(one.weighed(before, Claim.BEYOND) for one in bounds)
    within = tuple(one.weighed(before, Claim.WITHIN) for one in bounds if wanted.is_to_be_proved)
    evidence, enough = (*against, *within), log(1 / alpha)
    if stable is None:
        # What speaks of a comparison waits until stable answers again.
        evidence += tuple(one for one in before if one.stable is not None)
    for bound, gathered in zip(bounds, against, strict=True):
        # Proof does not wait for minimum samples: the test knows by itself how many it needs.
        if bound.breach and gathered.strength >= enough:
            return Verdict.FAIL, bound.breach, evidence
    if lacking := _unmirrored(wanted, mirrored) or _lacking(wanted, candidate, stable, alpha):
        return Verdict.NO_DATA, lacking, evidence
    said = f"{wanted.metric} is within bounds: {_both(candidate, stable)}"
    doubts = [f"{one.breach}, but that may be chance" for one in bounds if one.breach and not one.is_slight]
    if any(one.strength < enough for one in within):
        doubts.append(f"{said}, but that is not proved yet")
    if doubts:
        return Verdict.INCONCLUSIVE, doubts[0], evidence
    slight = f"but by less than the {_percent(wanted.detect or Decimal(0))} that would have been seen"
    return Verdict.PASS, next((f"{one.breach}, {slight}" for one in bounds if one.breach), said), evidence


def _judge_value(wanted: Criterion, ours: float, theirs: float | None, before: tuple[Evidence, ...]) -> _Finding:
    said = f"{wanted.metric} is {in_words(wanted.metric, ours)} for the candidate"
    if theirs is not None:
        said += f", {in_words(wanted.metric, theirs)} for stable"
    bounds = tuple(_value_bounds(wanted, ours, theirs))
    looks = tuple(_looked(words, before, is_beyond=is_beyond) for words, is_beyond in bounds)
    longest = max(looks, key=lambda one: one.candidate.bad, default=beginning("", is_compared=False))
    running = longest.candidate.bad
    # A Job measures once, for as long as its author thinks fit: its number does not change from look to look.
    if running and wanted.job is not None:
        return Verdict.FAIL, f"{said}: beyond {longest.bound}", looks
    if running >= _LOOKS_TO_FAIL:
        return Verdict.FAIL, f"{said}: beyond {longest.bound} in {running} looks running", looks
    if (wanted.maximum_of_stable or wanted.minimum_of_stable) and (theirs is None or theirs <= 0):
        return Verdict.NO_DATA, f"{said}: there is nothing of stable to compare with", looks
    if running:
        message = f"{said}: beyond {longest.bound} in {running} of {_LOOKS_TO_FAIL} looks running"
        return Verdict.INCONCLUSIVE, message, looks
    return Verdict.PASS, f"{said}: within bounds", looks


def _value_bounds(wanted: Criterion, ours: float, theirs: float | None) -> Iterator[tuple[str, bool]]:
    """The bounds of a value in words, and whether it is beyond them."""
    if wanted.maximum_value is not None:
        yield f"maximumValue {in_words(wanted.metric, float(wanted.maximum_value))}", ours > wanted.maximum_value
    if wanted.minimum_value is not None:
        yield f"minimumValue {in_words(wanted.metric, float(wanted.minimum_value))}", ours < wanted.minimum_value
    if theirs is None or theirs <= 0:
        return
    if wanted.maximum_of_stable is not None:
        yield f"maximumOfStable {wanted.maximum_of_stable}", ours > float(wanted.maximum_of_stable) * theirs
    if wanted.minimum_of_stable is not None:
        yield f"minimumOfStable {wanted.minimum_of_stable}", ours < float(wanted.minimum_of_stable) * theirs


def _looked(words: str, before: tuple[Evidence, ...], *, is_beyond: bool) -> Evidence:
    """One more look at a value: how many were beyond the bound running, of how many."""
    known = next((one for one in before if one.bound == words), beginning(words, is_compared=False))
    running = known.candidate.bad + 1 if is_beyond else 0
    return replace(known, candidate=Counts(running, known.candidate.total + 1))


_MOST_MEMORY: Final = 2.0**63
"""Bytes that no pod has, but a bound may name."""


def in_words(metric: str, value: float) -> str:
    """A value with its unit."""
    match metric:
        case MetricName.MEMORY if value < _MOST_MEMORY:
            return f"{value / 2**20:.1f}Mi"
        case MetricName.THROUGHPUT_PER_REPLICA:
            return f"{value:.4g}/s"
        case _:
            return f"{value:.6g}"


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
            if wanted.metric == MetricName.LATENCY_QUANTILE:
                breach = f"the {1 - maximum} quantile is{suffix}: {_both(candidate, stable)} were slower"
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


def _is_stuck(candidate: Counts, stable: Counts | None, before: tuple[Evidence, ...], *, may_rest: bool) -> bool:
    """Whether counts of the user's own query have not gone on.

    Nobody knows when what such a query reads was scraped, but what is fresh grows. increase() extrapolates, so a count
    may also fall by a little, and what was bet on must not be bet on again.
    """
    ours = max((one.candidate.total for one in before), default=-1)
    theirs = max((one.stable.total for one in before if one.stable is not None), default=0)
    has_fallen = candidate.total < ours or (stable is not None and stable.total < theirs)
    return has_fallen or (candidate.total == ours and not may_rest)


def _mirrored(wanted: Criterion, seen: Measurement) -> str:
    """What the mirror really brought: a gateway may take its percentage otherwise than it was meant."""
    if seen.scrapes is not None:  # servers cannot tell requests apart
        return ""
    if not wanted.mirror or not seen.mirrored or not isinstance(seen.stable, Counts) or not seen.stable.total:
        return ""
    share = seen.mirrored / seen.stable.total
    return f"{seen.mirrored} requests were mirrored, {share:.0%} of stable's, where {wanted.mirror}% are wanted"


def _unmirrored(wanted: Criterion, mirrored: int) -> str:
    """What the mirror still owes. What came by the header says nothing of it: the prober sends that in any case."""
    if not wanted.mirror or mirrored >= wanted.minimum_samples:
        return ""
    doubt = "" if mirrored else ": does the gateway support RequestMirror, and does the model get requests?"
    return (
        f"{wanted.metric} has {mirrored} of {wanted.minimum_samples} mirrored samples; the step mirrors "
        f"{wanted.mirror} % of stable's requests{doubt}"
    )


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
