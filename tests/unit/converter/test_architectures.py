"""What the reference says is supported is what there is."""

from __future__ import annotations

from pathlib import Path

from checkpoints import DECODERS, ENCODER_DECODERS, SHAPES, VISION
from onnx_converter import decoders, encoder_decoders, encoders, images

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "architectures.md"


def test_every_architecture_has_a_small_checkpoint_and_a_row_in_the_reference() -> None:
    # Of both towers the one for texts, with its classes.
    assert SHAPES.keys() == encoders.ARCHITECTURES.keys() - {"clip"}
    assert {shape.model.config_class.model_type for shape in DECODERS.values()} == decoders.FAMILIES.keys()
    known = {shape.model.config_class.model_type for shape in ENCODER_DECODERS.values()}
    assert known == encoder_decoders.FAMILIES.keys()
    assert VISION.keys() == images.FAMILIES.keys() - {"clip", "siglip"}, "whole ones are two models"
    heads = {name: len(SHAPES[name].heads) for name in SHAPES} | {name: len(VISION[name].heads) for name in VISION}
    rows = [row.split(" | ") for row in PAGE.read_text().splitlines()]
    for name in (*SHAPES, *DECODERS, *ENCODER_DECODERS, *VISION):
        found = [row for row in rows if row[0] == f"| {name}"]
        assert len(found) == heads.get(name, 1), name
        # What is not quantised is always like the original; the verdict would stand first.
        assert all(float(row[3].split(", ")[0]) < 1e-3 for row in found), name
