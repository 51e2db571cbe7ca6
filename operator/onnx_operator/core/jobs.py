"""How a Job stands, from the Job and its pods.

A Job's result is the summary in its container's termination message. A Job that says it succeeded and left no
readable summary has failed: nothing here ever guesses that something went well.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from onnx_converter.summary import Summary, SummaryError, parse
from onnx_operator.core import reasons
from onnx_operator.core.names import COMPONENT_LABEL
from onnx_operator.core.pods import Trouble, failure, trouble

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The label by which the Job controller marks a Job's pods.
JOB_NAME_LABEL: Final = "batch.kubernetes.io/job-name"


@dataclass(frozen=True, slots=True)
class JobRunning:
    """Under way."""

    message: str
    #: Until a pod is there only Events tell why it is not, and nobody watches those.
    has_pod: bool = True


@dataclass(frozen=True, slots=True)
class JobBlocked:
    """Waits for something outside; goes on by itself once that is there."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class JobSucceeded:
    """Ended well, and said so."""

    summary: Summary
    seconds: int


@dataclass(frozen=True, slots=True)
class JobFailed:
    """Ended for good without a result."""

    reason: str
    message: str
    exit_code: int | None
    seconds: int


@dataclass(frozen=True, slots=True)
class JobPassed:
    """A metric's Job ended well; what it left may be anything."""

    text: str


JobState = JobRunning | JobBlocked | JobSucceeded | JobFailed
AnalysisJobState = JobRunning | JobBlocked | JobPassed | JobFailed


def read_job(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], refusals: Sequence[str]) -> JobState:
    """How the Job stands. `refusals` are the messages of its FailedCreate Events, newest last."""
    ended = _ended(job)
    newest_first = _newest_first(pods)
    if ended is None:
        return _under_way(job, newest_first, refusals)
    seconds = _seconds(job, ended)
    if ended["type"] == "Complete":
        return _succeeded(job, newest_first, seconds)
    return _failed(ended, newest_first, seconds, "the class's jobs.deadline")


def read_analysis_job(
    job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], refusals: Sequence[str]
) -> AnalysisJobState:
    """How a metric's Job stands, which knows nothing of our summaries."""
    ended = _ended(job)
    newest_first = _newest_first(pods)
    if ended is None:
        return _under_way(job, newest_first, refusals)
    if ended["type"] != "Complete":
        return _failed(ended, newest_first, _seconds(job, ended), "the metric's job.deadline")
    spoken = (one for pod in newest_first if (one := _terminated(pod)) is not None and one.get("exitCode") == 0)
    return JobPassed(next((str(one.get("message") or "") for one in spoken), ""))


def _newest_first(pods: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True)


def is_finished(job: Mapping[str, Any]) -> bool:
    return _ended(job) is not None


def has_spoken(pods: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any pod's container is known to have ended: only then can a finished Job be judged."""
    return any(_terminated(pod) is not None for pod in pods)


def _ended(job: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition.get("type") in {"Complete", "Failed"} and condition.get("status") == "True":
            return dict(condition)
    return None


def _under_way(
    job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], refusals: Sequence[str]
) -> JobRunning | JobBlocked:
    name = job["metadata"]["name"]
    if not pods:
        if refusals:
            reason = reasons.QUOTA_EXCEEDED if "exceeded quota" in refusals[-1] else reasons.POD_REFUSED
            return JobBlocked(reason, f"Job {name} cannot create its pod: {refusals[-1]}")
        return JobRunning(f"Job {name} waits for its pod", has_pod=False)
    found = trouble(pods[0])
    if found is not None and not found.is_crash:
        return JobBlocked(found.reason, found.message)
    if len(pods) > 1 or found is not None:
        last = found or next((one for one in map(trouble, pods[1:]) if one is not None), None)
        after = f" after {last.reason}: {last.message}" if last is not None else ""
        return JobRunning(f"Job {name} is tried again, attempt {len(pods)}{after}")
    return JobRunning(f"Job {name} runs")


def _succeeded(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], seconds: int) -> JobSucceeded | JobFailed:
    for pod in pods:
        ended = _terminated(pod)
        if ended is None or ended.get("exitCode") != 0:
            continue
        try:
            return JobSucceeded(_result(job, ended.get("message") or ""), seconds)
        except SummaryError as error:
            message = f"the Job ended well but its result cannot be read: {error}; change retryToken to run it again"
            return JobFailed(reasons.RESULT_UNREADABLE, message, 0, seconds)
    message = "the Job ended well but its pod is gone and with it the result; change retryToken to run it again"
    return JobFailed(reasons.RESULT_UNREADABLE, message, None, seconds)


def _result(job: Mapping[str, Any], text: str) -> Summary:
    summary = parse(text)
    if summary.outcome != "Succeeded":
        raise SummaryError(f"the termination message says {summary.outcome}, the exit code 0 says the opposite")
    step = job["metadata"]["labels"][COMPONENT_LABEL]
    if summary.step != step:
        raise SummaryError(f"the termination message is of step {summary.step}, the Job of step {step}")
    return summary


def _failed(ended: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], seconds: int, limit: str) -> JobFailed:
    found = _last_failure(pods)
    if ended.get("reason") == "DeadlineExceeded":
        why = f"; last seen: {found.reason}: {found.message}" if found is not None else ""
        message = f"the Job did not end within {limit}{why}; raise it, or give the Job what it waits for"
        return JobFailed(reasons.JOB_DEADLINE_EXCEEDED, message, None, seconds)
    if found is None:
        message = f"the Job failed and left no pod to ask: {ended.get('message', 'no message')}"
        return JobFailed(reasons.RESULT_UNREADABLE, message, None, seconds)
    return JobFailed(found.reason, found.message, found.exit_code, seconds)


def _last_failure(pods: Sequence[Mapping[str, Any]]) -> Trouble | None:
    for pod in pods:
        ended = _terminated(pod)
        if ended is not None and ended.get("exitCode") != 0:
            return failure(pod, ended)
        if found := trouble(pod):
            return found
    return None


def _terminated(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        if ended := (container.get("state") or {}).get("terminated"):
            return dict(ended)
    return None


def _seconds(job: Mapping[str, Any], ended: Mapping[str, Any]) -> int:
    started = (job.get("status") or {}).get("startTime")
    finished = ended.get("lastTransitionTime")
    if not started or not finished:
        return 0
    return max(0, int((datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()))
