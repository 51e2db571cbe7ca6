"""What the reference says is supported is what there is."""

from __future__ import annotations

from typing import Any

import pytest

import architectures
from checkpoints import DECODERS, ENCODER_DECODERS, SHAPES, VISION
from onnx_converter import decoders, encoder_decoders, encoders, images


def test_every_architecture_has_a_small_checkpoint_and_a_row_in_the_reference() -> None:
    # Of both towers the one for texts, with its classes.
    assert SHAPES.keys() == encoders.ARCHITECTURES.keys() - {"clip"}
    assert {shape.model.config_class.model_type for shape in DECODERS.values()} == decoders.FAMILIES.keys()
    known = {shape.model.config_class.model_type for shape in ENCODER_DECODERS.values()}
    assert known == encoder_decoders.FAMILIES.keys()
    assert VISION.keys() == images.FAMILIES.keys() - {"clip", "siglip"}, "whole ones are two models"
    heads = {name: len(SHAPES[name].heads) for name in SHAPES} | {name: len(VISION[name].heads) for name in VISION}
    rows = [row.split(" | ") for row in architectures.PAGE.read_text().splitlines()]
    for name in (*SHAPES, *DECODERS, *ENCODER_DECODERS, *VISION):
        found = [row for row in rows if row[0] == f"| {name}"]
        assert len(found) == heads.get(name, 1), name
        # What is not quantised is always like the original; the verdict would stand first.
        assert all(float(row[3].split(", ")[0]) < 1e-3 for row in found), name


def cell(cosine: str, reason: str = architectures.VALIDATED, largest: str = "0.5") -> dict[str, Any]:
    return {"reason": reason, "maxAbsolute": largest, "minCosine": cosine, "minLabelAgreement": None}


STOPPED = cell("0.5", "ParityFailed")
MEASURED = {
    "architecture": "bert",
    "task": "feature-extraction",
    "routes": {"fused-attention": "Validated", "trace": "Validated", "unrolled": "ParityFailed"},
    "cells": {"none": cell("1"), "int8-dynamic": cell("0.96"), "int8-weight-only": cell("0.9995")}
    | {"int4-weight-only": STOPPED},
}
ROUTES = "**fused-attention**, trace, unrolled: ParityFailed"
ROW = "bert, feature-extraction: "
#: What was changed in a page, and what is told of it; of the first ones nothing.
EDITED: dict[str, tuple[str, str, str | None]] = {
    "nothing": ("bert", "bert", None),
    "a number, as on another machine": ("0.9600", "0.9500", None),
    "a verdict near a bound, as on another machine": ("0.5, 0.9600", "ParityFailed, 0.7, 0.8400", None),
    "another name": ("| bert |", "| roberta |", f"{ROW}is not on the page"),
    "another task": ("feature-extraction", "text-classification", f"{ROW}is not on the page"),
    "another route is taken": (
        "**fused-attention**",
        "**fused**",
        f"{ROW}its routes are {ROUTES}, the page says **fused**",
    ),
    "a route that nobody says": (", trace", "", "unrolled: ParityFailed, the page says **fused-attention**, unrolled"),
    "a route that did not pass": (": ParityFailed", "", f"the page says {ROUTES.replace(': ParityFailed', '')}"),
    "none is stopped": ("| 0.5, 1.0000", "| ParityFailed, 0.5, 1.0000", f"{ROW}none came out as Validated, the page"),
    "a verdict beside the same numbers": ("ParityFailed, ", "", "int4-weight-only came out as ParityFailed, the page"),
    "a verdict far from any bound": (
        "0.5, 0.9995",
        "ParityFailed, 2, 0.4000",
        "int8-weight-only came out as Validated, the page says ParityFailed",
    ),
    "one that was good": (
        "ParityFailed, 0.5, 0.5000",
        "0.1, 0.9995",
        "int4-weight-only came out as ParityFailed, the page says Validated",
    ),
    "a scheme that nobody measured": ("|  |", "| 1, 0.9000 |", "float16 came out as nothing, the page says Validated"),
}


@pytest.mark.parametrize("case", EDITED, ids=lambda case: case.replace(" ", "-"))
def test_a_page_that_was_edited_by_hand_is_told_with_its_row(case: str) -> None:
    old, new, words = EDITED[case]
    page = f"# Architectures\n\n{architectures.table([MEASURED])}".replace(old, new, 1)
    found = list(architectures.differences(page, [MEASURED]))
    assert found == [] if words is None else words in found[0]


def test_what_is_on_the_page_and_was_not_measured_is_told() -> None:
    found = list(architectures.differences(architectures.table([MEASURED]), []))
    assert found == [f"{ROW}is on the page, and no test measured it"]
