"""What the chart renders to, as golden files and as promises about any of them.

`UPDATE_GOLDEN=1` writes the golden files anew; read the diff.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from helm import CHART, NAMESPACE, RELEASE, ROOT, Helm, HelmError, Manifest
from onnx_operator.adapters import kube
from onnx_operator.adapters.store import KINDS
from onnx_operator.api.common import EDGE
from onnx_operator.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

CASES = sorted(path.parent for path in Path(__file__).parent.glob("cases/*/values.yaml"))
CRDS = ROOT / "crds"
READING = {"get", "list", "watch"}
REGISTRY = "--set=images.registry=registry.example.com"


def flags_of(case: Path) -> list[str]:
    flags = [f"--values={case / 'values.yaml'}", "--kube-version=1.37.0"]
    return [*flags, "--is-upgrade"] if case.name == "upgrade" else flags


def is_crd(manifest: Manifest) -> bool:
    return bool(manifest["kind"] == "CustomResourceDefinition")


def is_from_a_file(manifest: Manifest) -> bool:
    return is_crd(manifest) or manifest["kind"] in {"PrometheusRule", "ConfigMap"}


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_renders_what_was_reviewed(case: Path, helm: Helm) -> None:
    # CRDs, alerts and dashboard are compared with their files, not kept a second time here.
    manifests = [manifest for manifest in helm.template(*flags_of(case)) if not is_from_a_file(manifest)]
    rendered = yaml.safe_dump_all(manifests, sort_keys=False, width=110)
    golden = case / "expected.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(rendered)
    assert golden.read_text() == rendered, "UPDATE_GOLDEN=1 writes it anew"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_helm_has_nothing_to_complain_about(case: Path, helm: Helm) -> None:
    helm.run("lint", "--strict", str(CHART), f"--values={case / 'values.yaml'}", "--kube-version=1.37.0")


# ---- CRDs


def crd_files() -> dict[str, Any]:
    loaded = (yaml.safe_load(path.read_text()) for path in CRDS.glob("*.yaml"))
    return {definition["metadata"]["name"]: definition for definition in loaded}


def test_the_chart_holds_no_copy_of_the_crds() -> None:
    assert (CHART / "crds").readlink() == Path("../../crds")
    assert (CHART / "crds").resolve() == CRDS


def test_a_packaged_chart_holds_the_crds_as_they_are(helm: Helm, tmp_path: Path) -> None:
    helm.run("package", str(CHART), f"--destination={tmp_path}")
    (package,) = tmp_path.glob("*.tgz")
    with tarfile.open(package) as archive:
        packed = {
            Path(member.name).name: extracted.read()
            for member in archive
            if "/crds/" in member.name and (extracted := archive.extractfile(member))
        }
    assert packed == {path.name: path.read_bytes() for path in CRDS.glob("*.yaml")}


def test_an_upgrade_brings_the_crds_up_to_date_before_anything_else(helm: Helm) -> None:
    rendered = of_kind(helm.template(REGISTRY, "--is-upgrade"), "CustomResourceDefinition")
    for definition in rendered:
        assert definition["metadata"].pop("annotations") == {"helm.sh/hook": "pre-upgrade"}
    assert {definition["metadata"]["name"]: definition for definition in rendered} == crd_files()


def test_tools_that_render_the_chart_never_see_a_crd_as_a_hook(helm: Helm) -> None:
    # Argo CD deletes a hook's object before it creates it, and with a CRD go all its objects.
    assert of_kind(helm.template(REGISTRY), "CustomResourceDefinition") == []


def test_bringing_the_crds_up_to_date_can_be_left_to_others(helm: Helm) -> None:
    rendered = helm.template(REGISTRY, "--is-upgrade", "--set=crds.upgrade=false")
    assert of_kind(rendered, "CustomResourceDefinition") == []


# ---- rights


def rules(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    for rule in manifest["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield group, resource, verb


def roles_of_the_operator(manifests: list[Manifest], binding_kind: str) -> list[Manifest]:
    """The roles that a binding gives to the operator's ServiceAccount."""
    by_name = {
        (manifest["kind"], manifest["metadata"].get("namespace"), manifest["metadata"]["name"]): manifest
        for manifest in manifests
    }
    (account,) = of_kind(manifests, "ServiceAccount")
    found = []
    for binding in of_kind(manifests, binding_kind):
        assert [(subject["kind"], subject["name"], subject["namespace"]) for subject in binding["subjects"]] == [
            ("ServiceAccount", account["metadata"]["name"], NAMESPACE)
        ]
        role = binding["roleRef"]
        namespace = binding["metadata"].get("namespace") if role["kind"] == "Role" else None
        found.append(by_name[role["kind"], namespace, role["name"]])
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nobody_gets_a_right_to_secrets_or_a_wildcard(case: Path, helm: Helm) -> None:
    manifests = helm.template(*flags_of(case))
    granted = [rule for kind in ("Role", "ClusterRole") for role in of_kind(manifests, kind) for rule in rules(role)]
    assert granted
    assert [rule for rule in granted if "*" in rule or rule[1].split("/")[0] == "secrets"] == []
    assert {rule[1] for rule in granted}.isdisjoint({"pods/exec", "pods/attach", "pods/portforward", "nodes"})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nobody_may_widen_rights(case: Path, helm: Helm) -> None:
    manifests = helm.template(*flags_of(case))
    granted = [rule for kind in ("Role", "ClusterRole") for role in of_kind(manifests, kind) for rule in rules(role)]
    assert {verb for _, _, verb in granted}.isdisjoint({"escalate", "bind", "impersonate"})
    assert {group for group, _, _ in granted}.isdisjoint({"rbac.authorization.k8s.io", "admissionregistration.k8s.io"})


def test_in_namespaced_mode_the_operator_writes_nothing_cluster_wide(helm: Helm) -> None:
    manifests = helm.template(REGISTRY, "--set=watchNamespaces={team-a,team-b}")
    cluster_wide = [rule for role in roles_of_the_operator(manifests, "ClusterRoleBinding") for rule in rules(role)]
    assert {verb for _, _, verb in cluster_wide} <= READING
    assert {resource for _, resource, _ in cluster_wide} == {"onnxmodelclasses", "gateways"}


def test_in_namespaced_mode_each_namespace_gets_what_the_whole_cluster_would(helm: Helm) -> None:
    cluster = roles_of_the_operator(helm.template(REGISTRY), "ClusterRoleBinding")
    (wide,) = [role for role in cluster if any(verb not in READING for _, _, verb in rules(role))]
    manifests = helm.template(REGISTRY, "--set=watchNamespaces={team-a,team-b}")
    narrow = {
        role["metadata"]["namespace"]: sorted(rules(role))
        for role in roles_of_the_operator(manifests, "RoleBinding")
        if role["metadata"]["namespace"] != NAMESPACE
    }
    assert narrow == {"team-a": sorted(rules(wide)), "team-b": sorted(rules(wide))}


@pytest.mark.parametrize("flags", [(), ("--set=watchNamespaces={a}",)], ids=["the whole cluster", "one namespace"])
def test_the_operator_may_read_every_kind_that_it_watches(flags: tuple[str, ...], helm: Helm) -> None:
    manifests = helm.template(REGISTRY, *flags)
    bound = roles_of_the_operator(manifests, "ClusterRoleBinding") + roles_of_the_operator(manifests, "RoleBinding")
    granted = {rule for role in bound for rule in rules(role)}
    wanted = {(kind.group, kind.plural, verb) for kind in KINDS for verb in READING}
    assert wanted - granted == set()


def test_in_the_operators_own_namespace_it_has_its_lease_and_nothing_else(helm: Helm) -> None:
    (role,) = roles_of_the_operator(helm.template(REGISTRY), "RoleBinding")
    assert {(group, resource) for group, resource, _ in rules(role)} == {(kube.LEASE.group, kube.LEASE.plural)}
    (named,) = [rule for rule in role["rules"] if rule["verbs"] != ["create"]]
    assert named["resourceNames"] == [RELEASE]


def test_users_edit_models_and_only_look_at_what_the_operator_writes(helm: Helm) -> None:
    roles = {
        role["metadata"]["name"]: role
        for role in of_kind(helm.template(REGISTRY), "ClusterRole")
        if any("aggregate-to" in label for label in role["metadata"]["labels"])
    }
    assert {verb for _, _, verb in rules(roles["onnx-operator-view"])} == READING
    assert {resource for _, resource, _ in rules(roles["onnx-operator-edit"])} == {"onnxmodels"}


# ---- the operator's pod


def deployment(manifests: list[Manifest]) -> Manifest:
    (found,) = of_kind(manifests, "Deployment")
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_operator_understands_every_setting_that_the_chart_hands_it(case: Path, helm: Helm) -> None:
    (container,) = deployment(helm.template(*flags_of(case)))["spec"]["template"]["spec"]["containers"]
    given = {entry["name"]: entry.get("value", "from-the-pod") for entry in container["env"]}
    assert container["command"] == ["python3", "-m", "onnx_operator"]
    assert container["args"] == ["run"]
    settings = read_settings([], given)
    known = {field.upper() for field in settings.__slots__}
    assert set(given) <= known


def test_what_runs_outside_of_the_cluster_is_offered_by_every_class() -> None:
    policy = (CHART / "templates" / "admission.yaml").read_text()
    assert f"asked.name in [{', '.join(repr(str(one)) for one in EDGE)}]" in policy


def test_values_arrive_as_settings(helm: Helm) -> None:
    (case,) = (case for case in CASES if case.name == "everything")
    (container,) = deployment(helm.template(*flags_of(case)))["spec"]["template"]["spec"]["containers"]
    settings = read_settings([], {entry["name"]: entry.get("value", "x") for entry in container["env"]})
    assert settings.operator_image == "registry.example.com/onnx-operator/operator:1.2.3" == container["image"]
    assert settings.converter_image == "other.example.com/ml/converter:cuda"
    assert settings.triton_image.startswith("nvcr.io/nvidia/tritonserver@sha256:0123")
    assert settings.prometheus_url == "https://prometheus.monitoring.svc:9090/prefix"
    assert (settings.workers, settings.log_level, settings.log_format) == (32, "DEBUG", "text")
    assert settings.lease_name == "onnx"


def test_namespaces_arrive_as_a_setting(helm: Helm) -> None:
    manifests = helm.template(REGISTRY, "--set=watchNamespaces={team-a,team-b}")
    (container,) = deployment(manifests)["spec"]["template"]["spec"]["containers"]
    assert {"name": "WATCH_NAMESPACES", "value": "team-a,team-b"} in container["env"]


def test_the_chart_is_of_this_version(helm: Helm) -> None:
    described = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{described["version"]}"' in project
    assert described["appVersion"] == described["version"]


# ---- what a user is told


def test_without_a_registry_the_user_is_told_what_to_do(helm: Helm) -> None:
    with pytest.raises(HelmError, match=r"images\.registry is not set.*push them to a registry"):
        helm.template()


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        pytest.param("--set=replica=3", "replica", id="a misspelt value"),
        pytest.param("--set=replicas=many", "replicas", id="a word for a number"),
        pytest.param("--set=replicas=-1", "replicas", id="a negative number of replicas"),
        pytest.param("--set=prometheus.url=prometheus:9090", "prometheus/url", id="a URL without a scheme"),
        pytest.param("--set=log.level=debug", "log/level", id="a log level in small letters"),
        pytest.param("--set=watchNamespaces={Team_A}", "watchNamespaces/0", id="a namespace that cannot be"),
        pytest.param("--set=watchNamespaces={a,a}", "watchNamespaces", id="a namespace twice"),
        pytest.param("--set=images.pullPolicy=always", "images/pullPolicy", id="a pull policy in small letters"),
        pytest.param("--set=images.triton.digest=latest", "images/triton/digest", id="a digest that is none"),
        pytest.param("--set=images.triton.image=x", "images/triton", id="an unknown field of an image"),
        pytest.param("--set=defaultClass.create=true", "defaultClass/spec", id="a class without a spec"),
        pytest.param("--set=workers=0", "workers", id="no workers"),
        pytest.param("--set=networkPolicy.apiServerPorts={https}", "apiServerPorts/0", id="a port by name"),
        pytest.param("--set=metrics.prometheusRule.runbook=", "prometheusRule/runbook", id="no runbook"),
    ],
)
def test_a_value_that_cannot_be_right_is_refused_by_its_name(flag: str, named: str, helm: Helm) -> None:
    with pytest.raises(HelmError) as refusal:
        helm.template(REGISTRY, flag)
    assert named in str(refusal.value)


def test_a_class_that_comes_with_the_release_needs_no_gateway(helm: Helm) -> None:
    flags = ("--set=defaultClass.create=true", "--set=defaultClass.spec.artifactStore.claimName=onnx")
    (found,) = [one for one in helm.template(REGISTRY, *flags) if one["kind"] == "OnnxModelClass"]
    assert found["spec"] == {"artifactStore": {"claimName": "onnx"}}


def test_notes_say_what_is_missing(helm: Helm) -> None:
    said = helm.run("install", RELEASE, str(CHART), f"--namespace={NAMESPACE}", REGISTRY, "--dry-run=client")
    notes = said.partition("NOTES:")[2]
    assert "No OnnxModelClass came with this release" in notes
    assert "prometheus.url is not set" in notes
    assert "OnnxModels in every namespace" in notes


def objects_in(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("properties") and schema.get("type") == "object":
            yield schema
        for value in schema.values():
            yield from objects_in(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects_in(value)


def test_the_schema_lets_no_unknown_value_through() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    assert [part for part in objects_in(schema) if part.get("additionalProperties") is not False] == []


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_the_readme_explains_every_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    # requests and limits are one value for a reader.
    wanted = {name for name in leaves(values) if not name.startswith("resources.")} | {"resources"}
    readme = (CHART / "README.md").read_text()
    assert sorted(name for name in wanted if f"`{name}`" not in readme) == []
