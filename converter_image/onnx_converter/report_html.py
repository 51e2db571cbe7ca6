"""The report as one page for a person: verdict first, then the numbers, then what it was made from.

Self-contained: no script, no font, no image from elsewhere. Standard library only. Refuses to let anything from a
checkpoint into the page unescaped.
"""

from __future__ import annotations

import math
from html import escape
from string import Template
from typing import TYPE_CHECKING, Any, Final

from onnx_converter import report_charts
from onnx_converter.report_charts import Beside, Spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_PAGE: Final = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>$verdict: $title</title>
<style>
:root { color-scheme: light dark; --ground: #fff; --text: #1f2328; --quiet: #59636e; --line: #d1d9e0;
  --passed: #1a7f37; --failed: #c62828; --original: #8250df; --graph: #0969da; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --text: #e6edf3; --quiet: #9198a1; --line: #3d444d;
  --passed: #3fb950; --failed: #f85149; --original: #bc8cff; --graph: #58a6ff; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  background: var(--ground); color: var(--text); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .3rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
p { margin: .4rem 0; } .quiet, summary { color: var(--quiet); font-size: .9rem; } summary { cursor: pointer; }
.verdict { padding: .8rem 1rem; border-left: .4rem solid; border-radius: .2rem; overflow-wrap: anywhere; }
.Passed { border-color: var(--passed); background: #1a7f3722; }
.Failed { border-color: var(--failed); background: #c6282822; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem 0 .25rem .9rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--quiet); font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.words td { text-align: left; overflow-wrap: anywhere; } .words th { text-align: left; }
.words td:first-child { min-width: 11rem; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 13px system-ui, sans-serif; fill: var(--quiet); }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; } svg .strong { fill: var(--text); }
.grid { stroke: var(--line); } .bound { stroke: var(--text); stroke-dasharray: 6 4; }
.dot { fill: var(--graph); fill-opacity: .75; } .beyond { fill: var(--failed); }
svg .original { fill: var(--original); stroke: var(--original); }
svg .graph { fill: var(--graph); stroke: var(--graph); }
svg text.original, svg text.graph { stroke: none; } .reach { stroke-width: 2; }
@media print { body { margin: 0; max-width: none; font-size: 10pt; } figure, tr, .verdict { break-inside: avoid; }
  h2, h3 { break-after: avoid; } }
figure { margin: .3rem 0; }
.signed span { display: inline-block; width: 11rem; margin-right: 1rem; border-bottom: 1px solid var(--text); }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")
_VERDICT: Final = Template("""\
<p class="verdict $verdict"><strong>$verdict</strong> on $provider: $message.</p>""")
_PROVIDER: Final = Template("""\
<h2>Parity on $provider</h2>
$bounds
$plots
<details><summary>The $samples samples behind it</summary>
$rows
</details>""")
_WAY: Final = Template("""\
<h2>The way to the graph for $provider</h2>
<p>Routes are tried from the fastest on, and the first that a small model proves right is taken.</p>
$routes
$stages""")
_STAGES: Final = Template("""\
<p>Before what is served was made of it, the graph answered on the CPU as follows: as it was exported, with nothing
optimised, and as onnxruntime optimises it. A stage with an error, or a number out of the bounds of its floats, fails
the validation; one that the CPU has no kernels for does not.</p>
$rows""")
_SIGNED: Final = """\
<h2>Reviewed</h2>
<p class="signed">Name <span></span> Date <span></span> Signature <span></span></p>"""
_PLOT: Final = Template("""\
<h3>$title</h3>
<figure>$plot</figure>""")
_BENCHMARK: Final = Template("""\
<h2>Speed on $provider</h2>
<p>$told</p>
$plot
$cells
$footprints""")
_QUALITY: Final = Template("""\
<h2>Quality on $provider</h2>
<p>How well both sides do the task on data of the user's. A dot is the measured value, a line its 95 % interval, of a
bootstrap over the examples that draws the same ones for both sides; each metric has a scale of its own.</p>
$plot
$rows""")
_SCHEMES: Final = Template("""\
<h2>Schemes on $provider</h2>
<p>auto takes <strong>$chosen</strong>: $preferred of those that lose at most $bound. Speed is how many times as fast as
the original, the geometric mean over all shapes of request. The loss is the largest of the evaluations, where any are
declared; else it is measured on texts of the converter's own: by how much perplexity rises on what the original would
say, or of vectors the mean of 1 - cosine.</p>
$plots
$rows""")
_COVERAGE: Final = Template("""\
<h2>Operators on $provider</h2>
<p>The graph as onnxruntime runs it, after its own optimisation, from its profile of one request: $placement. A heavy
operator elsewhere than on $provider would have failed the validation.</p>
$rows""")
_CHECKED: Final = Template("""\
<h2>Operators on $provider</h2>
<p>The graph as it is packed, node by node, against $table. It was not run there: the numbers above are of the same
graph on the CPU. $placement; what the table does not know runs on the CPU beside the device. Inputs whose size is known
only when they come: $dynamic.</p>
$rows
$notes""")
_MEASURES: Final = (
    ("minCosine", "Smallest cosine", "above"),
    ("maxAbsolute", "Largest absolute difference", "below"),
    ("maxRelative", "Largest relative difference", "below"),
    ("minLabelAgreement", "Share of equal labels", "at least"),
)
_COLUMNS: Final = {
    "sample": "Sample",
    "vectors": "Vectors",
    "ignored": "Ignored",
    "minCosine": "Cosine",
    "maxAbsolute": "Absolute",
    "maxRelative": "Relative",
    "labelAgreement": "Labels",
}
_PERCENTILES: Final = ("p50Milliseconds", "p90Milliseconds", "p99Milliseconds")
_SIDES: Final = ("original", "graph")


def page(
    reports: Mapping[str, Mapping[str, Any]], lineage: Mapping[str, Any], benchmarks: Mapping[str, Mapping[str, Any]]
) -> str:
    """One page for the reports of all providers, and what there is of their benchmarks."""
    conversion = lineage["conversion"]
    verdicts = [
        _VERDICT.substitute(
            verdict=escape(report["verdict"]), provider=escape(provider), message=escape(report["message"])
        )
        for provider, report in reports.items()
    ]
    sections = [
        section
        for number, (provider, report) in enumerate(reports.items())
        for section in (
            *_schemes(number, provider, report.get("ladder")),
            _provider(number, provider, report),
            *_quality(number, provider, report.get("evaluations") or ()),
            *_benchmark(number, provider, benchmarks.get(provider, {})),
            *_coverage(provider, report),
            _way(provider, report),
        )
    ]
    words = _table(("Made from", "Value"), _flatten(lineage), kind="words")
    return _PAGE.substitute(
        verdict="Passed" if all(report["verdict"] == "Passed" for report in reports.values()) else "Failed",
        title=escape(f"{conversion['architecture']}, {conversion['task']}, {conversion['spec']['scheme']}"),
        body="\n".join([*verdicts, _compared(reports, lineage), *sections, "<h2>Lineage</h2>", words, _SIGNED]),
    )


def _compared(reports: Mapping[str, Mapping[str, Any]], lineage: Mapping[str, Any]) -> str:
    conversion = lineage["conversion"]
    original = f"{conversion['architecture']} in torch, fp32; checkpoint {conversion['sourceDigest']}"
    rows = [("Original", original)]
    for provider, report in reports.items():
        # What the graph has, which may be more than was asked for.
        of_it = report["conversion"]
        opset = of_it["graphs"][provider]["opset"]
        made = f"opset {opset}, weights {of_it['spec']['scheme']}; {report['graphDigest']}"
        asked = (
            f"{report['samples']} samples with {report['vectors']} vectors; {report['ignored']} vectors of padding "
            "were ignored, since no client reads them"
        )
        rows += [(f"Graph for {provider}", made), ("Asked of both", asked)]
    rows += [("Artifact", lineage["artifact"]["digest"])] if "artifact" in lineage else []
    return "<h2>What was compared</h2>\n" + _table(("Side", "What"), rows, kind="words")


def _provider(number: int, provider: str, report: Mapping[str, Any]) -> str:
    parity, tolerance = report["parity"], report["tolerance"]
    bounds = [
        (label, parity[key] or "not measured", f"{word} {tolerance[key]}" if tolerance[key] else "not judged")
        for key, label, word in _MEASURES
        if parity[key] or tolerance[key]
    ]
    rows = [
        [f"{place}. {row['sample']}", *("" if row[key] is None else row[key] for key in [*_COLUMNS][1:])]
        for place, row in enumerate(report["rows"], 1)
    ]
    return _PROVIDER.substitute(
        provider=escape(provider),
        bounds=_table(("Measure", "Measured", "Must be"), bounds),
        plots="\n".join(_plots(number, report)) if rows else "",
        samples=len(rows),
        rows=_table(tuple(_COLUMNS.values()), rows),
    )


def _way(provider: str, report: Mapping[str, Any]) -> str:
    graph = report["conversion"]["graphs"][provider]
    routes = [(one["route"], "refused", one["reason"]) for one in graph["routesRefused"]]
    stages = [
        (one["stage"], one["samples"], *(one[key] or "" for key in [*_COLUMNS][3:]), _outcome(one))
        for one in graph["stages"]
    ]
    head = ("Stage", "Samples", *[*_COLUMNS.values()][3:], "Outcome")
    return _WAY.substitute(
        provider=escape(provider),
        routes=_table(("Route", "Outcome", "Why"), [*routes, (graph["route"], "taken", "")], kind="words"),
        stages=_STAGES.substitute(rows=_table(head, stages)),
    )


def _outcome(stage: Mapping[str, Any]) -> str:
    if why := stage["notMeasured"]:
        return f"not measured: {why}"
    return str(stage["error"] or "measured")


def _schemes(number: int, provider: str, ladder: Mapping[str, Any] | None) -> Iterator[str]:
    if ladder is None:
        return
    rows = [
        (
            row["scheme"],
            row.get("loss", ""),
            row.get("speedup", ""),
            f"{row['sizeBytes'] / 1e6:.1f}" if "sizeBytes" in row else "",
            "taken" if row["scheme"] == ladder["chosen"] else row["reason"],
            row["message"],
        )
        for row in ladder["rows"]
    ]
    measured = [row for row in ladder["rows"] if "loss" in row]
    bound = float(ladder["maxQualityLoss"])
    plots = []
    for key, title, scale in (("sizeBytes", "Loss by size, MB", 1e-6), ("speedup", "Loss by speed, times as fast", 1)):
        dots = [(row["scheme"], float(row[key]) * scale, float(row["loss"])) for row in measured if key in row]
        if dots:
            plot = report_charts.against(f"{key}-{number}", title, dots, bound, ladder["chosen"])
            plots.append(_PLOT.substitute(title=title, plot=plot))
    yield _SCHEMES.substitute(
        provider=escape(provider),
        chosen=escape(ladder["chosen"]),
        preferred={"speed": "the fastest", "size": "the smallest"}[ladder["prefer"]],
        bound=escape(ladder["maxQualityLoss"]),
        plots="\n".join(plots),
        rows=_table(("Scheme", "Loss", "Speed", "MB", "Outcome", "Why"), rows),
    )


def _plots(number: int, report: Mapping[str, Any]) -> Iterator[str]:
    for key, title in (
        ("minCosine", "1 - cosine by sample"),
        ("maxAbsolute", "Largest absolute difference by sample"),
        ("maxRelative", "Largest relative difference by sample"),
    ):
        bound = report["tolerance"][key]
        if key == "maxRelative" and bound is None:
            continue
        is_cosine = key == "minCosine"
        samples = [(row["sample"], _distance(row[key]) if is_cosine else float(row[key])) for row in report["rows"]]
        limit = None if bound is None else _distance(bound) if is_cosine else float(bound)
        plot = report_charts.by_sample(f"{key}-{number}", title, samples, limit)
        yield _PLOT.substitute(title=title, plot=plot)


def _distance(cosine: str) -> float:
    return max(0.0, round(1 - float(cosine), 9))


def _quality(number: int, provider: str, evaluations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not evaluations:
        return
    head = ("Evaluation", "Metric", "Examples", "Original", "Graph", "Loss, 95 % interval", "At most", "Shown")
    rows = [
        (
            one["name"],
            f"{one['metric']}, {one['pooling']} of tokens" if one.get("pooling") else one["metric"],
            one["samples"],
            one["original"]["value"],
            one["graph"]["value"],
            f"{one['loss']['value']} ({one['loss']['low']} to {one['loss']['high']})",
            f"{one['maxLoss']}, by the interval" if one.get("judgedBy") else one["maxLoss"],
            "yes" if one["isShown"] else "no, too little data",
        )
        for one in evaluations
    ]
    plotted = [found for one in evaluations if (found := _beside(one)) is not None]
    plot = f"<figure>{report_charts.qualities(f'quality-{number}', plotted)}</figure>" if plotted else ""
    yield _QUALITY.substitute(provider=escape(provider), plot=plot, rows=_table(head, rows))


def _beside(one: Mapping[str, Any]) -> Beside | None:
    original, graph, loss = ([float(one[key][end]) for end in ("value", "low", "high")] for key in (*_SIDES, "loss"))
    if not all(map(math.isfinite, (*original, *graph, *loss))):
        return None
    most = float(one["maxLoss"])
    bound = original[0] * (1 + most) if one["isRelative"] else original[0] - most
    return Beside(f"{one['name']}, {one['metric']}", original, graph, bound)


def _benchmark(number: int, provider: str, found: Mapping[str, Any]) -> Iterator[str]:
    if not found:
        return
    cells = found.get("cells") or []
    told = (
        f"Both sides answered in turn on {found.get('threads')} threads, the original on the "
        f"{'GPU' if 'originalDevice' in found else 'CPU'}. A dot is the median, "
        "a stroke the 90th percentile, and the line ends at the 99th; with fewer than 100 runs that is the slowest run."
        if cells
        else "Nothing was measured."
    )
    spreads = [
        (_shape(cell), [Spread(side, *(float(cell[side][name]) for name in _PERCENTILES)) for side in _SIDES])
        for cell in cells
    ]
    rows = [
        (
            _shape(cell),
            cell["runs"],
            *(" / ".join(cell[side][name] for name in _PERCENTILES) for side in _SIDES),
            f"{cell['speedup']} times",
            *(cell[side]["tokensPerSecond"] for side in _SIDES),
        )
        for cell in cells
    ]
    head = ("Request", "Runs", "Original, ms", "Graph, ms", "As fast", "Original, tokens/s", "Graph, tokens/s")
    yield _BENCHMARK.substitute(
        provider=escape(provider),
        told=escape(" ".join(filter(None, [told, str(found.get("message") or "")]))),
        plot=f"<figure>{report_charts.latencies(f'latency-{number}', spreads)}</figure>" if cells else "",
        cells=_table(head, rows) if cells else "",
        footprints=_footprints(found),
    )


def _shape(cell: Mapping[str, Any]) -> str:
    past = f" after {cell['pastLength']}" if cell.get("pastLength") else ""
    return f"{cell['batch']} x {cell['sequenceLength']}{past}"


def _footprints(found: Mapping[str, Any]) -> str:
    if not all(side in found for side in _SIDES):
        return ""
    rows = [
        (
            side.capitalize(),
            f"{found[side]['sizeBytes'] / 1e6:.1f}",
            found[side]["loadMilliseconds"],
            f"{found[side]['peakMemoryBytes'] / 1e6:.1f}" if "peakMemoryBytes" in found[side] else "not told",
        )
        for side in _SIDES
    ]
    words = (
        "Peak memory is resident memory of the host: the original's weights, or what loading the graph took, and the "
        "growth while one request of each shape was answered."
    )
    table = _table(("Side", "On disk, MB", "Loaded in, ms", "Peak memory, MB"), rows)
    return f'<h3>Size, load and memory</h3>\n{table}\n<p class="quiet">{words}</p>'


def _coverage(provider: str, report: Mapping[str, Any]) -> Iterator[str]:
    coverage = report["coverage"]
    if not coverage:
        return
    places = [*report["placement"]]
    ordered = sorted(coverage.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    rows = [(operator, *(counts.get(place, "") for place in places)) for operator, counts in ordered]
    placement = ", ".join(f"{count} nodes on {name}" for name, count in report["placement"].items())
    if (checked := report.get("checked")) is not None:
        said = [(operator, f"{why}, and falls back") for operator, why in checked["fallbacks"].items()]
        said += [(operator, f"not checked: {note}") for operator, note in checked["notes"].items()]
        yield _CHECKED.substitute(
            provider=escape(provider),
            table=escape(checked["table"]),
            placement=escape(placement),
            dynamic=escape(", ".join(checked["dynamicInputs"]) or "none"),
            rows=_table(("Operator", *places), rows),
            notes=_table(("Operator", "By the table"), said, kind="words") if said else "",
        )
        return
    yield _COVERAGE.substitute(
        provider=escape(provider),
        placement=escape(placement),
        rows=_table(("Operator", *places), rows),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "numbers") -> str:
    def row(tag: str, cells: Sequence[object]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    lines = [f'<div class="scroll"><table class="{kind}">', f"<thead>{row('th', head)}</thead>", "<tbody>"]
    return "\n".join([*lines, *(row("td", cells) for cells in rows), "</tbody>", "</table></div>"])


def _flatten(value: object, name: str = "") -> list[tuple[str, str]]:
    """Nested lineage as rows of dotted name and value."""
    if isinstance(value, dict):
        return [row for key in sorted(value) for row in _flatten(value[key], f"{name}.{key}" if name else str(key))]
    if isinstance(value, list):
        return [row for place, item in enumerate(value) for row in _flatten(item, f"{name}[{place}]")]
    return [(name, "" if value is None else str(value))]
