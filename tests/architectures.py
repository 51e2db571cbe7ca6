"""The table of architectures and schemes: written row by row while the tests run, and read when they have ended.

Standard library only, since `make test` reads it outside of the environment.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

#: Where the tests leave their rows, a file each; without it they leave none.
FOLDER: Final = "ARCHITECTURES"
VALIDATED: Final = "Validated"
#: bfloat16 has no kernels on the CPU, where all is measured, and auto is one of the others.
SCHEMES: Final = ("none", "float16", "int8-dynamic", "int8-static", "int8-weight-only", "int4-weight-only")
KEYS: Final = ("architecture", "task")
PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "reference" / "architectures.md"
#: What is quantised comes out a little otherwise on another processor; these do not.
_STABLE: Final = ("none", "float16")
#: A graph that is so like the original is far inside of every bound, wherever it runs.
_FAR_INSIDE: Final = 0.999


def note(row: Mapping[str, Any]) -> None:
    """Keep a row: architecture, task, under `routes` for each how it ended, the one that was taken first, and under
    `cells` for each scheme its reason and what was measured.
    """
    if folder := os.environ.get(FOLDER):
        name = "-".join(row[key] for key in KEYS).replace(" ", "-")
        Path(folder, f"{name}.json").write_text(json.dumps(row))


def rows(folder: Path) -> list[dict[str, Any]]:
    """Those that were kept, in the order of the alphabet."""
    kept = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(kept, key=lambda row: [row[key] for key in KEYS])


def table(kept: Iterable[Mapping[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| architecture | task | routes | " + " | ".join(f"`{scheme}`" for scheme in SCHEMES) + " |"]
    lines.append("|---|---|---|" + "---|" * len(SCHEMES))
    for row in kept:
        cells = [_words(row["cells"].get(scheme)) for scheme in SCHEMES]
        ways = _ways(row["routes"])
        lines.append(f"| {row['architecture']} | `{row['task']}` | {ways} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ways(ends: Mapping[str, str]) -> str:
    taken, *others = (route if end == VALIDATED else f"{route}: {end}" for route, end in ends.items())
    return ", ".join((f"**{taken}**", *others))


def _words(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    words = [] if cell["reason"] == VALIDATED else [cell["reason"]]
    if cell.get("maxAbsolute") is not None:
        words += [f"{float(cell['maxAbsolute']):.1g}", f"{float(cell['minCosine']):.4f}"]
        words += [] if cell["minLabelAgreement"] is None else [f"{float(cell['minLabelAgreement']):.3f}"]
    return ", ".join(words)


def differences(page: str, kept: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What a page says otherwise than what was measured, in sentences; numbers differ between machines and may."""
    said, found = _rows_in(page), _rows_in(table(kept))
    for key in sorted(said.keys() | found.keys()):
        name = ", ".join(key)
        if key not in said or key not in found:
            yield f"{name}: {'is not on the page' if key in found else 'is on the page, and no test measured it'}"
            continue
        (told, *cells), (ways, *measured) = said[key], found[key]
        if told != ways:
            yield f"{name}: its routes are {ways}, the page says {told}"
        for scheme, was, now in zip(SCHEMES, map(_verdict, cells), map(_verdict, measured), strict=True):
            if was[0] != now[0] and (scheme in _STABLE or _is_settled(was, now)):
                yield f"{name}: {scheme} came out as {now[0] or 'nothing'}, the page says {was[0] or 'nothing'}"


def _rows_in(page: str) -> dict[tuple[str, ...], list[str]]:
    lines = [line.strip("|\n").split("|") for line in page.partition("|---")[2].splitlines()[1:] if line]
    rows = [[cell.strip(" `") for cell in line] for line in lines]
    return {tuple(row[:2]): row[2:] for row in rows}


def _verdict(cell: str) -> tuple[str, list[str]]:
    """And the numbers beside it; both are empty where nothing was measured."""
    first, *rest = cell.split(", ")
    return (first, rest) if first.isalpha() or not first else (VALIDATED, [first, *rest])


def _is_settled(was: tuple[str, list[str]], now: tuple[str, list[str]]) -> bool:
    """Whether two verdicts may not differ: one says nothing, numbers are the same, or one is far from every bound."""
    if not (was[0] and now[0]) or was[1] == now[1]:
        return True
    return any(verdict == VALIDATED and float(numbers[1]) >= _FAR_INSIDE for verdict, numbers in (was, now))
