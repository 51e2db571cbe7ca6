"""What the Jobs of metrics say of a candidate: how each stands, as a measurement, and what is kept of its end.

A Job may be gone the next day, so its end is written down with the judgement, and what is written down is not run
again. Only a clear word of the Job itself speaks of the candidate; whatever else ended it is trouble of the provider.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, assert_never

from onnx_operator.api.model import MetricJobStatus
from onnx_operator.api.rollout import DEFAULT_FAIL_EXIT_CODES
from onnx_operator.core import reasons
from onnx_operator.core.analysis import Measurement, Outcome
from onnx_operator.core.conditions import clipped
from onnx_operator.core.jobs import JobBlocked, JobFailed, JobPassed, JobRunning
from onnx_operator.core.names import analysis_job_name

if TYPE_CHECKING:
    from onnx_operator.api.model import CandidateStatus
    from onnx_operator.core.analysis import Criterion
    from onnx_operator.core.jobs import AnalysisJobState
    from onnx_operator.core.observation import RevisionSeen

_MOST_WORDS: Final = 512


@dataclass(frozen=True, slots=True)
class Run:
    """A metric's Job in the present step."""

    measurement: Measurement
    #: None while it has not ended.
    told: MetricJobStatus | None = None


def job_name(wanted: Criterion, candidate: CandidateStatus, revision: RevisionSeen) -> str:
    """One Job for each metric in each step that is entered; another Job in the spec is another one here."""
    job = wanted.job.model_dump(mode="json", exclude_none=True) if wanted.job is not None else None
    began = [candidate.started_time, candidate.step_started_time, revision.status.attempt]
    return analysis_job_name(revision.name, [wanted.metric, job, *began])


def told_run(name: str, candidate: CandidateStatus) -> MetricJobStatus | None:
    """What an earlier look has written down of the Job's end."""
    return next((one.job for one in candidate.analysis if one.job is not None and one.job.name == name), None)


def read_run(wanted: Criterion, name: str, state: AnalysisJobState | None, told: MetricJobStatus | None) -> Run:
    """How the Job stands; `told` is its end, where that was written down before."""
    if told is None:
        measurement, has_ended = _measured(wanted, name, state)
        if not has_ended:
            return Run(measurement)
        told = _told(name, measurement)
    # Read back even now, so that the next look judges the very same.
    return Run(_measurement(wanted.metric, told), told)


def _told(name: str, measurement: Measurement) -> MetricJobStatus:
    return MetricJobStatus(
        name=name,
        outcome=str(measurement.outcome),
        value=_text(measurement.candidate),
        stable=_text(measurement.stable),
        message=clipped(measurement.message, _MOST_WORDS),
    )


def _text(value: Any) -> str | None:
    return None if value is None else repr(value)


def _measurement(metric: str, told: MetricJobStatus) -> Measurement:
    ours, theirs = (None if one is None else float(one) for one in (told.value, told.stable))
    return Measurement(metric, Outcome(told.outcome), ours, theirs, told.message)


def _measured(wanted: Criterion, name: str, state: AnalysisJobState | None) -> tuple[Measurement, bool]:
    """What the Job says, and whether that is its last word."""
    match state:
        case None:
            return Measurement(wanted.metric, Outcome.NO_DATA, message=f"Job {name} is being created"), False
        case JobRunning(message, _):
            return Measurement(wanted.metric, Outcome.NO_DATA, message=message), False
        case JobBlocked(reason, message):
            return Measurement(wanted.metric, Outcome.PROVIDER_ERROR, message=f"{reason}: {message}"), False
        case JobPassed(text):
            return _said(wanted, name, text), True
        case JobFailed():
            return _failed(wanted, state), True
        case unreachable:
            assert_never(unreachable)


def _failed(wanted: Criterion, failed: JobFailed) -> Measurement:
    codes = (wanted.job.fail_exit_codes if wanted.job is not None else None) or DEFAULT_FAIL_EXIT_CODES
    # What is killed for its memory may end with any code.
    is_its_word = failed.exit_code in codes and failed.reason != reasons.OOM_KILLED
    if is_its_word:
        return Measurement(wanted.metric, Outcome.FAILED, message=failed.message)
    return Measurement(wanted.metric, Outcome.PROVIDER_ERROR, message=f"{failed.reason}: {failed.message}")


def _said(wanted: Criterion, name: str, text: str) -> Measurement:
    """What a Job that ended well left behind; without a bound that is the end of it."""
    metric = wanted.metric
    if not wanted.is_value:
        return Measurement(metric, Outcome.PASSED, message=f"Job {name} ended with exit code 0")
    if not text.strip():
        message = f'Job {name} left no number: it has to write {{"value": …}} to /dev/termination-log'
        return Measurement(metric, Outcome.NO_DATA, message=message)
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        message = f"{reasons.RESULT_UNREADABLE}: what Job {name} left is no JSON object"
        return Measurement(metric, Outcome.PROVIDER_ERROR, message=message)
    found = {key: said.get(key) for key in ("value", "stable", "samples")}
    if broken := [key for key, value in found.items() if value is not None and not _is_number(value)]:
        message = f"{reasons.RESULT_UNREADABLE}: {broken[0]} of what Job {name} left is no number"
        return Measurement(metric, Outcome.PROVIDER_ERROR, message=message)
    ours, theirs = (_finite(found[key]) for key in ("value", "stable"))
    if ours is None:
        return Measurement(metric, Outcome.NO_DATA, message=f"Job {name} says value: {found['value']}")
    over = f"over {found['samples']:g} samples" if _finite(found["samples"]) is not None else ""
    return Measurement(metric, Outcome.MEASURED, ours, theirs, over)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> float | None:
    try:
        number = float(value) if value is not None else None
    except OverflowError:
        return None
    return number if number is not None and isfinite(number) else None
