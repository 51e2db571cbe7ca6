"""The plots of a rollout's report as SVG that needs nothing else: no script, no font, no style but the page's.

All plots of a page share one time axis, so that they can be read from top to bottom. Colour never says anything alone:
lines are named at their end, and verdicts carry their letter.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Final

from onnx_operator.core.analysis import in_words
from onnx_operator.core.counts import Counts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from onnx_operator.api.revision import RecordedMetric
    from onnx_operator.core.record import Point, Sample, Side

_WIDTH, _LEFT, _RIGHT = 960, 52, 150
_TOP, _HEIGHT, _AXIS, _STRIP = 18, 190, 24, 18
_LINE: Final = 14
_LETTER: Final = 8
_STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400, 604800)
_Z: Final = 1.96
#: A bound this many times above everything measured is named and not drawn: it would make a flat line of the rest.
_FAR: Final = 6
_FULL: Final = 100


def wilson(counts: Counts) -> tuple[float, float]:
    """The 95 % Wilson interval of a share."""
    if not counts.total:
        return 0.0, 1.0
    n, share = counts.total, counts.ratio
    middle = share + _Z**2 / (2 * n)
    reach = _Z * sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
    return max(0.0, (middle - reach) / (1 + _Z**2 / n)), min(1.0, (middle + reach) / (1 + _Z**2 / n))


def clock(seconds: float) -> str:
    """A time since the beginning: 4:05, or 1:04:05."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass(frozen=True, slots=True)
class Times:
    """The time axis of all plots, in seconds since the rollout began."""

    first: float
    last: float

    def x(self, seconds: float) -> float:
        share = (seconds - self.first) / max(self.last - self.first, 1)
        return _LEFT + min(max(share, 0), 1) * (_WIDTH - _LEFT - _RIGHT)

    @property
    def ticks(self) -> list[int]:
        span = self.last - self.first
        step = next((one for one in _STEPS if span / one <= 8), _STEPS[-1])  # noqa: PLR2004  (labels that fit)
        return [one for one in range(0, int(self.last) + 1, step) if one >= self.first]


@dataclass(frozen=True, slots=True)
class _Heights:
    """The upright axis."""

    most: float
    metric: str = ""
    """The metric, where it is a value of its own unit; else a share."""

    def y(self, value: float) -> float:
        return _TOP + _HEIGHT * (1 - min(value / self.most, 2.0))

    def words(self, value: float) -> str:
        return in_words(self.metric, value) if self.metric else f"{100 * value:.3g}%"


@dataclass(frozen=True, slots=True)
class _Bound:
    """A line that the candidate is not to cross."""

    name: str
    value: float
    last: float
    """Where it is at the end."""
    line: list[list[tuple[float, float]]]
    """Seconds and heights of its parts; empty where it is the same all the time."""


@dataclass(frozen=True, slots=True)
class _Dot:
    """One side of a metric at one moment; `low` and `high` are its confidence interval."""

    seconds: int
    value: float
    low: float
    high: float
    words: str


def weights(times: Times, levels: Sequence[tuple[float, int]], marks: Sequence[tuple[float, str]]) -> str:
    """The candidate's share of the traffic. `marks` are times and names of what stands in the table below."""
    heights = _Heights(1.0)
    path = [f"M{times.x(levels[0][0]):.1f},{heights.y(levels[0][1] / _FULL):.1f}"] if levels else []
    for seconds, weight in levels[1:]:
        path.append(f"H{times.x(seconds):.1f}V{heights.y(weight / _FULL):.1f}")
    parts = list(_frame(times, heights, (0, 0.25, 0.5, 0.75, 1)))
    if path:
        foot = heights.y(0)
        parts.append(f'<path class="area candidate" d="{"".join(path)}H{times.x(times.last):.1f}V{foot}H{_LEFT}Z"/>')
        parts.append(f'<path class="line candidate" d="{"".join(path)}H{times.x(times.last):.1f}"/>')
    free = 0.0
    for seconds, name in marks:
        x = times.x(seconds)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_TOP + _HEIGHT}"/>')
        if x >= free:
            parts.append(f'<text class="middle small" x="{x:.1f}" y="{_TOP - 5}">{escape(name)}</text>')
            free = x + _LETTER * (len(name) + 1)
    said = ", ".join(f"{weight} % from {clock(seconds)}" for seconds, weight in _changes(levels))
    return _svg("weight", "Weight of the candidate over time", f"{said}.", _TOP + _HEIGHT + _AXIS, parts)


def metric(times: Times, number: int, told: RecordedMetric, points: Sequence[Point]) -> str:
    """Both sides of one metric with their confidence bands, its bounds, and the verdicts as a strip below."""
    samples = [(one, sample) for one in points if number < len(one.samples) and (sample := one.samples[number])]
    is_share = not any(isinstance(sample.candidate, float) for _, sample in samples)
    is_compared = told.tolerance is not None
    sides = {
        "candidate": list(_runs(((one, sample.candidate) for one, sample in samples), strict=is_compared)),
        "stable": list(_runs(((one, sample.stable) for one, sample in samples), strict=is_compared)),
    }
    bounds = list(_bounds(told, samples, is_share=is_share))
    heights = _Heights(_top([run for runs in sides.values() for run in runs], bounds), "" if is_share else told.name)
    parts = [*_frame(times, heights, _round_values(heights.most))]
    names: list[tuple[float, str, str]] = []
    for side, runs in sides.items():
        drawn = [part for run in runs for part in _run(times, heights, side, run)]
        parts.append(f'<g clip-path="url(#plot-{number})">{"".join(drawn)}</g>')
        if runs:
            names.append((heights.y(runs[-1][-1].value), side, f"{side} {heights.words(runs[-1][-1].value)}"))
    for bound in bounds:
        words = f"{bound.name} {heights.words(bound.value)}"
        if bound.last > heights.most:
            names.append((_TOP, "limit", f"{words}, above"))
            continue
        names.append((heights.y(bound.last), "limit", words))
        for run in bound.line or [[(times.first, bound.last), (times.last, bound.last)]]:
            line = " ".join(f"{times.x(seconds):.1f},{heights.y(value):.1f}" for seconds, value in run)
            parts.append(f'<polyline class="bound" clip-path="url(#plot-{number})" points="{line}"/>')
    parts += [*_names(names), *_strip(times, samples)]
    clip = f'<clipPath id="plot-{number}"><rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}"'
    parts.insert(0, f'{clip} height="{_HEIGHT}"/></clipPath>')
    last = [f"{side} {runs[-1][-1].words}" for side, runs in sides.items() if runs]
    said = f"Held to: {told.bound}. Last: {', '.join(last) or 'nothing was measured'}."
    height = _TOP + _HEIGHT + _AXIS + _STRIP
    return _svg(f"metric-{number}", f"{told.name} of candidate and stable over time", said, height, parts)


# ---- data


def _runs(told: Iterable[tuple[Point, Side]], *, strict: bool) -> Iterator[list[_Dot]]:
    """What belongs to one step, as counts begin anew with each."""
    run: list[_Dot] = []
    weight, total = -1, 0
    for point, side in told:
        if (
            side is None
            or (isinstance(side, Counts) and not side.total)
            or (isinstance(side, float) and not isfinite(side))
        ):
            continue
        now = side.total if isinstance(side, Counts) else 0
        if run and (point.weight != weight or now < total):
            yield run
            run = []
        weight, total = point.weight, now
        run.append(_dot(point.seconds, side, strict=strict))
    if run:
        yield run


def _dot(seconds: int, side: Counts | float, *, strict: bool) -> _Dot:
    if isinstance(side, float):
        return _Dot(seconds, side, side, side, f"{side:.4g}")
    counts = side.strict if strict else side.lenient
    low, high = wilson(counts)
    return _Dot(seconds, counts.ratio, low, high, f"{counts}, 95 % interval {low:.2%} to {high:.2%}")


def _bounds(told: RecordedMetric, samples: Sequence[tuple[Point, Sample]], *, is_share: bool) -> Iterator[_Bound]:
    if told.maximum is not None:
        yield _Bound("maximum", float(told.maximum), float(told.maximum), [])
    if told.minimum is not None:
        yield _Bound("minimum", float(told.minimum), float(told.minimum), [])
    if told.tolerance is None or not is_share:
        return
    tolerance = float(told.tolerance)
    # Without shared traffic on both sides nothing is compared.
    compared = ((one, sample.stable) for one, sample in samples if 0 < one.weight < _FULL)
    line = [[(float(dot.seconds), dot.value + tolerance) for dot in run] for run in _runs(compared, strict=True)]
    if line:
        yield _Bound("stable +", tolerance, line[-1][-1][1], line)


def _top(runs: Sequence[Sequence[_Dot]], bounds: Sequence[_Bound]) -> float:
    """How high the plot has to be: by what was known at the end of each step, as the first bands are as wide as all."""
    seen = [dot.value for run in runs for dot in run[len(run) // 4 :]] + [run[-1].high for run in runs]
    most = max(seen, default=0.0)
    near = [bound.last for bound in bounds if bound.last <= _FAR * most or not most]
    return 1.12 * max([most, *near]) or 1.0


def _changes(levels: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    groups = groupby(levels, key=lambda level: level[1])
    return [next(group) for _, group in groups]


def _round_values(most: float) -> list[float]:
    size = 1e-6
    factors = (2, 2.5, 2)
    turn = 0
    while most / size > 5:  # noqa: PLR2004  (lines that fit)
        size, turn = size * factors[turn % 3], turn + 1
    return [number * size for number in range(int(most / size) + 1)]


# ---- drawing


def _svg(name: str, title: str, said: str, height: int, parts: Iterable[str]) -> str:
    return (
        f'<svg role="img" viewBox="0 0 {_WIDTH} {height}" aria-labelledby="{name}-title {name}-said">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-said">{escape(said)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _frame(times: Times, heights: _Heights, values: Iterable[float]) -> Iterator[str]:
    foot = _TOP + _HEIGHT
    for value in values:
        y = heights.y(value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{heights.words(value)}</text>'
    for tick in times.ticks:
        x = times.x(tick)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{foot}" y2="{foot + 4}"/>'
        yield f'<text class="middle" x="{x:.1f}" y="{foot + 17}">{clock(tick)}</text>'


def _run(times: Times, heights: _Heights, side: str, run: Sequence[_Dot]) -> Iterator[str]:
    def at(seconds: float, value: float) -> str:
        return f"{times.x(seconds):.1f},{heights.y(value):.1f}"

    if len(run) == 1:
        (dot,) = run
        x = times.x(dot.seconds)
        low, high = heights.y(dot.low), heights.y(dot.high)
        yield f'<line class="line {side}" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
    else:
        edge = [at(dot.seconds, dot.high) for dot in run] + [at(dot.seconds, dot.low) for dot in reversed(run)]
        yield f'<polygon class="band {side}" points="{" ".join(edge)}"/>'
        yield f'<polyline class="line {side}" points="{" ".join(at(dot.seconds, dot.value) for dot in run)}"/>'
    for dot in run:
        x, y = times.x(dot.seconds), heights.y(dot.value)
        said = escape(f"{clock(dot.seconds)} {side}: {dot.words}")
        yield f'<circle class="dot {side}" cx="{x:.1f}" cy="{y:.1f}" r="2"><title>{said}</title></circle>'


def _names(names: Iterable[tuple[float, str, str]]) -> Iterator[str]:
    """What each line is, at its right end and not on top of one another."""
    free = 0.0
    for y, kind, words in sorted(names):
        free = max(y + 4, free)
        yield f'<text class="name {kind}" x="{_WIDTH - _RIGHT + 8}" y="{free:.1f}">{escape(words)}</text>'
        free += _LINE


def _strip(times: Times, samples: Sequence[tuple[Point, Sample]]) -> Iterator[str]:
    y = _TOP + _HEIGHT + _AXIS
    if not samples:
        return
    starts = [times.x(point.seconds) for point, _ in samples]
    gaps = sorted(after - before for before, after in pairwise(starts)) or [8.0]
    edges = [*starts, min(starts[-1] + max(gaps[len(gaps) // 2], 3.0), _WIDTH - _RIGHT)]
    for verdict, group in groupby(range(len(samples)), key=lambda place: samples[place][1].verdict):
        places = list(group)
        left, right = edges[places[0]], edges[places[-1] + 1]
        said = f"{verdict} from {clock(samples[places[0]][0].seconds)}, {len(places)} judgements"
        width = right - left
        yield f'<rect class="verdict-{verdict}" x="{left:.1f}" y="{y}" width="{width:.1f}" height="{_STRIP - 4}">'
        yield f"<title>{escape(said)}</title></rect>"
        words = verdict if width > _LETTER * len(verdict) else verdict[0] if width > _LETTER else ""
        if words:
            yield f'<text class="middle small" x="{(left + right) / 2:.1f}" y="{y + 11}">{words}</text>'
