"""The life of a model, from its first spec to its deletion."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from typing import TYPE_CHECKING

from integration.apiserver import ROOT
from onnx_operator.core.reasons import ALL

if TYPE_CHECKING:
    from integration.operator.conftest import Manifest, World


def test_a_first_revision_is_fetched_converted_validated_published_and_takes_all_traffic(world: World) -> None:
    world.operator().supervise()
    world.apply("minilm")
    status = world.until_ready("minilm")
    (revision,) = world.revisions()
    service = f"{revision['metadata']['name']}-cpu"
    assert status["stable"] | {"readyReplicas": 1, "weight": 100, "number": 1} == status["stable"]
    assert status["phase"] == "Ready"
    assert world.split("minilm") == {service: 100} == world.split("minilm", "grpcroutes")
    assert [one["name"] for one in revision["status"]["stages"]] == ["convert", "validate-cpu", "publish"]
    assert revision["status"]["outcome"] == "Stable"


def test_a_promoted_and_an_aborted_revision_keep_their_rollout_and_it_makes_a_page(world: World) -> None:
    world.operator().supervise()
    # There is no Prometheus here, so what is judged says so, and is not followed.
    metrics = [{"name": "errorRatio", "maximum": "0.05", "dryRun": True}]
    rollout = {"steps": [{"weight": 20, "duration": "3s"}], "analysis": {"interval": "1s", "metrics": metrics}}
    world.apply("minilm", rollout=rollout)
    world.until_ready("minilm")
    world.patch("minilm", {"opset": 19})
    world.until(lambda: (world.status("minilm").get("stable") or {}).get("number") == 2, "revision 2 is promoted")
    world.until_ready("minilm")
    world.patch("minilm", {"opset": 20, "rollout": {"steps": [{"weight": 20, "duration": "5m"}]}})
    world.until(lambda: record_of(world, 3).get("points") or [], "revision 3 is judged")
    world.patch("minilm", {"rollout": {"abortToken": "stop"}})
    world.until_condition("minilm", "Stalled", "True", "RolledBack")

    for number, outcome, reason, title in (
        (2, "Promoted", "Promoted", "Promoted"),
        (3, "RolledBack", "Aborted", "Rolled back"),
    ):
        record = record_of(world, number)
        assert {one.split(" ", 1)[1] for one in record["points"]} == {"20 | E - -"}
        assert {"Starting", "StepRunning"} <= {one["reason"] for one in record["moments"]}
        assert (record["end"]["outcome"], record["end"]["reason"]) == (outcome, reason)
        assert page_of(world, number).count(f"<strong>{title}</strong> at {record['end']['time']}") == 1


def record_of(world: World, number: int) -> Manifest:
    record: Manifest = world.revision(number).get("status", {}).get("rollout") or {}
    return record


def page_of(world: World, number: int) -> str:
    """As a user gets it, in a process that knows of no cluster."""
    command = [sys.executable, "-m", "onnx_operator", "report"]
    environment = {"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'converter_image'}"}
    revision = json.dumps(world.revision(number))
    return subprocess.run(
        command, input=revision, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def test_a_second_revision_passes_the_steps_and_replaces_the_first(world: World) -> None:
    world.operator().supervise()
    world.apply("minilm")
    world.until_ready("minilm")
    first = world.revision(1)["metadata"]["name"]

    world.apply("minilm", quantization={"scheme": "int8-dynamic"})
    world.until(lambda: (world.status("minilm").get("stable") or {}).get("number") == 2, "revision 2 is promoted")
    world.until_ready("minilm")
    second = world.revision(2)["metadata"]["name"]
    weights = [one[f"{second}-cpu"] for one in world.hands.accepted if f"{second}-cpu" in one]
    assert [weight for weight, _ in itertools.groupby(weights)] == [0, 20, 60, 100]
    assert world.split("minilm") == {f"{second}-cpu": 100}
    assert world.names("apps/v1/deployments") == [f"{second}-cpu"]
    assert world.names("v1/services") == [f"{second}-cpu"]
    assert first != second
    assert [one["status"]["outcome"] for one in world.revisions()] == ["Retired", "Stable"]


def test_every_turn_of_a_life_is_an_event_with_its_conditions_reason(world: World) -> None:
    world.operator().supervise()
    world.apply("minilm", rollout={"steps": [{"weight": 20, "duration": "5m"}], "progressDeadline": "10m"})
    world.until_ready("minilm")
    world.patch("minilm", {"quantization": {"scheme": "int8-dynamic"}})
    world.until(lambda: (world.status("minilm").get("candidate") or {}).get("weight") == 20, "the candidate has 20 %")
    world.patch("minilm", {"rollout": {"abortToken": "stop"}})
    world.until_condition("minilm", "Stalled", "True", "RolledBack")

    def events() -> dict[str, str]:
        return {one["reason"]: one["type"] for one in world.items("events.k8s.io/v1/events") if one["reason"] in ALL}

    world.until(lambda: "Aborted" in events(), "the rollback is told")
    told = events()
    turns = {"SourceResolved", "Converted", "Validated", "Available", "Promoted", "StepRunning", "RolledBack"}
    assert turns <= set(told)
    assert {reason for reason, kind in told.items() if kind == "Warning"} == {"Aborted", "RolledBack"}


def test_ten_edits_in_a_second_end_in_the_last_one_with_no_job_left_over(world: World) -> None:
    world.operator().supervise()
    world.apply("minilm")
    world.until_ready("minilm")
    for threads in range(2, 12):
        world.patch("minilm", {"serving": {"threads": threads}})
    world.until_condition("minilm", "Ready", "True", within=300)
    stable = world.status("minilm")["stable"]["revision"]
    assert next(one for one in world.revisions() if one["metadata"]["name"] == stable)["spec"]["threads"] == 11
    unfinished = [
        one["metadata"]["name"] for one in world.items("batch/v1/jobs") if not one["status"].get("conditions")
    ]
    assert unfinished == []
    assert world.names("apps/v1/deployments") == [f"{stable}-cpu"]
