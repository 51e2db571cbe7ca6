"""One control plane for the whole run of integration tests."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from integration.apiserver import running_control_plane

if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.apiserver import ControlPlane

_NUMBERS = itertools.count(1)

#: Who may log in beside the administrator, and with which groups.
USERS = {"operator": (), "reader": (), "nobody": ()}


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd, API server and controller manager with our CRDs installed."""
    with running_control_plane(tmp_path_factory.mktemp("control-plane"), USERS) as plane:
        plane.install_crds()
        yield plane


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    """A namespace of the test's own."""
    name = f"test-{next(_NUMBERS)}"
    control_plane.admin.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return name
