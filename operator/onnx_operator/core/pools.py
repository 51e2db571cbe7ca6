"""How requests are shared among pools: a pool is the pods of a revision on one execution provider.

Weights are declared by the spec and changed by its schedules, for every revision alike; which pools can answer is
seen. Pure: the moment is a parameter. How much a whole revision answers is not decided here.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Final

from onnx_operator.core.windows import closes, opens, problem_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from onnx_operator.api.common import ExecutionProvider
    from onnx_operator.api.model import ExecutionProviderRequest, PoolSchedule

#: Of a pool about which nothing is said.
DEFAULT_WEIGHT: Final = 1


def weights(declared: Sequence[ExecutionProviderRequest], now: datetime) -> dict[ExecutionProvider, int]:
    """What each pool weighs now: by the first of its windows that is open, else by itself."""
    return {one.name: _weight(one, now) for one in declared}


def next_change(declared: Sequence[ExecutionProviderRequest], now: datetime) -> datetime | None:
    """When a window opens or closes next; None without windows."""
    windows = (window for pool in declared for window in _readable(pool))
    return min((closing if (closing := closes(one, now)) > now else opens(one, now) for one in windows), default=None)


def parts(wanted: Sequence[int], ready: Sequence[bool]) -> tuple[int, ...]:
    """The shares of pools with these weights, in lowest terms; a pool that is not ready gets none.

    Where no pool is ready the weights stay as they are, since nothing would be better. Where those that are ready
    weigh nothing they share evenly: requests have to go somewhere.

        weights 3, 1          ready          -> 3, 1
                              only the last  -> 0, 1
                              none           -> 3, 1
        weights 3, 0          only the last  -> 0, 1
        weights 0, 0          ready          -> 1, 1
    """
    able = ready if any(ready) else [True] * len(wanted)
    shares = [weight if is_able else 0 for weight, is_able in zip(wanted, able, strict=True)]
    if not any(shares):
        shares = [int(is_able) for is_able in able]
    divisor = gcd(*shares)
    return tuple(one // divisor for one in shares)


def _weight(pool: ExecutionProviderRequest, now: datetime) -> int:
    found = next((one.weight for one in _readable(pool) if closes(one, now) > now), pool.weight)
    return DEFAULT_WEIGHT if found is None else found


def _readable(pool: ExecutionProviderRequest) -> Iterator[PoolSchedule]:
    """Without the windows for which the spec is refused: those never open."""
    return (one for one in pool.schedules or () if not problem_of(one))
