"""Other ways for a version to take over, under traffic: a preview, a shadow, without one server more, a freeze window,
a bake. None loses a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tritonclient.http

from demo import texts
from demo.site import gateway_of
from demo.waiting import until
from e2e.rollouts import (
    QUICK,
    assert_nothing_lost,
    declare,
    declare_new,
    declared,
    finish,
    other_version,
    stable_version,
    tensors,
    until_model,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

    from demo.model import Model
    from demo.scenario import Stage
    from demo.site import Site
    from onnx_operator.api.model import StableStatus

ASKED = 20
SHORT = 24
"""A third of the texts have more tokens."""


def begin(stage: Stage, **rollout: Any) -> StableStatus:
    """Declare the other good version; the one that serves until then."""
    before = stage.model().status.stable
    assert before is not None
    declare(stage, declared(other_version(stage), **rollout))
    return before


def steer(stage: Stage, **rollout: str) -> None:
    stage.kubectl.patch("onnxmodel", stage.name, {"spec": {"rollout": rollout}})


def versions_that_answer(cluster: Site, stage: Stage, headers: Mapping[str, str]) -> set[int]:
    """The numbers of the revisions that answer requests with these headers."""
    endpoint, gateway = stage.model().status.endpoint, gateway_of(cluster)
    assert endpoint is not None
    (inputs,) = texts.tokenised(texts.texts(1))
    asked = tensors(tritonclient.http, inputs)
    with tritonclient.http.InferenceServerClient(f"{gateway.address}:{gateway.http_port}") as client:
        sent = {"Host": endpoint.host, **headers}
        answers = [client.infer(stage.name, asked, headers=sent) for _ in range(ASKED)]
    return {int(answer.get_response()["model_version"]) for answer in answers}


def test_a_preview_is_reached_by_its_header_alone_until_a_person_promotes_it(cluster: Site, serving: Stage) -> None:
    before = begin(serving, steps=[{"weight": 0, "pause": {}}])
    held = until_model(
        serving, "the preview to wait for a person", lambda it: it.reason("Promoted") == "WaitingForPromoteToken"
    )
    candidate = held.status.candidate
    assert candidate is not None
    assert candidate.weight == 0
    for name in ({"x-onnx-track": "candidate"}, {"x-onnx-version": str(candidate.number)}):
        assert versions_that_answer(cluster, serving, name) == {candidate.number}
    assert versions_that_answer(cluster, serving, {}) == {before.number}

    steer(serving, promoteToken="the preview is good")
    end = finish(serving)

    assert end.is_promoted, end.message("Ready")
    assert versions_that_answer(cluster, serving, {}) == {candidate.number}
    assert_nothing_lost(serving)


def test_a_shadow_is_judged_on_copies_of_the_traffic_and_answers_nobody(cluster: Site, serving: Stage) -> None:
    before = begin(serving, steps=[{"weight": 0, "mirror": 50, "pause": {}}, *QUICK])
    held = until_model(
        serving, "the shadow to pass its analysis", lambda it: it.reason("Promoted") == "WaitingForPromoteToken"
    )
    candidate = held.status.candidate
    assert candidate is not None
    assert (candidate.weight, candidate.mirror) == (0, 50)
    judged = {str(metric.name): metric for metric in candidate.analysis}
    assert min(judged["errorRatio"].candidate_samples, judged["errorRatio"].stable_samples) >= 40
    assert versions_that_answer(cluster, serving, {}) == {before.number}

    steer(serving, promoteToken="the shadow is good")
    end = finish(serving)

    assert end.is_promoted, end.message("Ready")
    assert_nothing_lost(serving)


def test_both_versions_are_asked_the_teams_own_requests_once_these_are_found(serving: Stage) -> None:
    def asking(config_map: str) -> dict[str, Any]:
        analysis = declared("v1")["spec"]["rollout"]["analysis"]
        steps = [{"weight": 0, "mirror": 50, "duration": "5s"}, *QUICK]
        return {"steps": steps, "analysis": {**analysis, "goldenRequests": {"configMap": {"name": config_map}}}}

    begin(serving, **asking("nowhere"))
    missing = "the last one ended: /golden/nowhere/golden.json cannot be read"
    until_model(serving, "the missing requests to be told", lambda it: missing in disagreement(it)[0])

    questions = {"golden.json": texts.as_json(10)}
    serving.kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "questions"}, "data": questions}
    )
    begin(serving, **asking("questions"))
    until_model(serving, "answers to be compared", lambda it: disagreement(it)[1])
    end = finish(serving)

    assert end.is_promoted, end.message("Ready")
    assert_nothing_lost(serving)


def disagreement(model: Model) -> tuple[str, int]:
    """What the analysis says of golden requests, and how many were answered by both."""
    found = model.status.candidate.analysis if model.status.candidate else ()
    return next(((one.message, one.candidate_samples) for one in found if one.name == "disagreement"), ("", 0))


def test_a_slow_version_is_rolled_back_from_its_shadow_without_having_answered_anybody(serving: Stage) -> None:
    stable, counted = serving.model().status.stable, serving.counters()
    assert stable is not None
    slow = declared("v3a", steps=[{"weight": 0, "mirror": 20, "duration": "1m"}, *QUICK])
    slow["spec"]["serving"]["instances"] = 2  # a revision of its own: that of the story is in quarantine
    declare_new(serving, slow)
    end = finish(serving)

    assert end.is_given_up
    assert end.reason("Promoted") == "AnalysisFailed"
    assert "at 0 %, with a mirror of 20 % of the traffic" in end.message("Promoted")
    seen = serving.counters() - counted
    assert seen.failed == seen.errors == 0, seen.failures
    assert all(stable.revision in upstream for upstream, answers in seen.by_upstream.items() if answers.good), seen


def test_where_there_is_no_room_for_one_more_server_the_two_versions_share_those_that_there_are(
    serving: Stage,
) -> None:
    scarce = {"maxSurge": 0, "maxUnavailable": 1}
    for key, steps in ((stable_version(serving), QUICK), (other_version(serving), [{"weight": 50, "duration": "10s"}])):
        manifest = declared(key, **scarce, steps=steps)
        manifest["spec"]["serving"]["replicas"] = 2
        declare(serving, manifest)
        if key == stable_version(serving):
            assert finish(serving).is_promoted
    seen = []

    def rests() -> Model | None:
        model = serving.model()
        seen.append((model.candidate_weight, servers(serving)))
        return model if model.is_promoted or model.is_given_up else None

    end = until("the rollout to rest", rests, seconds=240, every=0.5)

    assert end.is_promoted, end.message("Ready")
    assert max(servers for _, servers in seen) == 2
    assert {0, 50} <= {weight for weight, _ in seen}
    assert_nothing_lost(serving)


def servers(stage: Stage) -> int:
    """Pods that serve or will, of every version of the model."""
    selector = f"onnx-operator.io/model={stage.name},onnx-operator.io/component=server"
    return sum("deletionTimestamp" not in pod["metadata"] for pod in stage.kubectl.list("pods", selector=selector))


def test_in_a_freeze_window_a_candidate_gets_no_traffic_until_the_window_is_taken_away(serving: Stage) -> None:
    always = [{"schedule": "* * * * *", "duration": "2m"}]
    begin(serving, steps=QUICK, freezeWindows=always)
    frozen = until_model(serving, "the freeze to hold it", lambda it: it.reason("Promoted") == "Frozen")
    assert frozen.candidate_weight == 0
    assert not frozen.holds("Stalled")

    begin(serving, steps=QUICK)
    end = finish(serving)

    assert end.is_promoted, end.message("Ready")
    assert_nothing_lost(serving)


def test_a_version_aborted_while_it_bakes_gives_all_traffic_back_to_the_warm_one(cluster: Site, serving: Stage) -> None:
    before = begin(serving, steps=QUICK, bake={"duration": "10m"})
    baking = until_model(serving, "the bake", lambda it: it.candidate_weight == 100)
    candidate, warm = baking.status.candidate, baking.status.stable
    assert candidate is not None
    assert warm is not None
    assert candidate.baking
    assert (warm.revision, warm.weight) == (before.revision, 0)
    assert warm.ready_replicas >= 1
    assert versions_that_answer(cluster, serving, {}) == {candidate.number}

    steer(serving, abortToken="not in the bake")
    end = finish(serving)

    assert end.is_given_up
    assert end.reason("Promoted") == "Aborted"
    assert versions_that_answer(cluster, serving, {}) == {before.number}

    begin(serving, steps=QUICK, retryToken="now it may")
    assert finish(serving).is_promoted
    assert_nothing_lost(serving)


def test_a_version_that_is_too_slow_at_half_of_the_traffic_only_is_taken_back_there(serving: Stage) -> None:
    before = stable_version(serving)
    cramped = declared(
        other_version(serving),
        steps=[{"weight": 2, "duration": "10s"}, {"weight": 50, "duration": "30s"}],
        analysis={
            "interval": "2s",
            "minimumSamples": 5,
            "metrics": [{"name": "slowRatio", "slowerThan": "1s", "maximum": "0.2"}],
        },
    )
    # Four requests a second find all of the CPU that they need, and a hundred do not.
    cpu = "50m"
    cramped["spec"]["serving"]["resources"] = {
        "requests": {"cpu": cpu, "memory": "256Mi"},
        "limits": {"cpu": cpu, "memory": "1Gi"},
    }
    declare(serving, cramped)
    seen = until_model(serving, "half of the traffic", lambda it: it.candidate_weight == 50)
    assert seen.status.candidate is not None
    end = finish(serving)

    assert end.is_given_up
    assert end.reason("Promoted") == "AnalysisFailed"
    assert end.status.last_failure is not None
    assert "at 50 % of the traffic, slowRatio" in end.status.last_failure.message
    assert stable_version(serving) == before
    assert_nothing_lost(serving)


def test_a_version_whose_vectors_moved_is_taken_back_and_fails_nobody(serving: Stage) -> None:
    before = stable_version(serving)
    declare_new(serving, declared("v3c"))
    end = finish(serving)

    assert end.is_given_up
    assert end.reason("Promoted") == "AnalysisFailed"
    assert "disagreement" in end.message("Promoted")
    assert stable_version(serving) == before
    assert_nothing_lost(serving)
    assert not serving.counters().errors


def test_a_version_that_answers_a_third_with_errors_is_taken_back_and_how_long_it_did_harm_is_told(
    serving: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stable_version(serving)
    broken = declared("v3b", steps=[{"weight": 50, "duration": "30s"}])
    broken["spec"]["maxSequenceLength"] = SHORT
    declare_new(serving, broken)
    end = finish(serving)

    assert end.is_given_up
    assert end.reason("Promoted") == "AnalysisFailed"
    assert stable_version(serving) == before
    assert end.status.last_failure is not None
    answers = serving.counters().of_revision(str(end.status.last_failure.revision))
    asked = answers.good + answers.errors
    assert answers.errors > asked / 5
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{answers.errors} of {asked} requests answered with an error at 50 %; {answers.harm_seconds:.1f} s from "
            f"the first of them to the last answer. {end.status.last_failure.message}"
        )
    assert_nothing_lost(serving)
