"""A rollout where there are not servers enough for two, on a real API server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from integration.operator.phases import V2

if TYPE_CHECKING:
    from integration.operator.conftest import World

SCARCE = {"maxSurge": 0, "maxUnavailable": 1}


def asked_for(world: World) -> dict[str, int]:
    """Servers by Deployment."""
    found: list[dict[str, Any]] = world.items("apps/v1/deployments")
    return {one["metadata"]["name"]: one["spec"]["replicas"] for one in found}


def test_servers_change_sides_as_the_weight_does_and_are_never_more(world: World) -> None:
    world.operator().supervise()
    steps = [{"weight": 50, "duration": "1s"}]
    world.apply("minilm", serving={"replicas": 2}, rollout={**SCARCE, "steps": steps, "paused": True})
    first = f"{world.until_ready('minilm')['stable']['revision']}-cpu"
    assert asked_for(world) == {first: 2}
    world.patch("minilm", V2)
    world.until_condition("minilm", "Promoted", "Unknown", "Paused")
    assert [asked_for(world)[first], sum(asked_for(world).values())] == [2, 2], "paused, stable gives up nothing"
    most = 0
    world.patch("minilm", {"rollout": {"paused": False}})

    def is_over() -> bool:
        nonlocal most
        most = max(most, sum(asked_for(world).values()))
        found = world.status("minilm")
        return bool(found["stable"]["number"] == 2 and found["phase"] == "Ready")

    world.until(is_over, "revision 2 is stable")
    assert most == 2
    second = f"{world.status('minilm')['stable']['revision']}-cpu"
    world.until(lambda: asked_for(world) == {second: 2}, "it has all servers")
    assert {50} <= {split.get(second) for split in world.hands.accepted}


def test_a_model_that_fills_the_only_gpu_is_rolled_and_rolled_back(world: World) -> None:
    world.operator().supervise()
    steps = [{"weight": 100, "duration": "5m"}]
    world.apply("minilm", rollout={**SCARCE, "steps": steps})
    first = f"{world.until_ready('minilm')['stable']['revision']}-cpu"
    world.patch("minilm", V2)
    world.until(lambda: (world.status("minilm").get("candidate") or {}).get("weight") == 100, "it answers everything")
    second = f"{world.status('minilm')['candidate']['revision']}-cpu"
    assert asked_for(world) == {first: 0, second: 1}
    world.patch("minilm", {"rollout": {"abortToken": "stop"}})
    world.until_condition("minilm", "Stalled", "True", "RolledBack")
    world.until(lambda: asked_for(world) == {first: 1}, "the one before is back")
