"""A line between operator and API server that spoils chosen requests and events, each exactly once.

It speaks HTTP on both sides, so a fault hits one write of one model and nothing else: which write is told by its
number among the writes to objects of that model's namespace since the last `aim`. Events of watches are numbered the
same way. What has not come is known, so that a test can tell a fault that was survived from one that never came.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from integration.apiserver import Client

_NAMESPACE = re.compile(r"/namespaces/([^/]+)/([^/]+)")
#: Told to a user, not asked of the cluster: nothing waits for them and nothing follows from them.
_ASIDE = frozenset({"events", "leases"})
#: Headers that speak of one connection, not of the request.
_HOP = frozenset({"host", "connection", "accept-encoding"})
_LATE_SECONDS = 3.0
_LONGEST_LINE = 4 * 1024 * 1024


class Fault(StrEnum):
    """What goes wrong with one write, or with one event of a watch."""

    UNSENT = "the connection breaks before the write"
    UNANSWERED = "the write is done and the connection breaks"
    CONFLICT = "409"
    INVALID = "422"
    BUSY = "429"
    BROKEN = "500"
    SILENT = "no answer at all"
    KILLED_BEFORE = "SIGKILL before the write"
    KILLED_AFTER = "SIGKILL after the write"
    EVENT_LOST = "an event that never comes"
    EVENT_LATE = "an event that comes after later ones"
    EXPIRED = "410 in the middle of a watch"

    @property
    def is_of_events(self) -> bool:
        return self in {Fault.EVENT_LOST, Fault.EVENT_LATE, Fault.EXPIRED}


_REFUSALS: Mapping[Fault, tuple[int, str]] = {
    Fault.CONFLICT: (409, "Conflict"),
    Fault.INVALID: (422, "Invalid"),
    Fault.BUSY: (429, "TooManyRequests"),
    Fault.BROKEN: (500, "InternalError"),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """One fault at the `at`-th write or event, counted from 1."""

    fault: Fault
    at: int


def status(code: int, reason: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "message": f"a fault of the test: {reason}",
        "reason": reason,
        "code": code,
    }


class Line:
    """The proxy, in a thread of its own until stopped."""

    def __init__(self, upstream: Client, *, kill: Callable[[], None]) -> None:
        self.server = ""
        #: Requests that write and events of watches since the last `aim`, by namespace.
        self.writes: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        #: What has not come yet, by namespace.
        self.ahead: dict[str, Plan] = {}
        self._upstream = upstream
        self._kill = kill
        self._up = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def start(self) -> Line:
        self._thread.start()
        assert self._up.wait(20), "the proxy does not start"
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(20)

    def aim(self, namespace: str, plan: Plan | None) -> None:
        """Count anew from here, with this fault ahead and no other."""
        self.ahead.pop(namespace, None)
        self.writes[namespace] = self.events[namespace] = 0
        if plan is not None:
            self.ahead[namespace] = plan

    # ---- inside

    async def _run(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        unlimited = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(ssl=self._upstream.context, limit=0)
        async with aiohttp.ClientSession(
            connector=connector, timeout=unlimited, read_bufsize=_LONGEST_LINE
        ) as self._session:
            application = web.Application(client_max_size=_LONGEST_LINE)
            application.router.add_route("*", "/{path:.*}", self._carry)
            # A request that nobody waits for any more is given up here, too.
            runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            self.server = f"http://{host}:{port}"
            self._up.set()
            await self._stopping.wait()
            await runner.cleanup()
        # Connections that are closed need a moment of the loop to say goodbye in TLS.
        await asyncio.sleep(0.25)

    async def _carry(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        fault = self._fault_of_write(request)
        if fault is not None and fault in _REFUSALS:
            code, reason = _REFUSALS[fault]
            headers = {"Retry-After": "1"} if fault is Fault.BUSY else {}
            return web.json_response(status(code, reason), status=code, headers=headers)
        if fault is Fault.SILENT:
            await asyncio.Event().wait()
        if fault is Fault.KILLED_BEFORE:
            await asyncio.to_thread(self._kill)
        if fault in {Fault.UNSENT, Fault.KILLED_BEFORE}:
            return self._broken(request)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        async with self._session.request(
            request.method, self._upstream.server + request.raw_path, data=body or None, headers=headers
        ) as answer:
            if "watch" in request.query:
                return await self._watch(request, answer)
            content = await answer.read()
        if fault is Fault.KILLED_AFTER:
            await asyncio.to_thread(self._kill)
        if fault in {Fault.UNANSWERED, Fault.KILLED_AFTER}:
            return self._broken(request)
        return web.Response(status=answer.status, body=content, content_type=answer.content_type)

    def _broken(self, request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    def _fault_of_write(self, request: web.Request) -> Fault | None:
        found = _NAMESPACE.search(request.path)
        if request.method == "GET" or found is None or found[2] in _ASIDE:
            return None
        namespace = found[1]
        self.writes[namespace] += 1
        return self._due(namespace, self.writes[namespace], is_event=False)

    def _due(self, namespace: str, number: int, *, is_event: bool) -> Fault | None:
        plan = self.ahead.get(namespace)
        if plan is None or plan.fault.is_of_events != is_event or number < plan.at:
            return None
        self.ahead.pop(namespace, None)
        return plan.fault

    async def _watch(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
        await response.prepare(request)
        async for line in answer.content:
            match self._fault_of_event(line):
                case None:
                    await response.write(line)
                case Fault.EVENT_LOST:
                    continue
                case Fault.EVENT_LATE:
                    self._loop.call_later(_LATE_SECONDS, self._write_late, response, line)
                case _:
                    await response.write(
                        json.dumps({"type": "ERROR", "object": status(410, "Expired")}).encode() + b"\n"
                    )
                    break
        await response.write_eof()
        return response

    def _write_late(self, response: web.StreamResponse, line: bytes) -> None:
        task = self._loop.create_task(response.write(line))
        # The watch may have ended meanwhile; then the event is a lost one.
        task.add_done_callback(lambda done: done.exception())

    def _fault_of_event(self, line: bytes) -> Fault | None:
        event = json.loads(line)
        namespace = event["object"].get("metadata", {}).get("namespace", "")
        if event["type"] == "BOOKMARK" or namespace not in self.events:
            return None
        self.events[namespace] += 1
        return self._due(namespace, self.events[namespace], is_event=True)
