"""Candidates that are taken back, by the operator's own judgement or by a person's word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from integration.operator.hands import always, crashed_pod, never, waiting_pod

if TYPE_CHECKING:
    from integration.operator.conftest import World

INT8 = {"scheme": "int8-dynamic"}
#: Steps that last until a test ends them.
LONG = {"steps": [{"weight": 20, "duration": "5m"}], "progressDeadline": "10m"}


def serve(world: World, **rollout: Any) -> str:
    """A first revision that serves; its Service."""
    world.operator().supervise()
    world.apply("minilm", rollout=LONG | rollout)
    world.until_ready("minilm")
    return f"{world.revision(1)['metadata']['name']}-cpu"


def canary(world: World, **rollout: Any) -> tuple[str, str]:
    """A second revision that has 20 %; both Services."""
    stable = serve(world, **rollout)
    world.patch("minilm", {"quantization": INT8})
    world.until(lambda: (world.status("minilm").get("candidate") or {}).get("weight") == 20, "the candidate has 20 %")
    return stable, f"{world.revision(2)['metadata']['name']}-cpu"


def until_clean(world: World, stable: str) -> None:
    world.until(lambda: world.names("apps/v1/deployments") == [stable], "only stable's servers are left")
    assert world.split("minilm") == {stable: 100} == world.split("minilm", "grpcroutes")
    # After its servers, which it leads to.
    world.until(lambda: world.names("v1/services") == [stable], "only stable's Service is left")


def test_an_abort_takes_the_traffic_back_then_the_servers_and_says_so(world: World) -> None:
    stable, bad = canary(world)
    world.patch("minilm", {"rollout": {"abortToken": "stop"}})
    world.until_condition("minilm", "Stalled", "True", "RolledBack")
    until_clean(world, stable)
    world.until_condition("minilm", "Reconciling", "False")
    status = world.status("minilm")
    assert status["lastFailure"]["reason"] == "Aborted"
    assert status["stable"]["weight"] == 100
    assert world.condition("minilm", "Ready")["status"] == "False"
    assert world.revision(2)["status"]["outcome"] == "RolledBack"
    assert bad.startswith(status["lastFailure"]["revision"])


def test_a_candidate_that_crashes_under_traffic_is_taken_back_with_its_last_words(world: World) -> None:
    stable, bad = canary(world)
    ready = world.fate.server
    world.fate.server = lambda pod: (
        crashed_pod(139, "signal: segmentation fault") if pod["metadata"]["name"].startswith(bad) else ready(pod)
    )
    world.until_condition("minilm", "Promoted", "False", "CandidateCrashed")
    assert "segmentation fault" in world.condition("minilm", "Promoted")["message"]
    until_clean(world, stable)


def test_a_candidate_whose_image_cannot_be_pulled_is_given_up_at_the_deadline(world: World) -> None:
    stable = serve(world, steps=[{"weight": 20, "duration": "1s"}], progressDeadline="10s")
    ready = world.fate.server
    world.fate.server = lambda pod: (
        ready(pod)
        if pod["metadata"]["name"].startswith(stable)
        else waiting_pod("ImagePullBackOff", "not found", container="triton")
    )
    world.patch("minilm", {"quantization": INT8})
    world.until_condition("minilm", "CandidateAvailable", "False", "ImagePullFailed")
    world.until_condition("minilm", "Stalled", "True", "ProgressDeadlineExceeded")
    assert "cannot be pulled" in world.condition("minilm", "Stalled")["message"]
    until_clean(world, stable)


def test_a_gateway_that_refuses_the_routes_is_told_and_recovers(world: World) -> None:
    world.fate.accepts = never
    world.operator().supervise()
    world.apply("minilm")
    found = world.until_condition("minilm", "TrafficProgrammed", "False", "RoutesRefused")
    assert "NoMatchingParent" in found["message"]
    assert world.condition("minilm", "Ready")["status"] == "False"
    world.fate.accepts = always
    world.until_ready("minilm")


def test_a_weight_counts_only_when_the_gateway_has_accepted_it(world: World) -> None:
    stable = serve(world)
    world.fate.accepts = lambda route: (
        None if any(one["weight"] not in {0, 100} for one in route["spec"]["rules"][0]["backendRefs"]) else True
    )
    world.patch("minilm", {"quantization": INT8})
    world.until(lambda: set(world.split("minilm").values()) == {80, 20}, "the weight is written")
    candidate = world.status("minilm")["candidate"]
    assert candidate["weight"] == 0
    assert "stepStartedTime" not in candidate
    world.fate.accepts = always
    world.until(lambda: world.status("minilm")["candidate"]["weight"] == 20, "the weight counts")
    assert world.status("minilm")["stable"]["weight"] == 80
    assert stable in world.split("minilm")


def test_a_new_spec_in_mid_canary_replaces_the_candidate(world: World) -> None:
    canary(world)
    world.patch("minilm", {"opset": 19, "rollout": {"steps": [{"weight": 20, "duration": "1s"}]}})
    world.until_ready("minilm")
    assert world.status("minilm")["stable"]["number"] == 3
    assert [one["status"]["outcome"] for one in world.revisions()] == ["Retired", "Superseded", "Stable"]
    until_clean(world, f"{world.revision(3)['metadata']['name']}-cpu")


def test_the_old_spec_again_removes_the_candidate_without_any_new_conversion(world: World) -> None:
    stable, _ = canary(world)
    jobs = world.names("batch/v1/jobs")
    world.patch("minilm", {"quantization": {"scheme": "none"}})
    status = world.until_ready("minilm")
    assert status["stable"]["number"] == 1
    until_clean(world, stable)
    assert world.names("batch/v1/jobs") == jobs


def test_an_old_revision_serves_again_without_any_new_conversion(world: World) -> None:
    serve(world, steps=[{"weight": 20, "duration": "1s"}])
    world.patch("minilm", {"quantization": INT8})
    world.until(lambda: (world.status("minilm").get("stable") or {}).get("number") == 2, "revision 2 is promoted")
    world.until_ready("minilm")
    jobs = world.names("batch/v1/jobs")
    world.patch("minilm", {"quantization": {"scheme": "none"}})
    world.until(lambda: (world.status("minilm").get("stable") or {}).get("number") == 1, "revision 1 is promoted")
    world.until_ready("minilm")
    assert world.names("batch/v1/jobs") == jobs
    assert len(world.revisions()) == 2


def test_a_promote_token_skips_the_remaining_steps(world: World) -> None:
    canary(world)
    world.patch("minilm", {"rollout": {"promoteToken": "go"}})
    world.until_ready("minilm")
    assert world.status("minilm")["stable"]["number"] == 2


@pytest.mark.parametrize("field", ["weights", "replicas", "deployment", "service", "image"])
def test_what_a_person_edits_by_hand_is_put_back(world: World, field: str) -> None:
    stable = serve(world)
    root = f"namespaces/{world.namespace}"
    deployment = f"/apis/apps/v1/{root}/deployments/{stable}"
    service = f"/api/v1/{root}/services/{stable}"
    route = f"/apis/gateway.networking.k8s.io/v1/{root}/httproutes/minilm"
    match field:
        case "weights":
            rules = world.client.request("GET", route)["spec"]["rules"]
            rules[0]["backendRefs"].append({"name": "elsewhere", "port": 80, "weight": 50})
            world.client.merge(route, {"spec": {"rules": rules}})
            world.until(lambda: world.split("minilm") == {stable: 100}, "the weights are put back")
        case "replicas":
            world.client.merge(deployment, {"spec": {"replicas": 0}})
            world.until(lambda: world.client.request("GET", deployment)["spec"]["replicas"] == 1, "it is scaled back")
        case "deployment":
            uid = world.client.request("GET", deployment)["metadata"]["uid"]
            world.client.delete(deployment)
            world.until(
                lambda: (world.client.get(deployment) or {"metadata": {"uid": uid}})["metadata"]["uid"] != uid,
                "the Deployment is made again",
            )
        case "service":
            uid = world.client.request("GET", service)["metadata"]["uid"]
            world.client.delete(service)
            world.until(
                lambda: (world.client.get(service) or {"metadata": {"uid": uid}})["metadata"]["uid"] != uid,
                "the Service is made again",
            )
        case _:
            containers = [{"name": "triton", "image": "evil:1"}]
            patch = {"spec": {"template": {"spec": {"containers": containers}}}}
            world.client.request("PATCH", deployment, patch, content_type="application/strategic-merge-patch+json")

            def image() -> str:
                spec = world.client.request("GET", deployment)["spec"]["template"]["spec"]
                return str(spec["containers"][0]["image"])

            world.until(lambda: image() == "triton", "the image is put back")
    world.until_ready("minilm")
