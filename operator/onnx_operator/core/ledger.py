"""Changes of the ledgers in status: what the operator has decided and must not forget.

A look either changes one ledger or acts on the world, never both. So every effect follows from what is already
written down, and a process that dies between two writes leaves nothing that the next one would read differently.
A ledger is the status of the OnnxModel or of one revision; a move changes exactly one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from onnx_operator.api.model import CandidateStatus, FailureStatus, KnownGood, RevisionInUse, StableStatus
from onnx_operator.api.revision import Outcome, QuarantineStatus
from onnx_operator.api.rollout import MetricName
from onnx_operator.core.conditions import clipped, instant, timestamp
from onnx_operator.core.names import REVISION_LABEL, stage_job_name

if TYPE_CHECKING:
    from onnx_operator.api.model import MetricStatus, OnnxModelStatus
    from onnx_operator.api.revision import OnnxModelRevisionStatus, StageStatus
    from onnx_operator.core.observation import RevisionSeen
    from onnx_operator.core.view import View


class Stage:
    """Where a revision can fail, as it stands in `quarantine.stage` and `lastFailure.stage`."""

    SOURCE: Final = "SourceResolved"
    CONVERTED: Final = "Converted"
    VALIDATED: Final = "Validated"
    PUBLISHED: Final = "Published"
    AVAILABLE: Final = "CandidateAvailable"
    ROLLOUT: Final = "Rollout"


@dataclass(frozen=True, slots=True)
class Ended:
    """A rollout came to its end."""

    outcome: str
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class MoveModel:
    """The OnnxModel's ledger becomes this."""

    status: OnnxModelStatus
    ended: Ended | None = None


@dataclass(frozen=True, slots=True)
class MoveRevision:
    """A revision's ledger becomes this."""

    name: str
    status: OnnxModelRevisionStatus
    ended: Ended | None = None


Move = MoveModel | MoveRevision


def change(view: View, **updates: Any) -> MoveModel:
    """The model's ledger with some of its entries changed."""
    return MoveModel(view.ledger.model_copy(update=updates))


def change_candidate(view: View, **updates: Any) -> MoveModel:
    """The model's ledger with some of the candidate's entries changed."""
    if view.ledger.candidate is None:
        raise ValueError("there is no candidate to change")
    return change(view, candidate=view.ledger.candidate.model_copy(update=updates))


def begin(view: View, revision: RevisionSeen) -> MoveModel:
    """The revision becomes the candidate; if it was on its way out, it stays."""
    candidate = CandidateStatus(
        revision=revision.name,
        number=revision.spec.number,
        started_time=timestamp(view.now),
        rollback=view.goes_back,
    )
    retiring = [one for one in view.ledger.retiring if one.revision != revision.name]
    return change(view, candidate=candidate, retiring=retiring)


def enter_step(view: View, step: int | None) -> MoveModel:
    """The candidate's weight becomes that of the step; its clock starts when the gateway has accepted it.

    What a person asked for within a step ends with the step, unless it was to hurry through the steps.
    """
    candidate = view.ledger.candidate
    updates: dict[str, Any] = {"step": step, "step_started_time": None, "held_time": None, "baking": False}
    updates["scaling_time"] = None
    going_on = _counted_through_all_steps(view)
    updates |= {"verdict": None, "verdict_time": None, "verdict_since_time": None, "analysis": going_on}
    updates |= {"measured_split": None, "golden_requests_before": sum(one.candidate_samples for one in going_on)}
    if candidate is not None and candidate.step is not None and (step is None or not view.is_hurried):
        updates["promotion_asked_time"] = None
    if step is not None:
        updates["progress_time"] = instant(view.now)
    return change_candidate(view, **updates)


def _counted_through_all_steps(view: View) -> list[MetricStatus]:
    """Golden requests do not depend on the weight, so what they have come to goes on."""
    candidate = view.ledger.candidate
    return [one for one in candidate.analysis if one.name == MetricName.DISAGREEMENT] if candidate is not None else []


def bake(view: View, last_step: int) -> MoveModel:
    """The candidate's weight becomes everything; what was stable is kept warm."""
    entered = enter_step(view, last_step)
    if entered.status.candidate is None:
        raise ValueError("there is no candidate to bake")
    candidate = entered.status.candidate.model_copy(update={"baking": True, "promotion_asked_time": None})
    return MoveModel(entered.status.model_copy(update={"candidate": candidate}))


def promote(view: View, reason: str, said: str) -> MoveModel:
    """The candidate becomes stable, for the reason that is said; what was stable is drained and then removed."""
    candidate = view.ledger.candidate
    if candidate is None:
        raise ValueError("there is no candidate to promote")
    stable = StableStatus(
        revision=candidate.revision,
        number=candidate.number,
        digest=candidate.digest,
        weight=candidate.weight,
        ready_replicas=candidate.ready_replicas,
        rollback=candidate.rollback,
        left_out=list(view.candidate.whose_validation_is("LeftOut")) if view.candidate is not None else [],
    )
    leaving: list[RevisionInUse] = [] if view.ledger.stable is None else [view.ledger.stable]
    status = view.ledger.model_copy(
        update={
            "stable": stable,
            "candidate": None,
            "retiring": _retired(view.ledger.retiring, leaving),
            "known_good": _known_good(view, candidate),
            "drain_started_time": None,
        }
    )
    return MoveModel(status, Ended("Promoted", reason, said))


#: As many as the widest rollback window.
_KNOWN_GOOD: Final = 10


def _known_good(view: View, promoted: CandidateStatus) -> list[KnownGood]:
    """What is left for a later one was good; what is left for an earlier one was not."""
    leaving = view.ledger.stable
    in_question = {promoted.revision} if leaving is None else {promoted.revision, leaving.revision}
    before = [one for one in view.ledger.known_good if one.revision not in in_question]
    if leaving is None or leaving.number > promoted.number:
        return before
    left = KnownGood(revision=leaving.revision, number=leaving.number, until_time=timestamp(view.now))
    return [left, *before][:_KNOWN_GOOD]


def take_out(view: View, failure: FailureStatus | None) -> MoveModel:
    """The candidate is no longer one: first its traffic goes, then its servers."""
    candidate = view.ledger.candidate
    if candidate is None:
        raise ValueError("there is no candidate to take out")
    revision = view.candidate
    has_left_traces = revision is not None and (view.has_servers(revision.name) or view.is_routed(revision))
    updates: dict[str, Any] = {"candidate": None}
    if has_left_traces:
        updates |= {"retiring": _retired(view.ledger.retiring, [candidate]), "drain_started_time": None}
    if failure is not None:
        updates["last_failure"] = failure
        updates["known_good"] = [one for one in view.ledger.known_good if one.revision != candidate.revision]
    return change(view, **updates)


def quarantine(
    view: View,
    revision: RevisionSeen,
    *,
    stage: str,
    reason: str,
    message: str,
    exit_code: int | None = None,
    logs: str | None = None,
    record: StageStatus | None = None,
) -> MoveRevision:
    """The revision is not tried again until a person says so or the spec wants another."""
    stages = revision.status.stages if record is None else [*revision.status.stages, record]
    status = revision.status.model_copy(
        update={
            "stages": stages,
            "quarantine": QuarantineStatus(
                stage=stage,
                reason=reason,
                message=clipped(message),
                exit_code=exit_code,
                logs=logs,
                time=timestamp(view.now),
            ),
        }
    )
    return MoveRevision(revision.name, status, Ended(str(fate(stage)), reason))


def lift_quarantine(revision: RevisionSeen, *, keep_artifact: bool) -> MoveRevision:
    """The revision may be tried again, with Jobs of new names; what it was served without may be validated then."""
    is_kept = keep_artifact and not revision.whose_validation_is("LeftOut")
    status = revision.status.model_copy(
        update={
            "attempt": revision.status.attempt + 1,
            "quarantine": None,
            "stages": [],
            "outcome": Outcome.PENDING,
            "artifact": revision.status.artifact if is_kept else None,
        }
    )
    return MoveRevision(revision.name, status)


def failure_of(revision: RevisionSeen) -> FailureStatus | None:
    """The revision's quarantine as the model's last failure."""
    found = revision.status.quarantine
    if found is None:
        return None
    return FailureStatus(
        stage=found.stage,
        reason=found.reason,
        message=found.message,
        revision=revision.name,
        exit_code=found.exit_code,
        logs=found.logs,
        time=found.time,
    )


def outcome_of(
    revision: RevisionSeen, status: OnnxModelRevisionStatus, model: OnnxModelStatus, wanted: str | None
) -> Outcome:
    """Where the revision stands in its life; told for people, never read to decide."""
    if status.quarantine is not None:
        return fate(status.quarantine.stage)
    if model.stable is not None and model.stable.revision == revision.name:
        return Outcome.STABLE
    if model.candidate is not None and model.candidate.revision == revision.name:
        return Outcome.CANDIDATE
    if status.outcome is Outcome.PENDING and wanted is not None and wanted != revision.name:
        return Outcome.SUPERSEDED
    return _OUTCOME_AFTER.get(status.outcome, status.outcome)


#: What becomes of a revision that is neither side of the traffic any more.
_OUTCOME_AFTER: Final = {Outcome.STABLE: Outcome.RETIRED, Outcome.CANDIDATE: Outcome.SUPERSEDED}


def job_logs(namespace: str, job: str) -> str:
    return f"kubectl logs --namespace {namespace} job/{job}"


def stage_logs(view: View, revision: RevisionSeen, stage: str) -> str:
    return job_logs(view.seen.model.namespace, stage_job_name(revision.name, stage, revision.status.attempt))


def server_logs(view: View, revision: RevisionSeen) -> str:
    selector = f"{REVISION_LABEL}={revision.name}"
    return f"kubectl logs --namespace {view.seen.model.namespace} --selector {selector} --all-containers --tail 100"


def fate(stage: str) -> Outcome:
    """What becomes of a revision that fails in this stage."""
    return Outcome.ROLLED_BACK if stage == Stage.ROLLOUT else Outcome.FAILED


def _retired(before: list[RevisionInUse], leaving: list[RevisionInUse]) -> list[RevisionInUse]:
    names = {one.revision for one in leaving}
    plain = [
        RevisionInUse(
            revision=one.revision,
            number=one.number,
            digest=one.digest,
            weight=one.weight,
            ready_replicas=one.ready_replicas,
        )
        for one in leaving
    ]
    return [one for one in before if one.revision not in names] + plain
