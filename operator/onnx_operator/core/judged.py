"""Judges a candidate by this look's measurements, and keeps in its status what the next look goes on from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnx_operator.api.model import EvidenceStatus, MetricStatus, ServerCountsStatus, SplitStatus
from onnx_operator.api.rollout import MetricName, Provider
from onnx_operator.core.analysis import counted, in_words, judge_all, overall
from onnx_operator.core.conditions import clipped, instant, moment
from onnx_operator.core.counts import Counts
from onnx_operator.core.evidence import Evidence
from onnx_operator.core.followed import followed
from onnx_operator.core.scrapes import Tallies, Tally

if TYPE_CHECKING:
    from onnx_operator.api.model import CandidateStatus, MetricJobStatus
    from onnx_operator.core.analysis import Criterion, Judgement, Measurement
    from onnx_operator.core.view import View


def judged(view: View, measurements: tuple[Measurement, ...]) -> View:
    """The view with the judgement of this look's measurements, told and carried on from look to look."""
    candidate = view.ledger.candidate
    if candidate is None or view.plan is None:
        return view
    wanted = view.criteria
    tallies = {one.name: _tallies(one) for one in candidate.analysis}
    runs = list(view.runs.values())
    jobs = {one.measurement.metric: one.told for one in runs}
    found = [counted(one, tallies.get(one.metric, Tallies())) for one in measurements]
    found += [one.measurement for one in runs]
    pairs = _pairs(candidate, next((one.candidate for one in found if one.metric == MetricName.DISAGREEMENT), None))
    judgements = judge_all(
        wanted,
        (_without_golden(one, pairs or 0) for one in found),
        steps=view.plan.stops,
        promise=float(view.plan.analysis.max_false_rollback),
        before={one.name: tuple(map(_evidence, one.evidence)) for one in candidate.analysis},
    )
    for one in measurements:
        if one.scrapes is not None:
            tallies[one.metric] = tallies.get(one.metric, Tallies()).then(one.scrapes)
    verdict = str(overall(judgements))
    judged = candidate.model_copy(
        update={
            "verdict": verdict,
            "verdict_time": instant(view.now),
            "verdict_since_time": candidate.verdict_since_time if verdict == candidate.verdict else instant(view.now),
            "analysis": [
                _metric_status(
                    criterion, judgement, tallies.get(judgement.metric, Tallies()), jobs.get(judgement.metric)
                )
                for criterion, judgement in zip(wanted, judgements, strict=True)
            ],
            "measured_split": _split_status(view, judgements) if _gateway_counts(wanted) else None,
        }
    )
    return replace(view, ledger=view.ledger.model_copy(update={"candidate": judged}), judgements=judgements)


def _gateway_counts(wanted: tuple[Criterion, ...]) -> bool:
    """Servers count from the second look on and not while they come and go: another time on each side."""
    return any(one.metric == MetricName.ERROR_RATIO and one.provider is Provider.PROMETHEUS for one in wanted)


def _pairs(candidate: CandidateStatus, golden: Counts | float | None) -> int | None:
    """How many golden requests each side got since the last look before the step; None where that is not known."""
    # A prober may have begun anew.
    return max(0, golden.total - candidate.golden_requests_before) if isinstance(golden, Counts) else None


def _without_golden(found: Measurement, pairs: int) -> Measurement:
    """Of what servers counted in a shadow, golden requests are no mirrored ones."""
    if found.scrapes is None or not isinstance(found.candidate, Counts):
        return found
    return replace(found, mirrored=max(0, found.candidate.total - pairs))


def _split_status(view: View, judgements: tuple[Judgement, ...]) -> SplitStatus | None:
    by_name = {one.metric: one for one in judgements}
    requests, golden = by_name.get(MetricName.ERROR_RATIO), by_name.get(MetricName.DISAGREEMENT)
    candidate = view.ledger.candidate
    if requests is None or not isinstance(requests.candidate, Counts) or not isinstance(requests.stable, Counts):
        return None
    if candidate is None or candidate.step_started_time is None or (golden is not None and golden.candidate is None):
        return None
    found = followed(
        requests.candidate.total,
        requests.stable.total,
        percent=view.candidate_weight,
        pairs=_pairs(candidate, golden.candidate) if golden is not None else None,
        elapsed=view.now - moment(candidate.step_started_time),
    )
    if found is None:
        return None
    return SplitStatus(
        percent=found.percent,
        candidate_requests=found.candidate,
        requests=found.total,
        as_wanted=found.is_as_wanted,
    )


def _metric_status(
    criterion: Criterion, judgement: Judgement, tallies: Tallies, job: MetricJobStatus | None
) -> MetricStatus:
    return MetricStatus(
        name=judgement.metric,
        verdict=str(judgement.verdict),
        dry_run=judgement.is_dry_run,
        bound=criterion.words,
        candidate=_side(judgement.metric, judgement.candidate),
        stable=_side(judgement.metric, judgement.stable),
        candidate_samples=judgement.candidate.total if isinstance(judgement.candidate, Counts) else 0,
        stable_samples=judgement.stable.total if isinstance(judgement.stable, Counts) else 0,
        message=clipped(judgement.message),
        evidence=[_evidence_status(one) for one in judgement.evidence],
        candidate_counts=_server_counts(tallies.candidate),
        stable_counts=_server_counts(tallies.stable),
        job=job,
    )


def _side(metric: str, found: Counts | float | None) -> str | None:
    if isinstance(found, Counts):
        return f"{found.ratio:.4f}" if found.total else None
    return None if found is None else in_words(metric, found)


def _server_counts(tally: Tally | None) -> ServerCountsStatus | None:
    if tally is None:
        return None
    return ServerCountsStatus(
        servers=tally.servers,
        time=instant(tally.time),
        bad=tally.counts.bad,
        disputed=tally.counts.disputed,
        total=tally.counts.total,
        step_bad=tally.step.bad,
        step_disputed=tally.step.disputed,
        step_total=tally.step.total,
    )


def _tallies(told: MetricStatus) -> Tallies:
    return Tallies(_tally(told.candidate_counts), _tally(told.stable_counts))


def _tally(told: ServerCountsStatus | None) -> Tally | None:
    if told is None:
        return None
    return Tally(
        told.servers,
        moment(told.time),
        Counts(told.bad, told.total, told.disputed),
        Counts(told.step_bad, told.step_total, told.step_disputed),
    )


def _evidence_status(evidence: Evidence) -> EvidenceStatus:
    return EvidenceStatus(
        bound=evidence.bound,
        strength=f"{evidence.strength:.6f}",
        candidate_bad=evidence.candidate.bad,
        candidate_total=evidence.candidate.total,
        stable_bad=evidence.stable.bad if evidence.stable is not None else None,
        stable_total=evidence.stable.total if evidence.stable is not None else None,
    )


def _evidence(told: EvidenceStatus) -> Evidence:
    is_compared = told.stable_bad is not None and told.stable_total is not None
    return Evidence(
        told.bound,
        float(told.strength),
        Counts(told.candidate_bad, told.candidate_total),
        Counts(told.stable_bad or 0, told.stable_total or 0) if is_compared else None,
    )
