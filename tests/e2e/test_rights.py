"""What the operator and the pods it makes are allowed to do: as little as possible, checked on the running system."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from demo import installation
from demo.kubectl import KubectlError

if TYPE_CHECKING:
    from demo.kubectl import Kubectl, Manifest
    from demo.scenario import Stage
    from demo.site import Site

OPERATOR = f"system:serviceaccount:{installation.OPERATOR_NAMESPACE}:onnx-operator"
OURS = "app.kubernetes.io/managed-by=onnx-operator"
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")


def may(kubectl: Kubectl, verb: str, what: str, *flags: str) -> bool:
    try:
        return kubectl.run("auth", "can-i", verb, what, f"--as={OPERATOR}", *flags).strip() == "yes"
    except KubectlError as refused:
        # `can-i` says no with exit code 1, like any mistake.
        if refused.said.split()[:1] != ["no"]:
            raise
        return False


@pytest.mark.parametrize("verb", VERBS)
def test_the_operator_has_no_right_to_secrets(cluster: Site, verb: str) -> None:
    assert not may(cluster.kubectl, verb, "secrets", "--all-namespaces")
    assert not may(cluster.kubectl.within(installation.OPERATOR_NAMESPACE), verb, "secrets")


def test_the_operator_has_rights_to_what_it_works_with(cluster: Site) -> None:
    """Else the test above would also pass for a name that does not exist."""
    assert may(cluster.kubectl, "create", "jobs.batch", "--all-namespaces")


@pytest.mark.parametrize("what", ["pods/exec", "roles.rbac.authorization.k8s.io", "serviceaccounts/token", "nodes"])
def test_the_operator_cannot_widen_its_rights(cluster: Site, what: str) -> None:
    assert not may(cluster.kubectl, "create", what, "--all-namespaces")


def pods_of_models(stage: Stage) -> tuple[Manifest, ...]:
    found = stage.kubectl.list("pods", selector=OURS)
    assert {"server"} <= {pod["metadata"]["labels"]["onnx-operator.io/component"] for pod in found}
    return found


def test_the_namespace_of_the_models_admits_restricted_pods_only(stage: Stage) -> None:
    namespace = stage.kubectl.get("namespace", stage.kubectl.namespace)
    assert namespace is not None
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    with pytest.raises(KubectlError, match="violates PodSecurity"):
        stage.kubectl.run("run", "careless", "--image=localhost/careless")


def test_no_pod_of_a_model_has_a_token(serving: Stage) -> None:
    for pod in pods_of_models(serving):
        assert pod["spec"]["automountServiceAccountToken"] is False
        sources = json.dumps(pod["spec"].get("volumes", []))
        assert "serviceAccountToken" not in sources
        assert '"secret"' not in sources


def test_no_job_of_a_model_has_a_token(serving: Stage) -> None:
    jobs = serving.kubectl.list("jobs", selector=OURS)
    assert jobs
    for job in jobs:
        template = job["spec"]["template"]["spec"]
        assert template["automountServiceAccountToken"] is False
        assert "serviceAccountToken" not in json.dumps(template.get("volumes", []))


def test_a_running_server_finds_no_token_and_cannot_write_to_its_image(serving: Stage) -> None:
    server = next(pod for pod in pods_of_models(serving) if pod["status"]["phase"] == "Running")
    looks = "ls /var/run/secrets/kubernetes.io; touch /opt/here; id -u; grep CapEff /proc/self/status"
    said = serving.kubectl.execute(server["metadata"]["name"], "sh", "-c", f"({looks}) 2>&1")

    assert "No such file" in said
    assert "Read-only file system" in said
    assert "\n1000\n" in said
    assert "0000000000000000" in said
