"""Reads the counters of a rollout's prober, straight from its pod.

The address is that of a pod the operator made, never one that a user wrote. As with Prometheus, no exception leaves:
a prober that cannot be read is an `Outage`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx_operator.adapters.asking import Asking, Outage

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Probed:
    """What a prober has counted since it started; a restart begins at zero, with a higher `run`."""

    run: int
    stable_version: str
    candidate_version: str
    compared: int
    disagreeing: int
    not_compared: Mapping[str, int]
    """Pairs without a comparison, by why."""
    reasons: Mapping[str, int]
    """Disagreeing pairs, by how they differ."""
    last_compared_seconds_ago: float | None


class ProberReader:
    """A client of the probers' counters."""

    def __init__(self, *, timeout_seconds: float = 5.0) -> None:
        self._asking = Asking("the prober", timeout_seconds=timeout_seconds)

    async def read(self, url: str) -> Probed | Outage:
        """Read the counters of the prober at `url`, such as http://10.244.0.7:8080."""
        answer = await self._asking.ask("GET", f"{url}/counters")
        return answer if isinstance(answer, Outage) else parse(answer.status, answer.body)

    async def close(self) -> None:
        """Close the connections."""
        await self._asking.close()


def parse(status: int, body: bytes) -> Probed | Outage:
    """Read what a prober answers at /counters."""
    try:
        answer = json.loads(body)
        pairs, ago = answer["pairs"], answer["lastComparedSecondsAgo"]
        return Probed(
            run=int(answer["run"]),
            stable_version=str(answer["stableVersion"]),
            candidate_version=str(answer["candidateVersion"]),
            compared=int(pairs["agreed"]) + int(pairs["disagreed"]),
            disagreeing=int(pairs["disagreed"]),
            not_compared={
                why: int(count) for why, count in pairs.items() if why not in {"agreed", "disagreed"} and int(count)
            },
            reasons={str(reason): int(count) for reason, count in answer["reasons"].items()},
            last_compared_seconds_ago=None if ago is None else float(ago),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return Outage(f"the prober answered {status} with something else than counters: {body[:200]!r}")
