"""Puts the process together: settings in, an operator that leads or stands by, and an orderly end.

Every long-lived loop is a task of one group, so a loop that dies takes the process down loudly and Kubernetes starts
it anew; nothing half-dead goes on. On SIGTERM the reconciles under way are finished, the lease is given back, and the
process ends well inside the 30 s that a pod has. A lost lease ends the process on the spot: no clean-up writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import uuid
from typing import TYPE_CHECKING, NoReturn

from aiohttp import web

from onnx_operator.adapters.clock import Clock
from onnx_operator.adapters.events import Events
from onnx_operator.adapters.kube import Kube, load_configuration
from onnx_operator.adapters.lease import LeadershipLost, Lease
from onnx_operator.adapters.store import Store
from onnx_operator.context import Context
from onnx_operator.handlers import Inbox, Watch
from onnx_operator.health import Health, build_server
from onnx_operator.metrics import Metrics
from onnx_operator.relist import Relist
from onnx_operator.workers import Workers
from onnx_operator.workqueue import WorkQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from kubernetes.aio import client

    from onnx_operator.adapters.prometheus import Prometheus
    from onnx_operator.context import Reconcile
    from onnx_operator.settings import Settings

log = logging.getLogger(__name__)

#: SIGTERM to the end must stay below 20 s: this for the reconciles, the rest for events, lease and sockets.
_FINISH_SECONDS = 10.0
_FLUSH_SECONDS = 2.0
#: Longer than any reconcile may take, so that a worker is only called stuck when all are.
_STUCK_FACTOR = 2.5


async def run(settings: Settings, reconcile: Reconcile, prometheus: Prometheus | None) -> None:
    """Stand by, lead, and return once told to stop."""
    stop = _stop_on_signals()
    clock, metrics = Clock(), Metrics()
    health = Health(clock.monotonic)
    queue = WorkQueue(now=clock.monotonic)
    configuration = await load_configuration(settings.kubeconfig)
    async with contextlib.AsyncExitStack() as closing:
        if prometheus is not None:
            closing.push_async_callback(prometheus.close)
        # A client of its own: no crowd of requests may keep a renewal waiting for a connection.
        lease_kube = await closing.enter_async_context(Kube(configuration, fence=lambda: True))
        lease = Lease(
            lease_kube,
            clock,
            namespace=settings.pod_namespace,
            name=settings.lease_name,
            # Of this process, not of this pod: a restarted container must not take itself for its predecessor.
            identity=f"{settings.pod_name}_{uuid.uuid4().hex[:8]}",
            attempted=health.expect("lease", within=60),
            answered=health.answered,
        )
        await closing.enter_async_context(_serving(settings, health, metrics, queue))
        if not await _before(stop, lease.acquire()):
            return
        holding = asyncio.create_task(_hold(lease), name="lease")
        metrics.leader.set(1)
        try:
            store = Store(now=clock.monotonic)
            kube = await closing.enter_async_context(
                Kube(configuration, fence=lease.still_leading, cache=store, timeout=settings.request_seconds)
            )
            events = Events(kube, clock, instance=settings.pod_name)
            context = Context(
                kube=kube,
                store=store,
                events=events,
                settings=settings,
                clock=clock,
                prometheus=prometheus,
                metrics=metrics,
                fence=lease.still_leading,
            )
            await _lead(context, reconcile, queue, health, configuration, stop)
        finally:
            await _cancel(holding)
            await lease.release()


async def _lead(  # noqa: PLR0917
    context: Context,
    reconcile: Reconcile,
    queue: WorkQueue,
    health: Health,
    configuration: client.Configuration,
    stop: asyncio.Event,
) -> None:
    """What only the leader does, until told to stop."""
    settings, metrics, clock = context.settings, context.metrics, context.clock
    inbox = Inbox(context.store, queue)
    watch = Watch(
        settings,
        configuration,
        inbox,
        metrics,
        running=health.expect("watch", within=300, when=lambda: relist.age < 3 * settings.relist_seconds),
    )
    relist = Relist(
        context.kube,
        context.store,
        queue,
        settings,
        metrics,
        now=clock.monotonic,
        attempted=health.expect("relist", within=5 * settings.relist_seconds + 5 * settings.request_seconds),
        class_changed=inbox.class_changed,
        kinds_changed=watch.restart,
    )
    metrics.relist_age.set_function(lambda: relist.age)
    finished = health.expect(
        "workers",
        within=_STUCK_FACTOR * settings.reconcile_seconds,
        when=lambda: queue.oldest_age > _STUCK_FACTOR * settings.reconcile_seconds,
    )
    workers = Workers(queue, reconcile, context, metrics, finished=finished)
    # From here on this process is not ready until it has read the cluster once and watches it.
    health.ready_only_if(lambda: watch.is_established)
    if not await _before(stop, relist.first()):
        return
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch.run(), name="watch")
        relisting = group.create_task(relist.run(), name="relist")
        posting = group.create_task(context.events.run(), name="events")
        working = group.create_task(workers.run(), name="workers")
        await stop.wait()
        log.info("stopping: reconciles under way are finished first")
        queue.close()
        watching.cancel()
        relisting.cancel()
        await _finish(working, _FINISH_SECONDS)
        await _finish(asyncio.create_task(context.events.flush()), _FLUSH_SECONDS)
        posting.cancel()


async def _hold(lease: Lease) -> NoReturn:
    try:
        await lease.hold()
    except LeadershipLost as lost:
        log.critical("leadership lost, ending at once", extra={"why": str(lost)})
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError):
            raise
        log.critical("renewing the lease failed, ending at once", exc_info=error)
    # Not sys.exit: no finally, no handler, no thread may write another byte to the cluster.
    logging.shutdown()
    os._exit(1)


@contextlib.asynccontextmanager
async def _serving(settings: Settings, health: Health, metrics: Metrics, queue: WorkQueue) -> AsyncIterator[None]:
    def refresh() -> None:
        metrics.queue_depth.set(queue.depth)
        metrics.queue_oldest.set(queue.oldest_age)

    runner = web.AppRunner(build_server(health, metrics.registry, refresh), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.http_host, settings.http_port).start()
        yield
    finally:
        await runner.cleanup()


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _before(stop: asyncio.Event, work: Coroutine[object, object, None]) -> bool:
    """Do the work, unless told to stop first; says whether it was done."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
            return True
        return False
    finally:
        await _cancel(working)
        await _cancel(stopping)


async def _finish(task: asyncio.Task[None], seconds: float) -> None:
    """Wait for the task to end; cancel it when that takes too long."""
    await asyncio.wait((task,), timeout=seconds)
    if not task.done():
        log.warning("cut short", extra={"task": task.get_name()})
    await _cancel(task)


async def _cancel(task: asyncio.Task[object]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
