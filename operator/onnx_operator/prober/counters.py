"""What the prober has counted, and the two forms in which it tells: JSON for the operator, Prometheus for people.

Only ever grows, and only by so many names: whatever a server answers cannot make it large.
"""

from __future__ import annotations

import time
from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from onnx_operator.prober.compare import Difference

_MOST_KINDS: Final = 32


class Side(StrEnum):
    """The two sides, as the pin header of the routes names them."""

    STABLE = "stable"
    CANDIDATE = "candidate"


class Pair(StrEnum):
    """What became of asking both sides once. Only the first two are comparisons."""

    AGREED = "agreed"
    DISAGREED = "disagreed"
    BOTH_FAILED = "bothFailed"
    STABLE_FAILED = "stableFailed"
    """Stable gave no answer or a broken one, so there is nothing to compare with."""
    CANDIDATE_FAILED = "candidateFailed"
    """The candidate gave an error: an errorRatio matter, not a disagreement."""
    MISROUTED = "misrouted"
    """An answer came from another version than the one asked for."""


class Counters(Collector):
    """Counts of one run. A restart begins at zero with a higher `run`."""

    def __init__(self, model: str, versions: dict[Side, str]) -> None:
        self.run = time.time_ns() // 1_000_000
        self._model = model
        self._versions = versions
        self._requests: Counter[tuple[Side, str]] = Counter()
        self._errors: Counter[tuple[Side, str, str]] = Counter()
        self._slow: Counter[tuple[Side, str]] = Counter()
        self._pairs: Counter[Pair] = Counter()
        self._reasons: Counter[Difference] = Counter()
        self._last_compared: float | None = None

    def count_answer(self, side: Side, protocol: str, *, slow: bool) -> None:
        """One request was answered."""
        self._requests[side, protocol] += 1
        self._slow[side, protocol] += slow

    def count_error(self, side: Side, protocol: str, kind: str) -> None:
        """One request was not answered, or with an error."""
        self._requests[side, protocol] += 1
        known = (side, protocol, kind) in self._errors or len(self._errors) < _MOST_KINDS
        self._errors[side, protocol, kind if known else "Other"] += 1

    def count_pair(self, pair: Pair, difference: Difference | None = None) -> None:
        """Both sides were asked once."""
        self._pairs[pair] += 1
        if difference is not None:
            self._reasons[difference] += 1
        if pair in {Pair.AGREED, Pair.DISAGREED}:
            self._last_compared = time.monotonic()

    def as_json(self) -> dict[str, Any]:
        """The counts as the operator reads them (`onnx_operator.adapters.prober`)."""
        compared = self._last_compared
        return {
            "run": self.run,
            "model": self._model,
            "stableVersion": self._versions[Side.STABLE],
            "candidateVersion": self._versions[Side.CANDIDATE],
            "pairs": {pair.value: self._pairs[pair] for pair in Pair},
            "reasons": {reason.value: count for reason, count in self._reasons.items()},
            "lastComparedSecondsAgo": None if compared is None else round(time.monotonic() - compared, 3),
            "sides": {side.value: self._side(side) for side in Side},
        }

    def _side(self, side: Side) -> dict[str, Any]:
        kinds: Counter[str] = Counter()
        for (of, _, kind), count in self._errors.items():
            if of is side:
                kinds[kind] += count
        return {
            "requests": sum(count for (of, _), count in self._requests.items() if of is side),
            "errors": kinds.total(),
            "slow": sum(count for (of, _), count in self._slow.items() if of is side),
            "errorKinds": dict(kinds),
        }

    @override
    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "onnx_prober_requests", "Requests sent, by side and protocol.", labels=["model", "side", "protocol"]
        )
        for (side, protocol), count in self._requests.items():
            requests.add_metric([self._model, side, protocol], count)
        yield requests
        errors = CounterMetricFamily(
            "onnx_prober_errors", "Requests without an answer, by kind.", labels=["model", "side", "protocol", "kind"]
        )
        for (side, protocol, kind), count in self._errors.items():
            errors.add_metric([self._model, side, protocol, kind], count)
        yield errors
        slow = CounterMetricFamily(
            "onnx_prober_slow", "Answers slower than the bound.", labels=["model", "side", "protocol"]
        )
        for (side, protocol), count in self._slow.items():
            slow.add_metric([self._model, side, protocol], count)
        yield slow
        pairs = CounterMetricFamily(
            "onnx_prober_pairs", "Requests sent to both sides, by result.", labels=["model", "result"]
        )
        for pair in Pair:
            pairs.add_metric([self._model, pair], self._pairs[pair])
        yield pairs
        reasons = CounterMetricFamily(
            "onnx_prober_disagreements", "Pairs whose answers differ, by how.", labels=["model", "reason"]
        )
        for reason, count in self._reasons.items():
            reasons.add_metric([self._model, reason], count)
        yield reasons
