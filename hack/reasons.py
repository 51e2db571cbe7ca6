"""Writes docs/reference/reasons.md from the operator's and the converter's tables: `python hack/reasons.py`."""

from __future__ import annotations

from pathlib import Path

from onnx_converter import reasons as converter
from onnx_operator.core import reasons as operator

TARGET = Path(__file__).resolve().parents[1] / "docs" / "reference" / "reasons.md"

HEAD = """# Reasons

Rendered from `onnx_operator.core.reasons` and `onnx_converter.reasons` by `make crds`; edit them there. Every reason in
a condition, an Event, `status.lastFailure` or a revision's `quarantine` is one of these. A quarantined revision is
tried again when the spec wants another one or `rollout.retryToken` changes.
"""


def page() -> str:
    """The page."""
    return "\n".join([HEAD, *_operator(), "", *_converter(), ""])


def _operator() -> list[str]:
    rows = [f"| `{reason}` | {reason.surfaces} |" for reason in sorted(operator.ALL)]
    return ["## Of the operator", "", "| reason | it |", "|---|---|", *rows]


def _converter() -> list[str]:
    rows = [
        f"| `{reason.name}` | {reason.exit_code} | {_again(reason)} | {reason.surfaces} |"
        for reason in sorted(converter.ALL, key=lambda one: one.exit_code)
    ]
    return ["## Of the Jobs' containers", "", "| reason | exit code | retried | it |", "|---|---|---|---|", *rows]


def _again(reason: converter.Reason) -> str:
    if reason.exit_code == 0:
        return ""
    return "no" if reason.exit_code in (converter.USAGE.exit_code, *converter.PERMANENT_CODES) else "yes"


if __name__ == "__main__":
    TARGET.write_text(page())
