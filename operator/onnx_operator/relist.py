"""Reads the whole cluster every minute: the truth that lost, delayed and reordered watch events cannot bend.

What a read shows that the watch had not told is looked at now. Every other model is looked at within the next
interval, each at a moment of its own, so that nothing depends on an event for ever and no burst hits the API server.
One kind that cannot be read does not keep the others from being read.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from onnx_operator.adapters import kube
from onnx_operator.adapters.errors import ApiError, NotFound
from onnx_operator.adapters.store import CHILD_KINDS, KINDS, OPTIONAL_KINDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx_operator.adapters.kube import Kube, Resource
    from onnx_operator.adapters.store import Store
    from onnx_operator.metrics import Metrics
    from onnx_operator.settings import Settings
    from onnx_operator.workqueue import Key, WorkQueue

log = logging.getLogger(__name__)

#: After a failure the next try comes soon, since everything waits for it.
_RETRY_SECONDS = 5.0
#: A kind that was served is taken for gone when it has been missing for so long. An API server that starts, or whose
#: CRDs are being replaced, does not know it for a moment; models without their gateway would change all they own.
_GONE_AFTER_SECONDS = 60.0


class Relist:
    """The periodic full read."""

    def __init__(
        self,
        kube: Kube,
        store: Store,
        queue: WorkQueue,
        settings: Settings,
        metrics: Metrics,
        *,
        now: Callable[[], float],
        attempted: Callable[[], None],
        class_changed: Callable[[str], None],
        kinds_changed: Callable[[], None],
    ) -> None:
        self._kube = kube
        self._store = store
        self._queue = queue
        self._settings = settings
        self._metrics = metrics
        self._now = now
        self._attempted = attempted
        self._class_changed = class_changed
        self._kinds_changed = kinds_changed
        self._complete_at: float | None = None
        #: Since when a kind that was served has been missing.
        self._missing_since: dict[Resource, float] = {}
        #: Kinds that could not be read last time, so that a lasting trouble is told once.
        self._troubled: set[Resource] = set()
        #: What the watch was started for.
        self._watched: set[Resource] = set()

    @property
    def age(self) -> float:
        """Seconds since everything was read; infinite before the first time."""
        return float("inf") if self._complete_at is None else self._now() - self._complete_at

    async def first(self) -> None:
        """Read until everything was read once: before that, what is missing here may well exist."""
        while not await self.once():  # noqa: ASYNC110 - the API server sends no event when it is well again
            await asyncio.sleep(_RETRY_SECONDS)

    async def run(self) -> None:
        """Read again and again."""
        # The watch begins after the first read; a deletion in between is told by the second read alone.
        interval = min(10.0, self._settings.relist_seconds)
        while True:
            await asyncio.sleep(_RETRY_SECONDS if self._troubled else interval * random.uniform(0.9, 1.1))  # noqa: S311
            await self.once()
            interval = self._settings.relist_seconds

    async def once(self) -> bool:
        """One full read; says whether every kind could be read."""
        was_troubled = bool(self._troubled)
        for resource in KINDS:
            await self._read(resource)
        self._attempted()
        if self._troubled:
            return False
        is_first = self._complete_at is None
        self._complete_at = self._now()
        served = {resource for resource in KINDS if self._store.is_served(resource)}
        if not is_first and served != self._watched:
            self._kinds_changed()
        self._watched = served
        self._spread_looks(at_once=is_first or was_troubled)
        return True

    async def _read(self, resource: Resource) -> None:
        try:
            for namespace in self._namespaces_of(resource):
                selector = kube.MANAGED_BY_US if resource in CHILD_KINDS else None
                listing = await self._kube.list(resource, namespace, selector)
                classes = self._versions_of_classes() if resource == kube.ONNX_MODEL_CLASS else {}
                touched = self._store.replace(resource, namespace, listing)
                self._look_at(resource, touched, classes)
        except NotFound as error:
            since = self._missing_since.setdefault(resource, self._now())
            if self._store.is_served(resource) and self._now() - since < _GONE_AFTER_SECONDS:
                self._trouble(resource, error, "kind was served until now; waiting for it")
                return
            self._store.not_served(resource)
            if resource not in OPTIONAL_KINDS:
                self._trouble(resource, error, "kind not served; install the CRDs of this release (crds/)")
                return
        except ApiError as error:
            self._trouble(resource, error, "kind not readable")
            return
        else:
            self._missing_since.pop(resource, None)
        self._troubled.discard(resource)

    def _namespaces_of(self, resource: Resource) -> tuple[str | None, ...]:
        if self._settings.is_cluster_wide or not resource.namespaced:
            return (None,)
        return self._settings.watch_namespaces

    def _look_at(self, resource: Resource, touched: set[Key], classes_before: dict[str, str]) -> None:
        for key in touched:
            self._queue.add(key)
        if resource == kube.ONNX_MODEL_CLASS:
            changed = dict(self._versions_of_classes().items() ^ classes_before.items())
            for name in changed:
                self._class_changed(name)
        if self._complete_at is not None and touched:
            self._metrics.relist_corrections.labels(kind=resource.kind).inc(len(touched))

    def _versions_of_classes(self) -> dict[str, str]:
        return {
            item["metadata"]["name"]: item["metadata"]["resourceVersion"]
            for item in self._store.all(kube.ONNX_MODEL_CLASS)
        }

    def _trouble(self, resource: Resource, error: ApiError, message: str) -> None:
        self._metrics.relist_failures.labels(kind=resource.kind).inc()
        if resource not in self._troubled:
            log.error(message, extra={"kind": resource.kind, "error": str(error)})
        self._troubled.add(resource)

    def _spread_looks(self, *, at_once: bool) -> None:
        for key in self._store.keys():  # noqa: SIM118 - a method of ours
            delay = 0.0 if at_once else random.uniform(0, self._settings.relist_seconds)  # noqa: S311
            self._queue.add_after(key, delay)
