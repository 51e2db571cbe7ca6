"""What is pinned, what is built and what is configured agree with each other."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from onebox.archive import Image
from onebox.places import HACK, Cluster
from onebox.plan import Plan, addon_manifests, node_config

from onebox import tools
from onebox.images import SystemImages

GO_MOD = (HACK / "go.mod").read_text()


def image(name: str) -> Image:
    return Image(f"localhost/{name}:1", f"sha256:{name}", ())


SYSTEM = SystemImages(
    control_plane={"pause": image("pause")},
    base=image("base"),
    envoy=image("envoy"),
    envoy_gateway=image("envoy-gateway"),
    local_path_provisioner=image("local-path-provisioner"),
    prometheus=image("prometheus"),
)


def plan(name: str = "e2e", index: int = 1, system: SystemImages = SYSTEM) -> Plan:
    cluster = Cluster(name, index, Path("/cache"))
    return Plan(system, node_config(cluster, system), addon_manifests(system))


def test_go_mod_s_tools_are_the_ones_that_are_built() -> None:
    block = re.search(r"^tool \((.*?)^\)", GO_MOD, re.DOTALL | re.MULTILINE)
    assert block is not None
    assert sorted(block[1].split()) == sorted(tool.package for tool in tools.ALL)


def test_promtool_is_of_the_prometheus_that_runs_in_the_cluster() -> None:
    beside = (HACK / "promtool" / "go.mod").read_text()
    assert f"tool {tools.PROMTOOL.package}\n" in beside
    assert f"\tgithub.com/prometheus/prometheus {tools.pinned_version('github.com/prometheus/prometheus')}" in beside


def test_every_staging_module_is_replaced_by_the_release_of_the_pinned_kubernetes() -> None:
    minor_and_patch = tools.kubernetes_version().removeprefix("v1.")
    replaced = re.findall(r"^\t(k8s\.io/\S+) => (\S+) (v\S+)$", GO_MOD, re.MULTILINE)
    assert len(replaced) > 30
    for module, target, version in replaced:
        assert (target, version) == (module, f"v0.{minor_and_patch}")


@pytest.mark.parametrize("name", sorted({**plan().node, **plan().addons}))
def test_a_rendered_file_has_no_place_holder_left(name: str) -> None:
    rendered = {**plan().node, **plan().addons}[name]
    # What is left of dollars are shell variables and Prometheus's groups.
    assert set(re.findall(r"\$\w+", rendered)) <= {"$VOL_DIR", "$1", "$2"}


def test_two_clusters_have_the_same_addons_and_different_nodes() -> None:
    one, other = plan("demo", 0), plan("e2e", 1)
    assert one.addons_hash == other.addons_hash
    assert one.node_hash != other.node_hash


def test_another_gateway_image_is_applied_and_another_pause_image_is_another_node() -> None:
    gateway = replace(SYSTEM, envoy_gateway=image("other"))
    pause = replace(SYSTEM, control_plane={"pause": image("other")})
    assert plan(system=gateway).node_hash == plan().node_hash
    assert plan(system=gateway).addons_hash != plan().addons_hash
    assert plan(system=pause).node_hash != plan().node_hash


def test_nothing_in_the_configuration_loosens_who_may_do_what() -> None:
    everything = "\n".join([*plan().node.values(), *plan().addons.values()])
    for loosened in ("anonymous", "AlwaysAllow", "insecure-skip", "insecure-port", "cluster-admin", "privileged: true"):
        assert loosened not in everything
