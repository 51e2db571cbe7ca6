"""Asks Prometheus, and turns whatever comes back into a value.

A Prometheus that is down, slow, wrong or partial is an `Outage`, so that no outage of the monitoring can look like a
verdict on a model.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from onnx_operator.adapters.asking import Asking, Outage
from onnx_operator.core.queries import Series

if TYPE_CHECKING:
    from datetime import datetime


class Prometheus:
    """A client of Prometheus' query API, or of anything that speaks it."""

    def __init__(self, url: str, *, timeout_seconds: float = 10.0) -> None:
        self._url = url.rstrip("/") + "/api/v1/query"
        self._asking = Asking("Prometheus", timeout_seconds=timeout_seconds)

    async def query(
        self, expression: str, *, at: datetime, most_bytes: int | None = None
    ) -> tuple[Series, ...] | Outage:
        """Evaluate an expression as of a moment."""
        form = {"query": expression, "time": f"{at.timestamp():.3f}"}
        answer = await self._asking.ask("POST", self._url, form=form, most_bytes=most_bytes)
        return answer if isinstance(answer, Outage) else parse(answer.status, answer.body)

    async def close(self) -> None:
        """Close the connections."""
        await self._asking.close()


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
