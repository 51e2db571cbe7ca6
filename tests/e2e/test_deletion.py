"""`kubectl delete onnxmodel` at any moment takes everything with it that the operator made, and never hangs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from demo.model import Model
from demo.waiting import until
from e2e.rollouts import begin_flip, declared, owned

if TYPE_CHECKING:
    from demo.kubectl import Kubectl
    from demo.scenario import Stage

EVERYTHING = (
    "onnxmodelrevisions,jobs,pods,deployments,replicasets,services,httproutes,grpcroutes,"
    "poddisruptionbudgets,horizontalpodautoscalers,networkpolicies,configmaps"
)
SHORT_LIVED = "short-lived"


def reason_of(kubectl: Kubectl, kind: str) -> str:
    found = kubectl.get("onnxmodel", SHORT_LIVED)
    return Model.of(found).reason(kind) if found else ""


@pytest.mark.parametrize(
    ("condition", "reason"),
    [("SourceResolved", "Fetching"), ("Converted", "Converting"), ("Validated", "Validating")],
    ids=["while it is fetched", "while it is converted", "while it is validated"],
)
def test_a_model_deleted(models: Kubectl, condition: str, reason: str) -> None:
    manifest = declared("v1")
    manifest["metadata"]["name"] = SHORT_LIVED
    models.apply(manifest)
    until(f"{condition} to say {reason}", lambda: reason_of(models, condition) == reason, seconds=180, every=0.2)

    models.delete("onnxmodel", SHORT_LIVED, timeout=60)

    until("everything of it to go", lambda: not owned(models, EVERYTHING, model=SHORT_LIVED), seconds=90)


def test_a_model_deleted_in_the_middle_of_a_canary(serving: Stage) -> None:
    begin_flip(serving)

    serving.kubectl.delete("onnxmodel", serving.name, timeout=60)

    until("everything of it to go", lambda: not owned(serving.kubectl, EVERYTHING, model=serving.name), seconds=120)
