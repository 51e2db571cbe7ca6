"""The end of a look: what was decided is written down and told, if it is new.

At most one status write per revision and one for the model. The revision's comes first: a model that dropped a
candidate which nobody marked as bad would take it up again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from onnx_operator.adapters import kube
from onnx_operator.core import reasons
from onnx_operator.core.conditions import STAGES, ConditionType
from onnx_operator.core.decide import obstacle_finding
from onnx_operator.workqueue import Key

if TYPE_CHECKING:
    from onnx_operator.adapters.events import EventType
    from onnx_operator.api.common import Condition
    from onnx_operator.api.model import OnnxModelStatus
    from onnx_operator.context import Context
    from onnx_operator.core.decide import Decision
    from onnx_operator.core.observation import ModelSeen
    from onnx_operator.perform import Obstacle

#: Said by every model all the time; an Event would tell nobody anything.
_QUIET: Final = frozenset({reasons.PENDING, reasons.PROGRESSING, reasons.SETTLED})
#: The condition holds, and somebody should look all the same.
_ALARMING: Final = frozenset(
    {
        reasons.AVAILABLE_IN_PART,
        reasons.POOL_WITHOUT_PODS,
        reasons.POOLS_WITHOUT_WEIGHT,
        reasons.SPLIT_NOT_FOLLOWED,
        reasons.AUTOSCALER_BLIND,
    }
)
#: Says what Ready says.
_ECHO: Final = ConditionType.RECONCILING


async def report(decision: Decision, obstacle: Obstacle | None, context: Context) -> None:
    """Write what changed and tell what is new."""
    model = decision.view.seen.model
    for one in decision.revisions:
        written = one.status.model_dump(mode="json", exclude_none=True)
        await context.kube.patch_status(
            kube.ONNX_MODEL_REVISION, model.namespace, one.name, written, one.resource_version
        )
    finding = None
    if obstacle is not None:
        finding = obstacle_finding(obstacle.action, obstacle.reason, obstacle.message)
    status = decision.status(finding)
    if status != model.status:
        written = status.model_dump(mode="json", exclude_none=True)
        await context.kube.patch_status(kube.ONNX_MODEL, model.namespace, model.name, written, model.resource_version)
        _publish_news(model, status, context)
    _measure(decision, status, context)


def _publish_news(model: ModelSeen, status: OnnxModelStatus, context: Context) -> None:
    about = context.store.get(kube.ONNX_MODEL, model.namespace, model.name)
    if about is None:
        return
    before = {one.type: (one.status, one.reason) for one in model.status.conditions}
    told: set[str] = set()
    for condition in sorted(status.conditions, key=_stages_first):
        is_news = before.get(condition.type) != (condition.status, condition.reason)
        if not is_news or condition.reason in _QUIET or condition.reason in told or condition.type == _ECHO:
            continue
        told.add(condition.reason)
        kind: EventType = "Warning" if _is_bad(condition) else "Normal"
        context.events.publish(about, kind, condition.reason, condition.message)


def _stages_first(condition: Condition) -> int:
    """Of conditions with one reason only the first is told: a stage says it best, and Stalled knows how bad it is."""
    return 0 if condition.type in STAGES else 1 if condition.type == ConditionType.STALLED else 2


def _is_bad(condition: Condition) -> bool:
    if condition.type == ConditionType.STALLED:
        return condition.status == "True"
    return condition.reason in _ALARMING or (condition.status == "False" and condition.type in STAGES)


def _measure(decision: Decision, status: OnnxModelStatus, context: Context) -> None:
    model = decision.view.seen.model
    context.metrics.told(Key(model.namespace, model.name), status)
    if decision.ended is not None:
        context.metrics.rollout_ended(decision.ended.outcome, decision.ended.reason)
