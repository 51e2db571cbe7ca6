"""Asks Prometheus, and turns whatever comes back into a value.

Nothing leaves here as an exception: a Prometheus that is down, slow, wrong or partial is an `Outage`, which the
analysis judges as ProviderError, so that no outage of the monitoring can look like a verdict on a model. Nothing
here retries: the next look is the retry.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from onnx_operator.core.queries import Series

if TYPE_CHECKING:
    from datetime import datetime

_MOST_BYTES: Final = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Outage:
    """The one who measures did not answer, or not with something that can be trusted."""

    why: str


class Prometheus:
    """A client of Prometheus' query API, or of anything that speaks it."""

    def __init__(self, url: str, *, timeout_seconds: float = 10.0) -> None:
        self._url = url.rstrip("/") + "/api/v1/query"
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def query(self, expression: str, *, at: datetime) -> tuple[Series, ...] | Outage:
        """Evaluate an expression as of a moment."""
        form = {"query": expression, "time": f"{at.timestamp():.3f}"}
        try:
            async with self._opened().post(self._url, data=form, allow_redirects=False) as response:
                body = await _read(response)
                status = response.status
        except TimeoutError:
            return Outage(f"Prometheus did not answer within {self._timeout.total:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return Outage(f"Prometheus could not be asked: {error}")
        if body is None:
            return Outage(f"Prometheus' answer is larger than {_MOST_BYTES} bytes")
        return parse(status, body)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        # Made at the first query, because a session belongs to the event loop that runs then.
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        return self._session


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _MOST_BYTES:
            return None
    return bytes(body)


def parse(status: int, body: bytes) -> tuple[Series, ...] | Outage:
    """Read an answer of the query API: vectors, matrices and scalars all become series."""
    try:
        answer = json.loads(body)
        if answer["status"] != "success":
            return Outage(f"Prometheus answered {status}: {answer.get('errorType')}: {answer.get('error')}")
        if answer.get("warnings"):
            # Thanos, Mimir and federated set-ups say here that a part of the data is missing.
            return Outage(f"Prometheus' answer may be partial: {'; '.join(map(str, answer['warnings']))}")
        return _series(answer["data"]["resultType"], answer["data"]["result"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return Outage(f"Prometheus answered {status} with something else than a query result: {body[:200]!r}")


def _series(kind: str, result: Any) -> tuple[Series, ...]:
    match kind:
        case "matrix":
            return tuple(Series(each["metric"], _samples(each["values"])) for each in result)
        case "vector":
            return tuple(Series(each["metric"], _samples([each["value"]])) for each in result)
        case "scalar":
            return (Series({}, _samples([result])),)
        case _:
            raise ValueError(kind)


def _samples(values: list[tuple[float, str]]) -> tuple[tuple[float, float], ...]:
    return tuple((float(time), float(value)) for time, value in values)
