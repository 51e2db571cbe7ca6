"""Helm and the real API server: install, upgrade, a second release beside the first, uninstall, and --wait."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import yaml

from helm import CHART, NAMESPACE, RELEASE, ROOT, HelmError
from integration.admission.conftest import SECOND, username
from integration.admission.specs import GROUP, Manifest, model
from integration.admission.test_policies import access

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from integration.admission.conftest import Installation

EVERYTHING = ROOT / "tests" / "unit" / "chart" / "cases" / "everything" / "values.yaml"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/onnxmodels.onnx-operator.io"
IN_RELEASE = (
    f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{RELEASE}",
    f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets/{RELEASE}",
    f"/api/v1/namespaces/{NAMESPACE}/services/{RELEASE}-metrics",
    f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{RELEASE}",
    f"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/{RELEASE}-allowed-by-class",
    f"{GROUP}/onnxmodelclasses/default",
)


def generation_of(manifest: Manifest | None) -> object:
    assert manifest is not None
    metadata = manifest["metadata"]
    return metadata.get("generation", metadata["resourceVersion"])


def test_the_api_server_knows_every_field_of_every_object(installation: Installation, tmp_path: Path) -> None:
    manifests = installation.helm.template(f"--values={EVERYTHING}")
    # Their CRDs belong to the Prometheus operator, which is not here.
    known = [manifest for manifest in manifests if not manifest["apiVersion"].startswith("monitoring.coreos.com/")]
    assert len(known) > 15
    path = tmp_path / "everything.yaml"
    path.write_text(yaml.safe_dump_all(known))
    done = installation.kubectl("apply", "--validate=strict", "--dry-run=server", "-f", str(path))
    assert done.returncode == 0, done.stderr


def test_the_operators_pod_passes_pod_security_restricted(installation: Installation, namespace: str) -> None:
    (deployment,) = (one for one in installation.helm.template(installation.values) if one["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    pod = {"metadata": {"name": "operator", "labels": template["metadata"]["labels"]}, "spec": template["spec"]}
    installation.admin.create(f"/api/v1/namespaces/{namespace}/pods?dryRun=All", pod)


def test_the_same_upgrade_again_changes_no_object(installation: Installation) -> None:
    upgrade = ("upgrade", RELEASE, str(CHART), f"--namespace={NAMESPACE}", installation.values)
    installation.helm.run(*upgrade)
    before = [generation_of(installation.admin.get(path)) for path in (*IN_RELEASE, CRD)]
    installation.helm.run(*upgrade)
    assert [generation_of(installation.admin.get(path)) for path in (*IN_RELEASE, CRD)] == before


def test_an_upgrade_changes_the_crds_and_keeps_the_models(
    installation: Installation, namespace: str, tmp_path: Path
) -> None:
    models = f"{GROUP}/namespaces/{namespace}/onnxmodels"
    created = installation.admin.create(models, model())
    newer = tmp_path / "onnx-operator"
    shutil.copytree(CHART, newer)
    file = newer / "crds" / "onnxmodels.yaml"
    definition = yaml.safe_load(file.read_text())
    spec = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["motto"] = {"type": "string", "default": "measure twice", "description": "A field of tomorrow."}
    file.write_text(yaml.safe_dump(definition))

    installation.helm.run("upgrade", RELEASE, str(newer), f"--namespace={NAMESPACE}", installation.values)
    kept = installation.admin.get(f"{models}/minilm")
    assert kept is not None
    assert kept["metadata"]["uid"] == created["metadata"]["uid"]
    assert kept["spec"]["motto"] == "measure twice"

    # The way back takes the field away again: the CRD is the file's, whatever was there before.
    installation.helm.run("upgrade", RELEASE, str(CHART), f"--namespace={NAMESPACE}", installation.values)
    back = installation.admin.get(f"{models}/minilm")
    assert back is not None
    assert "motto" not in back["spec"]


def test_a_release_for_two_namespaces_stands_beside_the_first_and_leaves_the_crds_when_it_goes(
    installation: Installation, namespace: str
) -> None:
    admin = installation.admin
    other = f"{namespace}-other"
    admin.create("/api/v1/namespaces", {"metadata": {"name": other}})
    installation.helm.run(
        *("install", SECOND, str(CHART), f"--namespace={NAMESPACE}", "--set=images.registry=registry.example.com"),
        *(f"--set=fullnameOverride={SECOND}", f"--set=watchNamespaces={{{namespace},{other}}}"),
    )
    second = username(SECOND)
    for where, allowed in {namespace: True, other: True, "default": False, NAMESPACE: False}.items():
        assert access(installation, second, "create", "batch/jobs", where) is allowed, where
        assert access(installation, second, "list", "onnx-operator.io/onnxmodels", where) is allowed, where
        assert not access(installation, second, "get", "secrets", where)
    assert not access(installation, second, "list", "onnx-operator.io/onnxmodels")
    assert access(installation, second, "list", "onnx-operator.io/onnxmodelclasses")
    assert not access(installation, second, "patch", "onnx-operator.io/onnxmodelclasses")

    created = admin.create(f"{GROUP}/namespaces/{namespace}/onnxmodels", model())
    installation.helm.run("uninstall", SECOND, f"--namespace={NAMESPACE}")
    assert admin.get(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/second") is None
    kept = admin.get(f"{GROUP}/namespaces/{namespace}/onnxmodels/minilm")
    assert kept is not None
    assert kept["metadata"]["uid"] == created["metadata"]["uid"]


# ---- kstatus, as `helm --wait` has it


@pytest.fixture
def release(installation: Installation, namespace: str, tmp_path: Path) -> Callable[[int, int], str]:
    """A team's own chart with one model: called with a number of replicas and how long to wait for it."""
    chart = tmp_path / "team"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: team\nversion: 0.1.0\n")
    manifest = model(serving={"replicas": "REPLICAS"})
    text = yaml.safe_dump(manifest).replace("REPLICAS", "{{ .Values.replicas }}")
    (chart / "templates" / "model.yaml").write_text(text)

    def upgrade(replicas: int, seconds: int) -> str:
        return installation.helm.run(
            *("upgrade", "--install", "team", str(chart), f"--namespace={namespace}", f"--set=replicas={replicas}"),
            *("--wait", f"--timeout={seconds}s"),
        )

    return upgrade


def tell(installation: Installation, namespace: str, generation: int, **conditions: str) -> None:
    """What the operator would write."""
    told = [
        {
            "type": kind,
            "status": status,
            "reason": "Told",
            "message": f"told by a test: {kind}",
            "observedGeneration": generation,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for kind, status in conditions.items()
    ]
    path = f"{GROUP}/namespaces/{namespace}/onnxmodels/minilm/status"
    installation.operator().merge(path, {"status": {"observedGeneration": generation, "conditions": told}})


def test_a_model_that_nobody_has_looked_at_is_no_success(
    installation: Installation, namespace: str, release: Callable[[int, int], str]
) -> None:
    with pytest.raises(HelmError, match="minilm"):
        release(1, 3)


def test_a_ready_model_is_a_success_until_its_spec_changes(
    installation: Installation, namespace: str, release: Callable[[int, int], str]
) -> None:
    with pytest.raises(HelmError):
        release(1, 1)
    tell(installation, namespace, 1, Ready="True", Reconciling="False", Stalled="False")
    release(1, 60)
    with pytest.raises(HelmError, match="minilm"):
        release(2, 3)
    tell(installation, namespace, 2, Ready="True", Reconciling="False", Stalled="False")
    release(2, 60)


def test_a_rolled_back_model_is_a_failure_though_stable_serves(
    installation: Installation, namespace: str, release: Callable[[int, int], str]
) -> None:
    with pytest.raises(HelmError):
        release(1, 1)
    tell(installation, namespace, 1, Ready="False", Reconciling="False", Stalled="True")
    with pytest.raises(HelmError, match="minilm"):
        release(1, 60)


def test_a_model_on_its_way_is_waited_for(
    installation: Installation, namespace: str, release: Callable[[int, int], str]
) -> None:
    with pytest.raises(HelmError):
        release(1, 1)
    tell(installation, namespace, 1, Ready="False", Reconciling="True", Stalled="False")
    with pytest.raises(HelmError, match="minilm"):
        release(1, 3)
