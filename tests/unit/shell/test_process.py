"""Settings, health, logs, metrics, and how events find their keys."""

from __future__ import annotations

import itertools
import json
import logging
import sys
from dataclasses import fields
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from onnx_operator.__main__ import main
from onnx_operator.adapters import kube
from onnx_operator.adapters.store import Store
from onnx_operator.api.model import OnnxModelStatus
from onnx_operator.handlers import EndlessBackoffs, Inbox
from onnx_operator.health import Health, build_server
from onnx_operator.logs import JsonFormatter
from onnx_operator.metrics import Metrics
from onnx_operator.settings import Settings, SettingsError, read_settings
from onnx_operator.workqueue import Key, WorkQueue

IMAGES = {"OPERATOR_IMAGE": "o:1", "CONVERTER_IMAGE": "c:1", "TRITON_IMAGE": "t:1"}

# ---- settings


def test_the_images_are_all_that_must_be_set() -> None:
    settings = read_settings([], IMAGES)
    assert settings.is_cluster_wide
    assert (settings.operator_image, settings.http_port, settings.prometheus_url) == ("o:1", 8080, None)


def test_a_flag_wins_over_the_environment() -> None:
    assert read_settings(["--workers", "3"], {**IMAGES, "WORKERS": "5"}).workers == 3


def test_namespaces_come_as_a_list_and_mean_not_cluster_wide() -> None:
    settings = read_settings([], {**IMAGES, "WATCH_NAMESPACES": "team-a, team-b,team-a"})
    assert settings.watch_namespaces == ("team-a", "team-b")
    assert not settings.is_cluster_wide


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("OPERATOR_IMAGE", "", "is empty"),
        ("WATCH_NAMESPACES", "Team_A", "'Team_A' is no namespace"),
        ("PROMETHEUS_URL", "prometheus:9090", "is no URL; write it like http://"),
        ("HTTP_PORT", "0", "no whole number from 1 to 65535"),
        ("HTTP_PORT", "eighty", "no whole number from 1 to 65535"),
        ("WORKERS", "1e3", "no whole number from 1 to 256"),
        ("RELIST_SECONDS", "0", "no number of seconds above 0"),
        ("RELIST_SECONDS", "-1", "no number of seconds above 0"),
        ("RELIST_SECONDS", "nan", "no number of seconds above 0"),
        ("LOG_FORMAT", "xml", "none of json, text"),
    ],
)
def test_a_setting_that_cannot_be_right_names_itself_and_the_way_out(variable: str, value: str, problem: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read_settings([], {**IMAGES, variable: value})
    assert str(refused.value).startswith(f"{variable}: ")
    assert problem in str(refused.value)


@pytest.mark.parametrize("variable", sorted(IMAGES))
def test_a_missing_setting_names_itself(variable: str) -> None:
    environment = {name: value for name, value in IMAGES.items() if name != variable}
    with pytest.raises(SettingsError, match=f"{variable}: is not set"):
        read_settings([], environment)


def test_every_setting_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(["--help"], {})
    text = capsys.readouterr().out
    assert all(f"--{setting.name.replace('_', '-')} " in text for setting in fields(Settings))


def test_the_command_line_explains_itself(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([]) == 2
    assert "usage: python -m onnx_operator run" in capsys.readouterr().err
    monkeypatch.delenv("OPERATOR_IMAGE", raising=False)
    assert main(["run"]) == 2
    assert "OPERATOR_IMAGE: is not set" in capsys.readouterr().err


# ---- health


class Hands:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def test_a_loop_that_beats_is_healthy_and_one_that_does_not_is_named() -> None:
    now = Hands()
    health = Health(now)
    beat = health.expect("relist", within=300)
    now.at += 299
    beat()
    now.at += 300
    assert health.complaints() == []
    now.at += 1
    assert health.complaints() == ["relist: no progress for 301 s, at most 300 s is normal"]
    beat()
    assert health.complaints() == []


def test_a_loop_with_nothing_to_do_may_rest() -> None:
    now, busy = Hands(), [False]
    health = Health(now)
    health.expect("workers", within=300, when=lambda: busy[0])
    now.at += 10_000
    assert health.complaints() == []
    busy[0] = True
    assert health.complaints() != []


def test_ready_is_who_was_answered_and_whose_conditions_hold() -> None:
    health, watching = Health(Hands()), [True]
    assert not health.is_ready
    health.answered()
    assert health.is_ready
    health.ready_only_if(lambda: watching[0])
    assert health.is_ready
    watching[0] = False
    assert not health.is_ready


async def test_the_pages_answer_what_kubernetes_and_prometheus_ask() -> None:
    now, metrics = Hands(), Metrics()
    health = Health(now)
    health.expect("relist", within=1)
    metrics.rollout_ended("promoted", "AllStepsPassed")

    def refresh() -> None:
        metrics.queue_depth.set(7)

    async with TestClient(TestServer(build_server(health, metrics.registry, refresh))) as pages:
        assert (await pages.get("/healthz")).status == 200
        assert (await pages.get("/readyz")).status == 503
        health.answered()
        assert (await pages.get("/readyz")).status == 200
        now.at += 2
        sick = await pages.get("/healthz")
        assert (sick.status, await sick.text()) == (503, "relist: no progress for 2 s, at most 1 s is normal")
        answer = await pages.get("/metrics")
        text = await answer.text()
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert "onnx_operator_queue_depth 7.0" in text
    assert 'onnx_operator_rollouts_total{outcome="promoted",reason="AllStepsPassed"} 1.0' in text


# ---- metrics


MODEL = Key("ns", "m")


def canary(reason: str = "StepRunning", **side: Any) -> OnnxModelStatus:
    """A status in the middle of a rollout."""
    both = {"stable": {"revision": "m-1", "number": 1, "weight": 90, "readyReplicas": 2}} | side
    ready = {"type": "Ready", "status": "False", "reason": reason, "message": "", "observedGeneration": 1}
    stalled = {**ready, "type": "Stalled", "status": "True"}
    promoted = {**ready, "type": "Promoted"}
    conditions = [{**one, "lastTransitionTime": "2026-01-01T00:00:00Z"} for one in (ready, stalled, promoted)]
    return OnnxModelStatus.model_validate({"conditions": conditions, **both})


CANDIDATE = {"revision": "m-2", "number": 2, "weight": 10, "readyReplicas": 1, "startedTime": "2026-01-01T00:00:00Z"}


def model_series(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """The values of all series of models, by the last part of the name and the labels after the model's."""
    prefix = "onnx_operator_model_"
    return {
        (sample.name.removeprefix(prefix), *list(sample.labels.values())[2:]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name.startswith(prefix)
    }


def test_a_models_series_say_what_its_status_says() -> None:
    metrics = Metrics()
    metrics.told(MODEL, canary(candidate=CANDIDATE))
    assert model_series(metrics) == {
        ("stable_weight_percent",): 90,
        ("candidate_weight_percent",): 10,
        ("condition", "Ready", "StepRunning"): 0,
        ("condition", "Stalled", "StepRunning"): 1,
        ("ready_replicas", "stable"): 2,
        ("ready_replicas", "candidate"): 1,
    }


def test_a_former_reason_and_a_former_candidate_leave_no_series_behind() -> None:
    metrics = Metrics()
    metrics.told(MODEL, canary(candidate=CANDIDATE))
    metrics.told(MODEL, canary("RolledBack"))
    assert model_series(metrics) == {
        ("stable_weight_percent",): 90,
        ("candidate_weight_percent",): 0,
        ("condition", "Ready", "RolledBack"): 0,
        ("condition", "Stalled", "RolledBack"): 1,
        ("ready_replicas", "stable"): 2,
    }


def test_the_series_of_a_deleted_model_go_with_it() -> None:
    metrics = Metrics()
    metrics.told(MODEL, canary(candidate=CANDIDATE))
    metrics.forget(MODEL)
    metrics.forget(Key("ns", "never-seen"))
    assert model_series(metrics) == {}


def test_counters_by_kind_begin_at_zero_so_that_their_first_step_is_seen() -> None:
    metrics = Metrics()
    metrics.watch_age_of("OnnxModel", lambda: 1.0)
    for name in ("onnx_operator_relist_corrections_total", "onnx_operator_relist_failures_total"):
        assert metrics.registry.get_sample_value(name, {"kind": "OnnxModel"}) == 0


def test_every_series_carries_our_prefix_and_an_explanation() -> None:
    families = [
        family for family in Metrics().registry.collect() if not family.name.startswith(("process_", "python_"))
    ]
    assert len(families) >= 12
    for family in families:
        assert family.name.startswith("onnx_operator_")
        assert family.documentation.endswith(".")


# ---- logs


def record(message: str, **extra: Any) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "here", "levelname": "INFO", "msg": message, "created": 0.0})
    vars(made).update(extra)
    return made


def test_a_log_line_is_one_json_object_with_its_fields() -> None:
    line = JsonFormatter().format(record("reconcile failed", key="ns/a", retry_seconds=2.0))
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "level": "INFO",
        "logger": "here",
        "message": "reconcile failed",
        "key": "ns/a",
        "retry_seconds": 2.0,
    }


def test_a_traceback_and_odd_values_fit_in_the_line() -> None:
    try:
        int("odd\nnews")
    except ValueError:
        made = record("crashed", exc_info=sys.exc_info(), what=object())
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert "ValueError: invalid literal" in json.loads(line)["exception"]


# ---- events to keys


def manifest(resource: kube.Resource, name: str, *, version: int = 1, **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, "uid": f"{resource.kind}-{name}", "resourceVersion": str(version)}
    if resource.namespaced:
        metadata["namespace"] = "ns"
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, **fields}


def queued(queue: WorkQueue) -> set[Key]:
    keys = set()
    while (key := queue.take()) is not None:
        queue.done(key)
        keys.add(key)
    return keys


@pytest.fixture
def inbox() -> tuple[Inbox, WorkQueue]:
    queue = WorkQueue()
    return Inbox(Store(), queue), queue


def test_an_old_event_wakes_nobody(inbox: tuple[Inbox, WorkQueue]) -> None:
    box, queue = inbox
    box.seen(kube.ONNX_MODEL, "MODIFIED", manifest(kube.ONNX_MODEL, "m", version=5))
    assert queued(queue) == {Key("ns", "m")}
    box.seen(kube.ONNX_MODEL, None, manifest(kube.ONNX_MODEL, "m", version=5))
    box.seen(kube.ONNX_MODEL, "MODIFIED", manifest(kube.ONNX_MODEL, "m", version=4))
    assert queued(queue) == set()


def test_a_class_wakes_those_who_name_it_and_those_who_name_none(inbox: tuple[Inbox, WorkQueue]) -> None:
    box, queue = inbox
    for name, spec in {"names-it": {"className": "fast"}, "default": {}, "other": {"className": "slow"}}.items():
        box.seen(kube.ONNX_MODEL, "ADDED", manifest(kube.ONNX_MODEL, name, spec=spec))
    queued(queue)
    box.seen(kube.ONNX_MODEL_CLASS, "ADDED", manifest(kube.ONNX_MODEL_CLASS, "fast"))
    assert queued(queue) == {Key("ns", "names-it"), Key("ns", "default")}
    box.seen(kube.ONNX_MODEL_CLASS, "DELETED", manifest(kube.ONNX_MODEL_CLASS, "fast"))
    assert queued(queue) == {Key("ns", "names-it"), Key("ns", "default")}


def test_backoffs_never_run_out_and_can_be_begun_anew() -> None:
    backoffs = EndlessBackoffs()
    first = list(itertools.islice(backoffs, 200))
    assert len(first) == 200
    assert all(0.75 <= seconds <= 12.5 for seconds in first)
    assert next(iter(backoffs)) <= 1.25
    assert not hasattr(backoffs, "__len__")
