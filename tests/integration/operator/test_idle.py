"""An operator with nothing to do writes nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from integration.operator.conftest import World

MODELS = 50
#: Two minutes are what the product promises; the relist and every look fit in several times.
QUIET_SECONDS = 130


def everything(world: World) -> dict[str, str]:
    """The version of every object of the namespace but the lease, which is renewed all the time."""
    kinds = [
        "onnx-operator.io/v1alpha1/onnxmodels",
        "onnx-operator.io/v1alpha1/onnxmodelrevisions",
        "batch/v1/jobs",
        "apps/v1/deployments",
        "v1/services",
        "v1/pods",
        "policy/v1/poddisruptionbudgets",
        "networking.k8s.io/v1/networkpolicies",
        "gateway.networking.k8s.io/v1/httproutes",
        "gateway.networking.k8s.io/v1/grpcroutes",
        "events.k8s.io/v1/events",
    ]
    return {
        f"{kind}/{one['metadata']['name']}": one["metadata"]["resourceVersion"]
        for kind in kinds
        for one in world.items(kind)
    }


def test_50_models_at_rest_cost_no_write_in_two_minutes(world: World) -> None:
    world.operator(RELIST_SECONDS="20").start()
    names = [f"model-{number}" for number in range(MODELS)]
    for name in names:
        world.apply(name, serving={"replicas": 2})
    for name in names:
        world.until_ready(name, within=300)
    before = everything(world)
    assert len(before) > MODELS * 10
    time.sleep(QUIET_SECONDS)  # the claim is about a span of time, so nothing can be waited for
    assert everything(world) == before
