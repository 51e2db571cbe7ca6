"""The plots of the report as SVG that needs nothing but the page's own style. Standard library only.

Logarithmic, since differences span decades and latencies of short and long requests two of them; below them all there
is room for 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_WIDTH: Final = 960
_LEFT: Final = 76
_RIGHT: Final = 150
_TOP: Final = 12
_HEIGHT: Final = 170
_FOOT: Final = 40
_ROW: Final = 20
_NAMES: Final = 170
#: Dots below this many decades under the largest say nothing more.
_DECADES: Final = 8
_TICKS: Final = 12


@dataclass(frozen=True, slots=True)
class Spread:
    """The latency of one side in one cell: median, 90th and 99th percentile, in milliseconds."""

    side: str
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Beside:
    """One quality of both sides with 95 % intervals, as value, low and high, and the last value that is let through."""

    name: str
    original: Sequence[float]
    graph: Sequence[float]
    bound: float


@dataclass(frozen=True, slots=True)
class _Log:
    """From the power of ten below the smallest to the one above the largest, on so many pixels. 0 is the foot's."""

    low: int
    high: int
    has_zero: bool
    first: float
    length: float

    @classmethod
    def over(cls, values: Sequence[float], first: float, length: float) -> _Log:
        drawn = [value for value in values if 0 < value < math.inf] or [1.0]
        has_zero = 0.0 in values
        # A value on a power of ten has the next one above it, so that the two never fall together.
        high = math.floor(math.log10(max(drawn))) + 1
        low = max(math.floor(math.log10(min(drawn))), high - _DECADES) - has_zero
        return cls(low, high, has_zero, first, length)

    def at(self, value: float) -> float:
        power = math.log10(value) if 0 < value < math.inf else self.low if value <= 0 else self.high
        share = (min(max(power, self.low), self.high) - self.low) / (self.high - self.low)
        return self.first + share * self.length

    def ticks(self) -> Iterator[tuple[float, str]]:
        for power in range(self.low, self.high + 1):
            yield self.at(10.0**power), "0" if self.has_zero and power == self.low else f"{10.0**power:g}"


def _across(heights: _Log) -> list[str]:
    """A line with its value for each tick."""
    parts = []
    for y, words in heights.ticks():
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 8, y + 4, words, "end"))
    return parts


def _bound(heights: _Log, bound: float) -> list[str]:
    y = heights.at(bound)
    return [
        f'<line class="bound" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>',
        _text(_WIDTH - _RIGHT + 8, y + 4, f"bound {bound:.3g}", "strong"),
    ]


def by_sample(name: str, title: str, samples: Sequence[tuple[str, float]], bound: float | None) -> str:
    """A dot for each sample in the order of the table, and the bound that all must stay below."""
    bounds = [] if bound is None else [bound]
    foot = _TOP + _HEIGHT
    heights = _Log.over([value for _, value in samples] + bounds, foot, -_HEIGHT)
    parts = _across(heights)
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(samples), 1)
    every = max(1, math.ceil(len(samples) / _TICKS))
    for number, (sample, value) in enumerate(samples, 1):
        x = _LEFT + (number - 0.5) * step
        mood = "dot" if bound is None or value < bound else "dot beyond"
        parts.append(
            f'<circle class="{mood}" cx="{x:.1f}" cy="{heights.at(value):.1f}" r="3.5">'
            f"<title>{number}. {escape(sample)}: {value:.3g}</title></circle>"
        )
        if number % every == 0 or len(samples) == 1:
            parts.append(_text(x, foot + 18, str(number), "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, foot + 36, "sample", "middle"))
    for one in bounds:
        parts += _bound(heights, one)
    worst = max(samples, key=lambda one: one[1], default=("none", 0.0))
    said = f"The largest is {worst[1]:.3g}, of {worst[0]}."
    return _svg(name, title, said, foot + _FOOT, parts)


def latencies(name: str, cells: Sequence[tuple[str, Sequence[Spread]]]) -> str:
    """A row for each side of each cell: a dot at the median, a stroke at the 90th, a line as far as the 99th."""
    rows = [spread for _, spreads in cells for spread in spreads]
    widths = _Log.over([at for row in rows for at in (row.p50, row.p99)], _NAMES, _WIDTH - _NAMES - _RIGHT)
    foot = _TOP + _ROW * len(rows) + 8 * len(cells)
    parts = []
    for x, words in widths.ticks():
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{foot}"/>')
        parts.append(_text(x, foot + 18, words, "middle"))
    parts.append(_text((_NAMES + _WIDTH - _RIGHT) / 2, foot + 36, "milliseconds", "middle"))
    y = float(_TOP)
    for cell, spreads in cells:
        for place, spread in enumerate(spreads):
            y += _ROW
            if not place:
                parts.append(_text(0, y - 4, cell, "strong"))
            parts.append(_text(_NAMES - 10, y - 4, spread.side, f"end {spread.side}"))
            parts += _spread(widths, y - 8, cell, spread)
        y += 8
    said = "; ".join(f"{cell}: " + ", ".join(f"{one.side} {one.p50:g}" for one in each) for cell, each in cells)
    title = "Latency of the original and of the graph by shape of the request"
    return _svg(name, title, f"Medians in milliseconds: {said}.", foot + _FOOT, parts)


def against(name: str, title: str, dots: Sequence[tuple[str, float, float]], bound: float, chosen: str) -> str:
    """A dot for each name at a positive value and a loss, and the bound above which no loss is taken."""
    foot = _TOP + _HEIGHT
    # A thousandth of what may be lost is as good as nothing, and would leave no room for the rest.
    drawn = {one: 0.0 if loss < bound / 1000 else loss for one, _, loss in dots}
    heights = _Log.over([*drawn.values(), bound], foot, -_HEIGHT)
    widths = _Log.over([value for _, value, _ in dots], _LEFT, _WIDTH - _LEFT - _RIGHT)
    parts = _across(heights)
    for x, words in widths.ticks():
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{foot}"/>')
        parts.append(_text(x, foot + 18, words, "middle"))
    parts += _bound(heights, bound)
    for number, (one, value, loss) in enumerate(sorted(dots, key=lambda dot: dot[1])):
        x, y = widths.at(value), heights.at(drawn[one])
        mood = "dot" if loss <= bound else "dot beyond"
        parts.append(f'<circle class="{mood}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        # Names of neighbours stand on either side of their dots.
        parts.append(_text(x + 9, y + (16 if number % 2 else -6), one, "strong" if one == chosen else ""))
    said = "; ".join(f"{one}: {value:.3g} with a loss of {loss:.3g}" for one, value, loss in dots)
    return _svg(name, title, f"{said}.", foot + _FOOT, parts)


def qualities(name: str, each: Sequence[Beside]) -> str:
    """Two rows for each quality on a scale of its own: a dot at the value, a line over its interval; the bound."""
    parts = []
    y = float(_TOP)
    for one in each:
        ends = (*one.original[1:], *one.graph[1:], one.bound)
        scale = (_WIDTH - _NAMES - _RIGHT) / ((max(ends) - min(ends)) or 1.0)
        parts.append(_text(0, y + _ROW - 4, one.name, "strong"))
        for side, (value, *reach) in (("original", one.original), ("graph", one.graph)):
            y += _ROW
            at, low, high = (_NAMES + (number - min(ends)) * scale for number in (value, *reach))
            told = f"{side}, {one.name}: {value:g}, 95 % interval {reach[0]:g} to {reach[1]:g}"
            parts.append(_text(_NAMES - 10, y - 4, side, f"end {side}"))
            parts.append(f'<g class="{side}"><title>{escape(told)}</title>')
            parts.append(f'<line class="reach" x1="{low:.1f}" x2="{high:.1f}" y1="{y - 8:.1f}" y2="{y - 8:.1f}"/>')
            parts.append(f'<circle cx="{at:.1f}" cy="{y - 8:.1f}" r="5"/></g>')
            parts.append(_text(_WIDTH - _RIGHT + 14, y - 4, f"{value:g}", ""))
        x = _NAMES + (one.bound - min(ends)) * scale
        parts.append(f'<line class="bound" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 2 * _ROW:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(x, y + 14, f"bound {one.bound:.5g}", "middle strong"))
        y += _ROW + 8
    said = "; ".join(f"{one.name}: original {one.original[0]:g}, graph {one.graph[0]:g}" for one in each)
    return _svg(name, "Quality of the original and of the graph", f"{said}.", y, parts)


def _spread(widths: _Log, y: float, cell: str, spread: Spread) -> Iterator[str]:
    p50, p90, p99 = (widths.at(value) for value in (spread.p50, spread.p90, spread.p99))
    told = f"{spread.side}, {cell}: p50 {spread.p50:g} ms, p90 {spread.p90:g} ms, p99 {spread.p99:g} ms"
    yield f'<g class="{spread.side}"><title>{escape(told)}</title>'
    yield f'<line class="reach" x1="{p50:.1f}" x2="{p99:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    yield f'<line class="reach" x1="{p90:.1f}" x2="{p90:.1f}" y1="{y - 4:.1f}" y2="{y + 4:.1f}"/>'
    yield f'<circle cx="{p50:.1f}" cy="{y:.1f}" r="5"/></g>'
    yield _text(max(p99, p50 + 6) + 8, y + 4, f"{spread.p50:g} ms", "")


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def _svg(name: str, title: str, said: str, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg role="img" viewBox="0 0 {_WIDTH} {height:.0f}" aria-labelledby="{name}-title {name}-said">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-said">{escape(said)}</desc>'
        f"{''.join(parts)}</svg>"
    )
