"""Helm without a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helm import Helm

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def helm(tmp_path: Path) -> Helm:
    return Helm(tmp_path)
