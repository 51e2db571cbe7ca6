"""What people do to a rollout: tokens at any moment, hasty edits, classes that change, names that are taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from integration.operator.conftest import GROUP
from integration.operator.hands import COMPONENT, success
from integration.operator.phases import V2, Births, make_class

if TYPE_CHECKING:
    from integration.operator.conftest import World
    from integration.operator.hands import End

Manifest = dict[str, Any]
LONG = [{"weight": 20, "duration": "5m"}]
QUICK = [{"weight": 20, "duration": "1s"}]


def serve(world: World, name: str = "minilm", **spec: Any) -> str:
    """A first revision with all traffic; its name."""
    world.operator().supervise()
    world.apply(name, **({"rollout": {"steps": LONG}} | spec))
    revision: str = world.until_ready(name)["stable"]["revision"]
    return revision


def hold_conversions(world: World) -> None:
    def job(pod: Manifest) -> End | None:
        return None if pod["metadata"]["labels"][COMPONENT] == "convert" else success(pod)

    world.fate.job = job


def until_converting(world: World, number: int) -> str:
    """Until the convert Job of the revision has a pod; the revision's name."""

    def found() -> str:
        name: str = world.revision(number).get("metadata", {}).get("name", "")
        return name if name and any(pod.startswith(f"{name}-convert") for pod in world.names("v1/pods")) else ""

    revision: str = world.until(found, f"revision {number} is converted")
    return revision


def until_share(world: World, share: int) -> None:
    world.until(
        lambda: (world.status("minilm").get("candidate") or {}).get("weight") == share, f"the candidate has {share} %"
    )


def handled(world: World) -> Manifest:
    tokens: Manifest = world.status("minilm").get("handledTokens") or {}
    return tokens


def until_handled(world: World, **tokens: str) -> None:
    world.until(lambda: tokens.items() <= handled(world).items(), f"{tokens} are handled")


def test_an_abort_in_mid_conversion_ends_the_job_and_a_retry_begins_another(world: World) -> None:
    stable = serve(world)
    hold_conversions(world)
    world.patch("minilm", V2)
    revision = until_converting(world, 2)
    world.patch("minilm", {"rollout": {"abortToken": "stop"}})
    world.until_condition("minilm", "Stalled", "True", "RolledBack")
    world.until(lambda: f"{revision}-convert-0" not in world.names("batch/v1/jobs"), "the Job is gone")
    assert world.status("minilm")["lastFailure"]["reason"] == "Aborted"
    # Again, where there is nothing left to abort: noted, and nothing else.
    world.patch("minilm", {"rollout": {"abortToken": "stop at last"}})
    until_handled(world, abort="stop at last")
    assert world.split("minilm") == {f"{stable}-cpu": 100}
    world.fate.job = success
    world.patch("minilm", {"rollout": {"retryToken": "again", "steps": QUICK}})
    assert world.until_ready("minilm")["stable"]["revision"] == revision
    assert f"{revision}-convert-1" in world.names("batch/v1/jobs")


def test_a_promotion_asked_for_in_mid_conversion_comes_once_the_candidate_is_ready(world: World) -> None:
    serve(world)
    hold_conversions(world)
    world.patch("minilm", V2)
    until_converting(world, 2)
    world.patch("minilm", {"rollout": {"promoteToken": "go"}})
    until_handled(world, promote="go")
    status = world.status("minilm")
    assert (status["stable"]["number"], "promotionAskedTime" in status["candidate"]) == (1, True)
    world.fate.job = success
    assert world.until_ready("minilm")["stable"]["number"] == 2


def test_a_promotion_asked_for_at_rest_does_not_hit_the_next_candidate(world: World) -> None:
    serve(world)
    for token in ("go", "go on"):
        world.patch("minilm", {"rollout": {"promoteToken": token}})
        until_handled(world, promote=token)
    world.patch("minilm", V2)
    until_share(world, 20)
    world.until(lambda: "stepStartedTime" in world.status("minilm")["candidate"], "the step lasts")
    assert world.status("minilm")["stable"]["number"] == 1


def test_of_an_abort_and_a_promotion_at_once_the_abort_wins(world: World) -> None:
    stable = serve(world)
    world.patch("minilm", V2)
    until_share(world, 20)
    world.patch("minilm", {"rollout": {"abortToken": "stop", "promoteToken": "go"}})
    world.until_condition("minilm", "Stalled", "True", "RolledBack")
    world.until_condition("minilm", "Reconciling", "False")
    assert world.status("minilm")["stable"]["revision"] == stable
    # A retry must not let the promotion through that lost.
    world.patch("minilm", {"rollout": {"retryToken": "again"}})
    until_share(world, 20)
    world.until(lambda: "stepStartedTime" in world.status("minilm")["candidate"], "the step lasts")


def test_a_pause_holds_a_step_beyond_its_time_and_before_any_traffic(world: World) -> None:
    stable = serve(world, rollout={"steps": QUICK})
    world.patch("minilm", V2 | {"rollout": {"paused": True}})
    world.until_condition("minilm", "Promoted", "Unknown", "Paused")
    candidate = f"{world.status('minilm')['candidate']['revision']}-cpu"
    assert world.split("minilm") == {f"{stable}-cpu": 100, candidate: 0}
    world.patch("minilm", {"rollout": {"steps": [{"weight": 20, "duration": "3s"}], "paused": False}})
    until_share(world, 20)
    world.patch("minilm", {"rollout": {"paused": True}})
    found = world.until_condition("minilm", "Promoted", "Unknown", "Paused")
    assert "has passed" in found["message"]
    assert world.split("minilm") == {f"{stable}-cpu": 80, candidate: 20}
    world.patch("minilm", {"rollout": {"paused": False}})
    assert world.until_ready("minilm")["stable"]["number"] == 2


def test_a_retry_of_what_serves_well_fetches_again_and_changes_nothing(world: World) -> None:
    stable = serve(world)
    births = Births(world, "batch/v1/jobs", "onnx-operator.io/v1alpha1/onnxmodelrevisions")
    for token in ("again", "and again"):
        world.patch("minilm", {"rollout": {"retryToken": token}})
        until_handled(world, retry=token)
    assert world.until_ready("minilm")["stable"]["revision"] == stable
    assert all(name.endswith("-fetch") for name in births.names)
    assert world.split("minilm") == {f"{stable}-cpu": 100}


def test_there_and_back_again_leaves_the_first_in_place(world: World) -> None:
    stable = serve(world)
    world.patch("minilm", {"opset": 19})
    world.until(lambda: world.revision(2), "the second revision exists")
    world.patch("minilm", {"opset": 18})
    assert world.until_ready("minilm")["stable"]["revision"] == stable
    world.until(lambda: world.names("apps/v1/deployments") == [f"{stable}-cpu"], "only stable's servers are left")
    world.until(lambda: not unfinished(world), "no Job runs for nothing")


def test_of_ten_edits_in_a_second_the_last_is_served(world: World) -> None:
    serve(world, rollout={"steps": QUICK})
    for number in range(10):
        path = f"edit-{number}"
        world.patch("minilm", {"source": {"persistentVolumeClaim": {"claimName": "checkpoints", "path": path}}})
    status = world.until_ready("minilm")
    (revision,) = [one for one in world.revisions() if one["metadata"]["name"] == status["stable"]["revision"]]
    assert revision["spec"]["source"]["persistentVolumeClaim"]["path"] == "edit-9"
    world.until(lambda: world.names("apps/v1/deployments") == [f"{revision['metadata']['name']}-cpu"], "one serves")
    world.until(lambda: not unfinished(world), "superseded Jobs are gone")


def unfinished(world: World) -> list[str]:
    return [
        one["metadata"]["name"]
        for one in world.items("batch/v1/jobs")
        if not any(found["status"] == "True" for found in one.get("status", {}).get("conditions") or [])
    ]


def test_a_class_that_is_removed_or_forbids_takes_nothing_from_what_serves(world: World) -> None:
    name = make_class(world, "passing")
    path = f"{GROUP}/onnxmodelclasses/{name}"
    stable = serve(world, className=name)
    world.client.merge(path, {"spec": {"sources": {"allowed": ["huggingFace"]}}})
    world.until_condition("minilm", "Accepted", "False", "SourceNotAllowed")
    assert world.split("minilm") == {f"{stable}-cpu": 100}
    world.client.delete(path)
    world.until_condition("minilm", "Accepted", "False", "ClassNotFound")
    world.until_condition("minilm", "Stalled", "True", "ClassNotFound")
    assert world.split("minilm") == {f"{stable}-cpu": 100}
    assert world.names("apps/v1/deployments") == [f"{stable}-cpu"]
    make_class(world, "passing")
    assert world.until_ready("minilm")["stable"]["revision"] == stable


def test_a_class_with_another_image_is_canaried_like_any_change(world: World) -> None:
    name = make_class(world, "moving")
    stable = serve(world, className=name)
    world.client.merge(f"{GROUP}/onnxmodelclasses/{name}", {"spec": {"images": {"server": "triton:next"}}})
    until_share(world, 20)
    candidate = world.status("minilm")["candidate"]["revision"]
    assert world.split("minilm") == {f"{stable}-cpu": 80, f"{candidate}-cpu": 20}
    # Only the pods differ: nothing was converted again.
    assert not [job for job in world.names("batch/v1/jobs") if job.startswith(candidate)]


def test_a_class_removed_in_mid_canary_holds_the_rollout_until_it_is_back(world: World) -> None:
    name = make_class(world, "fleeting")
    stable = serve(world, className=name)
    world.patch("minilm", V2)
    until_share(world, 20)
    split = world.split("minilm")
    world.client.delete(f"{GROUP}/onnxmodelclasses/{name}")
    world.until_condition("minilm", "Accepted", "False", "ClassNotFound")
    assert world.split("minilm") == split
    assert len(world.names("apps/v1/deployments")) == 2
    make_class(world, "fleeting")
    world.until_condition("minilm", "Accepted", "True")
    assert world.status("minilm")["stable"]["revision"] == stable
    world.patch("minilm", {"rollout": {"promoteToken": "go"}})
    assert world.until_ready("minilm")["stable"]["number"] == 2


@pytest.mark.parametrize("kind", ["deployments", "services", "httproutes"])
def test_a_name_taken_by_somebody_else_is_told_and_not_touched(world: World, kind: str) -> None:
    hold_conversions(world)
    world.operator().supervise()
    world.apply("minilm")
    revision = until_converting(world, 1)
    path, manifest, condition = foreign(world, kind, revision)
    made = world.client.create(path.rpartition("/")[0], manifest)
    world.fate.job = success
    found = world.until_condition("minilm", condition, "False", "NameConflict")
    assert manifest["metadata"]["name"] in found["message"]
    assert world.condition("minilm", "Ready")["status"] == "False"
    live = world.client.request("GET", path)
    assert live["metadata"]["uid"] == made["metadata"]["uid"]
    assert live["spec"] == made["spec"]
    assert "ownerReferences" not in live["metadata"]
    assert "onnx-operator" not in {one["manager"] for one in live["metadata"].get("managedFields", [])}
    world.client.delete(path)
    world.until_ready("minilm")


def foreign(world: World, kind: str, revision: str) -> tuple[str, Manifest, str]:
    """Somebody else's object, its path, and the condition in which the conflict is told."""
    root = f"namespaces/{world.namespace}/{kind}"
    labels = {"app": "other"}
    match kind:
        case "deployments":
            pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
            spec: Manifest = {"replicas": 0, "selector": {"matchLabels": labels}, "template": pod}
            path, condition = f"/apis/apps/v1/{root}/{revision}-cpu", "CandidateAvailable"
        case "services":
            spec = {"selector": labels, "ports": [{"port": 80}]}
            path, condition = f"/api/v1/{root}/{revision}-cpu", "CandidateAvailable"
        case _:
            spec = {"parentRefs": [{"name": "edge"}], "rules": [{"backendRefs": [{"name": "other", "port": 80}]}]}
            path, condition = f"/apis/gateway.networking.k8s.io/v1/{root}/minilm", "TrafficProgrammed"
    version, _, kind = {
        "deployments": "apps/v1/Deployment",
        "services": "v1/Service",
        "httproutes": "gateway.networking.k8s.io/v1/HTTPRoute",
    }[kind].rpartition("/")
    name = path.rpartition("/")[2]
    return path, {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}, condition
