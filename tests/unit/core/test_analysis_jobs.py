"""Jobs that measure a candidate: when they run, what their ends mean, and what is kept of them."""

from __future__ import annotations

from typing import Any

import pytest

from onnx_operator.api.rollout import Analysis
from onnx_operator.core.actions import Delete, WantAnalysisJob
from onnx_operator.core.analysis import Criterion, Outcome, criteria, judge
from onnx_operator.core.analysis_jobs import read_run
from onnx_operator.core.decide import obstacle_finding
from onnx_operator.core.jobs import JobBlocked, JobFailed, JobPassed, JobRunning, read_analysis_job
from onnx_operator.core.names import Component
from onnx_operator.core.record import read
from unit.core.worlds import World, a_class

IMAGE = "registry.example/checks:1"
GOOD, BAD = JobPassed(""), JobFailed("ContainerFailed", "pod p ended with exit code 1: 3 answers moved", 1, 5)


def a_metric(**fields: Any) -> dict[str, Any]:
    return {"name": "accuracy", "provider": "job", "job": {"image": IMAGE}} | fields


def rolling(*metrics: dict[str, Any], step: int | None = 0, **rollout: Any) -> World:
    """Revision 2 is in a step that such Jobs judge."""
    world = World(classes=(a_class(limits={"allowedAnalysisImages": ["registry.example/checks"]}),))
    world.serve_first()
    found = [{"name": "errorRatio", "maximum": "0.05"}, *(metrics or (a_metric(),))]
    steps = [{"weight": 10, "duration": "1m"}, {"weight": 50, "duration": "1m"}]
    rollout = {"steps": steps, "progressDeadline": "10m"} | rollout
    world.change(opset=19, rollout={"analysis": {"interval": "10s", "metrics": found}} | rollout)
    if step is not None:
        world.up_to_step(step)
    world.settle()
    return world


def told(world: World) -> Any:
    assert world.status.candidate is not None
    return next((one for one in world.status.candidate.analysis if one.name == "accuracy"), None)


def jobs(world: World) -> list[str]:
    return [one.name for one in world.children.values() if one.component == Component.ANALYSIS]


# ---- stories


def test_a_step_ends_only_when_its_job_has_found_the_candidate_good() -> None:
    world = rolling()
    (first,) = jobs(world)
    world.goes_on_for(120)
    assert world.condition("Promoted") == ("Unknown", "AnalysisHolds")
    assert f"accuracy has no data; Job {first} runs" in world.message("Promoted")
    world.end_analysis_jobs(GOOD)
    world.goes_on_for(10)
    world.make_ready()
    world.goes_on_for(10)
    assert world.step == 1
    (second,) = jobs(world)
    assert second != first, "another step is measured anew, and the Job of the one before is gone"
    world.end_analysis_jobs(GOOD)
    world.finish()
    assert world.stable_number == 2
    assert jobs(world) == [second], "the last one is left for its logs, until its time to live is over"


def test_a_job_that_finds_the_candidate_bad_takes_it_back_at_the_next_look() -> None:
    world = rolling()
    world.end_analysis_jobs(BAD)
    world.goes_on_for(10)
    assert world.condition("Promoted") == ("False", "AnalysisFailed")
    assert "accuracy found the candidate bad; pod p ended with exit code 1: 3 answers moved" in world.message(
        "Promoted"
    )
    assert world.weights() == {1: 100, 2: 0}
    record = world.numbered(2).status.rollout
    assert record is not None
    assert [one.bound for one in record.metrics] == ["at most 5%", "exit code 0"]
    assert [sample.verdict for sample in read(record.points[-1]).samples if sample] == ["Pass", "Fail"]


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        pytest.param(JobRunning("Job x runs"), "AnalysisNoData", "Job x runs", id="never ends"),
        pytest.param(
            JobBlocked("ImagePullFailed", "no such image"),
            "AnalysisProviderError",
            "ImagePullFailed: no such image",
            id="never starts",
        ),
        pytest.param(
            JobFailed("ContainerFailed", "exit code 3", 3, 5),
            "AnalysisProviderError",
            "ContainerFailed: exit code 3",
            id="crashes",
        ),
    ],
)
def test_a_job_that_says_nothing_of_the_candidate_holds_it_until_the_deadline(
    state: JobRunning | JobBlocked | JobFailed, reason: str, words: str
) -> None:
    world = rolling()
    world.end_analysis_jobs(state)
    world.goes_on_for(300)
    assert world.condition("Promoted") == ("Unknown", "AnalysisHolds")
    world.goes_on_for(400)
    assert world.condition("Promoted") == ("False", reason)
    assert words in world.message("Promoted")


def test_what_was_blocked_may_come_right() -> None:
    world = rolling()
    world.end_analysis_jobs(JobBlocked("Unschedulable", "no node fits"))
    world.goes_on_for(20)
    assert told(world).verdict == "ProviderError"
    world.end_analysis_jobs(GOOD)
    world.goes_on_for(20)
    assert told(world).verdict == "Pass"


def test_what_a_job_said_outlives_it_and_it_is_not_run_again() -> None:
    world = rolling(a_metric(maximumValue="2"), steps=[{"weight": 10, "pause": {}}])
    world.end_analysis_jobs(JobPassed('{"value": 1.25, "samples": 200}'))
    world.goes_on_for(10)
    before = told(world)
    assert (before.verdict, before.candidate, before.bound) == ("Pass", "1.25", "at most 2")
    assert "accuracy is 1.25 for the candidate: within bounds; over 200 samples" in before.message
    for name in [name for name, child in world.children.items() if child.component == Component.ANALYSIS]:
        del world.children[name]
    world.analysis_jobs.clear()
    world.goes_on_for(120)
    assert jobs(world) == []
    assert (told(world).verdict, told(world).job) == ("Pass", before.job)
    assert world.condition("Promoted") == ("Unknown", "WaitingForPromoteToken")


def test_a_step_that_begins_again_is_measured_again() -> None:
    world = rolling()
    (first,) = jobs(world)
    world.end_analysis_jobs(GOOD)
    world.goes_on_for(10)
    world.break_servers(world.numbered(2).name, None)
    world.settle()
    assert world.step is None
    world.up_to_step(0)
    world.settle()
    (second,) = jobs(world)
    assert second != first
    assert told(world) is None


def test_another_job_in_the_spec_takes_the_place_of_the_one_that_runs() -> None:
    world = rolling()
    (first,) = jobs(world)
    world.steer(analysis={"interval": "10s", "metrics": [a_metric(job={"image": IMAGE, "args": ["--all"]})]})
    world.settle()
    (second,) = jobs(world)
    assert second != first


def test_a_job_is_created_only_after_all_that_makes_room_for_it_is_done() -> None:
    world = rolling()
    (first,) = jobs(world)
    world.steer(analysis={"interval": "10s", "metrics": [a_metric(job={"image": IMAGE, "args": ["--all"]})]})
    actions = world.decide().actions
    assert isinstance(actions[-1], WantAnalysisJob), "a quota that refuses it would keep the first one there for ever"
    assert first in [one.object.name for one in actions if isinstance(one, Delete)]


def test_nobody_waits_for_a_job_that_is_only_told_of() -> None:
    world = rolling(a_metric(dryRun=True))
    world.end_analysis_jobs(BAD)
    world.finish()
    assert world.stable_number == 2


def test_a_candidate_that_goes_takes_its_running_jobs_along() -> None:
    world = rolling()
    world.steer(abortToken="stop")
    world.settle()
    assert jobs(world) == []


@pytest.mark.parametrize("steps", [[{"weight": 0, "pause": {}}], [{"weight": 100, "duration": "10s"}]])
def test_a_preview_and_a_step_of_all_requests_owe_what_a_job_says_as_well(steps: list[dict[str, Any]]) -> None:
    world = rolling(a_metric(maximumOfStable="1.1"), steps=steps)
    world.goes_on_for(60)
    assert world.condition("Promoted") == ("Unknown", "AnalysisHolds")
    world.end_analysis_jobs(JobPassed('{"value": 2, "stable": 1}'))
    world.goes_on_for(10)
    assert world.condition("Promoted") == ("False", "AnalysisFailed")
    assert "accuracy is 2 for the candidate, 1 for stable: beyond maximumOfStable 1.1" in world.message("Promoted")


def test_a_job_that_may_not_be_created_is_told_where_the_rollout_is_told() -> None:
    world = rolling(step=None)
    world.up_to_step(0)
    wanted = next(one for one in world.decide().actions if isinstance(one, WantAnalysisJob))
    finding = obstacle_finding(wanted, "QuotaExceeded", "no room")
    assert (finding.type, finding.status, finding.reason) == ("Promoted", "False", "QuotaExceeded")
    while world.condition("Stalled")[0] == "False":
        world.wait(10)
        decision = world.decide()
        if any(isinstance(one, WantAnalysisJob) for one in decision.actions):
            world.status = decision.status(finding)
        else:
            world.look()
            world.accept()
    assert world.condition("Promoted") == ("False", "AnalysisNoData")
    assert "no progress within 0:10:00: no room" in world.message("Promoted")


# ---- ends


def the_criterion(**fields: Any) -> Criterion:
    (found,) = criteria(Analysis.model_validate({"metrics": [a_metric(**fields)]}), weight=10)
    return found


CODES = {"job": {"image": IMAGE, "failExitCodes": [7, 9]}}


@pytest.mark.parametrize(
    ("fields", "state", "verdict"),
    [
        pytest.param({}, JobPassed("anything"), "Pass", id="exit code 0 without a bound needs no number"),
        pytest.param({}, BAD, "Fail", id="exit code 1"),
        pytest.param(CODES, BAD, "ProviderError", id="exit code 1 where others are declared"),
        pytest.param(CODES, JobFailed("ContainerFailed", "9", 9, 5), "Fail", id="a declared exit code"),
        pytest.param({}, JobFailed("OOMKilled", "1", 1, 5), "ProviderError", id="killed for its memory"),
        pytest.param({}, JobFailed("JobDeadlineExceeded", "late", None, 5), "ProviderError", id="too late"),
        pytest.param({"maximumValue": "2"}, BAD, "Fail", id="an exit code says more than a number"),
        pytest.param({"maximumValue": "2"}, JobPassed('{"value": 2}'), "Pass", id="within the bound"),
        pytest.param({"maximumValue": "2"}, JobPassed('{"value": 2.01}'), "Fail", id="beyond the bound, said once"),
        pytest.param({"minimumValue": "0"}, JobPassed('{"value": -1}'), "Fail", id="below zero"),
        pytest.param({"maximumOfStable": "2"}, JobPassed('{"value": 1}'), "NoData", id="nothing of stable"),
        pytest.param({"maximumOfStable": "2"}, JobPassed('{"value": 3, "stable": 1}'), "Fail", id="beyond stable's"),
        pytest.param({"maximumValue": "2"}, JobPassed(""), "NoData", id="no word"),
        pytest.param({"maximumValue": "2"}, JobPassed("{}"), "NoData", id="no number"),
        pytest.param({"maximumValue": "2"}, JobPassed('{"value": NaN}'), "NoData", id="NaN"),
        pytest.param({"maximumValue": "2"}, JobPassed('{"value": 1e999}'), "NoData", id="infinity"),
        pytest.param({"maximumValue": "2"}, JobPassed('{"value": 1%s}' % ("0" * 4000)), "NoData", id="no float"),
        pytest.param({"maximumValue": "2"}, JobPassed('{"value": "1"}'), "ProviderError", id="text"),
        pytest.param({"maximumValue": "2"}, JobPassed('{"value": true}'), "ProviderError", id="a truth"),
        pytest.param({"maximumValue": "2"}, JobPassed('{"value": 1, "stable": []}'), "ProviderError", id="a list"),
        pytest.param({"maximumValue": "2"}, JobPassed('{"value": 1'), "ProviderError", id="cut off"),
        pytest.param({"maximumValue": "2"}, JobPassed("1"), "ProviderError", id="no object"),
        pytest.param({"maximumValue": "2"}, JobPassed("[" * 4096), "ProviderError", id="a deep hole"),
        pytest.param({}, None, "NoData", id="not there yet"),
    ],
)
def test_what_the_end_of_a_job_means(fields: dict[str, Any], state: Any, verdict: str) -> None:
    wanted = the_criterion(**fields)
    run = read_run(wanted, "x", state, None)
    judged = judge(wanted, run.measurement, alpha=1e-4)
    assert judged.verdict == verdict, judged.message
    if run.told is not None:
        assert read_run(wanted, "x", None, run.told) == run, "what was written down is judged the same"


def test_a_job_takes_nothing_of_the_promise() -> None:
    assert the_criterion(maximumValue="2").bounds == 0


def ended(condition: str, reason: str = "") -> dict[str, Any]:
    found = {"type": condition, "status": "True", "reason": reason}
    return {"metadata": {"name": "x", "labels": {}}, "status": {"conditions": [found]}}


def a_pod(exit_code: int, message: str, reason: str = "Error") -> dict[str, Any]:
    state = {"terminated": {"exitCode": exit_code, "message": message, "reason": reason}}
    return {"metadata": {"name": "p"}, "status": {"containerStatuses": [{"name": "main", "state": state}]}}


@pytest.mark.parametrize(
    ("job", "pods", "expected"),
    [
        pytest.param(ended("Complete"), [a_pod(0, '{"value": 1}')], JobPassed('{"value": 1}'), id="a number"),
        pytest.param(ended("Complete"), [], JobPassed(""), id="nobody left to ask"),
        pytest.param(
            ended("Failed", "PodFailurePolicy"),
            [a_pod(1, "moved")],
            JobFailed("ContainerFailed", "pod p ended with exit code 1: moved", 1, 0),
            id="an exit code",
        ),
        pytest.param(
            ended("Failed", "DeadlineExceeded"),
            [],
            JobFailed(
                "JobDeadlineExceeded",
                "the Job did not end within the metric's job.deadline; raise it, or give the Job what it waits for",
                None,
                0,
            ),
            id="too late",
        ),
    ],
)
def test_how_a_job_of_a_metric_stands(job: Any, pods: Any, expected: Any) -> None:
    assert read_analysis_job(job, pods, []) == expected


def test_a_number_without_a_bound_would_be_nothing_to_judge() -> None:
    assert read_run(the_criterion(), "x", JobPassed('{"value": 3}'), None).measurement.outcome is Outcome.PASSED
