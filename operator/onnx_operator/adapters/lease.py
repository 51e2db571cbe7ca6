"""Exactly one active operator: a coordination Lease, held by whoever renews it.

    time since the last renewal that went through, on the holder's own monotonic clock
    0 s ......... 2 s ......... 10 s ................. 15 s
    renewed       next renewal  holder stops itself    a standby that saw no change takes over

Why not kubernetes.aio's leader election: it reads wall clocks (a jump of ten minutes makes two leaders or none),
its renewals have no time-out (one hanging request outlasts the lease), and it does not release on exit.

What this module refuses: to judge another process's clock (only whether the Lease changed, and when *we* saw it),
and to go on leading after a pause: `still_leading` looks at the clock, so a process stopped and woken knows.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnx_operator.adapters import kube
from onnx_operator.adapters.errors import AlreadyExists, ApiError, Conflict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from onnx_operator.adapters.clock import Clock
    from onnx_operator.adapters.kube import Kube, Manifest

log = logging.getLogger(__name__)


class LeadershipLost(Exception):  # noqa: N818 - a turn of events, not a mistake
    """Another process may lead by now: whatever this one still wants to write, it must not."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The three durations of a lease, in seconds; each must leave room for the next."""

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0
    #: One hanging request must leave time for others before the deadline.
    request_timeout: float = 3.0


@dataclass(frozen=True, slots=True)
class _Sighting:
    """The version of the Lease that we last saw, and when we first saw it."""

    version: str
    at: float


class Lease:
    """One process's claim to lead."""

    def __init__(
        self,
        kube: Kube,
        clock: Clock,
        *,
        namespace: str,
        name: str,
        identity: str,
        terms: Terms | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        attempted: Callable[[], None] = lambda: None,
        answered: Callable[[], None] = lambda: None,
    ) -> None:
        self._kube = kube
        self._clock = clock
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._terms = terms or Terms()
        self._sleep = sleep
        self._attempted = attempted
        self._answered = answered
        self._seen: _Sighting | None = None
        self._held: Manifest | None = None
        self._renewed_at: float | None = None

    def still_leading(self) -> bool:
        """Whether nobody else can have taken over yet; to be asked right before every write."""
        if self._renewed_at is None:
            return False
        return self._clock.monotonic() < self._renewed_at + self._terms.renew_deadline

    async def acquire(self) -> None:
        """Stand by until this process leads."""
        while not await self._try_to_take():
            await self._sleep(self._terms.retry_period * random.uniform(1.0, 1.2))  # noqa: S311
        log.info("leading", extra={"identity": self._identity, "lease": f"{self._namespace}/{self._name}"})

    async def hold(self) -> None:
        """Renew until that fails for too long, or somebody else holds the lease; then raise LeadershipLost."""
        while True:
            await self._sleep(self._terms.retry_period)
            if not self.still_leading():
                raise LeadershipLost("the lease was not renewed in time")
            await self._try_to_renew()

    async def release(self) -> None:
        """Give the lease back, so that a standby need not wait for it to run out."""
        if self._held is None or not self.still_leading():
            return
        now = self._timestamp()
        held, self._held, self._renewed_at = self._held, None, None
        spec = {**held["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": now}
        try:
            async with asyncio.timeout(self._terms.request_timeout):
                await self._kube.replace({**held, "spec": spec})
        except (ApiError, TimeoutError) as error:
            log.warning("lease not released, it will run out", extra={"error": str(error)})
        else:
            log.info("lease released", extra={"identity": self._identity})

    # ---- inside

    async def _try_to_take(self) -> bool:
        sent_at = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._terms.request_timeout):
                lease = await self._kube.get(kube.LEASE, self._namespace, self._name)
                self._answered()
                if lease is not None and not self._is_free(lease):
                    return False
                sent_at = self._clock.monotonic()
                self._held = await (
                    self._kube.create(self._new()) if lease is None else self._kube.replace(self._taken(lease))
                )
        except (Conflict, AlreadyExists):
            return False  # another standby was faster
        except (ApiError, TimeoutError) as error:
            log.warning("lease not reachable", extra={"error": str(error) or "no answer in time"})
            return False
        finally:
            self._attempted()
        self._renewed_at = sent_at
        return True

    async def _try_to_renew(self) -> None:
        assert self._held is not None  # noqa: S101 - hold() comes after acquire()
        sent_at = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._terms.request_timeout):
                spec = {**self._held["spec"], "renewTime": self._timestamp()}
                self._held = await self._kube.replace({**self._held, "spec": spec})
        except Conflict:
            await self._look_who_wrote()
        except (ApiError, TimeoutError) as error:
            log.warning("lease not renewed", extra={"error": str(error) or "no answer in time"})
        else:
            self._renewed_at = sent_at
        finally:
            self._attempted()

    async def _look_who_wrote(self) -> None:
        """Our own renewal whose answer got lost, a person's edit, or another holder."""
        try:
            async with asyncio.timeout(self._terms.request_timeout):
                lease = await self._kube.get(kube.LEASE, self._namespace, self._name)
        except (ApiError, TimeoutError) as error:
            log.warning("lease not readable", extra={"error": str(error) or "no answer in time"})
            return
        if lease is None or lease["spec"].get("holderIdentity") != self._identity:
            holder = None if lease is None else lease["spec"].get("holderIdentity")
            raise LeadershipLost(f"the lease is held by {holder or 'nobody'} now")
        self._held = lease

    def _is_free(self, lease: Mapping[str, Any]) -> bool:
        version, spec = lease["metadata"]["resourceVersion"], lease.get("spec") or {}
        if self._seen is None or self._seen.version != version:
            self._seen = _Sighting(version, self._clock.monotonic())
        if not spec.get("holderIdentity"):
            return True
        promised = float(spec.get("leaseDurationSeconds") or self._terms.duration)
        return self._clock.monotonic() >= self._seen.at + promised

    def _new(self) -> Manifest:
        return {
            "apiVersion": kube.LEASE.api_version,
            "kind": kube.LEASE.kind,
            "metadata": {"namespace": self._namespace, "name": self._name},
            "spec": self._spec(transitions=0),
        }

    def _taken(self, lease: Manifest) -> Manifest:
        transitions = int((lease.get("spec") or {}).get("leaseTransitions") or 0)
        return {**lease, "spec": self._spec(transitions=transitions + 1)}

    def _spec(self, *, transitions: int) -> Manifest:
        now = self._timestamp()
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(self._terms.duration),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }

    def _timestamp(self) -> str:
        return self._clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
