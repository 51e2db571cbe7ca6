"""Who says how many servers there are, on the real API server and with the real autoscaler, which sees no metrics."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from integration.operator.conftest import Manifest, World

V2 = {"quantization": {"scheme": "int8-dynamic"}}
OURS = "onnx-operator"


def scaled(least: int, most: int = 8) -> Manifest:
    return {"minReplicas": least, "maxReplicas": most, "target": {"requestsInFlight": 4}}


def deployment(world: World, number: int) -> Manifest:
    name = f"{world.revision(number)['metadata']['name']}-cpu"
    return next((one for one in world.items("apps/v1/deployments") if one["metadata"]["name"] == name), {})


def autoscalers(world: World) -> dict[str, tuple[int, int]]:
    found = world.items("autoscaling/v2/horizontalpodautoscalers")
    return {one["metadata"]["name"]: (one["spec"]["minReplicas"], one["spec"]["maxReplicas"]) for one in found}


def owners(manifest: Manifest) -> set[str]:
    """The managers of the number of servers."""
    fields = manifest["metadata"]["managedFields"]
    return {one["manager"] for one in fields if "f:replicas" in one["fieldsV1"].get("f:spec", {})}


def numbers_from_now_on(world: World) -> list[int]:
    """How many servers were asked for at every moment, over all Deployments."""
    path = f"/apis/apps/v1/namespaces/{world.namespace}/deployments"
    listed = world.client.request("GET", path)
    seen = [one["spec"]["replicas"] for one in listed["items"]]
    answer = world.client.watch(path, str(listed["metadata"]["resourceVersion"]))

    def read() -> None:
        for line in answer:
            found = json.loads(line)["object"].get("spec", {}).get("replicas")
            seen.extend([found] if seen[-1:] != [found] else [])

    threading.Thread(target=read, daemon=True).start()
    return seen


def test_no_server_goes_when_an_autoscaler_takes_over_or_hands_back(world: World) -> None:
    world.operator().supervise()
    world.apply("minilm", serving={"replicas": 3})
    world.until_ready("minilm")
    assert owners(deployment(world, 1)) == {OURS}
    seen = numbers_from_now_on(world)

    world.apply("minilm", serving={"autoscaling": scaled(2)})
    world.until(lambda: OURS not in owners(deployment(world, 1)), "the operator has let go of the number")
    told = world.until_condition("minilm", "CandidateAvailable", "True", "AutoscalerBlind")
    assert "custom.metrics.k8s.io" in told["message"]
    world.until_ready("minilm")
    assert seen == [3]

    world.apply("minilm", serving={"autoscaling": scaled(5)})
    world.until(lambda: deployment(world, 1)["spec"]["replicas"] == 5, "the autoscaler scales")
    world.until_ready("minilm")
    assert owners(deployment(world, 1)) == {"kube-controller-manager"}

    world.apply("minilm", serving={"replicas": 4})
    world.until(lambda: OURS in owners(deployment(world, 1)), "the operator says the number again")
    world.until_ready("minilm")
    assert autoscalers(world) == {}
    world.apply("minilm", serving={"autoscaling": scaled(1)})
    world.until(lambda: OURS not in owners(deployment(world, 1)), "and lets go of it again")
    world.until_ready("minilm")
    assert seen == [3, 5, 4]


def test_the_autoscalers_follow_a_rollout(world: World) -> None:
    world.operator().supervise()
    spec: dict[str, Any] = {"serving": {"autoscaling": scaled(1)}, "rollout": {"steps": [{"weight": 50, "pause": {}}]}}
    world.apply("minilm", **spec)
    first = f"{world.until_ready('minilm')['stable']['revision']}-cpu"
    scale = f"/apis/apps/v1/namespaces/{world.namespace}/deployments/{first}/scale"
    world.client.merge(scale, {"spec": {"replicas": 4}})  # as an autoscaler does that sees a load
    world.patch("minilm", V2)
    world.until_condition("minilm", "Promoted", "Unknown", "WaitingForPromoteToken")
    second = f"{world.revision(2)['metadata']['name']}-cpu"
    assert autoscalers(world) == {first: (4, 8), second: (2, 8)}
    assert deployment(world, 2)["spec"]["replicas"] == 2
    assert world.split("minilm") == {first: 50, second: 50}
    world.patch("minilm", {"rollout": {"promoteToken": "go"}})
    world.until(lambda: world.status("minilm")["stable"]["number"] == 2, "revision 2 is stable")
    world.until_ready("minilm")
    assert autoscalers(world) == {second: (4, 8)}
    assert deployment(world, 2)["spec"]["replicas"] == 4
    assert "scaleDownAfterTime" in world.status("minilm")
