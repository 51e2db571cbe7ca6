"""What the reference says is supported is what there is."""

from __future__ import annotations

from pathlib import Path

from checkpoints import DECODERS, ENCODER_DECODERS, SHAPES
from onnx_converter import decoders, encoder_decoders, encoders

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "architectures.md"


def test_every_architecture_has_a_small_checkpoint_and_a_row_in_the_reference() -> None:
    # Of both towers the one for texts, with its classes.
    assert SHAPES.keys() == encoders.ARCHITECTURES.keys() - {"clip"}
    assert {shape.model.config_class.model_type for shape in DECODERS.values()} == decoders.FAMILIES.keys()
    known = {shape.model.config_class.model_type for shape in ENCODER_DECODERS.values()}
    assert known == encoder_decoders.FAMILIES.keys()
    rows = [row.split(" | ") for row in PAGE.read_text().splitlines()]
    for name in (*SHAPES, *DECODERS, *ENCODER_DECODERS):
        found = [row for row in rows if row[0] == f"| {name}"]
        assert len(found) == (len(SHAPES[name].heads) if name in SHAPES else 1), name
        # What is not quantised is always like the original; the verdict would stand first.
        assert all(float(row[3].split(", ")[0]) < 1e-3 for row in found), name
