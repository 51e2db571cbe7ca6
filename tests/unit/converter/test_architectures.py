"""What the reference says is supported is what there is."""

from __future__ import annotations

from pathlib import Path

from checkpoints import DECODERS, SHAPES
from onnx_converter import decoders, load

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "architectures.md"


def test_every_architecture_has_a_small_checkpoint_and_a_row_in_the_reference() -> None:
    assert SHAPES.keys() == load.ARCHITECTURES.keys()
    assert {shape.model.config_class.model_type for shape in DECODERS.values()} == decoders.FAMILIES.keys()
    rows = PAGE.read_text().splitlines()
    for name in (*SHAPES, *DECODERS):
        assert any(row.startswith(f"| {name} |") and "| `none` | Validated |" in row for row in rows), name
