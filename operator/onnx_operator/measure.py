"""Measures a rollout: asks Prometheus and the prober, and hands back one measurement per criterion.

Measures only. What a measurement means is `core.analysis`'s business; this module never calls a candidate good or
bad, and it raises nothing: what cannot be measured is a measurement that says so.

Known limit: the prober's requests go through the same Services as everybody's and are counted with them. It sends
as many to the candidate as to stable, so at a low weight they are a larger share of the candidate's. Where users'
requests are much heavier or lighter than the golden ones, that blurs errorRatio and slowRatio a little.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from onnx_operator.adapters.asking import Outage
from onnx_operator.api.rollout import MetricName
from onnx_operator.core.analysis import Measurement, Outcome
from onnx_operator.core.counts import Counts
from onnx_operator.core.queries import Errors, Sides, Silence, Slowness

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from onnx_operator.adapters.prober import Probed, ProberReader
    from onnx_operator.adapters.prometheus import Prometheus
    from onnx_operator.core.analysis import Criterion
    from onnx_operator.core.queries import Series

_PROBER_SILENCE_SECONDS: Final = 30.0
"""A prober that compared nothing for so long has nothing to say about now, whatever it counted before."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is measured: both sides' Services (one per execution provider), versions, and the prober between them."""

    namespace: str
    candidate: tuple[str, ...]
    stable: tuple[str, ...]
    candidate_version: int
    stable_version: int
    model: str
    """Name of the model, which is that of its routes."""
    prober_url: str | None
    """Where the prober's pod listens, such as http://10.244.0.7:8080; None while there is no running pod."""


@dataclass(frozen=True, slots=True)
class Instruments:
    """What measuring needs; `prometheus` is None where the operator was given no address of one."""

    prometheus: Prometheus | None
    prober: ProberReader


async def measure(
    wanted: tuple[Criterion, ...], subject: Subject, instruments: Instruments, *, since: datetime, now: datetime
) -> tuple[Measurement, ...]:
    """Measure every criterion over the time from `since`, when the step began, to `now`."""
    return tuple(
        await asyncio.gather(
            *(_measure_one(criterion, subject, instruments, since=since, now=now) for criterion in wanted)
        )
    )


async def _measure_one(
    wanted: Criterion, subject: Subject, instruments: Instruments, *, since: datetime, now: datetime
) -> Measurement:
    if wanted.metric is MetricName.DISAGREEMENT:
        return await _measure_disagreement(subject, instruments.prober)
    if instruments.prometheus is None:
        why = "the operator was given no address of Prometheus"
        return Measurement(wanted.metric, Outcome.PROVIDER_ERROR, message=why)
    if now <= since:
        return Measurement(wanted.metric, Outcome.NO_DATA, message="the step has only just begun")

    mirrored_by = subject.model if wanted.mirror else ""
    question = _question(wanted, Sides(subject.namespace, subject.candidate, subject.stable, mirrored_by))
    if question is None:
        why = "slowerThan is missing, or beyond the hour at which the gateway's histogram ends"
        return Measurement(wanted.metric, Outcome.NO_DATA, message=why)
    series = await instruments.prometheus.query(question.text(since=since, now=now), at=now)
    return _counted(wanted.metric, question, series, now=now)


def _counted(
    metric: MetricName, question: Errors | Slowness, series: tuple[Series, ...] | Outage, *, now: datetime
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
    return Measurement(metric, Outcome.MEASURED, candidate, stable, question.note, mirrored)


def _question(wanted: Criterion, sides: Sides) -> Errors | Slowness | None:
    if wanted.metric is MetricName.ERROR_RATIO:
        return Errors(sides)
    return None if wanted.slower_than is None else Slowness.above(wanted.slower_than, sides)


async def _measure_disagreement(subject: Subject, prober: ProberReader) -> Measurement:
    """Pairs since the prober's start: agreement does not depend on the weight, so steps need not begin anew."""
    metric = MetricName.DISAGREEMENT
    if subject.prober_url is None:
        return Measurement(metric, Outcome.NO_DATA, message="no prober is running yet")
    probed = await prober.read(subject.prober_url)
    if isinstance(probed, Outage):
        return Measurement(metric, Outcome.PROVIDER_ERROR, message=probed.why)
    if (probed.stable_version, probed.candidate_version) != (
        str(subject.stable_version),
        str(subject.candidate_version),
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
