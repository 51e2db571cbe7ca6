"""The report as one page for a person: verdict first, then the numbers, then what it was made from.

Self-contained: no script, no font, no image from elsewhere. Standard library only. Refuses to let anything from a
checkpoint into the page unescaped.
"""

from __future__ import annotations

from html import escape
from string import Template
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_PAGE: Final = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$verdict: $title</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.verdict { padding: .8rem 1rem; border-left: .4rem solid; border-radius: .2rem; }
.Passed { border-color: #1a7f37; background: #1a7f3722; } .Failed { border-color: #c62828; background: #c6282822; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem 0 .25rem .9rem; border-bottom: 1px solid #8884; vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.words td { text-align: left; overflow-wrap: anywhere; } .words th { text-align: left; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")
_PROVIDER: Final = Template("""\
<p class="verdict $verdict"><strong>$verdict</strong> on $provider: $message.</p>
<p>$samples samples with $vectors vectors were compared with the torch original in fp32. $ignored vectors of padding
were ignored, since no client reads them. On the execution provider: $placement.</p>
<h2>Parity on $provider</h2>
$bounds
<h2>By sample</h2>
$rows""")
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


def page(reports: Mapping[str, Mapping[str, Any]], lineage: Mapping[str, Any]) -> str:
    """One page for the reports of all providers."""
    conversion = lineage["conversion"]
    sections = [_provider(provider, report) for provider, report in reports.items()]
    words = _table(("Made from", "Value"), _flatten(lineage), kind="words")
    return _PAGE.substitute(
        verdict="Passed" if all(report["verdict"] == "Passed" for report in reports.values()) else "Failed",
        title=escape(f"{conversion['architecture']}, {conversion['task']}, {conversion['spec']['scheme']}"),
        body="\n".join([*sections, "<h2>Lineage</h2>", words]),
    )


def _provider(provider: str, report: Mapping[str, Any]) -> str:
    parity, tolerance = report["parity"], report["tolerance"]
    bounds = [
        (label, parity[key] or "not measured", f"{word} {tolerance[key]}" if tolerance[key] else "not judged")
        for key, label, word in _MEASURES
        if parity[key] or tolerance[key]
    ]
    rows = [["" if row[key] is None else row[key] for key in _COLUMNS] for row in report["rows"]]
    return _PROVIDER.substitute(
        {key: escape(str(report[key])) for key in ("verdict", "message", "samples", "vectors", "ignored")},
        provider=escape(provider),
        placement=escape(", ".join(f"{count} nodes on {name}" for name, count in report["placement"].items()))
        or "none",
        bounds=_table(("Measure", "Measured", "Must be"), bounds),
        rows=_table(tuple(_COLUMNS.values()), rows),
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
