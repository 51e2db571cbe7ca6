"""What a class lets through, and what follows where a spec says nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from onnx_operator.api.model import OnnxModelStatus
from onnx_operator.core.acceptance import Offer, Refusal, accept, choose_class
from onnx_operator.core.observation import ClassSeen, ModelSeen
from unit.core.worlds import a_class, a_spec

COMMIT = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"


def hub(revision: str) -> dict[str, Any]:
    return {"huggingFace": {"repository": "a/b", "revision": revision}}


CHECKS = {"limits": {"allowedAnalysisImages": ["registry.example/checks", "registry.example:5000/team/", "python"]}}


ALLOWED_JOBS: dict[str, dict[str, Any]] = {
    "of an allowed repository": {},
    "of one below it": {"image": "registry.example/checks/accuracy@sha256:00"},
    "of an allowed folder": {"image": "registry.example:5000/team/any"},
    "of an allowed image of Docker's own": {"image": "python:3.13"},
    "as large and as long as allowed": {
        "deadline": "15m",
        "resources": {"requests": {"cpu": "0.5"}, "limits": {"cpu": "500m", "memory": "1024Mi"}},
    },
}
REFUSED_JOBS: dict[str, dict[str, Any]] = {
    "job.image": {"image": "registry.example/checks-of-others:1"},
    "job.image is registry.example/checks:5000/other": {"image": "registry.example/checks:5000/other"},
    "job.image is python/any": {"image": "python/any"},
    "job.deadline is 16m, above the limits.maxAnalysisDeadline of 15m": {"deadline": "16m"},
    "job.resources.limits asks for 2Gi of memory, above": {"resources": {"limits": {"memory": "2Gi"}}},
    "asks for 1 of x.com/gpu, above": {"resources": {"requests": {"x.com/gpu": "1"}}},
}


def measured_by(**job: Any) -> dict[str, Any]:
    metric = {"name": "accuracy", "job": {"image": "registry.example/checks:1"} | job}
    return {"analysis": {"metrics": [metric]}}


def judged(spec: dict[str, Any], **class_spec: Any) -> Offer | Refusal:
    model = ModelSeen("shop", "minilm", "uid", 1, "1", a_spec(**spec), OnnxModelStatus())
    return accept(model, (a_class(**class_spec),))


ON_A_CLAIM = {
    "name": "sts",
    "metric": "stsSpearman",
    "dataset": {"persistentVolumeClaim": {"claimName": "data", "path": "sts.jsonl"}, "digest": "sha256:" + "ab" * 32},
    "maxLoss": "0.01",
}
PROGRAMS = {"evaluations": [{**ON_A_CLAIM, "metric": "passAtK"}]}
ON_A_HUB = {"repository": "someone/pairs", "revision": COMMIT, "path": "test.jsonl"}


def hub_data(revision: str = COMMIT) -> dict[str, Any]:
    dataset = {"huggingFace": {**ON_A_HUB, "revision": revision}, "digest": "sha256:" + "ab" * 32}
    return {"evaluations": [{**ON_A_CLAIM, "dataset": dataset}]}


TEXTS = {"persistentVolumeClaim": {"claimName": "texts", "path": "shop.txt"}, "digest": "sha256:" + "ab" * 32}


@pytest.mark.parametrize(
    ("spec", "class_spec"),
    [
        pytest.param({}, {}, id="the smallest spec"),
        pytest.param({"source": hub(COMMIT)}, {}, id="a commit"),
        pytest.param(
            {"source": hub("main")},
            {"sources": {"huggingFace": {"allowMutableRevisions": True}}},
            id="a branch where the class allows it",
        ),
        pytest.param({"validation": hub_data()}, {}, id="data of a hub by its commit"),
        pytest.param(
            {"task": "text-generation", "validation": PROGRAMS},
            {"validation": {"runGeneratedCode": True}},
            id="programs of a model where the class allows it",
        ),
        pytest.param(
            {"validation": hub_data("main")},
            {"sources": {"huggingFace": {"allowMutableRevisions": True}}},
            id="data of a branch where the class allows it",
        ),
        pytest.param({"serving": {"replicas": 10}}, {}, id="as many replicas as allowed"),
        pytest.param(
            {"serving": {"replicas": 4}, "rollout": {"maxSurge": 0, "maxUnavailable": 1}}, {}, id="no server to spare"
        ),
        pytest.param(
            {"rollout": {"maxSurge": 0, "maxUnavailable": 1, "steps": [{"weight": 100}]}}, {}, id="one server in all"
        ),
        pytest.param(
            {"serving": {"replicas": 4}, "rollout": {"maxUnavailable": "25%"}},
            {"rollout": {"maxSurge": "0%", "maxUnavailable": 1}},
            id="a surge of the class with the model's own of what may be missing",
        ),
        pytest.param(
            {"rollout": {"progressDeadline": "30s", "steps": [{"weight": 5, "pause": {}}]}},
            {},
            id="a step with pause under any deadline",
        ),
        *(
            pytest.param({"rollout": measured_by(**job)}, CHECKS, id=f"a Job: {words}")
            for words, job in ALLOWED_JOBS.items()
        ),
    ],
)
def test_the_class_lets_this_through(spec: dict[str, Any], class_spec: dict[str, Any]) -> None:
    assert isinstance(judged(spec, **class_spec), Offer)


@pytest.mark.parametrize(
    ("spec", "class_spec", "reason", "words"),
    [
        pytest.param(
            {"source": hub(COMMIT)},
            {"sources": {"allowed": ["persistentVolumeClaim"]}},
            "SourceNotAllowed",
            "spec.source.huggingFace is not allowed by OnnxModelClass standard",
            id="a kind of source that is not allowed",
        ),
        pytest.param(
            {"source": hub(COMMIT), "quantization": {"scheme": "int8-static", "calibration": TEXTS}},
            {"sources": {"allowed": ["huggingFace"]}},
            "SourceNotAllowed",
            "spec.quantization.calibration.persistentVolumeClaim is not allowed by OnnxModelClass standard",
            id="texts on a claim where no claims are allowed",
        ),
        pytest.param(
            {"source": hub(COMMIT), "validation": {"evaluations": [ON_A_CLAIM]}},
            {"sources": {"allowed": ["huggingFace"]}},
            "SourceNotAllowed",
            "spec.validation.evaluations[sts].dataset.persistentVolumeClaim is not allowed by OnnxModelClass standard",
            id="data on a claim where no claims are allowed",
        ),
        pytest.param(
            {"validation": hub_data()},
            {"sources": {"allowed": ["persistentVolumeClaim"]}},
            "SourceNotAllowed",
            "spec.validation.evaluations[sts].dataset.huggingFace is not allowed by OnnxModelClass standard",
            id="data of a hub where no hubs are allowed",
        ),
        pytest.param(
            {"task": "text-generation", "validation": PROGRAMS},
            {},
            "GeneratedCodeNotAllowed",
            "spec.validation.evaluations[sts].metric passAtK runs programs that the model writes, and "
            "validation.runGeneratedCode of OnnxModelClass standard is false: leave the evaluation out",
            id="programs of a model",
        ),
        pytest.param(
            {"validation": hub_data("main")},
            {},
            "MutableRevisionNotAllowed",
            "spec.validation.evaluations[sts].dataset.huggingFace.revision is 'main', a branch or tag",
            id="data of a branch",
        ),
        pytest.param(
            {"source": hub("main")}, {}, "MutableRevisionNotAllowed", "'main', a branch or tag", id="a branch"
        ),
        pytest.param(
            {"source": hub(COMMIT[:39])}, {}, "MutableRevisionNotAllowed", "40 hexadecimal digits", id="a short commit"
        ),
        pytest.param(
            {"rollout": measured_by()},
            {},
            "AnalysisJobNotAllowed",
            "metrics[name=accuracy].job.image is registry.example/checks:1, not among the limits.allowedAnalysisImages "
            "(none) of OnnxModelClass standard; whoever may change that class can allow it",
            id="a Job where none is allowed",
        ),
        *(
            pytest.param(
                {"rollout": measured_by(**job)}, CHECKS, "AnalysisJobNotAllowed", words, id=f"a Job with {words}"
            )
            for words, job in REFUSED_JOBS.items()
        ),
        pytest.param(
            {
                "rollout": {"maxSurge": 0, "maxUnavailable": 1, "steps": [{"weight": 100}]}
                | {"analysis": {"metrics": [measured_by()["analysis"]["metrics"][0] | {"maximumOfStable": "1.1"}]}}
            },
            CHECKS,
            "StepWithoutRoom",
            "so accuracy has nothing to compare with",
            id="a Job that compares with a stable that has no servers",
        ),
        pytest.param(
            {"executionProviders": [{"name": "CUDAExecutionProvider"}]},
            {},
            "ExecutionProviderNotOffered",
            "it offers CPUExecutionProvider",
            id="a provider that is not offered",
        ),
        pytest.param(
            {"serving": {"replicas": 11}},
            {},
            "ReplicasAboveLimit",
            "spec.serving.replicas is 11, above the limit of 10",
            id="too many replicas",
        ),
        pytest.param(
            {"serving": {"replicas": 10}, "rollout": {"maxSurge": 0, "maxUnavailable": 1}},
            {},
            "StepWithoutRoom",
            "rollout step 1 takes 12 servers per execution provider, and serving.replicas of 10 with maxSurge and "
            "maxUnavailable of 0 and 1 allows 10; a maxSurge of 3 is enough for all steps, or take smaller steps "
            "(what the model leaves unset comes from OnnxModelClass standard)",
            id="a step that is too high for the room there is",
        ),
        pytest.param(
            {"rollout": {"maxSurge": 0, "maxUnavailable": 1}},
            {},
            "StepWithoutRoom",
            "the only step can be one of weight 100, with a maxUnavailable of 1",
            id="one server in all, shared",
        ),
        pytest.param(
            {"rollout": {"steps": [{"weight": 50, "metrics": ["errorRatio", "slowRatio"]}]}},
            {},
            "StepWithoutMetric",
            "rollout step 0 rests on the metric slowRatio, and there is none of this name in rollout.analysis.metrics; "
            "there is errorRatio (what the model leaves unset",
            id="a step that rests on a metric that is not measured",
        ),
        pytest.param(
            {"serving": {"replicas": 4}, "rollout": {"steps": [{"weight": 50, "replicas": 1}]}},
            {},
            "StepWithoutRoom",
            "rollout step 0 has replicas: 1, but 50 % of the requests need 2 of 4 servers",
            id="a step with too few replicas",
        ),
        pytest.param(
            {"serving": {"replicas": 2}, "rollout": {"maxSurge": 0, "maxUnavailable": 1, "bake": {"duration": "1h"}}},
            {},
            "StepWithoutRoom",
            "rollout.bake keeps servers of the revision before, which takes a maxSurge of at least 1",
            id="a bake with nothing warm",
        ),
        pytest.param(
            {
                "rollout": {
                    "maxSurge": 0,
                    "maxUnavailable": 1,
                    "steps": [{"weight": 100}],
                    "analysis": {"metrics": [{"name": "disagreement", "maximum": "0.02"}]},
                }
            },
            {},
            "StepWithoutRoom",
            "disagreement has nothing to compare with",
            id="a comparison with what has no servers",
        ),
        pytest.param(
            {"rollout": {"steps": [{"weight": 5, "duration": "10m"}]}},
            {},
            "StepLongerThanDeadline",
            "rollout step 0 lasts 10m",
            id="a step as long as the class's deadline",
        ),
        pytest.param(
            {"rollout": {"progressDeadline": "1m", "steps": [{"weight": 5}]}},
            {},
            "StepLongerThanDeadline",
            "rollout step 0 lasts 1m",
            id="a step that says nothing lasts a minute",
        ),
        pytest.param(
            {"rollout": {"progressDeadline": "30s"}},
            {},
            "StepLongerThanDeadline",
            "rollout step 0 lasts 1m",
            id="a deadline shorter than the class's step",
        ),
    ],
)
def test_the_class_refuses_in_words(spec: dict[str, Any], class_spec: dict[str, Any], reason: str, words: str) -> None:
    found = judged(spec, **class_spec)
    assert isinstance(found, Refusal)
    assert found.reason == reason
    assert words in found.message
    assert found.class_spec is not None, "what serves can still be looked after"


def test_a_spec_that_cannot_be_read_is_told_by_its_field() -> None:
    model = ModelSeen("shop", "minilm", "uid", 1, "1", None, OnnxModelStatus(), problem="spec.opset: too high")
    assert accept(model, (a_class(),)) == Refusal("InvalidSpec", "spec.opset: too high")


def named(name: str, *, default: bool = False, created: str = "2026-01-01T00:00:00Z") -> ClassSeen:
    return replace(a_class(), name=name, is_default=default, created=created)


def test_a_named_class_wins_over_the_default() -> None:
    assert choose_class("b", (named("a", default=True), named("b"))) == named("b")


def test_of_two_defaults_the_newest_counts() -> None:
    older = named("z", default=True)
    newer = named("a", default=True, created="2026-02-01T00:00:00Z")
    assert choose_class(None, (newer, older)) == newer


def test_a_class_that_does_not_exist_is_told_with_those_that_do() -> None:
    found = choose_class("gold", (named("b"), named("a")))
    assert isinstance(found, Refusal)
    assert found.message == "spec.className names OnnxModelClass gold, which does not exist; there is a, b"


def test_without_a_default_the_way_out_is_told() -> None:
    found = choose_class(None, (named("a"),))
    assert isinstance(found, Refusal)
    assert 'annotate one with onnx-operator.io/is-default-class: "true"' in found.message


def test_what_the_model_leaves_unset_is_the_classs() -> None:
    found = judged({"rollout": {"steps": [{"weight": 5, "duration": "1s"}]}})
    assert isinstance(found, Offer)
    assert [step.weight for step in found.plan.steps] == [5]
    assert found.plan.progress_deadline.total_seconds() == 600
    assert found.plan.analysis.interval == "10s"
