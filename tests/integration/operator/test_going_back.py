"""A spec that goes back to what was stable before, on a real API server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from integration.operator.phases import V2, Births

if TYPE_CHECKING:
    from integration.operator.conftest import World

V1 = {"source": {"persistentVolumeClaim": {"claimName": "checkpoints", "path": "v1"}}}
FROZEN = [{"schedule": "* * * * *", "duration": "1h"}]


def test_a_reverted_commit_is_served_at_once_even_in_a_freeze(world: World) -> None:
    world.operator().supervise()
    world.apply("minilm", rollout={"rollbackWindow": {"revisions": 1}})
    first = world.until_ready("minilm")["stable"]["revision"]
    world.patch("minilm", V2)
    second = world.until_ready("minilm")["stable"]["revision"]
    births = Births(world, "batch/v1/jobs", "onnx-operator.io/v1alpha1/onnxmodelrevisions")
    before = len(world.hands.accepted)
    # A long step would hold anything that is canaried.
    steps = [{"weight": 20, "duration": "5m"}]
    world.patch("minilm", V1 | {"rollout": {"freezeWindows": FROZEN, "steps": steps}})
    assert world.until_ready("minilm")["stable"]["revision"] == first
    world.until_condition("minilm", "Promoted", "True", "WentBack")
    shares = {split.get(f"{first}-cpu", 0) for split in world.hands.accepted[before:]}
    assert shares == {0, 100}, "all requests at once"
    assert not [name for name in births.names if second in name or first in name], "nothing is converted again"
