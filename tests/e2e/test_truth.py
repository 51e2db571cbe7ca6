"""Tools that wait for a model are told the truth: kubectl wait, and helm's --wait, which asks the kstatus library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from demo import installation
from demo.kubectl import KubectlError
from demo.site import SiteError
from e2e.rollouts import QUICK, begin_flip, declared, finish, other_version, owned

if TYPE_CHECKING:
    from pathlib import Path

    from demo.kubectl import Manifest
    from demo.scenario import Stage
    from demo.site import Site


def wait_ready(stage: Stage, seconds: int) -> None:
    stage.kubectl.run(
        "wait", "--for=condition=Ready", f"onnxmodel/{stage.name}", f"--timeout={seconds}s", timeout=seconds + 10
    )


def test_a_good_old_version_comes_back_without_a_conversion_and_kubectl_wait_tells_when(serving: Stage) -> None:
    jobs = owned(serving.kubectl, "jobs")
    wait_ready(serving, 5)
    begin_flip(serving, steps=QUICK)
    with pytest.raises(KubectlError, match="timed out"):
        wait_ready(serving, 2)

    wait_ready(serving, 240)

    stable = serving.model().status.stable
    assert stable is not None
    assert stable.weight == 100
    assert finish(serving).is_promoted
    assert set(owned(serving.kubectl, "jobs")) <= set(jobs), "a Job ran for an artifact that is there"


def chart_of(manifest: Manifest, folder: Path) -> Path:
    """A chart that holds a version of the model, as a team would keep it in Git."""
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text(yaml.safe_dump({"apiVersion": "v2", "name": "team", "version": "0.1.0"}))
    (folder / "templates" / "model.yaml").write_text(yaml.safe_dump(manifest))
    return folder


def helm(cluster: Site, stage: Stage, *arguments: str) -> None:
    # The model is there already, made by kubectl: helm takes over its fields.
    namespace = f"--namespace={stage.kubectl.namespace}"
    installation.helm(cluster, *arguments, "--force-conflicts", "--wait", "--timeout=5m", namespace)


def upgrade(cluster: Site, stage: Stage, chart: Path) -> None:
    helm(cluster, stage, "upgrade", "team", str(chart), "--install", "--take-ownership")


def test_helm_upgrade_wait_succeeds_with_a_good_version_once_it_is_promoted(
    cluster: Site, serving: Stage, tmp_path: Path
) -> None:
    upgrade(cluster, serving, chart_of(declared(other_version(serving), steps=QUICK), tmp_path / "good"))

    model = serving.model()
    assert model.holds("Ready"), model.message("Ready")
    assert model.status.stable is not None
    assert model.status.stable.weight == 100


def test_helm_upgrade_wait_fails_with_a_version_that_is_refused_and_helm_rollback_wait_mends_it(
    cluster: Site, served: Stage, tmp_path: Path
) -> None:
    # What helm holds is what serves; kubectl has no word in it in between, as in a team that uses the one tool.
    before = served.model().status.stable
    assert before is not None

    with pytest.raises(SiteError, match=r"(?i)failed|stalled"):
        upgrade(cluster, served, chart_of(declared("v4"), tmp_path / "bad"))

    refused = finish(served)
    assert refused.is_given_up
    assert refused.status.stable == before

    helm(cluster, served, "rollback", "team")

    mended = served.model()
    assert mended.holds("Ready"), mended.message("Ready")
    assert mended.status.stable == before


def test_the_operator_itself_is_ready_when_helm_says_so(cluster: Site) -> None:
    installation.install(cluster)

    found = cluster.kubectl.within(installation.OPERATOR_NAMESPACE).get("deployment", "onnx-operator")
    assert found is not None
    assert found["status"]["readyReplicas"] == found["spec"]["replicas"] == 2
