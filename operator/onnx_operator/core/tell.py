"""The status a person reads: every condition, both sides of the traffic, and a phase for the eye.

Says what was decided and seen; decides nothing. Ready is true only when the revision of the present spec answers all
requests and nothing is left to clean up; Stalled only when waiting alone will not help. `phase` is derived last and
read by nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from onnx_operator.api.model import EndpointStatus, PoolStatus
from onnx_operator.core import reasons
from onnx_operator.core.conditions import STAGES, ConditionType, Finding, written
from onnx_operator.core.ladder import Passage, packed_words, programmed_finding
from onnx_operator.core.ledger import Stage
from onnx_operator.core.pools import DEFAULT_WEIGHT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx_operator.api.model import CandidateStatus, OnnxModelStatus, RevisionInUse
    from onnx_operator.core.ladder import Standing
    from onnx_operator.core.view import View

Side = TypeVar("Side", bound="RevisionInUse")


def tell(view: View, standing: Standing, ledger: OnnxModelStatus, obstacle: Finding | None = None) -> OnnxModelStatus:
    """The ledger with everything that is told beside it. `obstacle` is what kept an action from being done."""
    # The look that ends a drain removes nothing yet: it is over when what was drained is gone.
    is_draining = bool(ledger.retiring or view.ledger.retiring)
    findings = _all_findings(view, standing, obstacle, is_draining=is_draining)
    status = ledger.model_copy(
        update={
            "observed_generation": view.seen.model.generation,
            "conditions": written(findings, ledger.conditions, generation=view.seen.model.generation, now=view.now),
            "stable": _updated(view, ledger.stable) if ledger.stable is not None else None,
            "candidate": _mirrored(view, _updated(view, ledger.candidate)) if ledger.candidate is not None else None,
            "retiring": [_updated(view, one) for one in ledger.retiring],
            "endpoint": None if view.serves_nothing else _endpoint(view) or ledger.endpoint,
            "pools": list(_pools(view, ledger)),
        }
    )
    return status.model_copy(update={"phase": _phase(view, standing)})


def _updated(view: View, side: Side) -> Side:
    return side.model_copy(
        update={
            "weight": view.accepted_weight(side.revision, side.weight),
            "ready_replicas": view.ready_replicas(side.revision),
        }
    )


def _mirrored(view: View, candidate: CandidateStatus) -> CandidateStatus:
    return candidate.model_copy(update={"mirror": view.accepted_mirror(candidate.revision, candidate.mirror)})


def _pools(view: View, ledger: OnnxModelStatus) -> Iterable[PoolStatus]:
    before = {one.provider: one.percent for one in ledger.pools}
    named = [view.revision(one.revision) for one in (ledger.stable, ledger.candidate) if one is not None]
    servers = [view.servers(side) for side in named if side is not None]
    for provider in sorted({provider for side in servers for provider in side}):
        yield PoolStatus(
            provider=provider,
            weight=view.pool_weights.get(provider, DEFAULT_WEIGHT),
            percent=view.accepted_percent_of_pool(provider, before.get(provider, 0)),
            # Without those on their way out, of which nobody knows the last moment.
            ready_replicas=sum(state.ready for side in servers if (state := side.get(provider)) is not None),
        )


def _endpoint(view: View) -> EndpointStatus | None:
    model = view.seen.model
    is_to_be_packed = model.spec is not None and all(one.serving for one in model.spec.execution_providers)
    if view.class_spec is None or (is_to_be_packed and view.ledger.stable is None):
        return None
    host = host_of(model.name, model.namespace, None if view.is_by_ratio else view.class_spec.traffic.domain)
    return EndpointStatus(host=host, model_name=model.name)


def host_of(model: str, namespace: str, domain: str | None) -> str:
    """Where the model answers; without a domain at its Service."""
    return f"{model}.{namespace}.{domain or 'svc'}"


def _all_findings(view: View, standing: Standing, obstacle: Finding | None, *, is_draining: bool) -> list[Finding]:
    found = {finding.type: finding for finding in standing.findings}
    if ConditionType.TRAFFIC_PROGRAMMED not in found and view.split is not None:
        found[ConditionType.TRAFFIC_PROGRAMMED] = programmed_finding(view)
    if obstacle is not None:
        found[obstacle.type] = obstacle
    story = obstacle or standing.story
    stages = [found.get(kind) or _pending(kind, story) for kind in STAGES]
    is_busy = is_draining or obstacle is not None
    return [*_summary(view, standing, story, is_busy=is_busy), *stages]


def _pending(kind: ConditionType, story: Finding) -> Finding:
    return Finding(kind, "Unknown", reasons.PENDING, f"{story.type} comes first")


def _summary(view: View, standing: Standing, story: Finding, *, is_busy: bool) -> Iterable[Finding]:
    """Ready, Reconciling and Stalled, as kstatus understands them."""
    if standing.passage is Passage.MET and not is_busy:
        if view.serves_nothing and view.stable is not None:
            yield Finding(ConditionType.READY, "True", reasons.PACKED, packed_words(view.stable))
        else:
            yield Finding(ConditionType.READY, "True", reasons.SERVING, _serving_words(view))
        yield Finding(ConditionType.RECONCILING, "False", reasons.SETTLED, "")
        yield Finding(ConditionType.STALLED, "False", reasons.SETTLED, "")
        return
    reason, message = _story_words(view, story)
    yield Finding(ConditionType.READY, "False", reason, message)
    # Whoever reads that the present spec was seen must not be told that nothing is tried, in the look that begins to.
    is_stalled = standing.passage is Passage.STALLED and not view.is_to_be_retried
    moving = Finding(ConditionType.RECONCILING, "True", reason, message)
    yield moving if is_busy or not is_stalled else Finding(ConditionType.RECONCILING, "False", reasons.SETTLED, "")
    stalled = Finding(ConditionType.STALLED, "True", reason, message)
    yield stalled if is_stalled else Finding(ConditionType.STALLED, "False", reasons.PROGRESSING, "")


def _story_words(view: View, story: Finding) -> tuple[str, str]:
    reason, message = story.reason, story.message
    wanted = view.wanted
    if wanted is not None and wanted.status.quarantine is not None and not view.is_settled_on_wanted:
        number = wanted.spec.number
        if wanted.status.quarantine.stage == Stage.ROLLOUT:
            message = f"revision {number} was rolled back ({reason}): {message}"
            reason = reasons.ROLLED_BACK
        else:
            message = f"revision {number} failed: {message}"
    stable = view.ledger.stable
    if stable is not None and not view.is_settled_on_wanted and not view.is_baking:
        message = f"{message}; revision {stable.number} {'stays published' if view.serves_nothing else 'keeps serving'}"
    return reason, message


def _serving_words(view: View) -> str:
    endpoint, stable = _endpoint(view), view.ledger.stable
    if endpoint is None or stable is None:
        return ""
    without = f", without {', '.join(stable.left_out)}, which no node validates" if stable.left_out else ""
    return f"revision {stable.number} answers all requests at {endpoint.host}{without}"


_PHASES: Final = {
    ConditionType.ACCEPTED: "Pending",
    ConditionType.SOURCE_RESOLVED: "Fetching",
    ConditionType.CONVERTED: "Converting",
    ConditionType.VALIDATED: "Validating",
    ConditionType.CANDIDATE_AVAILABLE: "Starting",
    ConditionType.TRAFFIC_PROGRAMMED: "Routing",
    ConditionType.PROMOTED: "Canary",
}
_PHASES_BY_REASON: Final[dict[str, str]] = {
    reasons.PUBLISHING: "Publishing",
    reasons.DRAINING: "Draining",
    reasons.SCALING: "Scaling",
    reasons.PAUSED: "Paused",
    reasons.FROZEN: "Frozen",
    reasons.BAKING: "Baking",
    reasons.WAITING_FOR_PROMOTE_TOKEN: "Held",
}


def _phase(view: View, standing: Standing) -> str:
    story = standing.story
    if standing.passage is Passage.MET:
        return "Ready"
    if standing.passage is Passage.STALLED:
        if view.is_to_be_retried:
            return "Pending"
        wanted = view.wanted
        is_rolled_back = wanted is not None and wanted.status.quarantine is not None
        is_rolled_back = is_rolled_back and story.type is ConditionType.PROMOTED
        return "RolledBack" if is_rolled_back else "Failed"
    return _PHASES_BY_REASON.get(story.reason, _PHASES.get(story.type, "Pending"))
