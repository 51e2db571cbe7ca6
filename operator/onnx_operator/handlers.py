"""Kopf as a transport: it lists, watches and reconnects, and hands every event on. It decides and writes nothing.

Only `on.event` handlers are registered. Kopf's timers, daemons, indices and on.create/update/delete handlers die
silently after a refused status write, keep ghosts, or leave finalizers and annotations behind (measured; see
docs/decisions), so none is used, and a test proves that Kopf writes to no object.

Kopf runs in a thread and event loop of its own, because it takes over both: it installs signal handlers, and when it
stops it cancels every task in the loop that is younger than itself. If it ever ends it is started again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import threading
from typing import TYPE_CHECKING, Any, cast

import kopf

from onnx_operator.adapters import kube
from onnx_operator.adapters.store import CHILD_KINDS, KINDS, Store, owner_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kubernetes.aio import client

    from onnx_operator.adapters.kube import Manifest, Resource
    from onnx_operator.metrics import Metrics
    from onnx_operator.settings import Settings
    from onnx_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

_STOP_SECONDS = 5.0
_SETTLED_SECONDS = 5.0
#: Kopf must never meet its own finalizer or annotations on an object; these names are nobody's.
_KOPF_MARK = f"transport.{kube.GROUP}"


class EndlessBackoffs:
    """Seconds between tries of one request; the last repeats for ever.

    With a finite list an API server that answers 5xx for a minute ends the whole operator.
    """

    def __iter__(self) -> Iterator[float]:
        for seconds in itertools.chain((1, 2, 3, 5, 8), itertools.repeat(10)):
            yield seconds * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load


class Inbox:
    """Turns events into what the store knows and which keys want a look."""

    def __init__(self, store: Store, queue: WorkQueue) -> None:
        self._store = store
        self._queue = queue

    def seen(self, resource: Resource, event_type: str | None, manifest: Manifest) -> None:
        """One event: ADDED, MODIFIED, DELETED, or None for an object that was there when the watch began."""
        if event_type == "DELETED":
            metadata = manifest["metadata"]
            self._store.forget(resource, metadata.get("namespace"), metadata["name"], metadata["uid"])
        elif not self._store.upsert(resource, manifest):
            return
        if resource == kube.ONNX_MODEL_CLASS:
            self.class_changed(manifest["metadata"]["name"])
            return
        key = owner_key(resource, manifest)
        if key is not None:
            self._queue.add(key)

    def class_changed(self, name: str) -> None:
        """Queue the models of a class; those that name none may have it as their default."""
        for key in self._store.keys():  # noqa: SIM118 - a method of ours
            model = self._store.get(kube.ONNX_MODEL, *key) or {}
            if (model.get("spec") or {}).get("className") in {None, "", name}:
                self._queue.add(key)


class Watch:
    """Keeps Kopf running and carries its events over into our event loop."""

    def __init__(
        self,
        settings: Settings,
        configuration: client.Configuration,
        inbox: Inbox,
        metrics: Metrics,
        *,
        running: Callable[[], None] = lambda: None,
    ) -> None:
        self._running = running
        self._settings = settings
        self._configuration = configuration
        self._inbox = inbox
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._restart = asyncio.Event()
        self._told_at: dict[Resource, float] = {}
        self._session_began: float | None = None

    @property
    def is_established(self) -> bool:
        """Whether Kopf runs and did not end right away, as it does where something is wrong with its world."""
        began = self._session_began
        return began is not None and self._loop.time() - began > _SETTLED_SECONDS

    def restart(self) -> None:
        """Look anew which kinds the cluster serves; Kopf itself does so only when it starts."""
        self._restart.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        for resource in KINDS:
            self._told_at[resource] = self._loop.time()
            self._metrics.watch_age_of(resource.kind, self._age_of(resource))
        backoffs = iter(EndlessBackoffs())
        while True:
            self._restart.clear()
            self._session_began = self._loop.time()
            session = _Session(self._settings, self._configuration, self._receive)
            ended = asyncio.create_task(session.run_in_thread())
            asked = asyncio.create_task(self._restart.wait())
            try:
                while not (ended.done() or asked.done()):
                    await asyncio.wait((ended, asked), timeout=_SETTLED_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                    if self.is_established:
                        self._running()
                        backoffs = iter(EndlessBackoffs())
            finally:
                self._session_began = None
                asked.cancel()
                session.stop()
                # A thread that does not end is left behind: it holds nothing, writes nothing, and is a daemon.
                await asyncio.wait((ended,), timeout=_STOP_SECONDS)
            error = await ended if ended.done() else TimeoutError("Kopf did not stop")
            self._metrics.watch_restarts.inc()
            if self._restart.is_set():
                log.info("watch restarts: the cluster serves other kinds than before")
                continue
            log.error("watch ended by itself", extra={"error": str(error)})
            await asyncio.sleep(next(backoffs))

    def _receive(self, resource: Resource, event_type: str | None, manifest: Manifest) -> None:
        self._told_at[resource] = self._loop.time()
        self._inbox.seen(resource, event_type, manifest)

    def _age_of(self, resource: Resource) -> Callable[[], float]:
        return lambda: self._loop.time() - self._told_at[resource]


class _Session:
    """One run of Kopf in one thread."""

    def __init__(
        self,
        settings: Settings,
        configuration: client.Configuration,
        receive: Callable[[Resource, str | None, Manifest], None],
    ) -> None:
        self._settings = settings
        self._configuration = configuration
        self._receive = receive
        self._home = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._kopf_loop: asyncio.AbstractEventLoop | None = None
        self._stop_flag: asyncio.Event | None = None

    async def run_in_thread(self) -> BaseException | None:
        """Returns what ended it, None for being told to stop."""
        ended: asyncio.Future[BaseException | None] = self._home.create_future()

        def tell(error: BaseException | None) -> None:
            if not ended.done():
                ended.set_result(error)

        def main() -> None:
            error: BaseException | None = None
            try:
                asyncio.run(self._serve())
            except BaseException as caught:  # noqa: BLE001 - whatever ends the thread is the result
                error = caught
            self._call_home(tell, error)

        threading.Thread(target=main, name="kopf", daemon=True).start()
        return await ended

    def stop(self) -> None:
        self._stopping.set()
        if self._kopf_loop is not None and self._stop_flag is not None and not self._kopf_loop.is_closed():
            self._kopf_loop.call_soon_threadsafe(self._stop_flag.set)

    async def _serve(self) -> None:
        self._kopf_loop = asyncio.get_running_loop()
        self._stop_flag = asyncio.Event()
        if self._stopping.is_set():
            return
        try:
            await kopf.operator(
                registry=build_registry(self._hand_over, self._configuration),
                settings=build_kopf_settings(self._settings),
                standalone=True,
                clusterwide=self._settings.is_cluster_wide,
                namespaces=self._settings.watch_namespaces,
                stop_flag=self._stop_flag,
                # Else Kopf asks the user database for a name, and a container's bare uid has none there.
                identity=cast("Any", self._settings.pod_name),
            )
        finally:
            # Kopf closes its connections and leaves; TLS needs a moment of the loop to say goodbye.
            await asyncio.sleep(0.25)

    def _hand_over(self, resource: Resource, event_type: str | None, manifest: Manifest) -> None:
        self._call_home(self._receive, resource, event_type, manifest)

    def _call_home(self, function: Callable[..., None], *arguments: Any) -> None:
        if not self._home.is_closed():  # the process is ending, and nobody listens any more
            self._home.call_soon_threadsafe(function, *arguments)


def build_registry(
    hand_over: Callable[[Resource, str | None, Manifest], None], configuration: client.Configuration
) -> kopf.OperatorRegistry:
    """One login and one on.event handler per kind; nothing else."""
    registry = kopf.OperatorRegistry()

    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await build_login(configuration)

    def hand_over_events_of(resource: Resource) -> Callable[..., Any]:
        async def handler(event: kopf.RawEvent, **_: Any) -> None:
            hand_over(resource, event["type"], dict(event["object"]))

        return handler

    kopf.on.login(registry=registry)(login)
    for resource in KINDS:
        kopf.on.event(resource.group, resource.version, resource.plural, registry=registry, id=resource.kind.lower())(
            hand_over_events_of(resource)
        )
    return registry


async def build_login(configuration: client.Configuration) -> kopf.ConnectionInfo:
    """The very credentials that our own client uses; a refused token is read from its file again."""
    header = await configuration.get_api_key_with_prefix("BearerToken")
    token = header.split(" ", 1)[-1].strip() if header else None
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        ca_data=configuration.ca_cert_data,
        insecure=not configuration.verify_ssl,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        token=token,
    )


def build_kopf_settings(settings: Settings) -> kopf.OperatorSettings:
    """Every value here was chosen against a measured failure."""
    kopf_settings = kopf.OperatorSettings()
    kopf_settings.watching.server_timeout = 300
    kopf_settings.watching.client_timeout = 330
    kopf_settings.watching.connect_timeout = 10
    kopf_settings.watching.chunk_size = kube.CHUNK
    kopf_settings.networking.request_timeout = settings.request_seconds
    kopf_settings.networking.connect_timeout = 10
    kopf_settings.networking.error_backoffs = EndlessBackoffs()
    # Looking for namespaces and kinds that come and go needs cluster-wide rights, without which Kopf waits 55 s;
    # our relist sees new kinds and starts the watch anew.
    kopf_settings.scanning.disabled = True
    kopf_settings.posting.enabled = False
    kopf_settings.posting.level = logging.WARNING
    kopf_settings.persistence.finalizer = f"{_KOPF_MARK}/unused"
    kopf_settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=_KOPF_MARK)
    kopf_settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=_KOPF_MARK)
    kopf_settings.execution.max_workers = 1  # for handlers that are not async: there are none
    kopf_settings.process.ultimate_exiting_timeout = 20
    for resource in CHILD_KINDS:
        key = (resource.group, resource.version, resource.plural)
        kopf_settings.watching.label_selectors[key] = kube.MANAGED_BY_US
    return kopf_settings
