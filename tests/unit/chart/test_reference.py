"""docs/reference/api.md is what crds/ says."""

from __future__ import annotations

import runpy

from helm import ROOT


def test_the_api_reference_is_current() -> None:
    render = runpy.run_path(str(ROOT / "hack" / "reference.py"))["reference"]
    assert (ROOT / "docs" / "reference" / "api.md").read_text() == render(), "run `make crds`"


def test_the_api_reference_names_every_field_of_the_smallest_spec() -> None:
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    for field in ("source.huggingFace.repository", "source.huggingFace.revision", "rollout.steps[].weight"):
        assert f"| `{field}` |" in page
