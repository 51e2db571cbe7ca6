"""An execution provider that no node of the cluster has: said clearly, and gone when the spec no longer asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from checkpoints import tiny
from demo import checkpoints as claims
from demo import installation
from demo.model import Model
from demo.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from demo.kubectl import Kubectl
    from demo.site import Site

NAME = "wants-a-gpu"


def test_cuda_without_a_gpu_is_unschedulable_and_recovers_when_the_spec_is_changed_back(
    cluster: Site, models: Kubectl, tmp_path: Path
) -> None:
    archives = {"tiny": claims.packed_folder(tiny(tmp_path / "tiny"))}
    claims.put(models, archives, claim=installation.CHECKPOINTS, image=cluster.images["operator"])
    models.delete("onnxmodel", NAME)
    both = [{"name": "CPUExecutionProvider"}, {"name": "CUDAExecutionProvider"}]
    claim = {"claimName": installation.CHECKPOINTS, "path": "tiny"}
    models.apply(
        {
            "apiVersion": "onnx-operator.io/v1alpha1",
            "kind": "OnnxModel",
            "metadata": {"name": NAME},
            "spec": {"source": {"persistentVolumeClaim": claim}, "executionProviders": both},
        }
    )

    stuck = until("the operator to say what is missing", lambda: seen(models, "Unschedulable"), seconds=240)
    assert "node" in stuck.message("Ready")
    assert not stuck.holds("Stalled"), "a node may join at any time"

    models.patch("onnxmodel", NAME, {"spec": {"executionProviders": both[:1]}})
    until("the model to serve on the CPU alone", lambda: seen(models, "Serving"), seconds=240)
    models.delete("onnxmodel", NAME)


def seen(models: Kubectl, reason: str) -> Model | None:
    found = models.get("onnxmodel", NAME)
    model = Model.of(found) if found else None
    return model if model and model.is_seen and model.reason("Ready") == reason else None
