"""What the demo shows: one table that changes in place on a terminal, plain lines elsewhere. Decides nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from types import TracebackType


@dataclass(frozen=True, slots=True)
class Row:
    """One model and its traffic, as words."""

    model: str
    stable: str = "-"
    candidate: str = "-"
    weight: str = "-"
    verdict: str = "-"
    requests: str = "-"
    failures: str = "-"
    why: str = ""

    def cells(self) -> tuple[str, ...]:
        """The columns of the table, in its order."""
        return (self.model, self.stable, self.candidate, self.weight, self.verdict, self.requests, self.failures)


class Screen(Protocol):
    """Where the demo speaks to."""

    def heading(self, text: str) -> None:
        """Say that something new begins."""

    def tell(self, text: str) -> None:
        """Say what happened."""

    def say(self, text: str) -> None:
        """Say something that has no time."""

    def show(self, row: Row) -> None:
        """Show how the model stands now."""

    def table(self, table: Table) -> None:
        """Show a table that stays."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


_COLUMNS = ("model", "stable", "candidate", "weight", "verdict", "requests", "failures")


class LiveScreen:
    """A terminal: the story scrolls, the table below it changes in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._live = Live(console=console, auto_refresh=False)
        self._shown = Row("-")

    def heading(self, text: str) -> None:
        self._console.print(f"\n[bold cyan]{escape(text)}[/]")

    def tell(self, text: str) -> None:
        self._console.print(f"[dim]{_clock(self._started)}[/] {escape(text)}")

    def say(self, text: str) -> None:
        self._console.print(escape(text), highlight=False, soft_wrap=True)

    def show(self, row: Row) -> None:
        if row == self._shown:
            return
        self._shown = row
        table = Table(*_COLUMNS, caption=escape(row.why), caption_justify="left", min_width=76)
        table.add_row(*(escape(cell) for cell in row.cells()))
        self._live.update(table, refresh=True)

    def table(self, table: Table) -> None:
        self._console.print(table)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


class PlainScreen:
    """No terminal: one line for each change, good for a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._last = Row("-")

    def heading(self, text: str) -> None:
        self._line(f"== {text}")

    def tell(self, text: str) -> None:
        self._line(f"{_clock(self._started)} {text}")

    def say(self, text: str) -> None:
        self._line(text)

    def show(self, row: Row) -> None:
        # Counters alone are no news: a log with a line for every second would tell less, not more.
        if row.cells()[:5] != self._last.cells()[:5]:
            self._line("   | " + "  ".join(f"{name} {cell}" for name, cell in zip(_COLUMNS, row.cells(), strict=True)))
        self._last = row

    def table(self, table: Table) -> None:
        self._console.print(table)

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def screen() -> Screen:
    """The screen that fits to where standard output goes."""
    console = Console()
    return LiveScreen(console) if console.is_terminal else PlainScreen(console)


def _clock(started: float) -> str:
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    return f"{minutes:2d}:{seconds:02d}"
