"""Kubernetes Events: what `kubectl describe` shows a person about an object.

Publishing never raises, never waits, and never says the same twice within an hour: the Event's name is made from
what it says, so a repeat within the API server's hour of memory meets the first one, even after a restart or a
change of leader, and only adds to its count. Reasons are the conditions' reasons; this module invents none.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from onnx_operator.adapters import kube
from onnx_operator.adapters.errors import AlreadyExists, ApiError, TooManyRequests, Unauthorized, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx_operator.adapters.clock import Clock
    from onnx_operator.adapters.kube import Kube, Manifest

log = logging.getLogger(__name__)

EventType = Literal["Normal", "Warning"]

_QUIET_SECONDS = 3600.0
_REMEMBERED = 10_000
_WAITING = 1_000
_NOTE_LIMIT = 1024
_TRIES = 6
_NAME_LIMIT = 253


@dataclass(frozen=True, slots=True)
class _Said:
    at: float
    times: int


class Events:
    """Collects what is to be said; `run` says it."""

    def __init__(self, kube: Kube, clock: Clock, *, instance: str) -> None:
        self._kube = kube
        self._clock = clock
        self._instance = instance
        self._said: OrderedDict[str, _Said] = OrderedDict()
        self._waiting: asyncio.Queue[Manifest] = asyncio.Queue(_WAITING)

    def publish(self, about: Mapping[str, Any], type: EventType, reason: str, message: str) -> None:  # noqa: A002 - the API's word
        """Say something about an object (any manifest with kind, name and UID)."""
        event = self._event(about, type, reason, message)
        name = event["metadata"]["name"]
        said = self._said.pop(name, None)
        now = self._clock.monotonic()
        if said is not None and now - said.at < _QUIET_SECONDS:
            self._said[name] = _Said(said.at, said.times + 1)
            return
        if said is not None:
            event["series"] = {"count": said.times + 1, "lastObservedTime": event["eventTime"]}
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            log.warning("event dropped: too many wait to be posted", extra={"event": name, "reason": reason})
            return
        self._said[name] = _Said(now, 1 if said is None else said.times + 1)
        if len(self._said) > _REMEMBERED:
            self._said.popitem(last=False)

    async def run(self) -> None:
        """Post what was published, for ever."""
        while True:
            event = await self._waiting.get()
            try:
                await self._post(event)
            finally:
                self._waiting.task_done()

    async def flush(self) -> None:
        """Wait until everything published so far is posted or given up."""
        await self._waiting.join()

    async def _post(self, event: Manifest) -> None:
        for attempt in range(_TRIES):
            try:
                await self._create_or_count(event)
            except (Unavailable, Unauthorized, TooManyRequests) as error:
                wait = error.retry_after if isinstance(error, TooManyRequests) else 2.0**attempt
                await asyncio.sleep(wait)
            except Exception as error:  # noqa: BLE001 - an Event is never worth a reconcile
                log.warning("event not posted", extra={"event": event["metadata"]["name"], "error": str(error)})
                return
            else:
                return
        log.warning("event given up: the API server does not take it", extra={"event": event["metadata"]["name"]})

    async def _create_or_count(self, event: Manifest) -> None:
        try:
            await self._kube.create(event)
        except AlreadyExists:
            if "series" not in event:
                return
            metadata = event["metadata"]
            try:
                await self._kube.patch(kube.EVENT, metadata["namespace"], metadata["name"], {"series": event["series"]})
            except ApiError as error:
                log.debug("event not counted", extra={"event": metadata["name"], "error": str(error)})

    def _event(self, about: Mapping[str, Any], type: EventType, reason: str, message: str) -> Manifest:  # noqa: A002
        metadata = about["metadata"]
        # Events are namespaced; those about cluster-scoped objects live in `default` by convention.
        namespace = metadata.get("namespace") or "default"
        note = message if len(message) <= _NOTE_LIMIT else f"{message[: _NOTE_LIMIT - 1]}…"
        said = "\0".join((metadata["uid"], type, reason, note))
        suffix = hashlib.sha256(said.encode()).hexdigest()[:16]
        return {
            "apiVersion": kube.EVENT.api_version,
            "kind": kube.EVENT.kind,
            "metadata": {
                "namespace": namespace,
                "name": f"{metadata['name'][: _NAME_LIMIT - 17].rstrip('.-')}.{suffix}",
            },
            "eventTime": self._clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": f"{kube.GROUP}/{kube.FIELD_MANAGER}",
            "reportingInstance": self._instance[:128],
            "action": "Reconcile",
            "type": type,
            "reason": reason,
            "note": note,
            "regarding": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "namespace": metadata.get("namespace"),
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        }
