"""From an observation to a decision: pure, and the whole of the operator's judgement.

Everything that is decided rests on the observation and on `now`; asking twice gives the same answer, and a process
that takes over in the middle decides as the one before it would have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, assert_never

from onnx_operator.core import reasons
from onnx_operator.core.actions import (
    Delete,
    WantAnalysisJob,
    WantConvert,
    WantFetch,
    WantJobsPolicy,
    WantProber,
    WantPublish,
    WantRevision,
    WantRoutes,
    WantServers,
    WantService,
    WantValidate,
)
from onnx_operator.core.conditions import ConditionType, Finding, moment
from onnx_operator.core.jobs import JobFailed, JobPassed, JobSucceeded
from onnx_operator.core.ladder import Passage, Standing, climb, needs_prober
from onnx_operator.core.ledger import Ended, MoveModel, MoveRevision, change, outcome_of
from onnx_operator.core.moves import first_move
from onnx_operator.core.names import Component, fetch_job_name
from onnx_operator.core.observation import ObjectName
from onnx_operator.core.record import recorded
from onnx_operator.core.tell import tell
from onnx_operator.core.view import look

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from onnx_operator.api.model import OnnxModelStatus
    from onnx_operator.api.revision import OnnxModelRevisionStatus
    from onnx_operator.core.actions import Action, Want
    from onnx_operator.core.ledger import Move
    from onnx_operator.core.observation import Child, Observation, RevisionSeen
    from onnx_operator.core.view import View

#: After a ledger changed there is always something to do.
_AT_ONCE: Final = 0.0
_ROUTES: Final = frozenset({"HTTPRoute", "GRPCRoute"})
_SERVING_KINDS: Final = frozenset({"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"})
DEFAULT_MIN_COSINE: Final = "0.95"


@dataclass(frozen=True, slots=True)
class RevisionReport:
    """A revision's status as it shall be written."""

    name: str
    resource_version: str
    status: OnnxModelRevisionStatus


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now and why; no actions and nothing to report means *wait*."""

    view: View
    standing: Standing
    move: Move | None
    actions: tuple[Action, ...]
    #: Only those that change.
    revisions: tuple[RevisionReport, ...]
    #: Seconds until the next look that no event will cause; None for none.
    look_again: float | None

    @property
    def ended(self) -> Ended | None:
        return self.move.ended if self.move is not None else None

    def status(self, obstacle: Finding | None = None) -> OnnxModelStatus:
        """The model's status as it shall be written."""
        return tell(self.view, self.standing, _ledger(self.view, self.move), obstacle)


def decide(seen: Observation, now: datetime) -> Decision:
    """What this observation calls for. A ledger changes or the world does, never both in one look."""
    view = look(seen, now)
    standing = climb(view)
    move = first_move(view) or standing.move or _note_an_idle_promotion(view, standing)
    actions = () if move is not None or view.class_spec is None else tuple(_needs(view, standing))
    return Decision(
        view=view,
        standing=standing,
        move=move,
        actions=actions,
        revisions=tuple(_reports(view, standing, move)),
        look_again=_AT_ONCE if move is not None else _seconds_to(view, standing),
    )


def _note_an_idle_promotion(view: View, standing: Standing) -> MoveModel | None:
    """A promoteToken that finds nothing to promote is spent; it must not hit a later candidate."""
    spec = view.seen.model.spec
    if standing.passage is Passage.WAITING or spec is None:
        return None
    if spec.rollout.promote_token == view.ledger.handled_tokens.promote:
        return None
    tokens = view.ledger.handled_tokens.model_copy(update={"promote": spec.rollout.promote_token})
    return change(view, handled_tokens=tokens)


# ---- what must exist, and what must not


def _needs(view: View, standing: Standing) -> Iterator[Action]:
    """In this order, as nothing that comes after what is refused is done: traffic, servers, what makes room, and Jobs,
    which a quota may refuse.
    """
    serving, jobs = [*_wanted(view)], [*_jobs(view, standing)]
    yield from serving
    yield from _unwanted(view, [*serving, *jobs])
    yield from jobs


def _wanted(view: View) -> Iterator[Want]:
    split = view.split
    if split is not None and (view.is_by_ratio or view.seen.service is not None):
        # Once a gateway has come, callers may still be at the Service: it is kept until somebody deletes it.
        yield WantService(view.seen.model, view.selected)
    if split is not None and view.class_spec is not None and not view.is_by_ratio:
        yield WantRoutes(view.seen.model, view.class_spec, split)
    for revision in _serving(view):
        for provider in view.servers(revision):
            yield WantServers(
                view.seen.model,
                revision,
                provider,
                view.start_replicas(revision, provider),
                view.autoscaler(revision, provider),
                is_autoscaled=view.is_autoscaled(revision, provider),
            )
    if (prober := _prober(view)) is not None:
        yield prober


def _jobs(view: View, standing: Standing) -> Iterator[Want]:
    if view.offer is not None:
        yield WantJobsPolicy(view.seen.model)
    yield from standing.wants
    yield from _analysis_jobs(view)


def _serving(view: View) -> Iterator[RevisionSeen]:
    """The revisions whose servers must run: those with traffic, those on their way in, those on their way out."""
    if view.stable is not None and view.stable.status.artifact is not None:
        yield view.stable
    if view.candidate is not None and view.may_have_servers(view.candidate):
        yield view.candidate
    for revision in view.retiring:
        if revision.status.artifact is not None:
            yield revision


def _prober(view: View) -> WantProber | None:
    stable, candidate = view.stable, view.candidate
    if stable is None or candidate is None or view.class_spec is None or view.plan is None or not needs_prober(view):
        return None
    gateway = None if view.is_by_ratio else view.seen.gateway
    if view.is_by_ratio:
        is_reachable = view.is_available(candidate) or view.step_index is not None
    else:
        is_reachable = gateway is not None and view.is_routed(candidate)
    if not is_reachable:
        return None
    analysis = view.plan.analysis
    cosine = next((metric.min_cosine for metric in analysis.metrics if metric.min_cosine), DEFAULT_MIN_COSINE)
    golden = analysis.golden_requests.config_map if analysis.golden_requests else None
    return WantProber(view.seen.model, view.class_spec, stable, candidate, gateway, cosine, golden)


def _analysis_jobs(view: View) -> Iterator[Want]:
    """What has ended is not run again, though its Job be gone."""
    stable, candidate = view.stable, view.candidate
    began = view.ledger.candidate.step_started_time if view.ledger.candidate is not None else None
    if stable is None or candidate is None or began is None or view.class_spec is None:
        return
    for name, run in view.runs.items():
        wanted = view.analysis_jobs[name]
        if run.told is None and wanted.job is not None:
            yield WantAnalysisJob(
                view.seen.model,
                view.class_spec,
                stable,
                candidate,
                name,
                wanted.metric,
                wanted.job,
                since=moment(began),
                now=view.now,
            )


def _unwanted(view: View, wants: Iterable[Want]) -> Iterator[Delete]:
    wanted = {name for want in wants for name in want.objects}
    for child in view.seen.children:
        if child.object_name in wanted or child.is_deleting:
            continue
        if (
            (child.kind in _SERVING_KINDS and not _is_in_use(view, child))
            or (child.kind == "Job" and _is_pointless(view, child))
            or (child.kind in _ROUTES and (view.serves_nothing or (view.is_by_ratio and view.is_programmed)))
        ):
            yield Delete(child.object_name, child.uid)
    yield from _history(view)


def _is_in_use(view: View, child: Child) -> bool:
    """What answers requests is never deleted, even where a lost record leaves us unable to say what it should be."""
    if child.component != Component.SERVER or child.kind == "PodDisruptionBudget":
        return False
    if child.kind == "HorizontalPodAutoscaler":  # goes on where the spec may not be acted on
        return view.plan is None and child.revision in _named_in_ledger(view)
    if view.split is not None and not view.is_programmed:
        return True  # the gateway may do otherwise than the routes say
    return child.revision in _named_in_ledger(view) or any(
        route is not None and child.name in route.split.services for route in view.routes
    )


def _named_in_ledger(view: View) -> set[str]:
    sides = (view.ledger.stable, view.ledger.candidate, *view.ledger.retiring)
    return {one.revision for one in sides if one is not None}


def _is_pointless(view: View, job: Child) -> bool:
    """Jobs nobody waits for end here; those that ended stay for their logs until their time to live is over."""
    if job.component == Component.FETCH:
        # A source that comes back is fetched anew, so an old result must not lie around.
        return view.source_key is not None and job.name != fetch_job_name(view.seen.model.name, view.source_key)
    if job.component == Component.ANALYSIS:
        # Of its candidate's Jobs those of the present step are enough, so that no number of steps adds up.
        is_of_candidate = view.candidate is not None and job.revision == view.candidate.name
        has_ended = isinstance(view.seen.analysis_jobs.get(job.name), JobPassed | JobFailed)
        return job.name not in view.analysis_jobs and (is_of_candidate or not has_ended)
    return not isinstance(view.seen.jobs.get(job.name), JobSucceeded | JobFailed)


def _history(view: View) -> Iterator[Delete]:
    """The oldest revisions beyond the limit; never one that serves, is on its way, or is what the spec stands for."""
    if view.offer is None:
        return
    in_use = _named_in_ledger(view) | {view.wanted_name or ""} | {one.revision for one in view.known_good}
    finished = sorted(
        (one for one in view.seen.revisions if one.name not in in_use), key=lambda one: one.spec.number, reverse=True
    )
    for revision in finished[view.offer.spec.revision_history_limit :]:
        if not revision.is_deleting:
            yield _delete_revision(revision)


def _delete_revision(revision: RevisionSeen) -> Delete:
    return Delete(ObjectName("OnnxModelRevision", revision.name), revision.uid)


# ---- what to write down


def _ledger(view: View, move: Move | None) -> OnnxModelStatus:
    return move.status if isinstance(move, MoveModel) else view.ledger


def _reports(view: View, standing: Standing, move: Move | None) -> Iterator[RevisionReport]:
    model = _ledger(view, move)
    for revision in view.seen.revisions:
        status = revision.status
        if isinstance(move, MoveRevision) and move.name == revision.name:
            status = move.status
        told: dict[str, Any] = {"outcome": outcome_of(revision, status, model, view.wanted_name)}
        if view.ledger.candidate is not None and view.ledger.candidate.revision == revision.name:
            told["rollout"] = recorded(view, view.ledger.candidate, standing, move, status)
        status = status.model_copy(update=told)
        if status != revision.status and not revision.is_deleting:
            yield RevisionReport(revision.name, revision.resource_version, status)


def _seconds_to(view: View, standing: Standing) -> float | None:
    """Deadlines and analyses go on while the ladder waits for something else."""
    moments = (
        standing.look_at,
        view.next_analysis,
        view.deadline,
        view.drain_ends,
        view.scale_down_after,
        view.frozen_until,
        view.pools_change,
    )
    ahead = [(one - view.now).total_seconds() for one in moments if one is not None and one > view.now]
    return min(ahead, default=None)


def obstacle_finding(action: Action, reason: str, message: str) -> Finding:
    """Where a write that was refused is told."""
    match action:
        case WantServers() | WantProber():
            kind = ConditionType.CANDIDATE_AVAILABLE
        case WantRoutes():
            kind = ConditionType.TRAFFIC_PROGRAMMED
            if "requestMirror" in message:
                reason = reasons.MIRROR_NOT_SUPPORTED
                message = (
                    "the cluster's Gateway API does not know mirrors of a percentage; install version 1.3 or later, or "
                    f"take mirror out of rollout.steps: {message}"
                )
        case WantFetch() | WantJobsPolicy():
            kind = ConditionType.SOURCE_RESOLVED
        case WantValidate():
            kind = ConditionType.VALIDATED
        case WantPublish():
            kind = ConditionType.CANDIDATE_AVAILABLE
        case WantRevision() | WantConvert():
            kind = ConditionType.CONVERTED
        case WantAnalysisJob():
            kind = ConditionType.PROMOTED
        case WantService() | Delete():
            kind = ConditionType.TRAFFIC_PROGRAMMED
        case unreachable:
            assert_never(unreachable)
    return Finding(kind, "False", reason, message)
