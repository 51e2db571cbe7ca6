"""How many servers each side of the traffic gets on one execution provider.

    limit   replicas + maxSurge: what all sides may have together
    need    what a weight stands for, less maxUnavailable: what a side with that weight is never scaled below
    reach   percent of the requests that come to the candidate: its weight, or the copies that it gets in a shadow

A side gives up at once and gets no more than the others are seen to have given up, so the limit holds at every moment.
Where there is no gateway the servers are the weights: see `by_ratio`. Knows numbers only, neither traffic nor time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
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

    @property
    def least(self) -> int:
        """The fewest servers that may answer all of the traffic."""
        return self.replicas - self.unavailable

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
    return _short(capacity, taken)


def _short(capacity: Capacity, taken: Sequence[int]) -> Shortage | None:
    """By the servers that each step takes, and the end of the last one."""
    for step, servers in enumerate(taken):
        if servers > capacity.limit:
            return Shortage(step if step < len(taken) - 1 else None, servers, max(taken))
    return None


@dataclass(frozen=True, slots=True)
class Sides:
    """Servers of stable and of the candidate."""

    stable: int
    candidate: int


@lru_cache(maxsize=1024)
def by_ratio(capacity: Capacity, weight: int, candidate: int | None = None) -> Sides | None:
    """The servers whose numbers come to the weight, where requests are shared evenly among all of them; None where the
    limit leaves no room. `candidate` is the number that a step declares.

    Stable keeps all that it can while the candidate can have what the weight takes beside it:

        4 replicas   surge 4            surge 1            surge 0, one unavailable
        10 %         4 + 1, 20 %        4 + 1, 20 %        3 + 1, 25 %
        50 %         4 + 4, 50 %        2 + 2, 50 %        2 + 2, 50 %
        75 %         1 + 3, 75 %        1 + 3, 75 %        1 + 3, 75 %
    """
    if not capacity.surge + capacity.unavailable:
        return None  # the first server has no room
    if weight in {0, FULL}:
        servers = capacity.replicas if weight else candidate or 1
        stable = min(capacity.replicas, capacity.limit - servers)
        return Sides(stable, servers) if weight or stable >= max(1, capacity.least) else None
    pairs = [
        Sides(stable, beside)
        for stable in range(capacity.replicas, 0, -1)
        if (beside := _beside(stable, capacity, weight, candidate)) is not None
    ]
    return min(pairs, key=lambda pair: _off(pair, weight), default=None)


def _beside(stable: int, capacity: Capacity, weight: int, declared: int | None) -> int | None:
    """The servers of the candidate that there may be beside so many of stable and come closest to the weight."""
    least = max(1, capacity.least - stable)
    most = min(capacity.replicas, capacity.limit - stable)
    servers = declared or max(least, min(most, _closest(stable, weight)))
    return servers if least <= servers <= most else None


def _closest(stable: int, weight: int) -> int:
    exact = stable * weight // (FULL - weight)
    return min(max(1, exact), exact + 1, key=lambda servers: _distance(Sides(stable, servers), weight))


def _distance(pair: Sides, weight: int) -> Fraction:
    return abs(Fraction(pair.candidate, pair.stable + pair.candidate) - Fraction(weight, FULL))


def _off(pair: Sides, weight: int) -> tuple[Fraction, int]:
    """How far the pair is from the weight: not at all where only another number of stable's could be closer."""
    is_met = pair.candidate == _closest(pair.stable, weight)
    return (Fraction(0) if is_met else _distance(pair, weight)), -pair.stable


def shortage_by_ratio(capacity: Capacity, steps: Sequence[tuple[int, int | None]]) -> Shortage | None:
    """The first of these steps, each a weight and a declared number of servers, that there is no room for."""
    stops: Final = ((0, None), *steps, (FULL, None))
    return _short(capacity, [_least_limit(capacity, before, *step) for (before, _), step in pairwise(stops)])


def _least_limit(capacity: Capacity, before: int, weight: int, declared: int | None) -> int:
    """The servers there must be at least for the step to come after one with the weight `before`."""
    surges = range(capacity.replicas + 1)
    return next(
        enough.limit
        for enough in (replace(capacity, surge=surge) for surge in surges)
        if by_ratio(enough, weight, declared) is not None
        # From none of the traffic to all of it is no matter of numbers: both sides have to be there.
        and (before or weight < FULL or enough.to_move(before, weight) <= enough.limit)
    )


@dataclass(frozen=True, slots=True)
class Share:
    """Servers of a side, and how many of them are ready and answer requests now."""

    servers: int
    answering: int


def towards(capacity: Capacity, wanted: Sides, *, stable: Share, candidate: Share, leaving: int) -> Sides:
    """What each side is to have on the way to what is wanted: what answers never falls below the least there may be,
    as long as it is not below it already.
    """
    room = capacity.limit - leaving
    least = Sides(capacity.least - candidate.answering, capacity.least - stable.answering if candidate.answering else 0)
    return Sides(
        _towards(max(wanted.stable, min(stable.servers, least.stable)), stable.servers, room - candidate.servers),
        _towards(
            max(wanted.candidate, min(candidate.servers, least.candidate)), candidate.servers, room - stable.servers
        ),
    )


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
