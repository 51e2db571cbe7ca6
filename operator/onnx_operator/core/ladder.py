"""The ladder that a spec climbs: an ordered list of needs, of which the first unmet one says what happens next.

    accepted -> source resolved -> revision recorded -> not quarantined -> candidate begun
      -> converted -> validated -> published -> servers available -> traffic programmed -> steps passed
      -> promoted -> predecessor drained

What is only packed has no servers and no traffic: once it is published it is promoted.

Each rung looks at the world again; none trusts what an earlier look concluded, except for the ledgers. A rung that
is not met tells why under its condition, and either waits (with what must exist meanwhile) or has something to write
down. What to do about a candidate gone bad is not here but in `moves`, which has the first word.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, assert_never

from pydantic import ValidationError

from onnx_converter import footprint
from onnx_operator.api.common import parse_duration, parse_quantity
from onnx_operator.api.model import FailureStatus, Scheme, SourceStatus
from onnx_operator.api.revision import (
    ArtifactStatus,
    BenchmarkStatus,
    ChosenScheme,
    EvaluationStatus,
    ParityStatus,
    StageStatus,
)
from onnx_operator.api.rollout import MetricName
from onnx_operator.core import reasons
from onnx_operator.core.acceptance import Refusal, rounded_weights
from onnx_operator.core.actions import WantConvert, WantFetch, WantPublish, WantRevision, WantValidate
from onnx_operator.core.conditions import ConditionType, Finding, clipped, instant, moment, timestamp
from onnx_operator.core.jobs import JobBlocked, JobFailed, JobRunning, JobSucceeded
from onnx_operator.core.ledger import (
    Move,
    MoveRevision,
    Stage,
    bake,
    begin,
    change,
    change_candidate,
    enter_step,
    job_logs,
    promote,
    quarantine,
    stage_logs,
)
from onnx_operator.core.names import fetch_job_name, stage_job_name, validate_stage
from onnx_operator.core.view import is_served, side_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from onnx_converter.summary import Summary
    from onnx_operator.api.common import ExecutionProvider
    from onnx_operator.api.revision import OnnxModelRevisionStatus
    from onnx_operator.core.actions import Want
    from onnx_operator.core.observation import RevisionSeen
    from onnx_operator.core.view import View


#: How long a Job may be without a pod before its Events are read again.
_POD_PATIENCE: Final = timedelta(seconds=10)


class Passage(Enum):
    """How a rung was left."""

    MET = auto()
    WAITING = auto()
    STALLED = auto()


@dataclass(frozen=True, slots=True)
class Rung:
    """What one need came to."""

    passage: Passage
    findings: tuple[Finding, ...] = ()
    wants: tuple[Want, ...] = ()
    move: Move | None = None
    look_at: datetime | None = None


def _met(*findings: Finding) -> Rung:
    return Rung(Passage.MET, findings)


def _waiting(finding: Finding, *wants: Want, move: Move | None = None, look_at: datetime | None = None) -> Rung:
    return Rung(Passage.WAITING, (finding,), wants, move, look_at)


def _stalled(*findings: Finding) -> Rung:
    return Rung(Passage.STALLED, findings)


@dataclass(frozen=True, slots=True)
class Standing:
    """How far up the ladder the spec is, with everything that was found on the way."""

    passage: Passage
    #: One for each condition that something was found for; the last one is the story.
    findings: tuple[Finding, ...]
    wants: tuple[Want, ...]
    move: Move | None
    look_at: datetime | None

    @property
    def story(self) -> Finding:
        return self.findings[-1]


def climb(view: View) -> Standing:
    """Up to the first need that is not met."""
    findings: list[Finding] = []
    rung = Rung(Passage.MET)
    for need in _RUNGS if view.wanted is None or is_served(view.wanted) else _RUNGS_OF_THE_PACKED:
        rung = need(view)
        findings += rung.findings
        if rung.passage is not Passage.MET:
            break
    return Standing(rung.passage, tuple(findings), rung.wants, rung.move, rung.look_at)


# ---- before there is a revision


def _accepted(view: View) -> Rung:
    if isinstance(view.accepted, Refusal):
        return _stalled(Finding(ConditionType.ACCEPTED, "False", view.accepted.reason, view.accepted.message))
    message = f"OnnxModelClass {view.accepted.class_name} allows what the spec asks for"
    defaults = [one.name for one in view.seen.classes if one.is_default]
    if view.accepted.spec.class_name is None and len(defaults) > 1:
        message += f"; of the default classes {', '.join(sorted(defaults))} it is the newest"
    plan = view.accepted.plan
    if plan.is_by_ratio and (rounded := rounded_weights(plan)):
        message += f"; without a gateway there will be {rounded}; more replicas come closer, and a gateway is exact"
        return _met(Finding(ConditionType.ACCEPTED, "True", reasons.WEIGHTS_ROUNDED, message))
    return _met(Finding(ConditionType.ACCEPTED, "True", reasons.ACCEPTED, message))


def _source_resolved(view: View) -> Rung:
    source = view.source
    if source is not None and source.digest is None:
        return _stalled(Finding(ConditionType.SOURCE_RESOLVED, "False", source.reason, source.message))
    if source is not None:
        message = f"the checkpoint is {source.digest}, {source.files} files, {source.bytes} bytes"
        return _met(Finding(ConditionType.SOURCE_RESOLVED, "True", reasons.SOURCE_RESOLVED, message))
    if view.offer is None or view.source_key is None:
        raise ValueError("a refused spec does not get this far")
    name = fetch_job_name(view.seen.model.name, view.source_key)
    image = view.offer.class_spec.images.converter or view.seen.images.converter
    want = WantFetch(view.seen.model, view.offer, view.source_key, image)
    match _end_of(view, name, ConditionType.SOURCE_RESOLVED, reasons.FETCHING, want):
        case JobSucceeded(summary, _):
            return _note_source(view, name, _source_of(view, summary))
        case JobFailed(reason, message, exit_code, _):
            return _note_source(view, name, _no_source(view, reason, message), exit_code)
        case waiting:
            return waiting


def _end_of(
    view: View, name: str, condition: ConditionType, under_way: str, want: Want
) -> JobSucceeded | JobFailed | Rung:
    """How the wanted Job ended, or what is told of it until then."""
    match view.seen.jobs.get(name):
        case None:
            return _waiting(Finding(condition, "Unknown", under_way, f"Job {name} is being created"), want)
        case JobRunning(message, has_pod):
            finding = Finding(condition, "Unknown", under_way, message)
            return _waiting(finding, want, look_at=None if has_pod else view.now + _POD_PATIENCE)
        case JobBlocked(reason, message):
            return _waiting(Finding(condition, "False", reason, message), want)
        case JobSucceeded() as succeeded:
            return succeeded
        case JobFailed() as failed:
            return replace(failed, message=_with_what_blocked_it(view, condition, failed))
        case unreachable:
            assert_never(unreachable)


def _source_of(view: View, summary: Summary) -> SourceStatus:
    try:
        return SourceStatus.model_validate(
            {
                **summary.details,
                "key": view.source_key,
                "reason": reasons.SOURCE_RESOLVED,
                "message": clipped(summary.message),
                "resolvedTime": timestamp(view.now),
            }
        )
    except ValidationError as error:
        return _no_source(view, reasons.RESULT_UNREADABLE, f"the fetch Job's result makes no sense: {_first(error)}")


def _no_source(view: View, reason: str, message: str) -> SourceStatus:
    return SourceStatus(
        key=view.source_key or "",
        reason=reason,
        message=clipped(message),
        resolved_time=timestamp(view.now),
    )


def _note_source(view: View, job: str, source: SourceStatus, exit_code: int | None = None) -> Rung:
    if source.digest is not None:
        finding = Finding(ConditionType.SOURCE_RESOLVED, "True", reasons.SOURCE_RESOLVED, source.message)
        return _waiting(finding, move=change(view, source=source))
    failure = FailureStatus(
        stage=Stage.SOURCE,
        reason=source.reason,
        message=source.message,
        exit_code=exit_code,
        logs=job_logs(view.seen.model.namespace, job),
        time=timestamp(view.now),
    )
    finding = Finding(ConditionType.SOURCE_RESOLVED, "False", source.reason, source.message)
    return _waiting(finding, move=change(view, source=source, last_failure=failure))


def _recorded(view: View) -> Rung:
    if view.wanted_spec is None or view.wanted_name is None:
        raise ValueError("an unresolved source does not get this far")
    if view.wanted is not None and not view.wanted.is_deleting:
        return _met()
    spec = view.wanted_spec
    if view.ledger.stable is not None and view.is_settled_on_wanted:
        # Its record was deleted by hand; what Triton reports must not change under people's eyes.
        spec = spec.model_copy(update={"number": view.ledger.stable.number})
    message = f"OnnxModelRevision {view.wanted_name} is being created"
    return _waiting(
        Finding(ConditionType.CONVERTED, "Unknown", reasons.CREATING_REVISION, message),
        WantRevision(view.seen.model, view.wanted_name, spec),
    )


_CONDITION_OF_STAGE: Final = {
    Stage.CONVERTED: ConditionType.CONVERTED,
    Stage.VALIDATED: ConditionType.VALIDATED,
    Stage.PUBLISHED: ConditionType.CANDIDATE_AVAILABLE,
    Stage.AVAILABLE: ConditionType.CANDIDATE_AVAILABLE,
    Stage.ROLLOUT: ConditionType.PROMOTED,
}


def _not_quarantined(view: View) -> Rung:
    revision = _wanted(view)
    found = revision.status.quarantine
    if found is None or view.is_settled_on_wanted:
        return _met()
    culprit = _CONDITION_OF_STAGE.get(found.stage, ConditionType.PROMOTED)
    passed = []
    if culprit is not ConditionType.CONVERTED:
        passed.append(_converted_finding(revision))
    if culprit not in {ConditionType.CONVERTED, ConditionType.VALIDATED}:
        passed.append(_validated_finding(revision))
    return _stalled(*passed, Finding(culprit, "False", found.reason, found.message))


def _begun(view: View) -> Rung:
    revision, candidate = _wanted(view), view.ledger.candidate
    if view.is_settled_on_wanted or (candidate is not None and candidate.revision == revision.name):
        return _met()
    if candidate is not None:
        message = f"revision {candidate.number} makes way for revision {revision.spec.number}"
        return _waiting(Finding(ConditionType.PROMOTED, "Unknown", reasons.SUPERSEDED, message))
    finding = Finding(
        ConditionType.CONVERTED,
        "Unknown",
        reasons.PROGRESSING,
        f"revision {revision.spec.number} becomes the candidate",
    )
    return _waiting(finding, move=begin(view, revision))


# ---- the Jobs


def _converted(view: View) -> Rung:
    revision = _wanted(view)
    if revision.status.artifact is not None or _stage(revision, "convert") is not None:
        return _met(_converted_finding(revision))
    if view.is_settled_on_wanted and view.ledger.stable is not None and view.ledger.stable.digest is not None:
        # Its record was deleted by hand and made again; what it serves is known all the same.
        artifact = ArtifactStatus(digest=view.ledger.stable.digest)
        message = "not validated, and the revision is served without it"
        stages = [_not_run(one, "LeftOut", f"{one} is {message}", view.now) for one in view.ledger.stable.left_out]
        status = revision.status.model_copy(update={"artifact": artifact, "stages": stages})
        move = MoveRevision(revision.name, status)
        return _waiting(_converted_finding(revision), move=move)
    if (twin := _twin_with_artifact(view, revision)) is not None:
        shared = {name: getattr(twin.status, name) for name in _SHARED}
        status = revision.status.model_copy(update=shared)
        message = f"the artifact of revision {twin.spec.number} is the same"
        finding = Finding(ConditionType.CONVERTED, "True", reasons.CONVERTED, message)
        return _waiting(finding, move=MoveRevision(revision.name, status))
    needed = _memory(view, revision)
    if (refused := _memory_refused(view, revision, needed)) is not None:
        return _stalled(Finding(ConditionType.CONVERTED, "False", reasons.MEMORY_ABOVE_LIMIT, refused))
    want = WantConvert(view.seen.model, revision, _class_spec(view), needed)
    story = _Story("convert", Stage.CONVERTED, ConditionType.CONVERTED, reasons.CONVERTING)
    return _job(view, revision, story, want)


def _memory(view: View, revision: RevisionSeen) -> int | None:
    """What converting and validating take at their peak, in bytes; None for a source of before this was told."""
    source = view.source
    if source is None or not source.parameters or source.digest != revision.spec.source_digest:
        return None
    programs = footprint.PROGRAM if any(one.runs_programs for one in revision.spec.evaluations) else 0
    sizes, wanted, length = _sizes(source), revision.spec.quantization, revision.spec.max_sequence_length
    return programs + max(footprint.peak(sizes, scheme, wanted.algorithm, length) for scheme in wanted.schemes)


def _sizes(source: SourceStatus) -> footprint.Sizes:
    return footprint.Sizes(source.parameters, source.vocabulary, source.attention, source.cache, source.positions)


def _memory_refused(view: View, revision: RevisionSeen, needed: int | None) -> str | None:
    limit = _class_spec(view).jobs.resources.limits.get("memory")
    if view.source is None or needed is None or limit is None or needed <= parse_quantity(limit):
        return None
    shorter = footprint.shorter(_sizes(view.source), revision.spec.max_sequence_length, needed)
    return (
        f"revision {revision.spec.number} takes about {footprint.told(needed)} of memory to convert with scheme "
        f"{revision.spec.quantization.scheme}, and jobs.resources.limits.memory of its OnnxModelClass is {limit}: "
        f"raise that, or name a smaller checkpoint{shorter}"
    )


def _validated(view: View) -> Rung:
    revision = _wanted(view)
    if revision.status.artifact is not None:
        return _met(_validated_finding(revision))
    rungs = []
    for provider in (one.name for one in revision.spec.execution_providers):
        stage = validate_stage(provider)
        if _stage(revision, stage) is None:
            want = WantValidate(view.seen.model, revision, _class_spec(view), provider, _memory(view, revision))
            story = _Story(stage, Stage.VALIDATED, ConditionType.VALIDATED, reasons.VALIDATING)
            rungs.append(_unproved(view, revision, provider, _job(view, revision, story, want)))
    if not rungs:
        return _met(_validated_finding(revision))
    # One result at a time; of those that wait, the blocked one has more to say.
    for rung in rungs:
        if rung.move is not None:
            return rung
    teller = next((rung for rung in rungs if rung.findings[0].status == "False"), rungs[0])
    wants = (want for rung in rungs for want in rung.wants)
    return _waiting(teller.findings[0], *wants, look_at=_soonest(*(rung.look_at for rung in rungs)))


def _unproved(view: View, revision: RevisionSeen, provider: ExecutionProvider, rung: Rung) -> Rung:
    """The same, where a node does its part. What no node takes is told, and waited for as long as the class says."""
    (found,) = rung.findings
    if found.status != "False" or rung.move is not None:
        return rung
    patience = _patience(view, revision, provider) if found.reason == reasons.UNSCHEDULABLE else None
    message = f"{provider} is not validated"
    if patience is None or view.now < patience.ends:
        until = "" if patience is None else f"; from {timestamp(patience.ends)} on {patience.then}"
        told = replace(found, message=f"{message}: {found.message}{until}")
        return replace(rung, findings=(told,), look_at=_soonest(rung.look_at, patience.ends if patience else None))
    message = f"{message}, and {patience.then}: {found.message}"
    record = _not_run(provider, patience.outcome, message, view.now)
    status = revision.status.model_copy(update={"stages": [*revision.status.stages, record]})
    move = MoveRevision(revision.name, status)
    return replace(rung, findings=(replace(found, message=message),), move=move)


def _not_run(provider: ExecutionProvider, outcome: str, message: str, now: datetime) -> StageStatus:
    return StageStatus(
        name=validate_stage(provider),
        outcome=outcome,
        reason=reasons.NOT_VALIDATED,
        message=clipped(message),
        finished_time=timestamp(now),
    )


@dataclass(frozen=True, slots=True)
class _Patience:
    """When a validation that no node takes is given up, and what comes of it."""

    ends: datetime
    outcome: str
    then: str


#: How a validation ends that no node takes.
_UNPROVED: Final = ("Skipped", "LeftOut")
#: How long a node is waited for where the class does not say.
_LEAVE_OUT_AFTER: Final = "10m"


def _patience(view: View, revision: RevisionSeen, provider: ExecutionProvider) -> _Patience | None:
    """None where the provider is waited for until its Job ends. Something has to have been proved before."""
    offered = next((one for one in _class_spec(view).execution_providers if one.name is provider), None)
    before = next((one for one in view.ledger.conditions if one.type == ConditionType.VALIDATED), None)
    is_blocked = before is not None and before.status == "False" and before.reason == reasons.UNSCHEDULABLE
    if offered is None or before is None or not is_blocked:
        return None
    since, proved = moment(before.last_transition_time), set(revision.whose_validation_is("Succeeded"))
    if (after := offered.serve_unvalidated_after) is not None:
        # Which scheme auto takes is known by nothing but a validation.
        is_known = bool(proved) and revision.spec.quantization.scheme is not Scheme.AUTO
        then = "it is served all the same, as its class has it"
        return _Patience(since + parse_duration(after), "Skipped", then) if is_known else None
    served = set(side_of(revision).providers)
    # Others would have to take the requests that it answers, and nobody knows whether they can.
    is_in_use = view.stable is not None and provider in side_of(view.stable).providers
    if provider not in served or not served & proved or is_in_use:
        return None
    after = offered.leave_out_after or _LEAVE_OUT_AFTER
    return _Patience(since + parse_duration(after), "LeftOut", "the revision is served without it")


def _published(view: View) -> Rung:
    revision = _wanted(view)
    if revision.status.artifact is not None:
        return _met()
    want = WantPublish(view.seen.model, revision, _class_spec(view))
    story = _Story("publish", Stage.PUBLISHED, ConditionType.CANDIDATE_AVAILABLE, reasons.PUBLISHING)
    return _job(view, revision, story, want)


#: What a revision knows of an artifact.
_SHARED: Final = ("artifact", "parity", "evaluations", "quantization", "benchmark")


@dataclass(frozen=True, slots=True)
class _Story:
    """How a Job of a revision is told."""

    job: str
    stage: str
    condition: ConditionType
    under_way: str


def _job(view: View, revision: RevisionSeen, story: _Story, want: Want) -> Rung:
    name = stage_job_name(revision.name, story.job, revision.status.attempt)
    match _end_of(view, name, story.condition, story.under_way, want):
        case JobSucceeded(summary, seconds):
            return _note_result(view, revision, story, summary, seconds)
        case JobFailed() as failed:
            return _note_failure(view, revision, story, failed)
        case waiting:
            return waiting


def _with_what_blocked_it(view: View, kind: ConditionType, failed: JobFailed) -> str:
    """A Job that ran out of time takes its pods with it; what it waited for is known from the look before."""
    before = next((one for one in view.ledger.conditions if one.type == kind), None)
    if failed.reason != reasons.JOB_DEADLINE_EXCEEDED or before is None or before.status != "False":
        return failed.message
    return f"{failed.message}; it was waiting: {before.message}"


def _note_result(view: View, revision: RevisionSeen, story: _Story, summary: Summary, seconds: int) -> Rung:
    record = StageStatus(
        name=story.job,
        outcome="Succeeded",
        reason=summary.reason,
        message=clipped(summary.message),
        exit_code=0,
        finished_time=timestamp(view.now),
        seconds=seconds,
    )
    try:
        status = _with_result(revision, story, summary.details).model_copy(
            update={"stages": [*revision.status.stages, record]}
        )
    except ValueError as error:
        said = _first(error) if isinstance(error, ValidationError) else error
        message = f"the result of Job {story.job} makes no sense: {said}"
        return _note_failure(view, revision, story, JobFailed(reasons.RESULT_UNREADABLE, message, 0, seconds))
    finding = Finding(story.condition, "Unknown", story.under_way, summary.message)
    return _waiting(finding, move=MoveRevision(revision.name, status))


def _with_result(revision: RevisionSeen, story: _Story, details: Any) -> OnnxModelRevisionStatus:
    status = revision.status
    match story.stage:
        case Stage.VALIDATED:
            parity = details.get("parity")
            measured = ParityStatus.model_validate({**details, **parity} if isinstance(parity, dict) else parity)
            # What an earlier attempt measured is replaced.
            others = [one for one in status.parity if one.provider != measured.provider]
            benchmarks = [one for one in status.benchmark if one.provider != measured.provider]
            if "benchmark" in details:
                benchmarks.append(_benchmark(measured.provider, details["benchmark"]))
            evaluations = [one for one in status.evaluations if one.provider != measured.provider]
            evaluations += _evaluations(revision, measured.provider, details.get("evaluations"))
            chosen = [one for one in status.quantization if one.provider != measured.provider]
            if revision.spec.quantization.scheme is Scheme.AUTO:
                chosen.append(ChosenScheme.model_validate(details))
            return status.model_copy(
                update={
                    "parity": [*others, measured],
                    "evaluations": evaluations,
                    "quantization": chosen,
                    "benchmark": benchmarks,
                }
            )
        case Stage.PUBLISHED:
            return status.model_copy(update={"artifact": ArtifactStatus.model_validate(details)})
        case _:
            return status


def _evaluations(revision: RevisionSeen, provider: ExecutionProvider, told: Any) -> list[EvaluationStatus]:
    """One for each that was declared: what was not measured is not proved."""
    measured = {str(one.get("name")): one for one in told if isinstance(one, dict)} if isinstance(told, list) else {}
    names = {one.name for one in revision.spec.evaluations}
    if measured.keys() != names:
        raise ValueError(
            f"it tells of {len(measured)} evaluations, and declared were {', '.join(sorted(names)) or 'none'}"
        )
    return [
        EvaluationStatus.model_validate(
            {**measured[one.name], "provider": provider, "metric": one.metric, "maxLoss": one.max_loss}
        )
        for one in revision.spec.evaluations
    ]


def _benchmark(provider: ExecutionProvider, told: Any) -> BenchmarkStatus:
    """Of one that makes no sense, just that: the graph is proved all the same."""
    try:
        return BenchmarkStatus.model_validate({**told, "provider": provider} if isinstance(told, dict) else told)
    except ValidationError as error:
        message = clipped(f"what the Job told of the benchmark makes no sense: {_first(error)}")
        return BenchmarkStatus(provider=provider, message=message)


def _note_failure(view: View, revision: RevisionSeen, story: _Story, failed: JobFailed) -> Rung:
    record = StageStatus(
        name=story.job,
        outcome="Failed",
        reason=failed.reason,
        message=clipped(failed.message),
        exit_code=failed.exit_code,
        finished_time=timestamp(view.now),
        seconds=failed.seconds,
    )
    move = quarantine(
        view,
        revision,
        stage=story.stage,
        reason=failed.reason,
        message=failed.message,
        exit_code=failed.exit_code,
        logs=stage_logs(view, revision, story.job),
        record=record,
    )
    return _waiting(Finding(story.condition, "False", failed.reason, failed.message), move=move)


def _twin_with_artifact(view: View, revision: RevisionSeen) -> RevisionSeen | None:
    """Another revision that differs only in its pods. A retry does its own work, as the artifact may be the trouble."""
    if revision.status.attempt:
        return None
    return next(
        (
            one
            for one in view.seen.revisions
            if one.spec.artifact_key == revision.spec.artifact_key
            and one.status.artifact is not None
            # What was not proved there may be here.
            and not any(one.whose_validation_is(outcome) for outcome in _UNPROVED)
        ),
        None,
    )


# ---- the servers and the traffic


def _available(view: View) -> Rung:
    revision = _wanted(view)
    candidate = view.ledger.candidate
    if candidate is not None and view.ledger.retiring and not view.has_servers(revision.name):
        message = "servers start once the revision that was taken out of the traffic is gone"
        return _waiting(
            Finding(ConditionType.CANDIDATE_AVAILABLE, "Unknown", reasons.WAITING_FOR_DRAIN, message),
            look_at=view.drain_ends,
        )
    if candidate is not None and view.goal is not None and view.goal.step < 0:
        held = _brake(view, "servers start where stable need not give up any")
        if held is not None and not any(view.wanted_replicas(revision, one) for one in view.servers(revision)):
            return held
    states = view.servers(revision)
    if view.bears_its_weight(revision) and not view.is_available(revision):
        return _met(_enough_for_now(view, revision))
    if view.suffices(revision):
        message = f"all {view.ready_replicas(revision.name)} servers of revision {revision.spec.number} are ready"
        return _met(_available_finding(view, message))
    for state in states.values():
        if state is not None and state.trouble is not None:
            reason = reasons.SERVER_CRASHED if state.trouble.is_crash else state.trouble.reason
            message = state.trouble.message
            if state.trouble.is_crash:
                message = f"{state.trouble.reason}: {message}"
            return _waiting(Finding(ConditionType.CANDIDATE_AVAILABLE, "False", reason, message), look_at=view.deadline)
    wanted = sum(view.complete(revision, one) for one in states)
    message = f"{view.ready_replicas(revision.name)} of {wanted} servers of revision {revision.spec.number} are ready"
    if view.is_rollback:
        message += "; it was stable before, and takes all requests as soon as they are, as rollbackWindow wants it"
    return _waiting(
        Finding(ConditionType.CANDIDATE_AVAILABLE, "Unknown", reasons.STARTING, message), look_at=view.deadline
    )


def _enough_for_now(view: View, revision: RevisionSeen) -> Finding:
    """The step needs no more servers; one that cannot start is worth telling before the next step waits for it."""
    message = (
        f"{view.ready_replicas(revision.name)} servers of revision {revision.spec.number} are ready, enough for now"
    )
    found = (one.trouble for one in view.servers(revision).values() if one is not None)
    if (trouble := next(filter(None, found), None)) is None:
        return _available_finding(view, message)
    message += f"; one that is not: {trouble.reason}: {trouble.message}"
    return Finding(ConditionType.CANDIDATE_AVAILABLE, "True", reasons.AVAILABLE_IN_PART, message)


def _available_finding(view: View, message: str) -> Finding:
    """Servers are available whether or not stable's autoscalers can add to them; the candidate's see little yet."""
    stable = view.stable
    troubles = [
        f"the autoscaler of revision {stable.spec.number} on {provider} says {state.trouble}"
        for provider in (view.servers(stable) if stable is not None else ())
        if stable is not None
        and (state := view.seen.autoscalers.get((stable.name, provider))) is not None
        and state.trouble
    ]
    reason = reasons.AUTOSCALER_BLIND if troubles else reasons.AVAILABLE
    return Finding(ConditionType.CANDIDATE_AVAILABLE, "True", reason, clipped("; ".join([message, *troubles])))


def _packed(view: View) -> Rung:
    """Published is all that there is to be; people may hold it, as it takes the place of the one before."""
    revision = _wanted(view)
    published = Finding(ConditionType.CANDIDATE_AVAILABLE, "True", reasons.PACKED, packed_words(revision))
    if view.is_settled_on_wanted:
        passage = Passage.MET if view.is_programmed else Passage.WAITING
        return Rung(passage, (published, programmed_finding(view)))
    said = "it is published, and nothing of it is to be served"
    held = _brake(view, said) if view.ledger.stable is not None else None
    rung = held or _hold(reasons.PACKED, said, move=promote(view, reasons.PACKED, said))
    return replace(rung, findings=(published, *rung.findings))


def packed_words(revision: RevisionSeen) -> str:
    """What there is of a revision that is not served."""
    providers = ", ".join(one.name for one in revision.spec.execution_providers)
    return f"revision {revision.spec.number} is published for {providers}; all say serving: none, so nothing is started"


def _first_served(view: View) -> Rung:
    """Where nothing serves there is nothing to compare with and nobody to protect."""
    if view.ledger.stable is not None and not view.serves_nothing:
        return _met()
    said = "the first revision takes all requests"
    finding = Finding(ConditionType.TRAFFIC_PROGRAMMED, "Unknown", reasons.ROUTES_PENDING, said)
    return _waiting(finding, move=promote(view, reasons.PROMOTED, said))


def _programmed(view: View) -> Rung:
    condition = ConditionType.TRAFFIC_PROGRAMMED
    if view.only_pools_are_pending:
        return _met(programmed_finding(view))
    if not view.is_programmed:
        return _waiting(programmed_finding(view), look_at=view.deadline)
    gateway = _class_spec(view).traffic.gateway
    if view.is_by_ratio or not needs_prober(view):
        return _met(programmed_finding(view))
    if view.seen.gateway_problem:
        return _waiting(
            Finding(condition, "False", reasons.FORBIDDEN, view.seen.gateway_problem), look_at=view.deadline
        )
    if view.seen.gateway is None:
        message = f"Gateway {gateway.namespace}/{gateway.name} has no address, or lacks the class's listeners"
        return _waiting(Finding(condition, "False", reasons.GATEWAY_NOT_PROGRAMMED, message), look_at=view.deadline)
    return _met(programmed_finding(view))


def programmed_finding(view: View) -> Finding:
    """Whether the traffic is as wanted; worth telling on every rung."""
    if view.serves_nothing:
        if view.is_programmed:
            return Finding(ConditionType.TRAFFIC_PROGRAMMED, "True", reasons.PACKED, "nothing is served")
        said = "what led to the revision before is being taken away"
        return Finding(ConditionType.TRAFFIC_PROGRAMMED, "Unknown", reasons.PACKED, said)
    if not view.is_programmed:
        reason, message = view.routing_trouble
        status: Any = "False" if reason == reasons.ROUTES_REFUSED else "Unknown"
        return Finding(ConditionType.TRAFFIC_PROGRAMMED, status, reason, message)
    reason, message = _pool_trouble(view) or _split_trouble(view) or (reasons.TRAFFIC_PROGRAMMED, "")
    said = "the gateway has accepted the weights on both routes"
    if view.is_by_ratio:
        whose = "all servers" if view.selected is None else f"the servers of {view.selected}"
        said = f"without a gateway, Service {view.seen.model.name} leads to {whose}"
    return Finding(ConditionType.TRAFFIC_PROGRAMMED, "True", reason, f"{said}; {message}" if message else said)


def _pool_trouble(view: View) -> tuple[reasons.Reason, str] | None:
    """Why requests are shared otherwise than the weights of the pools say."""
    sides = [one for one in (view.stable, view.candidate) if one is not None and view.is_routed(one)]
    lost = [
        f"{provider} of revision {one.spec.number}"
        for one in sides
        for provider, is_ready in zip(view.servers(one), view.ready_pools(one), strict=True)
        if not is_ready and any(view.ready_pools(one))
    ]
    if lost:
        return reasons.POOL_WITHOUT_PODS, f"no pod of {', '.join(lost)} is ready, and the other pool answers for it"
    if sides and not any(view.pool_weights.get(provider, 1) for one in sides for provider in view.servers(one)):
        return reasons.POOLS_WITHOUT_WEIGHT, "by their schedules no pool has a weight now, so they share evenly"
    return None


def _split_trouble(view: View) -> tuple[reasons.Reason, str] | None:
    """How requests were split otherwise than the gateway says; what to make of that is for people."""
    candidate = view.ledger.candidate
    if candidate is None or candidate.measured_split is None or candidate.measured_split.as_wanted:
        return None
    found = candidate.measured_split
    message = (
        f"of {view.candidate_weight} % that the candidate should get, {found.percent} % reached it since the step "
        f"began ({found.candidate_requests} of {found.requests} requests): see whether the gateway supports weights, "
        "or keeps callers on one side, as sticky sessions and long gRPC streams do"
    )
    return reasons.SPLIT_NOT_FOLLOWED, message


def needs_prober(view: View) -> bool:
    """Whether golden requests are to be sent to both sides."""
    if view.plan is None or view.is_rollback or not (is_served(view.stable) and is_served(view.candidate)):
        return False
    return any(metric.name == MetricName.DISAGREEMENT for metric in view.plan.analysis.metrics)


# ---- the steps


def _promoted(view: View) -> Rung:
    if view.is_settled_on_wanted:
        return _met(_promoted_finding(view))
    candidate, plan, step = view.ledger.candidate, view.plan, view.step_index
    if candidate is None or plan is None:
        raise ValueError("a revision that is not the candidate does not get this far")
    if view.is_hurried:
        is_back = view.is_rollback
        return _go_on(
            view, "the spec goes back to what was stable before" if is_back else "rollout.promoteToken changed"
        )
    if step is None:
        return _go_on(view, "the candidate is ready")
    told = f"step {step + 1} of {len(plan.steps)} {view.share_words}"
    if view.is_baking:
        told = f"the bake of revision {candidate.number}, which answers all requests,"
    if candidate.step_started_time is None and view.is_by_ratio and not view.is_scaled:
        # Of a first step the weight is made in the step: before, stable cannot give up what nobody else answers.
        message = f"{told} begins once its servers are there: {view.routing_trouble[1]}"
        return _hold(reasons.SCALING, message, look_at=view.deadline)
    if candidate.step_started_time is None:
        # The rung below has seen the gateway accept the weight: from now on the time and the samples count.
        move = change_candidate(view, step_started_time=instant(view.now), progress_time=instant(view.now))
        return _hold(reasons.STEP_STARTING, f"{told} begins", move=move)
    return _within_step(view, told) or _go_on(view, f"{told} has passed")


def _promoted_finding(view: View) -> Finding:
    reason, message = reasons.PROMOTED, f"revision {_wanted(view).spec.number} is stable"
    if view.ledger.stable is not None and view.ledger.stable.rollback:
        reason, message = reasons.WENT_BACK, f"{message} again: the spec went back to it within rollbackWindow"
    return Finding(ConditionType.PROMOTED, "True", reason, message)


def _within_step(view: View, told: str) -> Rung | None:
    """Why the step is not over; None when it is."""
    candidate, plan, step, ends = view.ledger.candidate, view.plan, view.step_index, view.step_ends
    if candidate is None or plan is None or step is None or ends is None:
        raise ValueError("no step is under way")
    soonest = _soonest(view.next_analysis, view.deadline)
    if view.waits_for_a_person:
        message = (
            f"{told} waits for a person: change rollout.promoteToken to let it go on, or rollout.abortToken to take "
            f"the candidate out; no deadline counts meanwhile{_verdict_words(view)}"
        )
        return _hold(reasons.WAITING_FOR_PROMOTE_TOKEN, message, look_at=soonest)
    if view.now < ends:
        message = f"{told} lasts until {timestamp(ends)}{_verdict_words(view)}"
        reason = reasons.BAKING if view.is_baking else reasons.STEP_RUNNING
        return _hold(reason, message, look_at=_soonest(ends, soonest))
    if not view.has_passed:
        message = f"{told} has lasted long enough but is held{_verdict_words(view)}"
        return _hold(reasons.ANALYSIS_HOLDS, message, look_at=soonest)
    if view.needs_a_person and not view.is_promotion_asked_for:
        move = change_candidate(view, held_time=instant(view.now), progress_time=None)
        return _hold(reasons.WAITING_FOR_PROMOTE_TOKEN, f"{told} waits for a person from now on", move=move)
    return None


def _go_on(view: View, said: str) -> Rung:
    """To the next step, or to all of the traffic."""
    plan, goal = view.plan, view.goal
    if plan is None or goal is None:
        raise ValueError("there is no candidate to go on")
    if (brake := _brake(view, said)) is not None:
        return brake
    if not view.is_scaled:
        revision = _wanted(view)
        wanted = sum(view.wanted_replicas(revision, one) for one in view.servers(revision))
        message = f"{said}; {view.ready_replicas(revision.name)} servers are ready, {wanted} are asked for by now"
        return _hold(
            reasons.SCALING,
            f"{message}, for {goal.reach} % of the requests",
            move=_begin_to_scale(view),
            look_at=view.deadline,
        )
    if goal.step < len(plan.steps):
        return _hold(reasons.STEP_STARTING, said, move=enter_step(view, goal.step))
    return _arrive(view, said)


def _begin_to_scale(view: View) -> Move | None:
    """A step that has passed is progress, so servers have as long as at the beginning to come."""
    candidate = view.ledger.candidate
    if candidate is None or candidate.step is None or candidate.scaling_time is not None:
        return None
    return change_candidate(view, scaling_time=instant(view.now), progress_time=instant(view.now))


def _arrive(view: View, said: str) -> Rung:
    """At all of the traffic: first the bake, where one is declared, then as stable."""
    if view.is_rollback:
        return _hold(reasons.WENT_BACK, said, move=promote(view, reasons.WENT_BACK, said))
    if view.plan is not None and view.plan.bake and not view.is_baking:
        return _hold(reasons.BAKING, f"{said}; the bake begins", move=bake(view, len(view.plan.steps) - 1))
    return _hold(reasons.PROMOTED, f"{said}; nothing is left to do", move=promote(view, reasons.PROMOTED, said))


def _brake(view: View, said: str) -> Rung | None:
    """What keeps a candidate from advancing, however good it is."""
    if view.plan is not None and view.plan.is_paused:
        return _hold(reasons.PAUSED, f"{said}; rollout.paused holds it", look_at=view.next_analysis)
    if view.frozen_until is not None:
        message = f"{said}; a freeze window holds it until {timestamp(view.frozen_until)}"
        return _hold(reasons.FROZEN, message, look_at=view.frozen_until)
    return None


def _hold(reason: str, message: str, *, move: Move | None = None, look_at: datetime | None = None) -> Rung:
    return _waiting(Finding(ConditionType.PROMOTED, "Unknown", reason, message), move=move, look_at=look_at)


def _verdict_words(view: View) -> str:
    candidate = view.ledger.candidate
    if candidate is None or candidate.verdict is None:
        return "; nothing was judged yet"
    worst = view.metric_with(candidate.verdict)
    return f"; last verdict {candidate.verdict}" + (f": {worst.message}" if worst is not None else "")


def _drained(view: View) -> Rung:
    if not view.ledger.retiring:
        return _met()
    numbers = ", ".join(str(one.number) for one in view.ledger.retiring)
    finding = Finding(
        ConditionType.TRAFFIC_PROGRAMMED,
        "True",
        reasons.DRAINING,
        f"revision {numbers} is drained before it is removed",
    )
    return _waiting(finding, look_at=view.drain_ends)


_RUNGS_TO_THE_ARTIFACT: Final[tuple[Callable[[View], Rung], ...]] = (
    _accepted,
    _source_resolved,
    _recorded,
    _not_quarantined,
    _begun,
    _converted,
    _validated,
    _published,
)
_RUNGS: Final = (
    *_RUNGS_TO_THE_ARTIFACT,
    _available,
    _first_served,
    _programmed,
    _promoted,
    _drained,
)
_RUNGS_OF_THE_PACKED: Final = (*_RUNGS_TO_THE_ARTIFACT, _packed, _promoted, _drained)


# ---- shared by rungs


def _wanted(view: View) -> RevisionSeen:
    if view.wanted is None:
        raise ValueError("an unrecorded revision does not get this far")
    return view.wanted


def _class_spec(view: View) -> Any:
    if view.class_spec is None:
        raise ValueError("a model without a class does not get this far")
    return view.class_spec


def _stage(revision: RevisionSeen, name: str) -> StageStatus | None:
    """The result of a Job that is not to be run again."""
    ended = ("Succeeded", *_UNPROVED)
    return next((one for one in revision.status.stages if one.name == name and one.outcome in ended), None)


def _converted_finding(revision: RevisionSeen) -> Finding:
    record = _stage(revision, "convert")
    message = record.message if record is not None else "the artifact exists already"
    return Finding(ConditionType.CONVERTED, "True", reasons.CONVERTED, message)


def _validated_finding(revision: RevisionSeen) -> Finding:
    schemes = {one.provider: f"auto takes {one.scheme}, " for one in revision.status.quantization}
    parts = [
        f"{one.provider}: {schemes.get(one.provider, '')}cosine {one.min_cosine}, {one.samples} samples"
        + (f", packed and not run there: {one.checked}" if one.checked else "")
        for one in revision.status.parity
    ]
    parts += [f"{one.name} on {one.provider}: loss {one.loss}" for one in revision.status.evaluations]
    unproved = [one.message for one in revision.status.stages if one.outcome in _UNPROVED]
    reason = reasons.NOT_VALIDATED if unproved else reasons.VALIDATED
    message = clipped("; ".join([*unproved, *parts]) or "all graphs passed")
    return Finding(ConditionType.VALIDATED, "True", reason, message)


def _soonest(*moments: datetime | None) -> datetime | None:
    return min((one for one in moments if one is not None), default=None)


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    return f"{'.'.join(str(part) for part in found['loc'])}: {found['msg']}"
