"""One model, one look: read, decide, act, tell.

    observe  everything that matters, frozen
    decide   pure; a ledger changes, or the world does, or nothing
    perform  the actions, each only if the cluster differs from it
    report   the statuses that changed, Events for what is new, metrics

It refuses to remember anything: the next look, by this process or another, starts from what the cluster says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from onnx_operator.core.decide import decide
from onnx_operator.observe import observe
from onnx_operator.perform import perform
from onnx_operator.report import report

if TYPE_CHECKING:
    from onnx_operator.context import Context
    from onnx_operator.workqueue import Key

#: What a person has to lift is looked at again now and then, since nothing tells when it was lifted.
_OBSTACLE_SECONDS: Final = 15.0
_AT_ONCE: Final = 0.0


async def reconcile(key: Key, context: Context) -> float | None:
    """Bring the model one step closer to its spec; the seconds until the next look, if no event comes first."""
    now = context.clock.now()
    seen = await observe(key, context, now)
    if seen is None or seen.model.is_deleting:
        # Everything the model owns names it as owner: its end is the garbage collector's, and needs no operator.
        context.metrics.forget(key)
        return None
    decision = decide(seen, now)
    performed = await perform(decision.actions, seen.model, context)
    await report(decision, performed.obstacle, context)
    if performed.obstacle is not None:
        return _OBSTACLE_SECONDS
    return _AT_ONCE if performed.has_changed_something else decision.look_again
