"""Takes keys from the queue and reconciles them; the one place where a reconcile's exception becomes a decision.

A model that fails every time (a poison model) costs its own back-off and a log line, never another model's turn:
whatever is raised is counted, logged with the key, and ends here. Only being cancelled passes through.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx_operator.adapters.errors import (
    ApiError,
    Conflict,
    NotLeading,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx_operator.context import Context, Reconcile
    from onnx_operator.metrics import Metrics
    from onnx_operator.workqueue import Key, WorkQueue

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a reconcile ended; the words are those of the metric `onnx_operator_reconciles_total`."""

    outcome: str
    reason: str
    next_look: float | None = None
    error: BaseException | None = None


class Workers:
    """A bounded number of reconciles at the same time."""

    def __init__(
        self,
        queue: WorkQueue,
        reconcile: Reconcile,
        context: Context,
        metrics: Metrics,
        *,
        finished: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._reconcile = reconcile
        self._context = context
        self._metrics = metrics
        self._finished = finished

    async def run(self) -> None:
        """Work until the queue is closed and what was begun is finished."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._context.settings.workers):
                group.create_task(self._work(), name=f"worker {number}")

    async def _work(self) -> None:
        while (key := await self._queue.get()) is not None:
            self._metrics.queue_seconds.observe(self._queue.waited(key))
            started = time.perf_counter()
            outcome = await self._attempt(key)
            self._metrics.reconcile_seconds.observe(time.perf_counter() - started)
            self._metrics.reconciles.labels(outcome=outcome.outcome, reason=outcome.reason).inc()
            self._settle(key, outcome)
            self._finished()

    async def _attempt(self, key: Key) -> Outcome:  # noqa: PLR0911 - a table of outcomes
        deadline = asyncio.timeout(self._context.settings.reconcile_seconds)
        try:
            async with deadline:
                next_look = await self._reconcile(key, self._context)
        except Conflict as error:
            return Outcome("conflict", "Conflict", error=error)
        except TooManyRequests as error:
            return Outcome("throttled", "TooManyRequests", next_look=error.retry_after, error=error)
        except (Unavailable, Unauthorized, NotLeading) as error:
            return Outcome("unavailable", type(error).__name__, error=error)
        except ApiError as error:
            return Outcome("refused", type(error).__name__, error=error)
        except Exception as error:  # noqa: BLE001 - a poison model must not take the others down
            if isinstance(error, TimeoutError) and deadline.expired():
                return Outcome("timeout", "DeadlineExceeded", error=error)
            return Outcome("crashed", type(error).__name__, error=error)
        return Outcome("done", "", next_look=next_look)

    def _settle(self, key: Key, outcome: Outcome) -> None:
        match outcome.outcome:
            case "done":
                self._queue.done(key, next_look=outcome.next_look)
                return
            case "conflict" if self._queue.failures(key) == 0:
                # Somebody wrote between our read and our write: the normal case, cured by a second look.
                self._queue.retry_at_once(key)
                return
            case "throttled":
                wait = self._queue.retry(key, not_before=outcome.next_look)
            case _:
                wait = self._queue.retry(key)
        fields = {"key": str(key), "outcome": outcome.outcome, "retry_seconds": round(wait, 1)}
        if outcome.outcome in {"crashed", "timeout"}:
            log.error("reconcile failed", extra=fields, exc_info=outcome.error)
        else:
            log.warning("reconcile failed", extra={**fields, "error": str(outcome.error)})
