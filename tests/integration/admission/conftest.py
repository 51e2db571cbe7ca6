"""A control plane with the chart installed by Helm: CRDs, rights and policies as a user's cluster has them.

One of its own, because the policies keep everybody but the chart's own operator from writing revisions and status,
which other integration tests must do.
"""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import yaml

from helm import CHART, NAMESPACE, RELEASE, ROOT, Helm, find_helm
from integration.admission.specs import GROUP, Manifest, revision
from integration.apiserver import ApiAnswer, ControlPlane, find_binaries, running_control_plane, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.apiserver import Client

_NUMBERS = itertools.count(1)

DEVELOPER = "developer"
BACKUP = "backup-tool"
SECOND = "second"


def username(account: str) -> str:
    return f"system:serviceaccount:{NAMESPACE}:{account}"


@dataclass(frozen=True, slots=True)
class Installation:
    """The chart on a control plane."""

    plane: ControlPlane
    helm: Helm
    values: str
    """The flag that hands helm the values."""

    @property
    def admin(self) -> Client:
        return self.plane.admin

    def operator(self, account: str = RELEASE) -> Client:
        """The operator's own ServiceAccount, with a token as its pod has one."""
        return self.plane.client_with(self._token(account))

    def kubeconfig_of_operator(self, folder: Path, account: str = RELEASE) -> Path:
        """The same for a process: what a pod finds in its files."""
        config = yaml.safe_load(self.plane.kubeconfig().read_text())
        config["users"] = [{"name": "u", "user": {"token": self._token(account)}}]
        path = folder / f"{account}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def kubectl(
        self, *arguments: str, stdin: str | None = None, user: str = "admin"
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl; a test looks at the exit code itself."""
        command = [str(find_binaries() / "kubectl"), f"--kubeconfig={self.plane.kubeconfig(user)}"]
        return subprocess.run(
            [*command, *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False
        )

    def _token(self, account: str) -> str:
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        return str(self.admin.create(path, request)["status"]["token"])


@pytest.fixture(scope="package")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The chart, installed, with its policies in force."""
    find_helm()
    folder = tmp_path_factory.mktemp("admission")
    with running_control_plane(folder / "plane", {DEVELOPER: (), BACKUP: ("system:masters",)}) as plane:
        helm = Helm(folder / "helm", plane.kubeconfig())
        installation = Installation(plane, helm, f"--values={write_values(folder)}")
        helm.run("install", RELEASE, str(CHART), f"--namespace={NAMESPACE}", "--create-namespace", installation.values)
        wait_for_policies(plane)
        yield installation


def write_values(folder: Path) -> Path:
    """Values whose default class is that of the examples, so that applying the examples changes nothing here."""
    example = yaml.safe_load((ROOT / "examples" / "class.yaml").read_text())
    values = {
        "images": {"registry": "registry.example.com"},
        # The second release, which tests put beside this one, is guarded by the policies of this one, too.
        "admission": {"writers": [BACKUP, username(SECOND)]},
        "defaultClass": {"create": True, "name": example["metadata"]["name"], "spec": example["spec"]},
    }
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def wait_for_policies(plane: ControlPlane) -> None:
    """The API server compiles policies and learns of parameters a moment after they were written."""

    def in_force() -> bool:
        by_policy = {
            "written-by-operator": (revision(), "onnxmodelrevisions"),
            "allowed-by-class": (_above_the_limit(), "onnxmodels"),
        }
        for policy, (manifest, plural) in by_policy.items():
            answer = dry_run(plane.admin, manifest, plural, "default")
            if answer is None or policy not in answer.message:
                return False
        return True

    wait_until(in_force, within=60, every=0.2, what="the chart's policies are in force")


def _above_the_limit() -> Manifest:
    return {
        "apiVersion": "onnx-operator.io/v1alpha1",
        "kind": "OnnxModel",
        "metadata": {"name": "probe"},
        "spec": {
            "source": {"persistentVolumeClaim": {"claimName": "x"}},
            "serving": {"replicas": 100},
        },
    }


def dry_run(client: Client, manifest: Manifest, plural: str, namespace: str | None) -> ApiAnswer | None:
    """What the API server says against creating the object, asked as strictly as kubectl does; None for nothing."""
    where = f"{GROUP}/namespaces/{namespace}/{plural}" if namespace else f"{GROUP}/{plural}"
    try:
        client.create(f"{where}?dryRun=All&fieldValidation=Strict&fieldManager=tests", manifest)
    except ApiAnswer as answer:
        return answer
    return None


@pytest.fixture
def namespace(installation: Installation) -> str:
    """A namespace of the test's own, held to Pod Security `restricted`."""
    name = f"models-{next(_NUMBERS)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    installation.admin.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    return name
