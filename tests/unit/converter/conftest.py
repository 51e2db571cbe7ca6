"""The folders of a model for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from unit.converter.steps import Line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path / "line")


@pytest.fixture(scope="session")
def new_line(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Line]:
    """Lines that outlive a test, for results that several tests look at."""
    return lambda name: Line(tmp_path_factory.mktemp(name))
