"""What a rollout does, told as small stories about the pure core."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from onnx_operator.api.model import OnnxModelStatus
from onnx_operator.api.revision import OnnxModelRevisionStatus
from onnx_operator.api.rollout import MetricName
from onnx_operator.core.actions import WantFetch, WantServers
from onnx_operator.core.analysis import Measurement, Outcome
from onnx_operator.core.counts import Counts
from onnx_operator.core.jobs import JobBlocked, JobRunning, JobSucceeded
from onnx_operator.core.observation import ObjectName
from onnx_operator.core.pods import Trouble
from unit.core.worlds import CPU, World, a_benchmark, a_class, a_digest, a_spec, a_summary, an_evaluation, evaluated

INT8 = {"scheme": "int8-dynamic"}


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def serving(world: World) -> World:
    world.serve_first()
    return world


@pytest.fixture
def canary(serving: World) -> World:
    """Revision 2 has 10 % and its clock runs."""
    serving.change(quantization=INT8)
    serving.up_to_step(0)
    return serving


# ---- the first revision


def test_the_first_write_has_every_condition(world: World) -> None:
    world.look()
    assert [one.type for one in world.status.conditions] == [
        "Ready",
        "Reconciling",
        "Stalled",
        "Accepted",
        "SourceResolved",
        "Converted",
        "Validated",
        "CandidateAvailable",
        "TrafficProgrammed",
        "Promoted",
    ]
    assert world.status.observed_generation == 1


def test_tokens_that_are_there_from_the_start_ask_for_nothing() -> None:
    world = World(spec=a_spec(rollout={"promoteToken": "a", "abortToken": "b", "retryToken": "c"}))
    world.serve_first()
    assert world.status.handled_tokens.model_dump() == {"promote": "a", "abort": "b", "retry": "c"}
    assert world.numbered(1).status.attempt == 0


def test_the_first_revision_takes_all_traffic_without_steps(serving: World) -> None:
    assert serving.weights() == {1: 100}
    assert serving.status.stable is not None
    assert serving.status.stable.weight == 100
    assert serving.numbered(1).status.outcome == "Stable"
    assert serving.message("Ready") == "revision 1 answers all requests at minilm.shop.models.test"


def test_a_settled_model_writes_nothing(serving: World) -> None:
    before = serving.writes
    for _ in range(20):
        serving.wait(60)
        assert serving.look().look_again is None
    assert serving.writes == before


def test_no_route_is_written_before_the_first_servers_are_ready(world: World) -> None:
    for _ in range(4):
        world.settle()
        world.end_jobs()
    world.settle()
    assert world.condition("CandidateAvailable") == ("Unknown", "Starting")
    assert world.split is None


# ---- the steps


def test_a_candidate_is_routed_at_weight_0_with_pins_before_its_first_step(serving: World) -> None:
    serving.change(quantization=INT8)
    for _ in range(5):
        serving.settle()
        serving.end_jobs()
        serving.make_ready()
    serving.settle()
    assert serving.weights() == {1: 100, 2: 0}
    assert serving.split is not None
    assert [pin.track for pin in serving.split.pins] == ["candidate", "stable"]
    assert serving.status.candidate is not None
    assert serving.status.candidate.step is None


def test_servers_that_somebody_deleted_do_not_wait_for_a_job_that_may_be_refused(serving: World) -> None:
    serving.change(source={"persistentVolumeClaim": {"claimName": "checkpoints", "path": "v2"}})
    name = f"{serving.numbered(1).name}-cpu"
    del serving.children[ObjectName("Deployment", name)]
    del serving.servers[serving.numbered(1).name, CPU]
    kinds = [type(one) for one in serving.decide().actions]
    assert kinds.index(WantServers) < kinds.index(WantFetch)


def test_a_steps_clock_starts_when_the_gateway_has_accepted_its_weight(serving: World) -> None:
    serving.change(quantization=INT8)
    serving.measure(0, 1000)
    for _ in range(5):
        serving.settle()
        serving.end_jobs()
        serving.make_ready()
    serving.accept()
    serving.settle()
    assert serving.weights() == {1: 90, 2: 10}
    serving.wait(300)
    serving.settle()
    candidate = serving.status.candidate
    assert candidate is not None
    assert (candidate.step, candidate.step_started_time, candidate.weight) == (0, None, 0)
    serving.accept()
    serving.settle()
    candidate = serving.status.candidate
    assert candidate is not None
    assert candidate.step_started_time is not None
    assert candidate.weight == 10


def test_all_steps_passed_promotes_drains_and_removes_the_old_one(canary: World) -> None:
    canary.finish()
    assert canary.weights() == {2: 100}
    assert {name.name for name in canary.children if name.kind == "Deployment"} == {f"{canary.numbered(2).name}-cpu"}
    assert canary.numbered(1).status.outcome == "Retired"
    assert canary.status.retiring == []


def test_a_rollback_is_over_only_when_what_was_drained_is_gone(canary: World) -> None:
    canary.change(rollout=canary.spec.rollout.model_dump(mode="json", exclude_none=True) | {"abortToken": "stop"})
    canary.look()
    while canary.condition("Reconciling")[0] != "False":
        canary.wait(1)
        canary.accept()
        canary.look()
    assert canary.condition("Stalled") == ("True", "RolledBack")
    assert [name.name for name in canary.children if name.kind == "Deployment"] == [f"{canary.numbered(1).name}-cpu"]


def test_a_step_ends_only_after_a_judgement_that_covers_all_of_it(canary: World) -> None:
    canary.wait(59)
    canary.settle()
    assert canary.status.candidate is not None
    assert canary.status.candidate.step == 0
    canary.wait(1)
    canary.settle()
    assert canary.status.candidate is not None
    assert canary.status.candidate.step == 1


@pytest.mark.parametrize("outcome", [Outcome.NO_DATA, Outcome.PROVIDER_ERROR])
def test_silence_holds_the_step_and_at_the_deadline_gives_the_candidate_up(canary: World, outcome: Outcome) -> None:
    canary.measure_nothing(outcome)
    for _ in range(50):
        canary.wait(10)
        canary.settle()
    assert canary.status.candidate is not None
    assert canary.condition("Promoted") == ("Unknown", "AnalysisHolds")
    assert canary.weights() == {1: 90, 2: 10}
    for _ in range(12):
        canary.wait(10)
        canary.settle()
        canary.accept()
    assert canary.condition("Promoted") == ("False", f"Analysis{outcome}")
    assert canary.condition("Stalled") == ("True", "RolledBack")
    assert canary.weights() == {1: 100}


def test_a_failed_metric_takes_the_traffic_back_at_once_and_says_which(canary: World) -> None:
    canary.measure(500, 1000)
    canary.wait(10)
    canary.settle()
    assert canary.weights() == {1: 100, 2: 0}
    assert canary.condition("Promoted") == ("False", "AnalysisFailed")
    assert canary.condition("Ready") == ("False", "RolledBack")
    assert "errorRatio is 50.00% (500 of 1000)" in canary.message("Promoted")
    assert "revision 1 keeps serving" in canary.message("Ready")
    failure = canary.status.last_failure
    assert failure is not None
    assert (failure.stage, failure.reason, failure.revision) == ("Rollout", "AnalysisFailed", canary.numbered(2).name)


def test_a_rolled_back_candidate_keeps_its_servers_until_it_is_drained(canary: World) -> None:
    canary.measure(500, 1000)
    canary.wait(10)
    canary.settle()
    bad = f"{canary.numbered(2).name}-cpu"
    canary.wait(60)
    canary.settle()
    assert ObjectName("Deployment", bad) in canary.children, "the gateway has not accepted the weight yet"
    canary.accept()
    canary.settle()
    canary.wait(9)
    canary.settle()
    assert ObjectName("Deployment", bad) in canary.children, "the drain is not over"
    canary.wait(1)
    canary.settle()
    assert canary.weights() == {1: 100}
    assert ObjectName("Deployment", bad) in canary.children, "the routes still lead to it"
    canary.accept()
    canary.settle()
    assert ObjectName("Deployment", bad) not in canary.children
    assert canary.condition("Reconciling") == ("False", "Settled")
    assert canary.condition("Stalled") == ("True", "RolledBack")


def test_a_quarantined_revision_is_not_tried_again(canary: World) -> None:
    canary.measure(500, 1000)
    for _ in range(10):
        canary.wait(10)
        canary.settle()
        canary.accept()
    before = canary.writes
    for _ in range(10):
        canary.wait(600)
        canary.settle()
    assert canary.writes == before


def test_a_crash_under_traffic_is_a_rollback_with_the_last_words(canary: World) -> None:
    crash = Trouble("ContainerFailed", "pod x ended with exit code 139", 139, is_crash=True)
    canary.break_servers(canary.numbered(2).name, crash)
    canary.settle()
    assert canary.condition("Promoted") == ("False", "CandidateCrashed")
    assert "exit code 139" in canary.message("Promoted")
    assert canary.weights() == {1: 100, 2: 0}


def test_servers_lost_without_a_crash_take_the_weight_to_0_until_they_are_back(canary: World) -> None:
    canary.break_servers(canary.numbered(2).name, None)
    canary.settle()
    assert canary.weights() == {1: 100, 2: 0}
    assert canary.status.candidate is not None
    canary.accept()
    canary.make_ready()
    canary.settle()
    assert canary.weights() == {1: 90, 2: 10}


def test_a_candidate_that_never_becomes_ready_is_given_up_at_the_deadline(serving: World) -> None:
    serving.change(quantization=INT8)
    for _ in range(4):
        serving.settle()
        serving.end_jobs()
    serving.settle()
    candidate = serving.numbered(2).name
    serving.break_servers(candidate, Trouble("ImagePullFailed", "image triton:1 cannot be pulled"))
    serving.settle()
    assert serving.condition("CandidateAvailable") == ("False", "ImagePullFailed")
    assert serving.weights() == {1: 100}
    serving.wait(601)
    serving.settle()
    assert serving.condition("Stalled") == ("True", "ProgressDeadlineExceeded")
    assert "ImagePullFailed: image triton:1 cannot be pulled" in serving.message("Stalled")
    assert serving.numbered(2).status.outcome == "Failed"


def test_an_artifact_found_corrupt_ends_the_candidate_without_waiting(serving: World) -> None:
    serving.change(quantization=INT8)
    for _ in range(4):
        serving.settle()
        serving.end_jobs()
    serving.settle()
    corrupt = Trouble("ArtifactCorrupt", "model.onnx has changed", 29, is_crash=True, is_final=True)
    serving.break_servers(serving.numbered(2).name, corrupt)
    serving.settle()
    assert serving.condition("Stalled") == ("True", "ArtifactCorrupt")
    assert serving.status.last_failure is not None
    assert serving.status.last_failure.exit_code == 29


def test_a_dry_run_of_a_metric_is_told_and_changes_nothing(canary: World) -> None:
    metrics = [{"name": "errorRatio", "maximum": "0.05", "dryRun": True}]
    canary.change(rollout={"analysis": {"interval": "10s", "metrics": metrics}})
    canary.measure(500, 1000)
    canary.wait(10)
    canary.settle()
    candidate = canary.status.candidate
    assert candidate is not None
    assert candidate.verdict == "Pass"
    assert [(one.verdict, one.dry_run) for one in candidate.analysis] == [("Fail", True)]
    assert canary.weights() == {1: 90, 2: 10}


def test_a_step_rests_on_its_own_metrics_and_tells_the_others(canary: World) -> None:
    metrics = [{"name": "errorRatio", "maximum": "0.05"}, {"name": "disagreement", "maximum": "0.02"}]
    canary.change(
        rollout={
            "analysis": {"interval": "10s", "metrics": metrics},
            "steps": [{"weight": 10, "metrics": []}, {"weight": 50, "metrics": ["errorRatio"]}],
        }
    )
    canary.measure(500, 1000)
    canary.wait(10)
    canary.settle()
    assert canary.status.candidate is not None
    told = [(one.name, one.verdict, one.dry_run) for one in canary.status.candidate.analysis]
    assert told == [("errorRatio", "Fail", True), ("disagreement", "NoData", True)]
    assert canary.status.candidate.verdict == "Pass"
    assert canary.weights() == {1: 90, 2: 10}
    canary.up_to_step(1)
    canary.measure(500, 1000)
    canary.wait(10)
    canary.settle()
    assert canary.condition("Promoted") == ("False", "AnalysisFailed")


def test_a_smaller_promise_asks_for_more_proof(canary: World) -> None:
    metrics = [{"name": "errorRatio", "maximum": "0.05"}]
    canary.change(rollout={"analysis": {"interval": "10s", "maxFalseRollback": "1e-6", "metrics": metrics}})
    canary.measure(20, 100)
    canary.wait(10)
    canary.settle()
    assert canary.status.candidate is not None
    assert canary.status.candidate.verdict == "Inconclusive"
    canary.change(rollout={"analysis": {"interval": "10s", "maxFalseRollback": "0.1", "metrics": metrics}})
    canary.wait(10)
    canary.settle()
    assert canary.condition("Promoted") == ("False", "AnalysisFailed")


def test_evidence_is_carried_from_look_to_look_and_begins_anew_with_each_step(canary: World) -> None:
    def evidence() -> list[tuple[int, bool]]:
        candidate = canary.status.candidate
        assert candidate is not None
        return [(one.candidate_total, float(one.strength) != 0) for told in candidate.analysis for one in told.evidence]

    for total in (1000, 1100, 1200):
        canary.measure(total // 20 + 1, total)
        canary.wait(10)
        canary.settle()
    assert evidence() == [(1200, True)]
    canary.change(rollout={"promoteToken": "", "steps": [{"weight": 10, "duration": "1s"}, {"weight": 50}]})
    canary.measure(0, 1300)
    canary.wait(10)
    canary.settle()
    assert evidence() == []


def test_evidence_of_golden_requests_goes_on_through_all_steps(canary: World) -> None:
    metrics = [{"name": "errorRatio", "maximum": "0.05"}, {"name": "disagreement", "maximum": "0.02"}]
    steps = [{"weight": 10, "duration": "1s"}, {"weight": 50}]
    canary.change(rollout={"steps": steps, "analysis": {"interval": "10s", "metrics": metrics}})
    canary.measure(0, 1000)
    pairs = Measurement(MetricName.DISAGREEMENT, Outcome.MEASURED, Counts(1, 100))
    canary.measured = (*canary.measured, pairs)
    canary.wait(10)
    canary.settle()
    candidate = canary.status.candidate
    assert candidate is not None
    assert candidate.step == 1
    assert [(one.name, one.evidence[0].candidate_total) for one in candidate.analysis] == [("disagreement", 100)]


def in_doubt(canary: World, **analysis: str) -> None:
    """Up to the deadline of the first step with nothing shown."""
    metrics = [{"name": "errorRatio", "maximum": "0.05"}]
    steps = [{"weight": 10, "duration": "1m"}, {"weight": 50}]
    canary.change(rollout={"steps": steps, "analysis": {"interval": "10s", "metrics": metrics, **analysis}})
    canary.measure(1, 60)
    for _ in range(50):
        canary.wait(10)
        canary.settle()
    candidate = canary.status.candidate
    assert candidate is not None
    assert (candidate.step, candidate.verdict) == (0, "Inconclusive")
    assert canary.condition("Promoted") == ("Unknown", "AnalysisHolds")
    for _ in range(60):
        canary.wait(10)
        canary.settle()
        canary.accept()


def test_what_is_to_be_proved_and_is_not_is_given_up_at_the_deadline(canary: World) -> None:
    in_doubt(canary, proof="prove")
    assert canary.condition("Promoted") == ("False", "AnalysisInconclusive")


def test_what_is_in_doubt_at_the_deadline_proceeds_where_that_is_declared(canary: World) -> None:
    in_doubt(canary, proof="prove", onInconclusive="proceed")
    assert canary.status.candidate is not None
    assert canary.status.candidate.step == 1


@pytest.mark.parametrize(
    ("outcome", "limits", "seconds", "reason"),
    [
        (Outcome.NO_DATA, {"noData": "2m"}, 120, "AnalysisNoData"),
        (Outcome.NO_DATA, {"providerError": "2m"}, 600, "AnalysisNoData"),
        (Outcome.NO_DATA, {"noData": "1h"}, 600, "AnalysisNoData"),
        (Outcome.PROVIDER_ERROR, {"providerError": "2m"}, 120, "AnalysisProviderError"),
    ],
)
def test_a_verdict_that_decides_nothing_lasts_as_long_as_its_limit_and_the_deadline_let_it(
    canary: World, outcome: Outcome, limits: dict[str, str], seconds: int, reason: str
) -> None:
    metrics = [{"name": "errorRatio", "maximum": "0.05"}]
    canary.change(rollout={"analysis": {"interval": "10s", "metrics": metrics, "limits": limits}})
    canary.measure_nothing(outcome)
    for _ in range(seconds // 10):
        assert canary.status.candidate is not None
        canary.wait(10)
        canary.settle()
    # Counted from the first look, which is an interval after the step began.
    canary.wait(10)
    canary.settle()
    assert canary.status.candidate is None
    assert canary.condition("Promoted") == ("False", reason)


def test_a_limit_counts_from_the_last_change_of_the_verdict(canary: World) -> None:
    metrics = [{"name": "errorRatio", "maximum": "0.05"}]
    limits = {"noData": "60s", "providerError": "60s"}
    canary.change(rollout={"analysis": {"interval": "10s", "metrics": metrics, "limits": limits}})
    for outcome in (Outcome.NO_DATA, Outcome.PROVIDER_ERROR, Outcome.NO_DATA, Outcome.PROVIDER_ERROR):
        canary.measure_nothing(outcome)
        for _ in range(5):
            canary.wait(10)
            canary.settle()
            assert canary.status.candidate is not None
    canary.wait(10)
    canary.settle()
    canary.wait(10)
    canary.settle()
    assert canary.condition("Promoted") == ("False", "AnalysisProviderError")
    failure = canary.status.last_failure
    assert failure is not None
    assert "ProviderError for 60s, as long as rollout.analysis.limits lets it last: errorRatio" in failure.message


def test_a_limit_does_not_count_while_the_rollout_is_paused(canary: World) -> None:
    metrics = [{"name": "errorRatio", "maximum": "0.05"}]
    analysis = {"interval": "10s", "metrics": metrics, "limits": {"noData": "60s"}}
    canary.change(rollout={"analysis": analysis, "paused": True})
    canary.measure_nothing(Outcome.NO_DATA)
    for _ in range(20):
        canary.wait(10)
        canary.settle()
    canary.change(rollout={"analysis": analysis, "paused": False})
    for _ in range(6):
        canary.settle()
        assert canary.status.candidate is not None
        canary.wait(10)
    canary.settle()
    assert canary.status.candidate is None


def test_what_is_in_doubt_at_its_limit_proceeds_where_that_is_declared(canary: World) -> None:
    metrics = [{"name": "errorRatio", "maximum": "0.05"}]
    steps = [{"weight": 10, "duration": "1m"}, {"weight": 50}]
    analysis = {"interval": "10s", "metrics": metrics, "proof": "prove", "onInconclusive": "proceed"}
    canary.change(rollout={"steps": steps, "analysis": analysis | {"limits": {"inconclusive": "2m"}}})
    canary.measure(1, 60)
    for _ in range(12):
        canary.wait(10)
        canary.settle()
        assert canary.status.candidate is not None
        assert canary.status.candidate.step == 0
    for _ in range(3):
        canary.wait(10)
        canary.settle()
        canary.accept()
    assert canary.status.candidate is not None
    assert canary.status.candidate.step == 1


def test_what_is_proved_harmless_ends_its_step(canary: World) -> None:
    metrics = [{"name": "errorRatio", "maximum": "0.05"}]
    steps = [{"weight": 10, "duration": "10s"}, {"weight": 50}]
    canary.change(rollout={"steps": steps, "analysis": {"interval": "10s", "proof": "prove", "metrics": metrics}})
    canary.measure(0, 1000)
    canary.wait(10)
    canary.settle()
    assert canary.status.candidate is not None
    assert canary.status.candidate.step == 1


# ---- people


def test_paused_holds_the_weight_but_not_the_rollback(canary: World) -> None:
    canary.change(rollout={"paused": True})
    for _ in range(200):
        canary.wait(10)
        canary.settle()
        canary.accept()
    assert canary.weights() == {1: 90, 2: 10}
    assert canary.condition("Promoted") == ("Unknown", "Paused")
    for looks in (1, 2):
        canary.measure(500 * looks, 1000 + 1000 * looks)
        canary.wait(10)
        canary.settle()
    assert canary.weights() == {1: 100, 2: 0}


def test_the_deadline_starts_anew_after_a_pause(canary: World) -> None:
    canary.measure_nothing(Outcome.NO_DATA)
    canary.change(rollout={"paused": True})
    canary.settle()
    canary.wait(3600)
    canary.settle()
    canary.change(rollout={"paused": False})
    canary.settle()
    canary.wait(599)
    canary.settle()
    assert canary.status.candidate is not None
    canary.wait(1)
    canary.settle()
    assert canary.status.candidate is None


def test_a_promote_token_promotes_at_once_and_only_once(canary: World) -> None:
    canary.change(rollout={"promoteToken": "now"})
    canary.settle()
    assert canary.weights() == {1: 0, 2: 100}
    assert canary.stable_number == 2
    assert canary.status.handled_tokens.promote == "now"
    canary.finish()
    canary.change(opset=19)
    canary.up_to_step(0)
    assert canary.weights() == {2: 90, 3: 10}, "the same token does nothing to a later candidate"


def test_a_promote_token_waits_for_a_candidate_that_is_not_ready_yet(serving: World) -> None:
    serving.change(quantization=INT8, rollout={"promoteToken": "now"})
    serving.settle()
    assert serving.status.handled_tokens.promote == "now"
    assert serving.status.candidate is not None
    assert serving.status.candidate.promotion_asked_time is not None, "it is kept for this candidate"
    for _ in range(6):
        serving.settle()
        serving.end_jobs()
        serving.make_ready()
        serving.accept()
    serving.settle()
    assert serving.stable_number == 2
    shares = {tuple(one.weight for one in split.backends) for split in serving.history}
    assert shares == {(100,), (100, 0)}, "no step was taken on the way"


def test_a_promote_token_with_nothing_to_promote_is_spent(serving: World) -> None:
    serving.change(rollout={"promoteToken": "early"})
    serving.settle()
    assert serving.status.handled_tokens.promote == "early"
    serving.change(quantization=INT8)
    serving.up_to_step(0)
    assert serving.weights() == {1: 90, 2: 10}


def test_abort_wins_over_promote(canary: World) -> None:
    canary.change(rollout={"promoteToken": "yes", "abortToken": "no"})
    canary.settle()
    assert canary.stable_number == 1
    assert canary.weights() == {1: 100, 2: 0}
    assert canary.condition("Promoted") == ("False", "Aborted")
    assert canary.status.handled_tokens.model_dump() == {"promote": "yes", "abort": "no", "retry": ""}


def test_an_abort_without_a_candidate_is_spent(serving: World) -> None:
    serving.change(rollout={"abortToken": "stop"})
    serving.settle()
    assert serving.status.handled_tokens.abort == "stop"
    serving.change(quantization=INT8)
    serving.up_to_step(0)
    assert serving.condition("Ready")[1] != "RolledBack"


def test_a_retry_lifts_the_quarantine_fetches_anew_and_keeps_the_artifact(canary: World) -> None:
    canary.measure(500, 1000)
    for _ in range(5):
        canary.wait(10)
        canary.settle()
        canary.accept()
    jobs = set(canary.jobs)
    assert canary.condition("Stalled")[0] == "True"
    assert canary.status.phase == "RolledBack"
    canary.change(rollout={"retryToken": "again"})
    # Who waits for the present spec to end reads every status that was told, the first one too.
    for _ in range(4):
        canary.look()
        assert canary.status.phase not in ("RolledBack", "Failed")
        assert canary.condition("Stalled")[0] == "False"
        assert canary.condition("Reconciling")[0] == "True"
    canary.settle()
    assert list(set(canary.jobs) - jobs) == [name for name in canary.jobs if name.endswith("-fetch")]
    canary.measure(0, 1000)
    canary.finish()
    assert canary.stable_number == 2
    assert canary.numbered(2).status.attempt == 1
    assert not [name for name in canary.jobs if name.endswith("convert-1")]


def test_a_retry_after_a_corrupt_artifact_makes_it_again(serving: World) -> None:
    serving.change(quantization=INT8)
    for _ in range(4):
        serving.settle()
        serving.end_jobs()
    serving.settle()
    corrupt = Trouble("ArtifactCorrupt", "changed", 29, is_crash=True, is_final=True)
    serving.break_servers(serving.numbered(2).name, corrupt)
    serving.settle()
    serving.accept()
    serving.settle()
    serving.change(rollout={"retryToken": "again"})
    serving.measure(0, 1000)
    serving.finish()
    assert [name for name in serving.jobs if name.endswith("-publish-1")]
    assert serving.stable_number == 2


# ---- changes of mind


def test_a_new_spec_in_mid_canary_takes_the_traffic_back_before_the_next_one_starts(canary: World) -> None:
    canary.change(opset=19)
    canary.settle()
    assert canary.weights() == {1: 100, 2: 0}
    assert canary.numbered(2).status.outcome == "Superseded"
    for _ in range(4):
        canary.settle()
        canary.end_jobs()
    third = canary.numbered(3)
    assert canary.condition("CandidateAvailable") == ("Unknown", "WaitingForDrain")
    assert not any(child.revision == third.name and child.kind == "Deployment" for child in canary.children.values())
    canary.finish()
    assert canary.stable_number == 3


def test_the_old_spec_again_in_mid_canary_removes_the_candidate_and_is_ready(canary: World) -> None:
    canary.change(quantization={"scheme": "none"})
    canary.finish()
    assert canary.stable_number == 1
    assert canary.weights() == {1: 100}
    assert canary.status.last_failure is None


def test_an_old_good_spec_comes_back_without_a_second_conversion(canary: World) -> None:
    canary.finish()
    jobs = {name for name in canary.jobs if not name.endswith("-fetch")}
    canary.change(quantization={"scheme": "none"})
    canary.finish()
    assert canary.stable_number == 1
    assert {name for name in canary.jobs if not name.endswith("-fetch")} == jobs
    assert len(canary.revisions) == 2


def test_pods_of_another_size_are_a_new_revision_with_the_same_artifact(serving: World) -> None:
    jobs = {name for name in serving.jobs if not name.endswith("-fetch")}
    serving.change(serving={"resources": {"limits": {"memory": "4Gi"}}})
    serving.measure(0, 1000)
    serving.finish()
    assert serving.stable_number == 2
    assert {name for name in serving.jobs if not name.endswith("-fetch")} == jobs
    shared = serving.numbered(2).status.artifact
    assert shared == serving.numbered(1).status.artifact
    assert shared is not None
    assert shared.page_digest == a_digest("page"), "of the page that was written with it"
    assert shared.golden_digest == a_digest("golden"), "and of the requests that are asked of it"
    assert serving.numbered(2).status.benchmark == serving.numbered(1).status.benchmark != []


def test_more_replicas_scale_the_same_revision(serving: World) -> None:
    serving.change(serving={"replicas": 3})
    serving.settle()
    assert len(serving.revisions) == 1
    assert serving.servers[serving.numbered(1).name, CPU].replicas == 3
    assert serving.condition("Ready")[0] == "False"
    serving.make_ready()
    serving.settle()
    assert serving.condition("Ready") == ("True", "Serving")
    assert ObjectName("PodDisruptionBudget", f"{serving.numbered(1).name}-cpu") in serving.children


def test_a_class_that_changes_its_server_image_is_a_canary_like_any_other(serving: World) -> None:
    serving.classes = (a_class(images={"server": "triton:2"}),)
    serving.up_to_step(0)
    assert serving.weights() == {1: 90, 2: 10}
    assert serving.numbered(2).spec.server_image == "triton:2"


def test_ten_edits_in_a_second_end_in_the_last_one(serving: World) -> None:
    serving.measure(0, 1000)
    for number in range(10):
        serving.change(serving={"threads": number + 2})
        serving.look()
        serving.look()
        serving.look()
    serving.finish(looks=120)
    stable = serving.status.stable
    assert stable is not None
    assert serving.revisions[stable.revision].spec.threads == 11
    assert [name for name, state in serving.jobs.items() if isinstance(state, JobRunning)] == []


def test_the_same_bytes_from_another_place_are_the_same_revision(serving: World) -> None:
    serving.change(source={"persistentVolumeClaim": {"claimName": "elsewhere"}})
    serving.finish()
    assert list(serving.revisions) == [serving.numbered(1).name]


def test_revisions_beyond_the_history_limit_go_oldest_first(serving: World) -> None:
    serving.measure(0, 1000)
    serving.change(revisionHistoryLimit=1)
    for threads in (2, 3, 4):
        serving.change(serving={"threads": threads})
        serving.finish()
    assert sorted(one.spec.number for one in serving.revisions.values()) == [3, 4]


# ---- what goes wrong before there is traffic


@pytest.mark.parametrize(
    ("job", "reason", "condition"),
    [
        ("-convert-", "ExportFailed", "Converted"),
        ("-validate-cpu-", "ParityFailed", "Validated"),
        ("-publish-", "DiskFull", "CandidateAvailable"),
    ],
)
def test_a_failed_stage_stalls_with_its_own_reason_while_stable_serves(
    serving: World, job: str, reason: str, condition: str
) -> None:
    serving.change(quantization=INT8)
    for _ in range(8):
        serving.settle()
        if any(job in name and serving.numbered(2).name in name for name in serving.jobs):
            break
        serving.end_jobs()
    name = next(name for name in serving.jobs if job in name and serving.numbered(2).name in name)
    serving.fail_job(name, reason)
    serving.settle()
    assert serving.condition(condition) == ("False", reason)
    assert serving.condition("Stalled") == ("True", reason)
    assert serving.condition("TrafficProgrammed") == ("True", "TrafficProgrammed")
    assert serving.weights() == {1: 100}
    failure = serving.status.last_failure
    assert failure is not None
    assert failure.exit_code == 27
    assert failure.logs == f"kubectl logs --namespace shop job/{name}"


def test_a_failed_fetch_stalls_and_another_source_recovers(world: World) -> None:
    world.settle()
    world.fail_job("-fetch", "PickleRefused", 14)
    world.settle()
    assert world.condition("SourceResolved") == ("False", "PickleRefused")
    assert world.condition("Stalled") == ("True", "PickleRefused")
    assert world.status.phase == "Failed"
    world.change(source={"persistentVolumeClaim": {"claimName": "checkpoints", "path": "v2"}})
    world.serve_first()


def test_a_blocked_job_says_so_and_goes_on_by_itself(world: World) -> None:
    world.settle()
    (name,) = world.jobs
    world.jobs[name] = JobBlocked("Unschedulable", "0/1 nodes are available: insufficient memory")
    world.settle()
    assert world.condition("SourceResolved") == ("False", "Unschedulable")
    assert world.condition("Reconciling") == ("True", "Unschedulable")
    assert world.condition("Stalled")[0] == "False"
    world.jobs[name] = JobRunning("runs")
    world.serve_first()


def test_a_job_that_ran_out_of_time_says_what_it_waited_for(world: World) -> None:
    world.settle()
    (name,) = world.jobs
    world.jobs[name] = JobBlocked("Unschedulable", "no node has a GPU")
    world.settle()
    world.fail_job("-fetch", "JobDeadlineExceeded", None)
    world.settle()
    assert world.condition("Stalled") == ("True", "JobDeadlineExceeded")
    assert "it was waiting: no node has a GPU" in world.message("Stalled")


def test_a_second_attempt_replaces_the_parity_of_the_first(world: World) -> None:
    for _ in range(3):
        world.settle()
        world.end_jobs()
    world.settle()
    world.fail_job("-publish-", "DiskFull", 31)
    world.settle()
    world.change(rollout={"retryToken": "again"})
    world.serve_first()
    assert len(world.numbered(1).status.parity) == 1
    assert len(world.numbered(1).status.benchmark) == 1
    assert world.numbered(1).status.attempt == 1


def test_how_fast_the_graph_is_stands_in_the_revision_word_for_word(world: World) -> None:
    world.serve_first()
    status = world.numbered(1).status
    assert [one.model_dump(mode="json", exclude_none=True) for one in status.benchmark] == [a_benchmark(CPU)]


@pytest.mark.parametrize("told", [None, [1], {"cells": [{"batch": 0}]}, {"threads": "many"}], ids=str)
def test_a_benchmark_that_makes_no_sense_is_told_and_the_graph_is_proved_all_the_same(world: World, told: Any) -> None:
    world.timed = {"benchmark": told}
    world.serve_first()
    (found,) = world.numbered(1).status.benchmark
    assert found.provider == CPU
    assert "makes no sense" in (found.message or "")
    assert world.condition("Ready")[0] == "True"


def test_without_a_benchmark_the_revision_has_none(world: World) -> None:
    world.timed = {}
    world.serve_first()
    assert world.numbered(1).status.benchmark == []


def test_what_was_lost_of_the_quality_stands_in_the_revision_and_another_spec_for_the_pods_has_it_too(
    world: World,
) -> None:
    world.change(validation={"evaluations": [evaluated("sts"), evaluated("search", "retrievalNdcg10")]})
    world.serve_first()
    told = [
        {"provider": CPU, "metric": metric, "maxLoss": "0.01", **an_evaluation(name)}
        for name, metric in (("search", "retrievalNdcg10"), ("sts", "stsSpearman"))
    ]
    status = world.numbered(1).status
    found = [one.model_dump(mode="json", exclude_none=True) for one in status.evaluations]
    assert found == told
    assert "sts on CPUExecutionProvider: loss 0.00289" in world.message("Validated")
    world.change(serving={"resources": {"limits": {"memory": "4Gi"}}})
    world.measure(0, 1000)
    world.finish()
    assert world.numbered(2).status.evaluations == status.evaluations


def test_what_auto_takes_is_told_with_all_that_it_tried(world: World) -> None:
    tried = [
        {"scheme": "none", "reason": "Validated", "loss": "1e-12", "speedup": "2", "sizeBytes": 400},
        {"scheme": "int8-dynamic", "reason": "Validated", "loss": "0.008", "speedup": "4", "sizeBytes": 110},
        {"scheme": "int4-weight-only", "reason": "ParityFailed"},
    ]
    world.change(quantization={"scheme": "auto"})
    world.timed |= {"scheme": "int8-dynamic", "schemes": tried}
    world.serve_first()
    status = world.numbered(1).status
    found = [one.model_dump(mode="json", exclude_none=True) for one in status.quantization]
    assert found == [{"provider": CPU, "scheme": "int8-dynamic", "schemes": tried}]
    assert "CPUExecutionProvider: auto takes int8-dynamic, " in world.message("Validated")


def test_auto_that_does_not_tell_what_it_takes_is_not_proved(world: World) -> None:
    world.change(quantization={"scheme": "auto"})
    for _ in range(4):
        world.settle()
        world.end_jobs()
    world.settle()
    assert world.condition("Stalled") == ("True", "ResultUnreadable")


UNTOLD = {
    "nothing": None,
    "no list": {"sts": 1},
    "of another": [an_evaluation("search")],
    "of one more": [an_evaluation("sts"), an_evaluation("search")],
    "no numbers": [{"name": "sts"}],
    "no objects": [1],
}


@pytest.mark.parametrize("told", UNTOLD.values(), ids=UNTOLD.keys())
def test_an_evaluation_that_was_declared_and_not_told_is_not_proved(world: World, told: Any) -> None:
    world.change(validation={"evaluations": [evaluated("sts")]})
    for _ in range(2):
        world.settle()
        world.end_jobs()
    world.settle()
    (name,) = [name for name in world.jobs if "-validate-" in name]
    summary = a_summary("validate", provider=CPU, parity={"minCosine": "1"}, samples=300, evaluations=told)
    world.jobs[name] = JobSucceeded(summary, 7)
    world.settle()
    assert world.condition("Stalled") == ("True", "ResultUnreadable")


def test_without_the_right_to_read_the_gateway_no_step_begins_and_the_right_is_named(serving: World) -> None:
    serving.classes = (a_class(rollout={"analysis": {"metrics": [{"name": "disagreement", "maximum": "0.1"}]}}),)
    serving.gateway, serving.gateway_problem = None, 'cannot get resource "gateways"'
    serving.change(quantization=INT8)
    for _ in range(6):
        serving.settle()
        serving.end_jobs()
        serving.make_ready()
        serving.accept()
    serving.settle()
    assert serving.condition("TrafficProgrammed") == ("False", "Forbidden")
    assert serving.weights() == {1: 100, 2: 0}
    serving.gateway_problem = ""
    serving.settle()
    assert serving.condition("TrafficProgrammed") == ("False", "GatewayNotProgrammed")


def test_of_several_default_classes_the_choice_is_told(world: World) -> None:
    world.classes = (*world.classes, replace(a_class(), name="newer", created="2026-02-01T00:00:00Z"))
    world.settle()
    assert "of the default classes newer, standard it is the newest" in world.message("Accepted")


def test_a_source_that_changes_in_mid_canary_takes_the_candidate_out_before_it_is_fetched(canary: World) -> None:
    canary.change(source={"persistentVolumeClaim": {"claimName": "checkpoints", "path": "v2"}})
    canary.settle()
    assert canary.status.candidate is None
    assert canary.weights() == {1: 100, 2: 0}


def test_an_unacceptable_spec_leaves_stable_alone(canary: World) -> None:
    canary.change(serving={"replicas": 50})
    canary.settle()
    assert canary.condition("Accepted") == ("False", "ReplicasAboveLimit")
    assert canary.condition("Stalled") == ("True", "ReplicasAboveLimit")
    assert canary.weights() == {1: 100, 2: 0}
    assert canary.servers[canary.numbered(1).name, CPU].replicas == 1


def test_a_class_that_vanishes_freezes_everything_where_it_is(canary: World) -> None:
    classes, canary.classes = canary.classes, ()
    before = canary.split
    canary.wait(3600)
    canary.settle()
    assert canary.condition("Accepted") == ("False", "ClassNotFound")
    assert canary.split == before
    assert canary.status.candidate is not None
    canary.classes = classes
    canary.settle()
    assert canary.condition("Accepted") == ("True", "Accepted")


# ---- things people do by hand


def test_a_deleted_deployment_of_stable_comes_back(serving: World) -> None:
    name = ObjectName("Deployment", f"{serving.numbered(1).name}-cpu")
    del serving.children[name], serving.servers[serving.numbered(1).name, CPU]
    serving.settle()
    assert name in serving.children
    assert serving.condition("Ready") == ("False", "Starting")
    serving.make_ready()
    serving.settle()
    assert serving.condition("Ready") == ("True", "Serving")


def test_a_deleted_record_of_stable_is_made_again_with_its_number_and_artifact(serving: World) -> None:
    revision = serving.numbered(1)
    digest = revision.status.artifact
    serving.lose_record(revision.name)
    jobs = set(serving.jobs)
    serving.finish()
    again = serving.numbered(1)
    assert again.name == revision.name
    assert again.status.artifact is not None
    assert digest is not None
    assert again.status.artifact.digest == digest.digest
    assert set(serving.jobs) == jobs


def test_a_lost_status_is_found_again_in_the_routes(canary: World) -> None:
    canary.status = OnnxModelStatus()
    canary.settle()
    assert canary.stable_number == 1
    assert canary.weights() in ({1: 100}, {1: 100, 2: 0}, {1: 90, 2: 10})
    canary.finish()


@pytest.mark.parametrize("is_model_lost_too", [False, True])
def test_servers_outlive_the_loss_of_everything_that_was_written_down(canary: World, is_model_lost_too: bool) -> None:  # noqa: FBT001
    for name, revision in canary.revisions.items():
        canary.revisions[name] = replace(revision, status=OnnxModelRevisionStatus())
    if is_model_lost_too:
        canary.status = OnnxModelStatus()
    for _ in range(5):
        canary.settle()
        assert {f"{canary.numbered(number).name}-cpu" for number in (1, 2)} == {
            name.name for name in canary.children if name.kind == "Deployment"
        }
        canary.wait(60)


def test_an_edited_weight_is_put_back(canary: World) -> None:
    wanted = canary.split
    canary.split = canary.history[0]
    canary.settle()
    assert canary.split == wanted


def test_a_job_without_a_pod_is_looked_at_again_soon(world: World) -> None:
    world.settle()
    (name,) = world.jobs
    world.jobs[name] = JobRunning("waits for its pod", has_pod=False)
    world.settle()
    assert world.look().look_again == 10
