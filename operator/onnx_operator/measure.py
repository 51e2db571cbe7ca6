"""Measures a rollout: asks Prometheus, the servers and the prober, and hands back one measurement per criterion.

Measures only. What a measurement means is `core.analysis`'s business; this module never calls a candidate good or
bad, and it raises nothing: what cannot be measured is a measurement that says so.

Known limit: the prober's requests go through the same Services as everybody's and are counted with them. It sends
as many to the candidate as to stable, so at a low weight they are a larger share of the candidate's. Where users'
requests are much heavier or lighter than the golden ones, that blurs errorRatio and slowRatio a little.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from onnx_operator.adapters.asking import Outage
from onnx_operator.adapters.triton import TritonReader
from onnx_operator.api.rollout import MetricName, Provider
from onnx_operator.core.analysis import Measurement, Outcome
from onnx_operator.core.counts import Counts
from onnx_operator.core.names import digest_of
from onnx_operator.core.queries import Errors, Sides, Silence, Slowness
from onnx_operator.core.questions import filled_in, largest, memory_query, one_number, two_counts
from onnx_operator.core.scrapes import Scrape, Scrapes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from onnx_operator.adapters.prober import Probed, ProberReader
    from onnx_operator.adapters.prometheus import Prometheus
    from onnx_operator.api.rollout import PrometheusQuery
    from onnx_operator.core.analysis import Criterion
    from onnx_operator.core.queries import Series
    from onnx_operator.core.questions import Party

_MOST_OF_ONE_NUMBER: Final = 1024 * 1024
"""Bytes of an answer to a query of the user's own. One number has a hundred; all series of Prometheus, asked for by
each metric of each model, would not fit into the operator."""
_PROBER_SILENCE_SECONDS: Final = 30.0
"""A prober that compared nothing for so long has nothing to say about now, whatever it counted before."""


@dataclass(frozen=True, slots=True)
class ProberPod:
    """The pod of a rollout's prober."""

    url: str | None
    """Where it listens, such as http://10.244.0.7:8080; None while there is none that is ready."""
    last_words: str = ""
    """What one that ended has said."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is measured: both sides of a model's rollout, and the prober between them."""

    namespace: str
    model: str
    """Name of the model, which is that of its routes."""
    candidate: Party
    stable: Party
    prober: ProberPod


@dataclass(frozen=True, slots=True)
class Instruments:
    """What measuring needs; `prometheus` is None where the operator was given no address of one."""

    prometheus: Prometheus | None
    prober: ProberReader
    triton: TritonReader = field(default_factory=TritonReader)


async def measure(
    wanted: tuple[Criterion, ...], subject: Subject, instruments: Instruments, *, since: datetime, now: datetime
) -> tuple[Measurement, ...]:
    """Measure every criterion over the time from `since`, when the step began, to `now`."""
    return tuple(
        await asyncio.gather(
            *(_measure_one(criterion, subject, instruments, since=since, now=now) for criterion in wanted)
        )
    )


async def _measure_one(  # noqa: PLR0911  (who measures what is a table)
    wanted: Criterion, subject: Subject, instruments: Instruments, *, since: datetime, now: datetime
) -> Measurement:
    if wanted.metric == MetricName.DISAGREEMENT:
        return await _measure_disagreement(subject, instruments.prober)
    if wanted.provider is Provider.TRITON:
        return await _measure_servers(wanted.metric, subject, instruments.triton, now=now)
    if instruments.prometheus is None:
        why = "the operator was given no address of Prometheus"
        return Measurement(wanted.metric, Outcome.PROVIDER_ERROR, message=why)
    if now <= since:
        return Measurement(wanted.metric, Outcome.NO_DATA, message="the step has only just begun")
    if wanted.query is not None:
        asked = _Asked(wanted.query, subject, instruments.prometheus, since=since, now=now)
        found = await asyncio.gather(asked.of(subject.candidate), asked.of(subject.stable))
        return _both_sides(wanted.metric, *found)
    if wanted.metric == MetricName.MEMORY:
        return await _measure_memory(subject, instruments.prometheus, now=now)
    return await _measure_gateway(wanted, subject, instruments.prometheus, since=since, now=now)


async def _measure_gateway(
    wanted: Criterion, subject: Subject, prometheus: Prometheus, *, since: datetime, now: datetime
) -> Measurement:
    mirrored_by = subject.model if wanted.mirror else ""
    sides = Sides(subject.namespace, subject.candidate.services, subject.stable.services, mirrored_by)
    question = _question(wanted, sides)
    if question is None:
        why = "slowerThan is missing, or beyond the hour at which the gateway's histogram ends"
        return Measurement(wanted.metric, Outcome.NO_DATA, message=why)
    series = await prometheus.query(question.text(since=since, now=now), at=now)
    return _counted(wanted.metric, question, series, now=now)


def _counted(
    metric: str, question: Errors | Slowness, series: tuple[Series, ...] | Outage, *, now: datetime
) -> Measurement:
    if isinstance(series, Outage):
        return Measurement(metric, Outcome.PROVIDER_ERROR, message=series.why)
    counted = question.count(series, now=now)
    if isinstance(counted, Silence):
        return Measurement(metric, Outcome.NO_DATA, message=counted.why)
    mirrored = question.mirrored(series)
    if isinstance(mirrored, Silence):
        return Measurement(metric, Outcome.NO_DATA, message=mirrored.why)
    candidate, stable = counted
    return Measurement(metric, Outcome.MEASURED, candidate, stable, question.note, mirrored=mirrored)


def _question(wanted: Criterion, sides: Sides) -> Errors | Slowness | None:
    if wanted.metric == MetricName.ERROR_RATIO:
        return Errors(sides)
    return None if wanted.slower_than is None else Slowness.above(wanted.slower_than, sides)


_Found = Counts | float | Silence | Outage


def _both_sides(metric: str, candidate: _Found, stable: _Found) -> Measurement:
    """What was found of each side; without stable absolute bounds can be judged all the same."""
    if isinstance(candidate, Silence | Outage):
        return _not_measured(metric, candidate)
    if isinstance(stable, Silence | Outage):
        return Measurement(metric, Outcome.MEASURED, candidate, message=f"for stable: {stable.why}")
    return Measurement(metric, Outcome.MEASURED, candidate, stable)


def _not_measured(metric: str, why: Silence | Outage) -> Measurement:
    outcome = Outcome.PROVIDER_ERROR if isinstance(why, Outage) else Outcome.NO_DATA
    return Measurement(metric, outcome, message=f"for the candidate: {why.why}")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A query of the user's own, as it is asked of one look."""

    query: PrometheusQuery
    subject: Subject
    prometheus: Prometheus
    since: datetime
    now: datetime

    async def of(self, party: Party) -> _Found:
        if self.query.value is not None:
            return await self._number(self.query.value, party)
        bad, total = await asyncio.gather(
            *(self._number(each or "", party) for each in (self.query.bad, self.query.total))
        )
        if not isinstance(bad, float):
            return bad
        return two_counts(bad, total) if isinstance(total, float) else total

    async def _number(self, expression: str, party: Party) -> float | Silence | Outage:
        where = {"namespace": self.subject.namespace, "model": self.subject.model}
        text = filled_in(expression, party, **where, since=self.since, now=self.now)
        series = await self.prometheus.query(text, at=self.now, most_bytes=_MOST_OF_ONE_NUMBER)
        return series if isinstance(series, Outage) else one_number(series)


async def _measure_memory(subject: Subject, prometheus: Prometheus, *, now: datetime) -> Measurement:
    async def of(party: Party) -> _Found:
        if not party.pods:
            return Silence("no server is ready")
        series = await prometheus.query(memory_query(subject.namespace, party.pods), at=now)
        return series if isinstance(series, Outage) else largest(series, party.pods)

    return _both_sides(MetricName.MEMORY, *await asyncio.gather(of(subject.candidate), of(subject.stable)))


async def _measure_servers(metric: str, subject: Subject, triton: TritonReader, *, now: datetime) -> Measurement:
    async def of(party: Party) -> Scrape | Silence | Outage:
        if not party.pods:
            return Silence("no server is ready")
        asked = (triton.read(pod.address, model=subject.model, version=party.number) for pod in party.pods)
        told = await asyncio.gather(*asked)
        # A part of a side may be its good part.
        if silent := next((one for one in told if isinstance(one, Outage)), None):
            return silent
        containers = sorted((pod.uid, pod.restarts) for pod in party.pods)
        counts = sum((one for one in told if isinstance(one, Counts)), Counts(0, 0))
        return Scrape(digest_of(containers, 16), len(containers), now, counts)

    candidate, stable = await asyncio.gather(of(subject.candidate), of(subject.stable))
    if not isinstance(candidate, Scrape):
        return _not_measured(metric, candidate)
    if isinstance(stable, Scrape):
        return Measurement(metric, Outcome.MEASURED, scrapes=Scrapes(candidate, stable))
    message = f"for stable: {stable.why}"
    return Measurement(metric, Outcome.MEASURED, message=message, scrapes=Scrapes(candidate, None))


async def _measure_disagreement(subject: Subject, prober: ProberReader) -> Measurement:
    """Pairs since the prober's start: agreement does not depend on the weight, so steps need not begin anew."""
    metric = MetricName.DISAGREEMENT
    if subject.prober.url is None:
        ended = f"; the last one ended: {subject.prober.last_words}" if subject.prober.last_words else ""
        return Measurement(metric, Outcome.NO_DATA, message=f"no prober is running yet{ended}")
    probed = await prober.read(subject.prober.url)
    if isinstance(probed, Outage):
        return Measurement(metric, Outcome.PROVIDER_ERROR, message=probed.why)
    if (probed.stable_version, probed.candidate_version) != (
        str(subject.stable.number),
        str(subject.candidate.number),
    ):
        return Measurement(
            metric,
            Outcome.NO_DATA,
            message=f"the prober still compares version {probed.candidate_version} with {probed.stable_version}",
        )
    ago = probed.last_compared_seconds_ago
    if ago is None or ago > _PROBER_SILENCE_SECONDS:
        return Measurement(metric, Outcome.NO_DATA, message=_why_nothing_was_compared(probed))
    message = f"by {_listed(probed.reasons)}" if probed.reasons else ""
    return Measurement(metric, Outcome.MEASURED, Counts(probed.disagreeing, probed.compared), message=message)


def _why_nothing_was_compared(probed: Probed) -> str:
    since = "yet" if probed.last_compared_seconds_ago is None else f"for {probed.last_compared_seconds_ago:.0f} s"
    reasons = _listed(probed.not_compared) if probed.not_compared else "no answers at all"
    return f"the prober has compared no pair {since}: {reasons}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
