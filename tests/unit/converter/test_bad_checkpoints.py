"""Every bad checkpoint is refused by its own reason and exit code, and the message names what is wrong."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest

from checkpoints import BAD, Bad, bad, tiny
from onnx_converter import policy
from onnx_converter.reasons import BY_NAME, PERMANENT_CODES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from unit.converter.steps import Ended, Line

    #: How the steps ended on a case, as far as it came; each case is tried once.
    Refusal = Callable[[Bad], tuple[Line, Ended]]


@pytest.fixture(scope="module")
def refusal(new_line: Callable[[str], Line]) -> Refusal:
    @cache
    def refused(case: Bad) -> tuple[Line, Ended]:
        line = new_line("bad")
        ended = line.fetch(bad(line.root / "model", case))
        return line, line.convert(ended.details["digest"]) if case.step == "convert" else ended

    return refused


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name.replace(" ", "-"))
def test_a_bad_checkpoint_is_refused_for_its_own_reason(case: Bad, refusal: Refusal) -> None:
    line, ended = refusal(case)
    if case.step == "convert":
        assert not (line.work / "graph" / "conversion.json").exists()
    else:
        assert list((line.root / "checkpoints").iterdir()) == [], "nothing of a refused checkpoint stays"

    assert (ended.summary.step, ended.summary.reason) == (case.step, case.reason), ended.summary.message
    assert case.names in ended.summary.message
    assert ended.code == BY_NAME[case.reason].exit_code
    assert ended.code in PERMANENT_CODES


def test_what_is_wrong_can_be_told_apart_by_what_is_said(refusal: Refusal) -> None:
    said: dict[str, list[str]] = {}
    for case in BAD:
        said.setdefault(refusal(case)[1].summary.message, []).append(case.name)
    assert len(said) >= 25
    assert [names for names in said.values() if len(names) > 1] == [["a weight is NaN", "a weight is infinite"]]
    assert len({case.reason for case in BAD}) >= 25


def test_the_checkpoint_that_the_bad_ones_were_made_from_is_good(tmp_path: Path, line: Line) -> None:
    fetched = line.fetch(tiny(tmp_path / "model"))
    assert line.convert(fetched.details["digest"]).summary.reason == "Converted"


def test_weights_whose_header_has_a_length_that_pickles_begin_with_are_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes((0x0280).to_bytes(8, "little") + b"{" + b" " * 0x27F)
    policy.refuse_disguise(file, file.name)
