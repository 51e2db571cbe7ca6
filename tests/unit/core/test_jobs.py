"""What a Job's end is taken for: nothing but a clear word of success counts as one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onnx_operator.core import reasons
from onnx_operator.core.jobs import JobFailed, JobSucceeded, read_job
from onnx_operator.core.names import COMPONENT_LABEL

SAID = {
    "step": "convert",
    "outcome": "Succeeded",
    "reason": "Converted",
    "message": "a graph of 324 nodes",
    "exitCode": 0,
    "details": {},
}


def a_job(condition: str) -> dict[str, Any]:
    conditions = [{"type": condition, "status": "True", "lastTransitionTime": "2026-01-01T00:01:00Z"}]
    return {
        "metadata": {"name": "m-convert-0", "labels": {COMPONENT_LABEL: "convert"}},
        "status": {"startTime": "2026-01-01T00:00:00Z", "conditions": conditions},
    }


def a_pod(exit_code: int, message: str) -> dict[str, Any]:
    ended = {"exitCode": exit_code, "message": message}
    return {"metadata": {"name": "p"}, "status": {"containerStatuses": [{"state": {"terminated": ended}}]}}


def test_a_job_that_ended_well_and_says_so_has_succeeded() -> None:
    state = read_job(a_job("Complete"), [a_pod(0, json.dumps(SAID))], [])
    assert isinstance(state, JobSucceeded)
    assert (state.summary.reason, state.seconds) == ("Converted", 60)


DOUBTFUL = {
    "nothing": "",
    "a summary cut off": '{"step": "conv',
    "a summary of failure": json.dumps(SAID | {"outcome": "Failed", "exitCode": 22}),
    "another step's summary": json.dumps(SAID | {"step": "fetch"}),
    "a reason that no condition takes": json.dumps(SAID | {"reason": "all good!"}),
    "text that cannot be encoded": json.dumps(SAID | {"message": "\ud800"}),
}


@pytest.mark.parametrize("message", DOUBTFUL.values(), ids=DOUBTFUL)
def test_a_job_that_ended_well_and_says_anything_else_has_failed(message: str) -> None:
    state = read_job(a_job("Complete"), [a_pod(0, message)], [])
    assert isinstance(state, JobFailed)
    assert state.reason == reasons.RESULT_UNREADABLE


def test_a_container_that_said_well_done_and_then_crashed_has_crashed() -> None:
    state = read_job(a_job("Failed"), [a_pod(139, json.dumps(SAID))], [])
    assert isinstance(state, JobFailed)
    assert (state.reason, state.exit_code) == (reasons.CONTAINER_FAILED, 139)
