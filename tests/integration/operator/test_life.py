"""The life of a model, from its first spec to its deletion."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from integration.operator.conftest import World


def test_a_first_revision_is_fetched_converted_validated_published_and_takes_all_traffic(world: World) -> None:
    world.operator().start()
    world.apply("minilm")
    status = world.until_ready("minilm")
    (revision,) = world.revisions()
    service = f"{revision['metadata']['name']}-cpu"
    assert status["stable"] | {"readyReplicas": 1, "weight": 100, "number": 1} == status["stable"]
    assert status["phase"] == "Ready"
    assert world.split("minilm") == {service: 100} == world.split("minilm", "grpcroutes")
    assert [one["name"] for one in revision["status"]["stages"]] == ["convert", "validate-cpu", "publish"]
    assert revision["status"]["outcome"] == "Stable"


def test_a_second_revision_passes_the_steps_and_replaces_the_first(world: World) -> None:
    world.operator().start()
    world.apply("minilm")
    world.until_ready("minilm")
    first = world.revision(1)["metadata"]["name"]

    world.apply("minilm", quantization={"scheme": "int8-dynamic"})
    seen: list[int] = []

    def is_promoted() -> bool:
        candidate = world.status("minilm").get("candidate") or {}
        if candidate and (not seen or seen[-1] != candidate["weight"]):
            seen.append(candidate["weight"])
        return (world.status("minilm").get("stable") or {}).get("number") == 2

    world.until(is_promoted, "revision 2 is promoted", within=60)
    world.until_ready("minilm")
    assert seen == [0, 20, 60]
    second = world.revision(2)["metadata"]["name"]
    assert world.split("minilm") == {f"{second}-cpu": 100}
    assert world.names("apps/v1/deployments") == [f"{second}-cpu"]
    assert world.names("v1/services") == [f"{second}-cpu"]
    assert first != second
    assert [one["status"]["outcome"] for one in world.revisions()] == ["Retired", "Stable"]
