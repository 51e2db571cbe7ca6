"""What becomes of a reconcile that raises, hangs, or wants another look."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, cast

import pytest

from onnx_operator.adapters.errors import (
    AdmissionDenied,
    Call,
    Conflict,
    Forbidden,
    Invalid,
    NotLeading,
    TooManyRequests,
    Unavailable,
)
from onnx_operator.metrics import Metrics
from onnx_operator.settings import read_settings
from onnx_operator.workers import Workers
from onnx_operator.workqueue import Key, WorkQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from onnx_operator.context import Context

CALL = Call("patch", "onnxmodels/status", "ns", "a")
A, B = Key("ns", "a"), Key("ns", "b")


class OnlySettings:
    """A context for reconciles that use nothing of it."""

    settings = read_settings(
        ["--reconcile-seconds", "0.05", "--workers", "2"],
        {"OPERATOR_IMAGE": "o", "CONVERTER_IMAGE": "c", "TRITON_IMAGE": "t"},
    )


class Run:
    """Workers on one queue, with a reconcile that the test brings."""

    def __init__(self, reconcile: Callable[[Key], Awaitable[float | None]]) -> None:
        self.at = 0.0
        self.queue = WorkQueue(now=lambda: self.at, jitter=lambda seconds: seconds)
        self.metrics = Metrics()
        self.finished = 0
        self.seen: Counter[Key] = Counter()
        self._reconcile = reconcile

    async def __call__(self, *keys: Key) -> None:
        async def reconcile(key: Key, _: Context) -> float | None:
            self.seen[key] += 1
            return await self._reconcile(key)

        def count() -> None:
            self.finished += 1
            if not self.queue.depth:
                self.queue.close()

        context = cast("Context", OnlySettings())
        for key in keys:
            self.queue.add(key)
        await asyncio.wait_for(Workers(self.queue, reconcile, context, self.metrics, finished=count).run(), timeout=30)

    def counted(self, outcome: str, reason: str) -> float:
        labels = {"outcome": outcome, "reason": reason}
        return self.metrics.registry.get_sample_value("onnx_operator_reconciles_total", labels) or 0.0


def raising(*errors: Exception | None) -> Callable[[Key], Awaitable[float | None]]:
    left = list(errors)

    async def reconcile(_: Key) -> float | None:
        error = left.pop(0) if left else None
        if error is not None:
            raise error
        return None

    return reconcile


async def test_a_good_reconcile_is_done() -> None:
    run = Run(raising())
    await run(A)
    assert (run.seen[A], run.counted("done", ""), run.finished) == (1, 1.0, 1)
    assert run.metrics.registry.get_sample_value("onnx_operator_reconcile_duration_seconds_count") == 1


async def test_another_look_comes_when_it_was_asked_for() -> None:
    async def in_a_minute(_: Key) -> float:
        return 60.0

    run = Run(in_a_minute)
    await run(A)
    run.at = 59.0
    assert run.queue.take() is None
    run.at = 60.0
    assert run.queue.take() == A


@pytest.mark.parametrize(
    ("error", "outcome", "wait"),
    [
        (Unavailable(CALL, "down"), "unavailable", 1.0),
        (NotLeading(CALL), "unavailable", 1.0),
        (Invalid(CALL, "bad", status=422, causes=()), "refused", 1.0),
        (Forbidden(CALL, "no", status=403, verb="create", resource="jobs"), "refused", 1.0),
        (AdmissionDenied(CALL, "no", status=403, by="LimitRange"), "refused", 1.0),
        (TooManyRequests(CALL, "later", status=429, retry_after=17.0), "throttled", 17.0),
        (RuntimeError("a bug"), "crashed", 1.0),
        (TimeoutError("of its own"), "crashed", 1.0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_every_failure_is_counted_and_tried_again(error: Exception, outcome: str, wait: float) -> None:
    run = Run(raising(error))
    await run(A)
    assert run.counted(outcome, type(error).__name__) == 1.0
    run.at = wait - 0.1
    assert run.queue.take() is None
    run.at = wait
    assert run.queue.take() == A


async def test_the_first_conflict_is_looked_at_again_at_once_the_second_backs_off() -> None:
    run = Run(raising(Conflict(CALL, "x"), Conflict(CALL, "x")))
    await run(A)
    assert run.seen[A] == 2
    assert run.queue.take() is None
    run.at = 2.0
    assert run.queue.take() == A


async def test_a_reconcile_that_hangs_is_ended_and_tried_again() -> None:
    async def hang(_: Key) -> None:
        await asyncio.Event().wait()

    run = Run(hang)
    await run(A)
    assert run.counted("timeout", "DeadlineExceeded") == 1.0


async def test_a_poison_model_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def reconcile(key: Key) -> None:
        if key == A:
            raise ZeroDivisionError("poison")

    run = Run(reconcile)
    await run(A, B)
    assert run.counted("done", "") == 1.0
    [record] = [record for record in caplog.records if record.message == "reconcile failed"]
    assert vars(record)["key"] == "ns/a"
    assert record.exc_info is not None


async def test_being_told_to_stop_passes_through() -> None:
    begun = asyncio.Event()

    async def reconcile(_: Key) -> None:
        begun.set()
        await asyncio.sleep(0.04)

    running = asyncio.create_task(Run(reconcile)(A))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
