"""One control plane for the whole run of integration tests."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from integration.apiserver import ROOT, ControlPlane, find_binaries

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBERS = itertools.count(1)

#: Who may log in beside the administrator, and with which groups.
USERS = {"operator": (), "reader": (), "nobody": ()}


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd, API server and controller manager with our CRDs installed."""
    plane = ControlPlane(tmp_path_factory.mktemp("control-plane"), find_binaries())
    plane.up(USERS)
    try:
        plane.install_crds(ROOT / "crds")
        yield plane
    finally:
        plane.down()


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    """A namespace of the test's own."""
    name = f"test-{next(_NUMBERS)}"
    control_plane.admin.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return name
