"""The table of architectures and schemes: written row by row while the tests run, and read when they have ended.

Standard library only, since `make test` reads it outside of the environment.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Where the tests leave their rows, a file each; without it they leave none.
FOLDER: Final = "ARCHITECTURES"
VALIDATED: Final = "Validated"
#: bfloat16 has no kernels on the CPU, where all is measured, and auto is one of the others.
SCHEMES: Final = ("none", "float16", "int8-dynamic", "int8-static", "int8-weight-only", "int4-weight-only")
KEYS: Final = ("architecture", "task")


def note(row: Mapping[str, Any]) -> None:
    """Keep a row: architecture, task, route and under `cells` for each scheme its reason and what was measured."""
    if folder := os.environ.get(FOLDER):
        name = "-".join(row[key] for key in KEYS).replace(" ", "-")
        Path(folder, f"{name}.json").write_text(json.dumps(row))


def rows(folder: Path) -> list[dict[str, Any]]:
    """Those that were kept, in the order of the alphabet."""
    kept = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(kept, key=lambda row: [row[key] for key in KEYS])


def table(kept: Iterable[Mapping[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| architecture | task | route | " + " | ".join(f"`{scheme}`" for scheme in SCHEMES) + " |"]
    lines.append("|---|---|---|" + "---|" * len(SCHEMES))
    for row in kept:
        cells = [_words(row["cells"].get(scheme)) for scheme in SCHEMES]
        lines.append(f"| {row['architecture']} | `{row['task']}` | {row['route']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _words(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    words = [] if cell["reason"] == VALIDATED else [cell["reason"]]
    if cell.get("maxAbsolute") is not None:
        words += [f"{float(cell['maxAbsolute']):.1g}", f"{float(cell['minCosine']):.4f}"]
        words += [] if cell["minLabelAgreement"] is None else [f"{float(cell['minLabelAgreement']):.3f}"]
    return ", ".join(words)
