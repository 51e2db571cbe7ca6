"""What servers counted since they started, taken as growth from look to look.

A server that starts again counts from zero, one that is gone takes its counts along, and one that is new brings what it
answered before anybody looked. In a sum all that would pass for answers. So where a side's servers have changed since
the look before, that look's growth does not count, whatever it was. Only sums are carried from look to look: a side of
a hundred servers takes no more room in status than a side of one.

Pure: numbers in, numbers out. Who asks the servers is `measure`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from onnx_operator.core.counts import Counts

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Scrape:
    """What the ready servers of one side said at one look."""

    servers: str
    """Stands for the containers that were asked; another text, other containers."""
    replicas: int
    time: datetime
    counts: Counts
    """Summed over them, since each of them started."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What a step's scrapes of one side have come to."""

    servers: str
    time: datetime
    counts: Counts
    """The last scrape's."""
    step: Counts = field(default_factory=partial(Counts, 0, 0))
    """What grew in the step, from its first look on."""

    def then(self, scrape: Scrape) -> Tally:
        """After one more scrape."""
        return Tally(scrape.servers, scrape.time, scrape.counts, self.step + (self._growth(scrape) or Counts(0, 0)))

    def rate(self, scrape: Scrape) -> float | None:
        """Good answers per second and server since the look before; None where that cannot be told."""
        grown, seconds = self._growth(scrape), (scrape.time - self.time).total_seconds()
        if grown is None or seconds <= 0:
            return None
        return (grown.total - grown.bad - grown.disputed) / seconds / scrape.replicas

    def _growth(self, scrape: Scrape) -> Counts | None:
        """None where the servers changed, or counted backwards, which the same container never does."""
        now, before = scrape.counts, self.counts
        bad, total, disputed = now.bad - before.bad, now.total - before.total, now.disputed - before.disputed
        if scrape.servers != self.servers or min(bad, total, disputed) < 0:
            return None
        # An answer and its error are counted one after the other, and a scrape may come in between.
        return Counts(bad, max(total, bad + disputed), disputed)


@dataclass(frozen=True, slots=True)
class Scrapes:
    """One look at both sides; None is a side that did not answer."""

    candidate: Scrape | None
    stable: Scrape | None


@dataclass(frozen=True, slots=True)
class Tallies:
    """What both sides have come to; None where a side was never scraped in this step."""

    candidate: Tally | None = None
    stable: Tally | None = None

    def then(self, scrapes: Scrapes) -> Tallies:
        """After one more look; a side that did not answer stays what it was."""
        return Tallies(_then(self.candidate, scrapes.candidate), _then(self.stable, scrapes.stable))

    def rates(self, scrapes: Scrapes) -> tuple[float | None, float | None]:
        """Good answers per second and server of candidate and stable, since the look before."""
        return _rate(self.candidate, scrapes.candidate), _rate(self.stable, scrapes.stable)


def _then(tally: Tally | None, scrape: Scrape | None) -> Tally | None:
    if scrape is None:
        return tally
    return Tally(scrape.servers, scrape.time, scrape.counts) if tally is None else tally.then(scrape)


def _rate(tally: Tally | None, scrape: Scrape | None) -> float | None:
    return None if tally is None or scrape is None else tally.rate(scrape)
