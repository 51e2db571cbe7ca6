"""What the chart's policies forbid, and what they must never stand in the way of."""

from __future__ import annotations

import pytest

from helm import RELEASE
from integration.admission.conftest import BACKUP, DEVELOPER, Installation, dry_run, username
from integration.admission.specs import CLAIM, GROUP, HUB, Manifest, model, model_class, revision
from integration.apiserver import ApiAnswer, wait_until
from onnx_operator.api.common import EDGE

REVISIONS = "onnxmodelrevisions"


def in_namespace(namespace: str, plural: str, name: str = "") -> str:
    return f"{GROUP}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")


def owned_revision(owner: Manifest) -> Manifest:
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    manifest = revision()
    manifest["metadata"]["ownerReferences"] = [reference]
    return manifest


# ---- who writes


def test_not_even_an_administrator_makes_up_a_revision(installation: Installation, namespace: str) -> None:
    answer = dry_run(installation.admin, revision(), REVISIONS, namespace)
    assert answer is not None
    assert answer.status == 403
    assert "onnxmodelrevisions is written by the operator alone, not by admin; change the spec of the OnnxModel" in str(
        answer
    )


@pytest.mark.parametrize("plural", ["onnxmodels", REVISIONS])
def test_nobody_else_writes_a_status(plural: str, installation: Installation, namespace: str) -> None:
    created = installation.admin.create(in_namespace(namespace, "onnxmodels"), model())
    installation.operator().create(in_namespace(namespace, REVISIONS), owned_revision(created))
    name = "minilm" if plural == "onnxmodels" else "minilm-1"
    path = f"{in_namespace(namespace, plural, name)}/status"
    with pytest.raises(ApiAnswer, match=f"{plural}/status is written by the operator alone"):
        installation.admin.merge(path, {"status": {"conditions": []}})
    assert installation.operator().request(
        "PATCH", path, {"status": {"conditions": []}}, content_type="application/merge-patch+json"
    )


def test_a_revision_that_a_person_edits_stays_as_it_is(installation: Installation, namespace: str) -> None:
    created = installation.operator().create(in_namespace(namespace, REVISIONS), revision())
    with pytest.raises(ApiAnswer, match="written by the operator alone"):
        installation.admin.merge(in_namespace(namespace, REVISIONS, "minilm-1"), {"metadata": {"labels": {"a": "b"}}})
    assert installation.admin.get(in_namespace(namespace, REVISIONS, "minilm-1")) == created


def test_a_backup_tool_that_was_named_may_restore_revisions(installation: Installation, namespace: str) -> None:
    assert dry_run(installation.plane.client(BACKUP), revision(), REVISIONS, namespace) is None


def test_a_model_takes_its_revisions_along_when_it_is_deleted(installation: Installation, namespace: str) -> None:
    created = installation.admin.create(in_namespace(namespace, "onnxmodels"), model())
    installation.operator().create(in_namespace(namespace, REVISIONS), owned_revision(created))
    installation.admin.delete(f"{in_namespace(namespace, 'onnxmodels', 'minilm')}?propagationPolicy=Foreground")
    wait_until(
        lambda: installation.admin.items(in_namespace(namespace, REVISIONS)) == [],
        within=60,
        what="the garbage collector deletes the revision",
    )


def test_the_garbage_collector_may_orphan_a_revision(installation: Installation, namespace: str) -> None:
    # It then writes to the revision: takes the owner reference off. Asked for in its name and not left to it: it
    # orphans what its graph holds by then, and the revision is younger than that.
    created = installation.admin.create(in_namespace(namespace, "onnxmodels"), model())
    orphan = installation.operator().create(in_namespace(namespace, REVISIONS), owned_revision(created))
    done = installation.kubectl(
        "patch",
        REVISIONS,
        orphan["metadata"]["name"],
        f"--namespace={namespace}",
        "--as=system:serviceaccount:kube-system:generic-garbage-collector",
        "--type=json",
        '--patch=[{"op": "remove", "path": "/metadata/ownerReferences"}]',
    )
    assert done.returncode == 0, done.stderr
    (revision_now,) = installation.admin.items(in_namespace(namespace, REVISIONS))
    assert "ownerReferences" not in revision_now["metadata"]


def test_a_namespace_with_models_and_revisions_goes_away(installation: Installation, namespace: str) -> None:
    created = installation.admin.create(in_namespace(namespace, "onnxmodels"), model())
    installation.operator().create(in_namespace(namespace, REVISIONS), owned_revision(created))
    installation.admin.delete(f"/api/v1/namespaces/{namespace}")
    wait_until(
        lambda: installation.admin.get(f"/api/v1/namespaces/{namespace}") is None,
        within=60,
        what="the namespace is gone",
    )


# ---- what a class allows


@pytest.fixture
def strict(installation: Installation, namespace: str) -> str:
    """A class that allows little; in force once it refuses something."""
    name = f"strict-{namespace}"
    installation.admin.create(
        f"{GROUP}/onnxmodelclasses",
        model_class(name, sources={"allowed": ["persistentVolumeClaim"]}, limits={"maxReplicas": 2}),
    )
    wait_until(
        lambda: dry_run(installation.admin, model(className=name, serving={"replicas": 3}), "onnxmodels", namespace),
        within=30,
        what="the policy knows the class",
    )
    return name


def test_a_source_that_the_class_does_not_allow_is_refused(
    installation: Installation, namespace: str, strict: str
) -> None:
    answer = dry_run(installation.admin, model(className=strict, source=HUB), "onnxmodels", namespace)
    assert f"spec.source.huggingFace: OnnxModelClass {strict} does not allow this source; it allows: persist" in str(
        answer
    )
    assert dry_run(installation.admin, model(className=strict, source=CLAIM), "onnxmodels", namespace) is None


def test_an_execution_provider_that_the_class_does_not_offer_is_refused(
    installation: Installation, namespace: str, strict: str
) -> None:
    providers = [{"name": "CPUExecutionProvider"}, {"name": "CUDAExecutionProvider"}]
    asking = model(className=strict, executionProviders=providers)
    answer = str(dry_run(installation.admin, asking, "onnxmodels", namespace))
    assert f"spec.executionProviders: OnnxModelClass {strict} does not offer CUDAExecutionProvider" in answer
    assert "it offers CPUExecutionProvider" in answer
    edge = [{"name": one, "serving": "none"} for one in EDGE]
    packing = model(
        className=strict, executionProviders=[*providers[:1], *edge], quantization={"scheme": "int8-static"}
    )
    assert dry_run(installation.admin, packing, "onnxmodels", namespace) is None


def test_only_a_models_own_class_has_a_say(installation: Installation, namespace: str, strict: str) -> None:
    assert dry_run(installation.admin, model(serving={"replicas": 3}), "onnxmodels", namespace) is None


def test_a_class_that_does_not_exist_yet_keeps_no_model_out(installation: Installation, namespace: str) -> None:
    # GitOps may well bring the model first; the operator tells in a condition.
    assert dry_run(installation.admin, model(className="of-tomorrow"), "onnxmodels", namespace) is None


def test_a_class_made_stricter_keeps_nobody_from_labelling_or_deleting(
    installation: Installation, namespace: str, strict: str
) -> None:
    path = in_namespace(namespace, "onnxmodels", "minilm")
    finalizers = {"finalizers": ["tests.example/held"]}
    manifest = model(className=strict, serving={"replicas": 2})
    manifest["metadata"] |= finalizers
    installation.admin.create(in_namespace(namespace, "onnxmodels"), manifest)
    installation.admin.merge(f"{GROUP}/onnxmodelclasses/{strict}", {"spec": {"limits": {"maxReplicas": 1}}})
    another = model("another", className=strict, serving={"replicas": 2})
    wait_until(
        lambda: dry_run(installation.admin, another, "onnxmodels", namespace),
        within=30,
        what="the policy knows the stricter class",
    )
    installation.admin.merge(path, {"metadata": {"labels": {"team": "search"}}})
    with pytest.raises(ApiAnswer, match=r"spec\.serving\.replicas: 2 is above the 1"):
        installation.admin.merge(path, {"spec": {"serving": {"threads": 2}}})
    installation.admin.delete(path)
    installation.admin.merge(path, {"metadata": {"finalizers": None}})
    assert installation.admin.get(path) is None


def test_the_api_server_finds_no_fault_in_the_policies(installation: Installation) -> None:
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"

    def checked() -> list[Manifest]:
        found = [one for one in installation.admin.items(path) if one["metadata"]["name"].startswith("onnx-operator")]
        return found if all("typeChecking" in one.get("status", {}) for one in found) else []

    policies = wait_until(checked, within=30, what="the controller has checked the types in the policies' rules")
    assert len(policies) == 3
    for policy in policies:
        assert policy["status"]["typeChecking"].get("expressionWarnings", []) == []
        assert policy["spec"]["failurePolicy"] == "Fail"


# ---- rights


def access(installation: Installation, user: str, verb: str, resource: str, where: str = "") -> bool:
    """Whether RBAC lets the user; `resource` is <group>/<plural>:<subresource>, `where` is <namespace>/<name>."""
    group, _, plural = resource.rpartition("/")
    plural, _, subresource = plural.partition(":")
    namespace, _, name = where.partition("/")
    attributes = {"verb": verb, "group": group, "resource": plural, "subresource": subresource}
    attributes |= {"namespace": namespace, "name": name}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": attributes},
    }
    answer = installation.admin.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


OPERATOR = username(RELEASE)


@pytest.mark.parametrize("resource", ["secrets", "configmaps", "nodes", "serviceaccounts", "pods:exec", "pods:log"])
def test_the_operator_has_no_business_with(resource: str, installation: Installation, namespace: str) -> None:
    for verb in ("get", "list", "watch", "create", "update", "patch", "delete"):
        assert not access(installation, OPERATOR, verb, resource, namespace), verb
        assert not access(installation, OPERATOR, verb, resource, "onnx-operator-system"), verb


def test_the_operator_does_what_it_must(installation: Installation, namespace: str) -> None:
    for resource in (
        *(
            "batch/jobs",
            "apps/deployments",
            "services",
            "policy/poddisruptionbudgets",
            "autoscaling/horizontalpodautoscalers",
        ),
        *("networking.k8s.io/networkpolicies", "gateway.networking.k8s.io/httproutes"),
        "gateway.networking.k8s.io/grpcroutes",
    ):
        for verb in ("get", "list", "watch", "create", "patch", "delete"):
            assert access(installation, OPERATOR, verb, resource, namespace), f"{verb} {resource}"
    assert access(installation, OPERATOR, "create", "onnx-operator.io/onnxmodelrevisions", namespace)
    assert not access(installation, OPERATOR, "patch", "onnx-operator.io/onnxmodelrevisions", namespace)
    assert access(installation, OPERATOR, "patch", "onnx-operator.io/onnxmodels:status", namespace)
    assert not access(installation, OPERATOR, "patch", "onnx-operator.io/onnxmodels", namespace)


def test_of_the_leases_the_operator_has_its_own(installation: Installation) -> None:
    lease = "coordination.k8s.io/leases"
    assert access(installation, OPERATOR, "update", lease, "onnx-operator-system/onnx-operator")
    assert not access(installation, OPERATOR, "update", lease, "onnx-operator-system/somebody-elses")
    assert not access(installation, OPERATOR, "get", lease, "kube-system/kube-scheduler")


def test_a_developer_with_the_role_edit_works_with_models(installation: Installation, namespace: str) -> None:
    installation.admin.create(
        f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
        {
            "metadata": {"name": "developers"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": DEVELOPER}],
        },
    )
    group = "onnx-operator.io"
    wait_until(
        lambda: access(installation, DEVELOPER, "create", f"{group}/onnxmodels", namespace),
        within=30,
        what="the role edit has taken in the chart's",
    )
    assert access(installation, DEVELOPER, "delete", f"{group}/onnxmodels", namespace)
    assert access(installation, DEVELOPER, "list", f"{group}/onnxmodelrevisions", namespace)
    assert not access(installation, DEVELOPER, "create", f"{group}/onnxmodelrevisions", namespace)
    assert not access(installation, DEVELOPER, "patch", f"{group}/onnxmodels:status", namespace)
    assert not access(installation, DEVELOPER, "create", f"{group}/onnxmodels", "default")
