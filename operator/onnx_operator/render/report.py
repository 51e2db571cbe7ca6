"""The report of a revision as one page for a person: what became of it and why, then the figures, then its making.

Self-contained: no script, nothing from elsewhere, and a policy in the page that lets nothing in. Everything in a
revision is somebody else's text (names, a scheduler's words, a checkpoint's), so nothing gets in unescaped.
"""

from __future__ import annotations

from datetime import timedelta
from html import escape
from string import Template
from typing import TYPE_CHECKING, Any, Final

from onnx_operator.api.revision import RecordedMetric, RolloutRecord
from onnx_operator.core import reasons
from onnx_operator.core.conditions import moment
from onnx_operator.core.counts import Counts
from onnx_operator.core.record import read
from onnx_operator.render import charts
from onnx_operator.render.charts import clock, wilson

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from onnx_operator.core.record import Point, Side

_PAGE: Final = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>$title: $verdict</title>
<style>
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1e21; --faint: #5f6672; --rule: #d9dce1;
  --candidate: #c2410c; --stable: #1d4ed8; --limit: #1c1e21; --good: #15803d; --bad: #b91c1c; --doubt: #a16207;
  --blind: #6b7280; --error: #7e22ce; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e6e8eb; --faint: #9aa1ad; --rule: #33373e;
  --candidate: #fb923c; --stable: #7aa5ff; --limit: #e6e8eb; --good: #4ade80; --bad: #f87171; --doubt: #facc15;
  --blind: #9ca3af; --error: #c084fc; } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --faint: #444; --rule: #bbb;
  --candidate: #c2410c; --stable: #1d4ed8; --limit: #000; --good: #15803d; --bad: #b91c1c; --doubt: #a16207;
  --blind: #6b7280; --error: #7e22ce; }
  body { font-size: 10pt; margin: 0; max-width: none; } details { display: none; }
  section, figure, tr, .verdict { break-inside: avoid; } h2 { break-after: avoid; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  background: var(--paper); color: var(--ink); }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .2rem; }
p { margin: .3rem 0; } .faint, summary, figcaption { color: var(--faint); font-size: .9rem; }
.verdict { padding: .8rem 1rem; border-left: .4rem solid var(--blind); margin: 1rem 0; overflow-wrap: anywhere; }
.verdict strong { font-size: 1.15rem; } .verdict.good { border-color: var(--good); }
.verdict.bad { border-color: var(--bad); }
figure { margin: .4rem 0 0; } details { margin: .3rem 0; } summary { cursor: pointer; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid var(--rule); vertical-align: top;
  white-space: nowrap; }
th { color: var(--faint); font-weight: 500; }
.words td:last-child { white-space: normal; overflow-wrap: anywhere; width: 99%; min-width: 12rem; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--faint); } svg .small { font-size: 11px; }
svg .middle { text-anchor: middle; } svg .end { text-anchor: end; }
svg .name.candidate { fill: var(--candidate); } svg .name.stable { fill: var(--stable); }
svg .name.limit { fill: var(--limit); }
.grid { stroke: var(--rule); } .mark { stroke: var(--faint); stroke-dasharray: 1 3; }
.line { fill: none; stroke-width: 2; } .line.candidate { stroke: var(--candidate); }
.line.stable { stroke: var(--stable); }
.band, .area { stroke: none; opacity: .17; }
.band.candidate, .area.candidate, .dot.candidate { fill: var(--candidate); }
.band.stable, .dot.stable { fill: var(--stable); }
.bound { fill: none; stroke: var(--limit); stroke-width: 1.3; stroke-dasharray: 6 4; }
.verdict-Pass { fill: var(--good); } .verdict-Fail { fill: var(--bad); } .verdict-Inconclusive { fill: var(--doubt); }
.verdict-NoData { fill: var(--blind); } .verdict-ProviderError { fill: var(--error); }
[class^="verdict-"] { fill-opacity: .3; } [class^="verdict-"] + text { fill: var(--ink); }
</style>
</head>
<body>
<h1>$title</h1>
<p class="faint">$about</p>
<div class="verdict $mood"><strong>$verdict</strong>$when<br>$why</div>
$body
</body>
</html>
""")
_METRIC: Final = Template("""\
<section>
<h2>$name$told</h2>
<p>$bound.</p>
<figure>$plot</figure>
$last
<details><summary>The $count judgements behind it</summary>
$rows
</details>
</section>""")
_HOW_TO_READ: Final = (
    "Requests are counted anew in each step, golden requests are not. Bands are 95 % Wilson intervals of the counts: "
    "what chance alone explains at one look. The verdicts do not come from them but from a test that stays valid "
    "though it is asked at every look, so a line and its band may be beyond a bound before the verdict is Fail."
)
_DISPUTED: Final = (
    "Some answers are disputed: they may be the caller's own fault. They count as bad where both sides are compared, "
    "as in this plot, and not against a maximum."
)
_WORDS: Final = {
    "Pending": ("Not rolled out yet", ""),
    "Candidate": ("Under way", ""),
    "Stable": ("Promoted", "good"),
    "Promoted": ("Promoted", "good"),
    "Retired": ("Retired", ""),
    "Superseded": ("Superseded", ""),
    "Failed": ("Failed", "bad"),
    "RolledBack": ("Rolled back", "bad"),
}
_BEGIN_OF_TRAFFIC: Final = frozenset({reasons.STEP_STARTING, reasons.STEP_RUNNING, reasons.BAKING})
_FULL: Final = 100


def page(revision: Mapping[str, Any]) -> str:
    """The page of an OnnxModelRevision as the API server gives it; ValueError for anything else."""
    kind = revision.get("kind") if isinstance(revision, dict) else None
    if kind != "OnnxModelRevision":
        raise ValueError(f"what came in is not one OnnxModelRevision but {kind or 'something else'}")
    metadata, spec, status = (_part(revision, name) for name in ("metadata", "spec", "status"))
    told = status.get("rollout")
    record = None if told is None else RolloutRecord.model_validate(told)
    outcome = str(status.get("outcome") or "Pending")
    verdict, mood = _WORDS.get(outcome, (outcome, ""))
    return _PAGE.substitute(
        title=escape(f"{spec.get('modelName') or 'model'}, revision {spec.get('number') or '?'}"),
        about=escape(f"OnnxModelRevision {metadata.get('name')} in namespace {metadata.get('namespace')}"),
        verdict=escape(verdict),
        mood=mood,
        when=escape(_when(record, verdict)),
        why=escape(_why(record, status)),
        body="\n".join([*_rollout(record), *_making(spec, status)]),
    )


def _part(whole: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = whole.get(name)
    return part if isinstance(part, dict) else {}


def _when(record: RolloutRecord | None, verdict: str) -> str:
    if record is None:
        return ""
    if record.end is None:
        return f" since {record.started_time}"
    ended, _ = _WORDS[record.end.outcome]
    word = "" if ended == verdict else f", {ended.lower()}"
    return f"{word} at {record.end.time}, {clock(_since(record, record.end.time))} after it became the candidate"


def _why(record: RolloutRecord | None, status: Mapping[str, Any]) -> str:
    if record is not None and record.end is not None:
        return f"{record.end.reason}: {record.end.message}"
    found = _part(status, "quarantine")
    if found:
        return f"{found.get('reason')}: {found.get('message')}"
    if record is not None and record.moments:
        return f"{record.moments[-1].reason}: {record.moments[-1].message}"
    return "nothing has happened yet"


def _since(record: RolloutRecord, time: str) -> float:
    return (moment(time) - moment(record.started_time)).total_seconds()


# ---- the rollout


def _rollout(record: RolloutRecord | None) -> Iterable[str]:
    if record is None:
        return
    points = [read(line) for line in record.points]
    moments = [(_since(record, one.time), one) for one in record.moments]
    marks = [(seconds, str(number)) for number, (seconds, _) in enumerate(moments, 1)]
    rows = [
        (str(number), clock(seconds), one.time, f"{one.weight} %", one.reason, one.message)
        for number, (seconds, one) in enumerate(moments, 1)
    ]
    if record.end is not None:
        over, end = _since(record, record.end.time), record.end
        marks.append((over, "end"))
        rows.append(("end", clock(over), end.time, f"{_final(record)} %", end.reason, end.message))
    times = _times(record, points)
    if times is not None:
        yield "<h2>Traffic</h2>"
        levels = _levels(record, points, times)
        seen = [(seconds, name) for seconds, name in marks if seconds >= times.first]
        yield f"<figure>{charts.weights(times, levels, seen)}</figure>"
        yield '<p class="faint">The numbers are those of the moments below.</p>'
        for number, metric in enumerate(record.metrics):
            yield _metric(times, number, metric, points)
        if record.metrics:
            yield f'<p class="faint">{_HOW_TO_READ}</p>'
    if rows:
        yield "<h2>Moments</h2>"
        yield _table(("#", "After", "Time", "Weight", "Reason", "What"), rows, kind="words")


def _final(record: RolloutRecord) -> int:
    return _FULL if record.end is not None and record.end.outcome == "Promoted" else 0


def _times(record: RolloutRecord, points: Sequence[Point]) -> charts.Times | None:
    """From the first step to the end: what was before it had no traffic."""
    begun = [_since(record, one.time) for one in record.moments if one.reason in _BEGIN_OF_TRAFFIC]
    begun += [float(one.seconds) for one in points]
    if not begun:
        return None
    first, last = min(begun), max([*begun, *(_since(record, one.time) for one in record.moments)])
    if record.end is not None:
        last = max(last, _since(record, record.end.time))
    return charts.Times(first, last + max(1.0, 0.03 * (last - first)))


def _levels(record: RolloutRecord, points: Sequence[Point], times: charts.Times) -> list[tuple[float, int]]:
    known = [(float(one.seconds), 0, one.weight) for one in points]
    known += [(_since(record, one.time), 1, one.weight) for one in record.moments]
    if record.end is not None:
        known.append((_since(record, record.end.time), 2, _final(record)))
    # Of one second the judgement comes first: it speaks of the weight that was.
    known.sort(key=lambda one: one[:2])
    return [(seconds, weight) for seconds, _, weight in known if seconds >= times.first]


def _metric(times: charts.Times, number: int, metric: RecordedMetric, points: Sequence[Point]) -> str:
    told = [(one, sample) for one in points if number < len(one.samples) and (sample := one.samples[number])]
    rows = [
        (clock(one.seconds), f"{one.weight} %", sample.verdict, _words(sample.candidate), _words(sample.stable))
        for one, sample in told
    ]
    last = [
        (name, *_interval(side)) for name in ("candidate", "stable") for side in [_last(told, name)] if side is not None
    ]
    sides = [side for _, sample in told for side in (sample.candidate, sample.stable)]
    is_disputed = metric.tolerance is not None and any(isinstance(one, Counts) and one.disputed for one in sides)
    bound = metric.bound[:1].upper() + metric.bound[1:]
    return _METRIC.substitute(
        name=escape(metric.name),
        told=" (told only)" if metric.dry_run else "",
        bound=escape(bound) + (f". {_DISPUTED}"[:-1] if is_disputed else ""),
        plot=charts.metric(times, number, metric, points),
        last=_table(("Last", "Value", "Behind it", "95 % interval"), last),
        count=len(rows),
        rows=_table(("After", "Weight", "Verdict", "Candidate", "Stable"), rows),
    )


def _last(told: Sequence[tuple[Point, Any]], name: str) -> Side:
    return next((side for _, sample in reversed(told) if (side := getattr(sample, name)) is not None), None)


def _interval(side: Side) -> tuple[str, str, str]:
    if not isinstance(side, Counts):
        return "" if side is None else f"{side:.6g}", "", ""
    if not side.total:
        return "no answers", "", ""
    low, high = wilson(side)
    behind = f"{side.bad} of {side.total}" + (f", {side.disputed} disputed" if side.disputed else "")
    return f"{side.ratio:.2%}", behind, f"{low:.2%} to {high:.2%}"


def _words(side: Side) -> str:
    value, behind, _ = _interval(side)
    return f"{value} ({behind})" if behind else value


# ---- how it was made


def _making(spec: Mapping[str, Any], status: Mapping[str, Any]) -> Iterable[str]:
    stages = [
        (
            one.get("name"),
            one.get("outcome"),
            str(timedelta(seconds=int(one.get("seconds") or 0))),
            one.get("finishedTime"),
            f"{one.get('reason')}: {one.get('message')}",
        )
        for one in status.get("stages") or []
    ]
    if stages:
        yield "<h2>Stages</h2>" + _table(("Job", "Outcome", "Took", "Finished", "What"), stages, kind="words")
    measures = ("minCosine", "maxAbsolute", "maxRelative", "minLabelAgreement", "samples")
    parity = [
        # What is packed ran nowhere but on the CPU.
        (f"{one.get('provider')}{', packed' if one.get('checked') else ''}", *(one.get(name, "") for name in measures))
        for one in status.get("parity") or []
    ]
    if parity:
        head = ("On", "Least cosine", "Most absolute", "Most relative", "Least labels", "Samples")
        yield "<h2>Parity with the original</h2>" + _table(head, parity)
        name = str(_part(status, "artifact").get("digest") or "").removeprefix("sha256:")
        yield f'<p class="faint">All of it is in {escape(name or "...")}.report.html, beside the artifact.</p>'
    yield from _evaluations(status.get("evaluations") or [])
    yield from _schemes(status.get("quantization") or [])
    yield from _benchmark([one for one in status.get("benchmark") or [] if isinstance(one, dict)])
    told = {name: status[name] for name in ("artifact", "attempt", "quarantine") if status.get(name)}
    yield "<h2>Lineage</h2>" + _table(("Made from", "Value"), _flatten({**spec, **told}), kind="words")


def _evaluations(told: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    fields = ("provider", "name", "metric", "original", "graph", "loss", "lossLow", "lossHigh", "maxLoss", "samples")
    if told:
        head = ("On", "Evaluation", "Metric", "Original", "Graph", "Loss", "From", "To", "At most", "Examples")
        yield "<h2>Quality beside the original</h2>" + _table(
            head, [[one.get(name) for name in fields] for one in told]
        )


def _schemes(told: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    rows = [
        (
            chosen.get("provider"),
            one.get("scheme"),
            one.get("loss", ""),
            one.get("speedup", ""),
            one.get("sizeBytes", ""),
            "taken" if one.get("scheme") == chosen.get("scheme") else one.get("reason"),
        )
        for chosen in told
        for one in chosen.get("schemes") or []
    ]
    if rows:
        head = ("On", "Scheme", "Loss", "Faster", "Bytes", "Outcome")
        yield "<h2>Schemes that auto tried</h2>" + _table(head, rows)


def _benchmark(told: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    shown = [(side, f"{name}Milliseconds") for side in ("original", "graph") for name in ("p50", "p99")]
    rows = [
        (
            one.get("provider"),
            f"{cell.get('batch')} x {cell.get('sequenceLength')} after {cell.get('pastLength', 0)}",
            cell.get("runs"),
            *(_part(cell, side).get(name) for side, name in shown),
            cell.get("speedup"),
            _part(cell, "graph").get("tokensPerSecond"),
        )
        for one in told
        for cell in one.get("cells") or []
    ]
    if rows:
        head = ("On", "Batch x tokens", "Runs", "Original p50", "p99, ms", "Graph p50", "p99, ms", "Faster", "Tokens/s")
        yield "<h2>Speed beside the original</h2>" + _table(head, rows)
    words = [f"{one.get('provider')}: {one['message']}." for one in told if one.get("message")]
    if words:
        yield f'<p class="faint">{escape(" ".join(words))}</p>'


def _flatten(value: object, name: str = "") -> list[tuple[str, str]]:
    """Nested values as rows of dotted name and value."""
    if isinstance(value, dict):
        return [row for key in value for row in _flatten(value[key], f"{name}.{key}" if name else str(key))]
    if isinstance(value, list):
        return [row for place, item in enumerate(value) for row in _flatten(item, f"{name}[{place}]")]
    return [(name, "" if value is None else str(value))]


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "figures") -> str:
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = ("".join(f"<td>{escape(str(cell))}</td>" for cell in cells) for cells in rows)
    lines = [f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>']
    return "\n".join([*lines, *(f"<tr>{cells}</tr>" for cells in body), "</tbody></table></div>"])
