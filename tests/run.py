"""Run the tiers one after the other and say in the end what passed: what `make test` and CI call.

Standard library only. A tier that fails does not stop the next one, so that one run tells everything; a tier that
ran no test counts as failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import architectures

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
#: What depends on onnxruntime the most, with that of the converter's other image; all of it: make test-cuda-flavour
FLAVOURED = ("precision", "weight_only", "static", "kernels", "placement")
#: Characters of why a test failed.
MOST_TOLD = 600


@dataclass(frozen=True, slots=True)
class Tier:
    """What pytest is told, and the environment it runs in."""

    arguments: tuple[str, ...]
    environment: tuple[str, ...] = (".venv",)


TIERS = {
    "unit": Tier(("--numprocesses=2", "tests/unit", "tests/golden", "tests/device")),
    "cuda-flavour": Tier(
        ("--numprocesses=2", *(f"tests/unit/converter/test_{one}.py" for one in FLAVOURED)),
        ("build/cuda-flavour", "cuda"),
    ),
    # The longest file first, or one of them would end alone.
    "integration": Tier(("--numprocesses=4", "tests/faults", "tests/integration", "tests/triton_server")),
    "e2e": Tier(("tests/e2e",)),
}


@dataclass(frozen=True, slots=True)
class Counts:
    """Tests of one tier."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)


def counts(report: Path) -> Counts:
    """The counts of a JUnit report; none when the report was never written."""
    if not report.exists():
        return Counts()
    suites = ET.parse(report).getroot().iter("testsuite")  # noqa: S314  (written by our own pytest)
    total = Counts()
    for suite in suites:
        ran, failed = int(suite.get("tests", 0)), int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped = int(suite.get("skipped", 0))
        total += Counts(ran - failed - skipped, failed, skipped)
    return total


def failures(report: Path) -> Iterator[str]:
    """Which tests failed and at what, for whoever sees nothing but the end of the output."""
    if not report.exists():
        return
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314  (written by our own pytest)
        for end in (*case.iterfind("failure"), *case.iterfind("error")):
            yield f"  failed: {case.get('classname')}::{case.get('name')}"
            yield textwrap.indent(end.get("message", "")[:MOST_TOLD], "    ")


def step(name: str, *command: str) -> bool:
    """Run a command with its output as it comes; True when it succeeded."""
    print(f"\n=== {name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    print(
        f"=== {name}: {'ok' if code == 0 else f'exit code {code}'} after {time.monotonic() - started:.0f} s",
        flush=True,
    )
    return code == 0


def main(wanted: list[str]) -> int:
    reports = Path(os.environ.get("TEST_REPORTS") or ROOT / "build" / "reports")
    matrix = reports / "architectures"
    shutil.rmtree(matrix, ignore_errors=True)
    matrix.mkdir(parents=True)
    os.environ[architectures.FOLDER] = str(matrix)
    # What dies after its last test is to say where.
    os.environ["PYTHONFAULTHANDLER"] = "1"
    broken = [name for name in ("venv", "lint") if not step(name, "make", "--no-print-directory", name)]
    total = Counts()
    lines = []
    for name in wanted or TIERS:
        report = reports / f"{name}.xml"
        report.unlink(missing_ok=True)
        tier = TIERS[name]
        ok = step(name, sys.executable, "hack/environment.py", *tier.environment) and step(
            name, f"{tier.environment[0]}/bin/pytest", f"--junitxml={report}", "--durations=10", *tier.arguments
        )
        counted = counts(report)
        lines.append(f"{name}: {counted.passed} passed, {counted.failed} failed, {counted.skipped} skipped")
        lines += failures(report)
        if not ok or not counted.passed:
            broken.append(name)
        total += counted
    rows = architectures.rows(matrix)
    (reports / "architectures.md").write_text(architectures.table(rows))
    lines.append(f"{len(rows)} architectures and tasks by every scheme: {reports / 'architectures.md'}")
    # Of a tier that broke, rows are missing.
    if "unit" in (wanted or TIERS) and "unit" not in broken:
        wrong = list(architectures.differences(architectures.PAGE.read_text(), rows))
        lines += wrong
        if wrong:
            lines.append("docs/reference/architectures.md is not what was measured: run `make architectures`")
            broken.append("architectures")
    print("\n" + "\n".join(lines))
    if broken:
        print(f"not green: {', '.join(broken)}")
    # A tier that broke before it could count anything is a failure all the same.
    failed = max(total.failed, len(broken))
    print(f"{total.passed} passed, {failed} failed, {total.skipped} skipped")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
