"""Alive means making progress; ready means able to lead when it must.

A process whose HTTP server answers may still be dead inside: a loop that ended, workers that all hang, a lease
that nobody renews. So every loop leaves a beat each time round, whether that round succeeded or not (an API server
that is down is not our illness, and a restart cures nothing), and liveness asks how old the beats are.
A standby is ready: it serves no requests, and an update must not wait for it to lead. A leader that cannot watch is
not ready, so that a broken installation shows before it is relied on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry


@dataclass(slots=True)
class _Beat:
    at: float
    limit: float
    #: A loop that has nothing to do may rest.
    expected: Callable[[], bool]


@dataclass(slots=True)
class Health:
    """The beats of all loops, by name."""

    now: Callable[[], float]
    _beats: dict[str, _Beat] = field(default_factory=dict)
    _answered: bool = False
    _conditions: list[Callable[[], bool]] = field(default_factory=list)

    def expect(self, name: str, *, within: float, when: Callable[[], bool] = lambda: True) -> Callable[[], None]:
        """From now on `name` is to beat at least every `within` seconds; returns what to call for a beat."""
        beat = self._beats[name] = _Beat(self.now(), within, when)

        def strike() -> None:
            beat.at = self.now()

        return strike

    def answered(self) -> None:
        """The API server has answered: this process could lead."""
        self._answered = True

    def ready_only_if(self, condition: Callable[[], bool]) -> None:
        """From now on readiness depends on this as well."""
        self._conditions.append(condition)

    @property
    def is_ready(self) -> bool:
        return self._answered and all(condition() for condition in self._conditions)

    def complaints(self) -> list[str]:
        """What has made no progress for too long; empty is healthy."""
        now = self.now()
        return [
            f"{name}: no progress for {now - beat.at:.0f} s, at most {beat.limit:.0f} s is normal"
            for name, beat in self._beats.items()
            if now - beat.at > beat.limit and beat.expected()
        ]


def build_server(health: Health, registry: CollectorRegistry, refresh: Callable[[], None]) -> web.Application:
    """The three pages; `refresh` brings the gauges up to date before a scrape."""

    async def alive(_: web.Request) -> web.Response:
        complaints = health.complaints()
        return web.Response(text="\n".join(complaints) or "ok", status=503 if complaints else 200)

    async def ready(_: web.Request) -> web.Response:
        if health.is_ready:
            return web.Response(text="ok")
        return web.Response(text="the API server has not answered, or the watch does not run", status=503)

    async def metrics(request: web.Request) -> web.Response:
        refresh()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    pages = web.Application()
    pages.add_routes([web.get("/healthz", alive), web.get("/readyz", ready), web.get("/metrics", metrics)])
    return pages
