"""An operator with nothing to do writes nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from integration.operator.phases import KINDS

if TYPE_CHECKING:
    from integration.operator.conftest import Manifest, World

MODELS = 50
#: Two minutes are what is promised; the default relist, with its look at every model, comes at least once in them.
QUIET_SECONDS = 120


def versions(world: World) -> dict[str, str]:
    """The version of every object, and of the operator's Events; the lease is renewed all the time and not among them.

    The Events of other controllers are theirs: that of disruptions counts its repeats minutes later.
    """
    found = [(kind, one) for kind in KINDS for one in world.items(kind)]
    found += [("event", one) for one in world.items("events.k8s.io/v1/events") if is_ours(one)]
    return {f"{kind}/{one['metadata']['name']}": one["metadata"]["resourceVersion"] for kind, one in found}


def is_ours(event: Manifest) -> bool:
    return str(event.get("reportingController", "")).endswith("onnx-operator")


def test_50_models_at_rest_cost_no_write_in_two_minutes(world: World) -> None:
    operator = world.operator().supervise()
    names = [f"model-{number}" for number in range(MODELS)]
    for name in names:
        world.apply(name, serving={"replicas": 2})
    for name in names:
        world.until_ready(name, within=600)
    before = versions(world)
    assert len(before) > MODELS * 10
    assert any(name.startswith("event/") for name in before)
    starts, looks = operator.starts, operator.looks()
    time.sleep(QUIET_SECONDS)  # the claim is about a span of time, so there is nothing to be waited for
    assert versions(world) == before
    # Not because it slept: it looks at every model within each relist interval, and at once after a restart.
    assert operator.starts > starts or operator.looks() - looks >= MODELS
