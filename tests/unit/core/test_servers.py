"""Servers and their pods: what is ready, and what is wrong in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onnx_operator.core.pods import url_of
from onnx_operator.core.servers import read_servers


def deployment(*, replicas: int = 2, seen: int = 4, **status: int) -> dict[str, Any]:
    given = {"observedGeneration": seen, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2} | status
    return {"metadata": {"generation": 4}, "spec": {"replicas": replicas}, "status": given}


@pytest.mark.parametrize(
    ("found", "is_available"),
    [
        pytest.param(deployment(), True, id="all ready"),
        pytest.param(deployment(readyReplicas=1), False, id="one not ready"),
        pytest.param(deployment(seen=3), False, id="the controller has not seen the change yet"),
        pytest.param(deployment(updatedReplicas=1), False, id="one of an older template"),
        pytest.param(deployment(replicas=3), False, id="one more is wanted"),
        pytest.param(deployment(replicas=1, readyReplicas=2), False, id="one too many is still there"),
        pytest.param({"metadata": {"generation": 1}, "spec": {"replicas": 2}}, False, id="no status yet"),
    ],
)
def test_available_means_all_wanted_servers_of_this_template(found: Any, is_available: bool) -> None:  # noqa: FBT001
    assert read_servers(found, []).is_available(2) is is_available


def pod(state: dict[str, Any] | None = None, *, init: bool = False, **status: Any) -> dict[str, Any]:
    container = {"name": "triton", "image": "triton:1"} | (state or {})
    kind = "initContainerStatuses" if init else "containerStatuses"
    return {"metadata": {"name": "m-1-cpu-x"}, "status": {kind: [container]} | status}


def waiting(reason: str, message: str = "words") -> dict[str, Any]:
    return {"state": {"waiting": {"reason": reason, "message": message}}}


def ended(code: int, **more: Any) -> dict[str, Any]:
    return {"state": {"terminated": {"exitCode": code} | more}}


CORRUPT = json.dumps(
    {
        "step": "assemble",
        "outcome": "Failed",
        "reason": "ArtifactCorrupt",
        "message": "model.onnx has changed",
        "exitCode": 29,
        "details": {},
    }
)


@pytest.mark.parametrize(
    ("found", "reason", "words", "is_crash", "is_final"),
    [
        pytest.param(
            pod(waiting("ErrImagePull")), "ImagePullFailed", "triton:1 cannot be pulled: words", False, False, id="pull"
        ),
        pytest.param(
            pod(waiting("CreateContainerConfigError", 'secret "hub" not found')),
            "ContainerConfigError",
            'secret "hub" not found',
            False,
            False,
            id="a Secret is missing",
        ),
        pytest.param(
            pod(conditions=[{"type": "PodScheduled", "reason": "Unschedulable", "message": "0/1 nodes"}]),
            "Unschedulable",
            "0/1 nodes",
            False,
            False,
            id="no node fits",
        ),
        pytest.param(
            pod(
                conditions=[
                    {
                        "type": "PodScheduled",
                        "reason": "Unschedulable",
                        "message": 'persistentvolumeclaim "artifacts" not found',
                    }
                ]
            ),
            "ClaimNotFound",
            '"artifacts" not found',
            False,
            False,
            id="no such claim",
        ),
        pytest.param(pod(ended(137, reason="OOMKilled")), "OOMKilled", "more memory", True, False, id="memory"),
        pytest.param(
            pod(ended(139, message="signal 11")),
            "ContainerFailed",
            "ended with exit code 139: signal 11",
            True,
            False,
            id="a crash",
        ),
        pytest.param(
            pod({"lastState": {"terminated": {"exitCode": 1, "message": "no space"}}} | waiting("CrashLoopBackOff")),
            "ContainerFailed",
            "exit code 1: no space",
            True,
            False,
            id="a crash loop tells its last words",
        ),
        pytest.param(
            pod(ended(29, message=CORRUPT), init=True),
            "ArtifactCorrupt",
            "model.onnx has changed",
            True,
            True,
            id="a corrupt artifact",
        ),
        pytest.param(
            pod(reason="Evicted", message="disk pressure"), "Evicted", "disk pressure", False, False, id="evicted"
        ),
    ],
)
def test_trouble_has_its_own_reason_and_words(
    found: Any,
    reason: str,
    words: str,
    is_crash: bool,  # noqa: FBT001
    is_final: bool,  # noqa: FBT001
) -> None:
    trouble = read_servers(deployment(readyReplicas=0), [found]).trouble
    assert trouble is not None
    assert (trouble.reason, trouble.is_crash, trouble.is_final) == (reason, is_crash, is_final)
    assert words in trouble.message


def test_a_pod_that_merely_takes_its_time_is_no_trouble() -> None:
    assert read_servers(deployment(readyReplicas=0), [pod(waiting("PodInitializing"))]).trouble is None


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(
            pod(ended(1)) | {"metadata": {"name": "x", "deletionTimestamp": "2026-01-01T00:00:00Z"}},
            id="on its way out",
        ),
        pytest.param(
            pod({"lastState": {"terminated": {"exitCode": 1}}}, conditions=[{"type": "Ready", "status": "True"}]),
            id="ready again after a crash",
        ),
    ],
)
def test_the_past_of_a_pod_is_no_trouble(found: Any) -> None:
    assert read_servers(deployment(), [found]).trouble is None


def test_what_can_never_work_is_told_before_what_may_come_right() -> None:
    pods = [pod(waiting("ErrImagePull")), pod(ended(29, message=CORRUPT), init=True)]
    trouble = read_servers(deployment(readyReplicas=0), pods).trouble
    assert trouble is not None
    assert trouble.reason == "ArtifactCorrupt"


def test_refused_pods_are_told_though_there_are_none() -> None:
    found = deployment(readyReplicas=0)
    found["status"]["conditions"] = [
        {"type": "ReplicaFailure", "status": "True", "message": "pods is forbidden: exceeded quota: q"}
    ]
    trouble = read_servers(found, []).trouble
    assert trouble is not None
    assert trouble.reason == "QuotaExceeded"


@pytest.mark.parametrize(
    ("status", "url"),
    [
        ({"podIP": "10.244.0.7"}, "http://10.244.0.7:8080"),
        ({"podIP": "fd00:10:244::7"}, "http://[fd00:10:244::7]:8080"),
        ({}, None),
    ],
    ids=["IPv4", "IPv6", "none yet"],
)
def test_where_a_pod_answers(status: dict[str, Any], url: str | None) -> None:
    assert url_of({"status": status}, 8080) == url
