"""Every reason is documented, used, and one word."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from onnx_converter import reasons as converter
from onnx_operator.core import reasons
from onnx_operator.core.reasons import Reason

ROOT = Path(__file__).parents[3]
SOURCES = "\n".join(
    path.read_text()
    for path in (ROOT / "operator" / "onnx_operator").rglob("*.py")
    if path.name != "reasons.py" and "prober" not in path.parts
)


def test_the_page_is_current() -> None:
    page = runpy.run_path(str(ROOT / "hack" / "reasons.py"))["page"]
    assert (ROOT / "docs" / "reference" / "reasons.md").read_text() == page(), "run `make crds`"


@pytest.mark.parametrize("reason", reasons.ALL, ids=str)
def test_a_reason_is_a_word_that_says_when_it_surfaces(reason: Reason) -> None:
    assert re.fullmatch(r"[A-Z][A-Za-z]+", reason)
    assert reason.surfaces.startswith("surfaces when ")
    assert not reason.surfaces.endswith(".")


@pytest.mark.parametrize("name", [name for name, value in vars(reasons).items() if isinstance(value, Reason)])
def test_a_reason_is_used(name: str) -> None:
    assert re.search(rf"\breasons\.{name}\b", SOURCES)


def test_no_two_reasons_share_a_name() -> None:
    assert len(set(reasons.ALL)) == len(reasons.ALL)


def test_a_name_in_both_tables_means_the_same() -> None:
    shared = {str(reason) for reason in reasons.ALL} & set(converter.BY_NAME)
    assert shared == {"Converted", "Validated"}, "the success of a stage is told by the same word"
