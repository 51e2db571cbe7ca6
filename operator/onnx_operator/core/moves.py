"""What may have to be written down whatever the ladder says: tokens, rollbacks, deadlines, drains.

Asked in this order, the first that applies is the only one that happens. Abort stands before promote (which is
noted here, and acted on by a rung of the ladder), harm before patience.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from onnx_converter.reasons import ARTIFACT_CORRUPT
from onnx_operator.api.model import HandledTokens, StableStatus
from onnx_operator.core import reasons
from onnx_operator.core.analysis import Verdict, limit_of
from onnx_operator.core.autoscaling import stabilization
from onnx_operator.core.conditions import ConditionType, instant
from onnx_operator.core.ledger import (
    Move,
    MoveModel,
    MoveRevision,
    Stage,
    change,
    change_candidate,
    enter_step,
    failure_of,
    lift_quarantine,
    promote,
    quarantine,
    server_logs,
    take_out,
)
from onnx_operator.core.revisions import name_of, resolve
from onnx_operator.core.view import side_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx_operator.core.observation import RevisionSeen
    from onnx_operator.core.pods import Trouble
    from onnx_operator.core.view import View


def first_move(view: View) -> Move | None:
    """The first move that applies, or None."""
    return next((move for rule in _RULES if (move := rule(view)) is not None), None)


def _meet(view: View) -> MoveModel | None:
    """First sight: the tokens that are there already ask for nothing.

    A status that was lost (an object restored without it) must not cost the traffic: what answers most of it now,
    by the model's own routes or Service, is stable.
    """
    if view.ledger.conditions or view.ledger.observed_generation:
        return None
    rollout = view.seen.model.spec.rollout if view.seen.model.spec else None
    tokens = HandledTokens()
    if rollout is not None:
        tokens = HandledTokens(promote=rollout.promote_token, abort=rollout.abort_token, retry=rollout.retry_token)
    return change(view, handled_tokens=tokens, stable=view.ledger.stable or _serving(view))


def _serving(view: View) -> StableStatus | None:
    route = view.routes[0]
    if route is None:
        return None
    weights = {
        one.name: route.split.percent(side_of(one).services) for one in view.seen.revisions if one.status.artifact
    }
    main = max(
        (one for one in view.seen.revisions if weights.get(one.name)), key=lambda one: weights[one.name], default=None
    )
    if main is None or main.status.artifact is None:
        return None
    return StableStatus(
        revision=main.name,
        number=main.spec.number,
        digest=main.status.artifact.digest,
        left_out=list(main.whose_validation_is("LeftOut")),
    )


def _drop_the_quarantined(view: View) -> MoveModel | None:
    """A candidate that failed, or whose record somebody deleted, is no candidate."""
    if view.ledger.candidate is None:
        return None
    revision = view.candidate
    if revision is None or revision.is_deleting:
        return take_out(view, None)
    failure = failure_of(revision)
    return take_out(view, failure) if failure is not None else None


def _forget_a_lost_stable(view: View) -> MoveModel | None:
    """Somebody deleted stable's record, and the spec wants another revision: there is nothing left to go back to."""
    if view.ledger.stable is None or view.offer is None or view.wanted_name is None:
        return None
    if view.is_settled_on_wanted or (view.stable is not None and not view.stable.is_deleting):
        return None
    return change(view, stable=None)


def _abort(view: View) -> Move | None:
    spec = view.seen.model.spec
    if spec is None or spec.rollout.abort_token == view.ledger.handled_tokens.abort:
        return None
    if view.candidate is not None:
        message = "rollout.abortToken changed; change the spec or rollout.retryToken to try again"
        return quarantine(view, view.candidate, stage=Stage.ROLLOUT, reason=reasons.ABORTED, message=message)
    tokens = view.ledger.handled_tokens.model_copy(update={"abort": spec.rollout.abort_token})
    return change(view, handled_tokens=tokens)


def _retry(view: View) -> Move | None:
    """Lifts the quarantine, then fetches anew, as the source's key holds the handled token."""
    spec = view.seen.model.spec
    if spec is None or not view.is_to_be_retried:
        return None
    wanted = view.wanted
    if wanted is not None and wanted.status.quarantine is not None:
        return lift_quarantine(wanted, keep_artifact=wanted.status.quarantine.reason != ARTIFACT_CORRUPT.name)
    tokens = view.ledger.handled_tokens.model_copy(update={"retry": spec.rollout.retry_token})
    return change(view, handled_tokens=tokens)


def _supersede(view: View) -> MoveModel | None:
    """The spec wants something else than the candidate."""
    if view.ledger.candidate is None or view.class_spec is None:
        return None
    if view.is_baking:
        return _end_the_bake(view)
    return None if _is_still_wanted(view) else take_out(view, None)


def _end_the_bake(view: View) -> MoveModel | None:
    """The spec before comes back at once, as its servers are warm, also on the way to one that was good before. Any
    other has to be rolled out against what answers all requests now, so the bake ends; what the spec wants has to be
    known for that.
    """
    candidate, stable, wanted = view.ledger.candidate, view.ledger.stable, view.wanted_name
    is_unknown = view.offer is None or (wanted is None and view.source is None)
    if candidate is None or is_unknown or wanted == candidate.revision:
        return None
    if stable is not None and (wanted == stable.revision or view.goes_back):
        return take_out(view, None)
    return None if view.is_braked else promote(view, reasons.PROMOTED, "another spec ends the bake")


def _is_still_wanted(view: View) -> bool:
    candidate, offer = view.candidate, view.offer
    if candidate is None or offer is None:
        return False
    if view.wanted_name is not None:
        return candidate.name == view.wanted_name
    if view.source is not None:
        return False  # the present source cannot be had
    # While the source is being fetched again the candidate goes on, unless the rest of the spec disowns it already.
    same_bytes = resolve(
        view.seen.model.name, offer, view.seen.images, source_digest=candidate.spec.source_digest, number=1
    )
    return candidate.spec.source == offer.spec.source and name_of(same_bytes) == candidate.name


def _roll_back_the_bad(view: View) -> MoveRevision | None:
    """A metric showed harm."""
    candidate, revision = view.ledger.candidate, view.candidate
    if candidate is None or revision is None or candidate.verdict != Verdict.FAIL:
        return None
    culprit = view.metric_with(Verdict.FAIL)
    said = culprit.message if culprit is not None else "the analysis failed"
    return quarantine(
        view,
        revision,
        stage=Stage.ROLLOUT,
        reason=reasons.BAKE_FAILED if candidate.baking else reasons.ANALYSIS_FAILED,
        message=f"{view.share_words} of the traffic, {said}",
        logs=server_logs(view, revision),
    )


def _act_on_broken_servers(view: View) -> Move | None:
    """Servers that can never start end the candidate; those lost under traffic take its weight away at once."""
    candidate, revision = view.ledger.candidate, view.candidate
    if candidate is None or revision is None or candidate.digest is None:
        return None
    states = view.servers(revision)
    for state in states.values():
        if state is not None and state.trouble is not None and state.trouble.is_final:
            return _condemn(view, revision, Stage.AVAILABLE, state.trouble.reason, state.trouble)
    if candidate.step is None or all(state is not None and state.ready for state in states.values()):
        return None
    for state in states.values():
        if state is not None and not state.ready and state.trouble is not None and state.trouble.is_crash:
            return _condemn(view, revision, Stage.ROLLOUT, reasons.CANDIDATE_CRASHED, state.trouble)
    # Not its own fault, as far as one can see (a node went, somebody deleted the Deployment): it may come back.
    return enter_step(view, None)


def _condemn(view: View, revision: RevisionSeen, stage: str, reason: str, trouble: Trouble) -> MoveRevision:
    message = trouble.message if reason == trouble.reason else f"{trouble.reason}: {trouble.message}"
    return quarantine(
        view,
        revision,
        stage=stage,
        reason=reason,
        message=message,
        exit_code=trouble.exit_code,
        logs=server_logs(view, revision),
    )


def _note_the_artifact(view: View) -> MoveModel | None:
    """From here on the progress deadline counts; the Jobs before had deadlines of their own."""
    candidate, revision = view.ledger.candidate, view.candidate
    if candidate is None or candidate.digest is not None or revision is None or revision.status.artifact is None:
        return None
    progress = None if view.is_clock_stopped else instant(view.now)
    return change_candidate(view, digest=revision.status.artifact.digest, progress_time=progress)


def _note_the_promotion(view: View) -> MoveModel | None:
    """A changed promoteToken is a request for this candidate: written down at once, acted on when the rules allow,
    and gone with the candidate, so that it never hits a later one.
    """
    if view.ledger.candidate is None or view.offer is None:
        return None
    token, tokens = view.offer.spec.rollout.promote_token, view.ledger.handled_tokens
    if token == tokens.promote:
        return None
    candidate = view.ledger.candidate.model_copy(update={"promotion_asked_time": instant(view.now)})
    return change(view, candidate=candidate, handled_tokens=tokens.model_copy(update={"promote": token}))


def _stop_the_clock(view: View) -> MoveModel | None:
    """What stands still by somebody's will is not late; afterwards the time counts anew."""
    candidate = view.ledger.candidate
    if candidate is None or candidate.digest is None or view.plan is None:
        return None
    if view.is_clock_stopped and candidate.progress_time is not None:
        return change_candidate(view, progress_time=None)
    if not view.is_clock_stopped and candidate.progress_time is None:
        return change_candidate(view, progress_time=instant(view.now))
    return None


_LATE: Final = {
    Verdict.INCONCLUSIVE: reasons.ANALYSIS_INCONCLUSIVE,
    Verdict.NO_DATA: reasons.ANALYSIS_NO_DATA,
    Verdict.PROVIDER_ERROR: reasons.ANALYSIS_PROVIDER_ERROR,
}


def _give_up_the_late(view: View) -> MoveRevision | None:
    """The progress deadline: nothing waits for ever, and silence never promotes."""
    candidate, revision, plan = view.ledger.candidate, view.candidate, view.plan
    if candidate is None or revision is None or plan is None or view.deadline is None or view.now < view.deadline:
        return None
    verdict = Verdict(candidate.verdict) if candidate.verdict is not None else None
    is_available = view.suffices(revision)
    # Servers of the next step are waited for only from the look on that finds this one over.
    can_go_on = is_available or (candidate.scaling_time is None and view.bears_its_weight(revision))
    if (verdict is Verdict.PASS or view.may_proceed_in_doubt) and can_go_on and view.is_programmed:
        return None  # what is left of the step is a matter of time, not of proof
    stage = Stage.AVAILABLE if candidate.step is None and not is_available else Stage.ROLLOUT
    late = f"no progress within {plan.progress_deadline}"
    if view.verdict_limit is not None and view.verdict_limit <= view.now:
        limit = limit_of(plan.analysis, candidate.verdict)
        late = f"{candidate.verdict} for {limit}, as long as rollout.analysis.limits lets it last"
    if candidate.step_started_time is None or not is_available:
        reason: str = reasons.PROGRESS_DEADLINE_EXCEEDED
        message = f"{late}: {_why_unavailable(view, revision) or _why_unrouted(view)}"
    else:
        reason = _LATE.get(verdict or Verdict.NO_DATA, reasons.PROGRESS_DEADLINE_EXCEEDED)
        worst = view.metric_with(verdict)
        refused = _what_was_refused(view, ConditionType.PROMOTED)
        message = f"{late}: {refused or (worst.message if worst is not None else 'nothing could be measured')}"
    return quarantine(view, revision, stage=stage, reason=reason, message=message, logs=server_logs(view, revision))


def _why_unavailable(view: View, revision: RevisionSeen) -> str:
    if view.suffices(revision):
        return ""
    for state in view.servers(revision).values():
        if state is not None and state.trouble is not None:
            return f"{state.trouble.reason}: {state.trouble.message}"
    return "not all servers are ready"


def _why_unrouted(view: View) -> str:
    return _what_was_refused(view, ConditionType.TRAFFIC_PROGRAMMED) or view.routing_trouble[1]


def _what_was_refused(view: View, kind: ConditionType) -> str:
    """What the API server refuses cannot be looked at; what it said is known from the look before."""
    return next((one.message for one in view.ledger.conditions if one.type == kind and one.status == "False"), "")


def _drain(view: View) -> MoveModel | None:
    """Out of the traffic, then a while of grace, then out of the routes, then gone."""
    if not view.ledger.retiring or view.class_spec is None:
        return None
    is_on_its_way = any(view.is_to_be_drained(one) for one in view.retiring)
    is_unknown = view.split is None and not view.serves_nothing
    if is_unknown or (view.is_programmed and (view.is_drained or not is_on_its_way)):
        return change(view, retiring=[], drain_started_time=None)
    if view.is_programmed and view.drain_ends is None:
        return change(view, drain_started_time=instant(view.now))
    return None


def _let_stable_shrink_later(view: View) -> MoveModel | None:
    """What autoscalers measure, and remember, speaks for a while of the requests that stable had before it got all of
    them: until that is over it keeps its servers.
    """
    declared, is_noted = view.plan.autoscaling if view.plan is not None else None, view.scale_down_after is not None
    is_to_be_noted = declared is not None and view.is_floor_raised and not view.is_split
    if is_to_be_noted and declared is not None and not is_noted:
        return change(view, scale_down_after_time=instant(view.now + stabilization(declared)))
    return change(view, scale_down_after_time=None) if is_noted and not is_to_be_noted else None


_RULES: Final[tuple[Callable[[View], Move | None], ...]] = (
    _meet,
    _drop_the_quarantined,
    _forget_a_lost_stable,
    _abort,
    _retry,
    _supersede,
    _roll_back_the_bad,
    _act_on_broken_servers,
    _note_the_artifact,
    _note_the_promotion,
    _stop_the_clock,
    _give_up_the_late,
    _drain,
    _let_stable_shrink_later,
)
