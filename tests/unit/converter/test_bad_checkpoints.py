"""Every bad checkpoint is refused by its own reason and exit code, and the message names what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from checkpoints import BAD, Bad, bad, tiny
from onnx_converter.reasons import BY_NAME, PERMANENT_CODES

if TYPE_CHECKING:
    from pathlib import Path

    from unit.converter.steps import Line


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name.replace(" ", "-"))
def test_a_bad_checkpoint_is_refused_for_its_own_reason(case: Bad, tmp_path: Path, line: Line) -> None:
    ended = line.fetch(bad(tmp_path / "model", case))
    if case.step == "convert":
        ended = line.convert(ended.details["digest"])
        assert not (line.work / "graph" / "conversion.json").exists()
    else:
        assert list((line.root / "checkpoints").iterdir()) == [], "nothing of a refused checkpoint stays"

    assert (ended.summary.step, ended.summary.reason) == (case.step, case.reason), ended.summary.message
    assert case.names in ended.summary.message
    assert ended.code == BY_NAME[case.reason].exit_code
    assert ended.code in PERMANENT_CODES


def test_the_checkpoint_that_the_bad_ones_were_made_from_is_good(tmp_path: Path, line: Line) -> None:
    fetched = line.fetch(tiny(tmp_path / "model"))
    assert line.convert(fetched.details["digest"]).summary.reason == "Converted"
