"""Rollouts judged by Jobs of the user's own: the real Job controller runs them, the test says how they end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from integration.operator.conftest import GROUP, standard_class
from integration.operator.hands import End, success, waiting_pod

if TYPE_CHECKING:
    from integration.operator.conftest import World

METRICS = [
    {
        "name": "accuracy",
        "provider": "job",
        "maximumOfStable": "1.1",
        "job": {"image": "checks:1", "args": ["--number={{number}}", "$(CANDIDATE_URL)"]},
    }
]
Manifest = dict[str, Any]


def roll_out(world: World) -> None:
    name = f"checks-{world.namespace}"
    world.client.create(
        f"{GROUP}/onnxmodelclasses",
        standard_class(name, limits={"allowedAnalysisImages": ["checks"]}) | {"metadata": {"name": name}},
    )
    world.operator().supervise()
    analysis = {"interval": "1s", "metrics": METRICS}
    steps = [{"weight": 20, "duration": "1s"}, {"weight": 60, "duration": "1s"}]
    world.apply("minilm", className=name, rollout={"steps": steps, "analysis": analysis})
    world.until_ready("minilm")
    world.patch("minilm", {"quantization": {"scheme": "int8-dynamic"}})


def checks(world: World) -> list[Manifest]:
    found = world.items("batch/v1/jobs")
    return [one for one in found if one["metadata"]["labels"]["onnx-operator.io/component"] == "analysis"]


def told(world: World) -> Manifest:
    found: list[Manifest] = (world.status("minilm").get("candidate") or {}).get("analysis") or []
    return next(iter(found), {})


def test_a_candidate_waits_for_its_job_in_every_step_and_is_promoted_by_its_numbers(world: World) -> None:
    may_end = False

    def job(pod: Manifest) -> End | Manifest | None:
        if pod["metadata"]["labels"]["onnx-operator.io/component"] != "analysis":
            return success(pod)
        if may_end:
            return End(0, '{"value": 1.05, "stable": 1, "samples": 200}')
        return waiting_pod("ImagePullBackOff", "back-off")

    world.fate.job = job
    roll_out(world)
    held = world.until_condition("minilm", "Promoted", "Unknown", "AnalysisHolds")
    assert "ImagePullFailed: image i cannot be pulled" in held["message"]
    assert told(world)["verdict"] == "ProviderError"
    (first,) = checks(world)
    revision = world.revision(2)["metadata"]
    assert first["metadata"]["ownerReferences"][0]["uid"] == revision["uid"]
    assert first["metadata"]["labels"]["onnx-operator.io/metric"] == "accuracy"
    assert first["spec"]["template"]["spec"]["containers"][0]["args"] == ["--number=2", "$(CANDIDATE_URL)"]

    may_end = True
    world.until_ready("minilm")
    assert [one["metadata"]["name"] for one in checks(world)] != [first["metadata"]["name"]]
    assert len(checks(world)) == 1, "of the steps before none is left"
    points = world.revision(2)["status"]["rollout"]["points"]
    assert points[-1].endswith(" | P 1.05 1")


def test_a_job_that_finds_the_candidate_bad_takes_it_back_with_its_last_words(world: World) -> None:
    def job(pod: Manifest) -> End | Manifest | None:
        is_check = pod["metadata"]["labels"]["onnx-operator.io/component"] == "analysis"
        return End(1, "3 of 200 answers moved") if is_check else success(pod)

    world.fate.job = job
    roll_out(world)
    failed = world.until_condition("minilm", "Promoted", "False", "AnalysisFailed")
    assert "accuracy found the candidate bad" in failed["message"]
    assert "ended with exit code 1: 3 of 200 answers moved" in failed["message"]
    (check,) = checks(world)
    assert check["status"]["failed"] == 1, "what is bad is not tried again"
