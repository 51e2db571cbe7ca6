"""Two clusters on one machine share nothing that has a name or an address."""

from __future__ import annotations

from pathlib import Path

import pytest
from onebox.places import Cluster, cache_root

HOME = Path("/cache/onebox")


def test_two_clusters_differ_in_everything_that_the_host_can_see() -> None:
    one, other = Cluster("demo", 0, HOME), Cluster("e2e", 1, HOME)
    for name in (
        "state",
        "image_store",
        "kubeconfig",
        "veth",
        "host_address",
        "node_address",
        "pod_subnet",
        "service_subnet",
        "dns_address",
        "cgroup",
        "mark",
    ):
        assert getattr(one, name) != getattr(other, name), name


@pytest.mark.parametrize("index", range(8))
def test_the_cable_s_name_fits_the_kernel_s_fifteen_characters(index: int) -> None:
    assert len(Cluster("abcdefghij", index, HOME).veth) <= 15


@pytest.mark.parametrize(
    ("name", "index", "named_in_the_error"),
    [
        pytest.param("", 0, "--name", id="empty"),
        pytest.param("E2E", 0, "--name", id="capitals"),
        pytest.param("../../etc", 0, "--name", id="a path"),
        pytest.param("morethanten", 0, "--name", id="too long"),
        pytest.param("demo", -1, "--index", id="negative"),
        pytest.param("demo", 8, "--index", id="beyond the last subnet"),
    ],
)
def test_a_name_or_index_that_fits_nowhere_is_refused(name: str, index: int, named_in_the_error: str) -> None:
    with pytest.raises(ValueError, match=named_in_the_error):
        Cluster(name, index, HOME)


def test_the_cache_lies_where_the_user_says_before_where_the_desktop_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("ONNX_OPERATOR_CACHE", raising=False)
    assert cache_root() == Path("/xdg/onnx-operator")
    monkeypatch.setenv("ONNX_OPERATOR_CACHE", "/mine")
    assert cache_root() == Path("/mine")
