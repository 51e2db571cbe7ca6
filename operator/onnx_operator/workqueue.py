"""Which key to work on next: a de-duplicating queue with back-off by key and fairness between namespaces.

It knows nothing of Kubernetes and refuses three things:

* to hand out a key that is already being worked on (the key comes back once that work ends);
* to let a namespace with a thousand keys starve a namespace with one (namespaces take turns);
* to let events hurry a key that keeps failing into a hot loop (they shorten its wait, never below `base`).

A key is *ready*, *later* (due at a known time), or *working*; asking twice for the earlier is the same as once.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable


class Key(NamedTuple):
    """One OnnxModel: all that the queue, the store and the reconciler pass around."""

    namespace: str
    name: str

    @override
    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class _Failure:
    count: int
    #: Until then not even an event brings the key back.
    not_before: float


def _equal_jitter(seconds: float) -> float:
    return random.uniform(seconds / 2, seconds)  # noqa: S311 - spreads load, guards no secret


class WorkQueue:
    """Single event loop, no locks: every method but `get` is synchronous."""

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.monotonic,
        jitter: Callable[[float], float] = _equal_jitter,
        base: float = 1.0,
        cap: float = 60.0,
    ) -> None:
        self._now = now
        self._jitter = jitter
        self._base = base
        self._cap = cap
        #: namespace -> key -> since when it is due; both in the order of their turns.
        self._ready: OrderedDict[str, OrderedDict[Key, float]] = OrderedDict()
        #: Entries that `_due` no longer names are stale and skipped when they surface.
        self._heap: list[tuple[float, Key]] = []
        self._due: dict[Key, float] = {}
        self._working: dict[Key, float] = {}
        self._asked_again: dict[Key, float] = {}
        self._failures: dict[Key, _Failure] = {}
        self._changed = asyncio.Event()
        self._closed = False

    # ---- asking for work

    def add(self, key: Key) -> None:
        """Look at the key now, or as soon as its failures allow."""
        now = self._now()
        if key in self._working:
            self._asked_again.setdefault(key, now)
            return
        failure = self._failures.get(key)
        if failure is not None and failure.not_before > now:
            self._schedule(key, failure.not_before)
            return
        self._make_ready(key, now)

    def add_after(self, key: Key, delay: float) -> None:
        """Look at the key in `delay` seconds; of two such wishes the earlier wins."""
        if delay <= 0:
            self.add(key)
            return
        self._schedule(key, self._now() + delay)

    # ---- working

    def take(self) -> Key | None:
        """The next key whose turn it is, now marked as working; None when nothing is due."""
        self._promote_due()
        if not self._ready:
            return None
        namespace, keys = next(iter(self._ready.items()))
        key, since = keys.popitem(last=False)
        if keys:
            self._ready.move_to_end(namespace)
        else:
            del self._ready[namespace]
        self._working[key] = since
        return key

    async def get(self) -> Key | None:
        """Wait for the next key; None once the queue is closed."""
        while not self._closed:
            key = self.take()
            if key is not None:
                return key
            self._changed.clear()
            try:
                async with asyncio.timeout(self._seconds_to_next()):
                    await self._changed.wait()
            except TimeoutError:
                continue
        return None

    def close(self) -> None:
        """Hand out nothing more; what is being worked on may still be reported."""
        self._closed = True
        self._changed.set()

    # ---- telling how it went

    def done(self, key: Key, *, next_look: float | None = None) -> None:
        """It went well: failures are forgotten; look again in `next_look` seconds, if at all."""
        del self._working[key]
        self._failures.pop(key, None)
        if (since := self._asked_again.pop(key, None)) is not None:
            self._make_ready(key, since)
        elif next_look is not None:
            self.add_after(key, next_look)

    def retry(self, key: Key, *, not_before: float | None = None) -> float:
        """It failed: back off, the longer the more often. Returns the wait in seconds.

        `not_before` is a wait that the other side asked for (Retry-After): events cannot shorten it.
        """
        count = self.failures(key) + 1
        floor = self._base if not_before is None else not_before
        backoff = self._jitter(min(self._cap, self._base * 2.0 ** min(count - 1, 30)))
        return self._put_back(key, _Failure(count, self._now() + floor), max(floor, backoff))

    def retry_at_once(self, key: Key) -> None:
        """It failed in a way that a second look usually cures (a write conflict). Counts as a failure."""
        self._put_back(key, _Failure(self.failures(key) + 1, self._now()), 0.0)

    def failures(self, key: Key) -> int:
        """How often in a row the key failed."""
        failure = self._failures.get(key)
        return 0 if failure is None else failure.count

    # ---- seeing

    def waited(self, key: Key) -> float:
        """Seconds since the key that is being worked on was due: asked for first, or its time come."""
        return self._now() - self._working[key]

    @property
    def depth(self) -> int:
        """Keys due and not yet taken up."""
        self._promote_due()
        return sum(len(keys) for keys in self._ready.values())

    @property
    def oldest_age(self) -> float:
        """Seconds that the longest-waiting key, due or being worked on, has been due; 0 when there is none."""
        self._promote_due()
        waiting = [since for keys in self._ready.values() for since in keys.values()]
        return max((self._now() - since for since in (*waiting, *self._working.values())), default=0.0)

    # ---- inside

    def _put_back(self, key: Key, failure: _Failure, wait: float) -> float:
        del self._working[key]
        self._failures[key] = failure
        now = self._now()
        if self._asked_again.pop(key, None) is not None:
            wait = min(wait, max(0.0, failure.not_before - now))
        if wait > 0:
            self._schedule(key, now + wait)
        else:
            self._make_ready(key, now)
        return wait

    def _schedule(self, key: Key, when: float) -> None:
        if key in self._ready.get(key.namespace, ()):
            return
        if when >= self._due.get(key, float("inf")):
            return
        self._due[key] = when
        heapq.heappush(self._heap, (when, key))
        self._changed.set()

    def _make_ready(self, key: Key, since: float) -> None:
        self._due.pop(key, None)
        self._ready.setdefault(key.namespace, OrderedDict()).setdefault(key, since)
        self._changed.set()

    def _promote_due(self) -> None:
        now = self._now()
        while self._heap and self._heap[0][0] <= now:
            when, key = heapq.heappop(self._heap)
            if self._due.get(key) != when:
                continue
            if key in self._working:
                del self._due[key]
                self._asked_again.setdefault(key, when)
                continue
            self._make_ready(key, when)

    def _seconds_to_next(self) -> float | None:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return max(0.0, self._heap[0][0] - self._now()) if self._heap else None
