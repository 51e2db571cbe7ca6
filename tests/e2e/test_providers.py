"""An execution provider that no node of the cluster has: said clearly, and served without where another one will do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from checkpoints import tiny
from demo import checkpoints as claims
from demo import installation
from demo.model import Model
from demo.waiting import until
from e2e.rollouts import own_class, standard_class

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from demo.kubectl import Kubectl
    from demo.site import Site

NAME: Final = "wants-a-gpu"
CLASS: Final = "without-gpus"
BOTH: Final = [{"name": "CPUExecutionProvider"}, {"name": "CUDAExecutionProvider"}]


@pytest.fixture
def declared(cluster: Site, models: Kubectl, tmp_path: Path) -> Iterator[dict[str, Any]]:
    archives = {"tiny": claims.packed_folder(tiny(tmp_path / "tiny"))}
    claims.put(models, archives, claim=installation.CHECKPOINTS, image=cluster.images["operator"])
    models.delete("onnxmodel", NAME)
    claim = {"claimName": installation.CHECKPOINTS, "path": "tiny"}
    yield {
        "apiVersion": "onnx-operator.io/v1alpha1",
        "kind": "OnnxModel",
        "metadata": {"name": NAME},
        "spec": {"source": {"persistentVolumeClaim": claim}, "executionProviders": BOTH},
    }
    models.delete("onnxmodel", NAME)


@pytest.fixture(scope="module")
def impatient(cluster: Site) -> Iterator[str]:
    """A class that does not wait for a node for long."""
    offered = [one | {"leaveOutAfter": "1s"} for one in standard_class(cluster)["spec"]["executionProviders"]]
    with own_class(cluster, CLASS, executionProviders=offered):
        yield CLASS


def test_cuda_without_a_gpu_is_unschedulable_and_recovers_when_the_spec_is_changed_back(
    models: Kubectl, declared: dict[str, Any]
) -> None:
    models.apply(declared)
    stuck = until("the operator to say what is missing", lambda: seen(models, "Unschedulable"), seconds=240)
    assert "node" in stuck.message("Ready")
    assert not stuck.holds("Stalled"), "a node may join at any time"

    models.patch("onnxmodel", NAME, {"spec": {"executionProviders": BOTH[:1]}})
    until("the model to serve on the CPU alone", lambda: seen(models, "Serving"), seconds=240)


def test_a_model_is_served_without_what_no_node_validates(
    models: Kubectl, declared: dict[str, Any], impatient: str
) -> None:
    declared["spec"]["className"] = impatient
    models.apply(declared)
    served = until("the model to serve on the CPU alone", lambda: seen(models, "Serving"), seconds=240)
    assert served.reason("Validated") == "NotValidated"
    assert served.message("Validated").startswith(
        "CUDAExecutionProvider is not validated, and the revision is served without it: "
    )
    assert [pool.provider for pool in served.status.pools] == ["CPUExecutionProvider"]
    assert served.status.stable is not None
    names = [one["metadata"]["name"] for one in models.list("deployments")]
    assert [name for name in names if name.startswith(served.status.stable.revision)] == [
        f"{served.status.stable.revision}-cpu"
    ]


def seen(models: Kubectl, reason: str) -> Model | None:
    found = models.get("onnxmodel", NAME)
    model = Model.of(found) if found else None
    return model if model and model.is_seen and model.reason("Ready") == reason else None
