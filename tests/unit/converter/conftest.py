"""The folders of a model for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from onnx_converter import contest, placement
from unit.converter.steps import Line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path / "line")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small models are asked in no time: threads that wait for each other would take nearly all of it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for module in (contest, placement):
            patch.setattr(module, "threads", lambda: 1)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def new_line(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Line]:
    """Lines that outlive a test, for results that several tests look at."""
    return lambda name: Line(tmp_path_factory.mktemp(name))
