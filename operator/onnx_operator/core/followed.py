"""Whether requests really went where the gateway says it sends them.

Counted is what reached the Services since the step began. Golden requests are in it, one of every pair on each side, so
they are taken out again; how many there were is known only roughly, as counters are read at different times. What is
then further from the wanted weight than chance explains is told, and nothing follows from it: sessions that stick to a
side and long gRPC streams are good reasons, and so are people who name a side by its header.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import timedelta

#: The prober's own default; a test ties the two.
PAIRS_PER_SECOND: Final = 5.0
#: By so much the counters of the prober may be ahead of those that Prometheus has scraped, and every proxy behind the
#: route.
_LAG_SECONDS: Final = 30.0
#: Chance explains what it brings about more often than once in a million times.
_ENOUGH: Final = log(1e6)
#: So far off, or half of the weight where that is less, somebody should know.
_WORTH_TELLING: Final = 0.05


@dataclass(frozen=True, slots=True)
class Followed:
    """How the requests that named no side were split."""

    candidate: int
    """Those of the candidate."""
    total: int
    is_as_wanted: bool
    """Whether chance explains the difference to the wanted weight, or it is too small or too early to matter."""

    @property
    def percent(self) -> int:
        return round(100 * self.candidate / self.total)


def followed(candidate: int, stable: int, *, percent: int, pairs: int | None, elapsed: timedelta) -> Followed | None:
    """What was counted for each side against the wanted percentage; None where there is nothing to say.

    `pairs` is how many golden requests each side got since the last look before the step; None where nobody sends any.
    """
    most = min(candidate, stable)
    if pairs is not None:  # a step that a person begins may begin long after that look
        pairs = min(pairs, round(PAIRS_PER_SECOND * elapsed.total_seconds()))
    golden = min(pairs or 0, most)
    total = candidate + stable - 2 * golden
    if percent == 0 or total <= 0:  # a preview is reached by its header alone
        return None
    wanted, at_least, at_most = percent / 100, 0.0, 0.0
    if pairs is not None:
        at_least = min(max(0.0, pairs - PAIRS_PER_SECOND * _LAG_SECONDS), most)
        at_most = min(PAIRS_PER_SECOND * elapsed.total_seconds(), most)
    # In doubt there were as many golden requests as bring the rest closest to what is wanted.
    excuse = (candidate - wanted * (candidate + stable)) / (1 - 2 * wanted) if wanted != 1 / 2 else at_least
    excuse = min(max(excuse, at_least), at_most)
    is_early = elapsed.total_seconds() < _LAG_SECONDS
    is_as_wanted = is_early or _is_as(candidate - excuse, candidate + stable - 2 * excuse, wanted)
    return Followed(candidate - golden, total, is_as_wanted)


def _is_as(ours: float, total: float, wanted: float) -> bool:
    off = abs(ours - wanted * total)
    if off <= min(_WORTH_TELLING, wanted / 2) * total:
        return True
    # Bernstein's bound on the tail of a binomial distribution.
    return off**2 / (2 * (wanted * (1 - wanted) * total + off / 3)) < _ENOUGH
