"""Asks one HTTP service that measures, and turns whatever goes wrong into a value.

No exception leaves: a service that is down, slow or endless is an `Outage`, which the analysis judges as
ProviderError. Follows no redirect, and does not retry: the next look is the retry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_BYTES: Final = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Outage:
    """The one who measures did not answer, or not with something that can be trusted."""

    why: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whatever its status."""

    status: int
    body: bytes


class Asking:
    """A client of one kind of service; `whom` is its name in messages."""

    def __init__(self, whom: str, *, timeout_seconds: float, most_bytes: int = _MOST_BYTES) -> None:
        self._whom = whom
        self._most_bytes = most_bytes
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def ask(
        self, method: str, url: str, *, form: Mapping[str, Any] | None = None, most_bytes: int | None = None
    ) -> Answer | Outage:
        """Send one request and read its answer to the end, or as far as it may go."""
        most = self._most_bytes if most_bytes is None else most_bytes
        try:
            async with self._opened().request(method, url, data=form, allow_redirects=False) as response:
                body = await _read(response, most)
                status = response.status
        except TimeoutError:
            return Outage(f"{self._whom} did not answer within {self._timeout.total:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return Outage(f"{self._whom} could not be asked: {error}")
        if body is None:
            return Outage(f"the answer of {self._whom} is larger than {most} bytes")
        return Answer(status, body)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        # Made at the first request, because a session belongs to the event loop that runs then.
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        return self._session


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes | None:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > most:
            return None
    return bytes(body)
