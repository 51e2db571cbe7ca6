"""How many servers each side of the traffic gets on one execution provider.

    limit   replicas + maxSurge: what all sides may have together
    need    what a weight stands for, less maxUnavailable: what a side with that weight is never scaled below
    reach   percent of the requests that come to the candidate: its weight, or the copies that it gets in a shadow

A side gives up at once and gets no more than the others are seen to have given up, so the limit holds at every moment.
Knows numbers only, neither traffic nor time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from onnx_operator.core.traffic import FULL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a model may use of one execution provider."""

    #: Servers that all of the traffic stands for.
    replicas: int
    #: More that there may be while two revisions serve.
    surge: int
    #: Fewer that a side may have than its weight stands for.
    unavailable: int

    @property
    def limit(self) -> int:
        return self.replicas + self.surge

    def share(self, weight: int) -> int:
        """The servers that a weight in percent stands for, rounded up."""
        return -(-self.replicas * weight // FULL)

    def need(self, weight: int) -> int:
        """The fewest servers for a weight: none only where all of them may be unavailable."""
        least = 1 if weight and self.unavailable < self.replicas else 0
        return max(least, self.share(weight) - self.unavailable)

    def to_move(self, weight: int, reach: int) -> int:
        """The servers there must be when a candidate with this weight begins to get what reaches it next."""
        return self.need(FULL - weight) + max(1, self.need(reach))

    def to_stay(self, weight: int, reach: int) -> int:
        """The servers there must be while the candidate has the weight: whoever answers anything has one."""
        return (max(1, self.need(FULL - weight)) if weight < FULL else 0) + max(1, self.need(reach))


def amount(text: str, replicas: int, *, rounds_up: bool) -> int:
    """A number of servers, or a percentage of the replicas, as Kubernetes reads `maxSurge` and `maxUnavailable`."""
    if not text.endswith("%"):
        return int(text)
    parts = replicas * int(text[:-1])
    return -(-parts // 100) if rounds_up else parts // 100


@dataclass(frozen=True, slots=True)
class Shortage:
    """A rollout that its limit leaves no room for."""

    #: Index of the step that cannot be reached; None for the end of the last one.
    step: int | None
    #: The servers that it takes, and those that the whole rollout takes.
    servers: int
    most: int


def shortage(capacity: Capacity, steps: Sequence[tuple[int, int]]) -> Shortage | None:
    """The first of these steps, each a weight and a reach, that the limit leaves no room for."""
    stops: Final = ((0, 0), *steps, (FULL, FULL))
    taken = [
        max(capacity.to_move(before, reach), capacity.to_stay(weight, reach))
        for (before, _), (weight, reach) in pairwise(stops)
    ]
    for step, servers in enumerate(taken):
        if servers > capacity.limit:
            return Shortage(step if step < len(steps) else None, servers, max(taken))
    return None


@dataclass(frozen=True, slots=True)
class Sides:
    """Servers of stable and of the candidate."""

    stable: int
    candidate: int


@dataclass(frozen=True, slots=True)
class Goal:
    """What the candidate is to be scaled for."""

    #: Index of the step, or their number for what comes after the last; below 0 while not even the first may begin.
    step: int
    reach: int
    #: What stable makes room for; the candidate takes more where there is.
    servers: int
    most: int


def allot(capacity: Capacity, now: Sides, goal: Goal, *, weight: int, leaving: Iterable[int]) -> Sides:
    """What each side is to have, of which the candidate answers `weight` percent now."""
    room = capacity.limit - sum(leaving)
    # What the candidate has is left to it while stable can do without, or a doubtful verdict would stop servers again.
    servers = goal.servers if goal.step < 0 else min(goal.most, max(goal.servers, now.candidate))
    stable = min(capacity.replicas, max(capacity.need(FULL - weight), room - servers))
    candidate = max(0, min(goal.most, room - stable))
    return Sides(
        _towards(stable, now.stable, room - now.candidate), _towards(candidate, now.candidate, room - now.stable)
    )


def _towards(wanted: int, now: int, room: int) -> int:
    return wanted if wanted <= now else max(now, min(wanted, room))
