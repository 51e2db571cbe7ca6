"""Bad answers among all answers: what every metric comes down to. Says nothing about good enough."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override


@dataclass(frozen=True, slots=True)
class Counts:
    """Bad answers among all answers of one side.

    `disputed` answers may be the caller's own fault (a 4xx, a caller that hung up). They are not held against an
    absolute bound. In a comparison they count as bad: both sides hear the same callers in random order, so their
    mistakes fall on both alike, and an excess on one side is that side's doing.
    """

    bad: int
    total: int
    disputed: int = 0

    def __post_init__(self) -> None:
        if min(self.bad, self.disputed) < 0 or self.bad + self.disputed > self.total:
            raise ValueError(f"{self.bad} bad and {self.disputed} disputed of {self.total} answers cannot be")

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.bad + other.bad, self.total + other.total, self.disputed + other.disputed)

    @override
    def __str__(self) -> str:
        return f"{self.ratio:.2%} ({self.bad} of {self.total})"

    def since(self, before: Counts) -> Counts | None:
        """What came after `before`; None where there are fewer answers than then, so that the counting began anew.

        A bad answer that was called good at first, or the other way round, does not come twice.
        """
        total = self.total - before.total
        return None if total < 0 else Counts(min(max(self.bad - before.bad, 0), total), total)

    @property
    def ratio(self) -> float:
        """The share of bad answers; 0 of 0 is 0, so look at `total` first."""
        return self.bad / self.total if self.total else 0.0

    @property
    def lenient(self) -> Counts:
        """The same with every disputed answer called good."""
        return Counts(self.bad, self.total)

    @property
    def strict(self) -> Counts:
        """The same with every disputed answer called bad."""
        return Counts(self.bad + self.disputed, self.total)
