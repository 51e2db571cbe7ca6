"""What is read of a rollout's prober: where it answers, or why there is none."""

from __future__ import annotations

from typing import Any

import pytest

from onnx_operator.core.names import COMPONENT_LABEL, REVISION_LABEL, Component
from onnx_operator.measure import ProberPod
from onnx_operator.observe import _prober

ENDED = {"terminated": {"exitCode": 2, "message": "questions cannot be read\n"}}
WAITS = {"waiting": {"reason": "CrashLoopBackOff"}}


def a_pod(*, revision: str = "minilm-2", ready: bool = False, address: str = "10.0.0.7", **container: Any) -> Any:
    return {
        "metadata": {"name": "p", "labels": {COMPONENT_LABEL: str(Component.PROBER), REVISION_LABEL: revision}},
        "status": {
            "phase": "Running",
            "podIP": address,
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [{"name": "main", **container}],
        },
    }


@pytest.mark.parametrize(
    ("pods", "found"),
    [
        pytest.param([], ProberPod(None), id="none yet"),
        pytest.param([a_pod()], ProberPod(None), id="not ready yet"),
        pytest.param([a_pod(ready=True)], ProberPod("http://10.0.0.7:8080"), id="ready"),
        pytest.param([a_pod(ready=True, address="fd00::7")], ProberPod("http://[fd00::7]:8080"), id="at IPv6"),
        pytest.param([a_pod(ready=True, revision="minilm-1")], ProberPod(None), id="another candidate's"),
        pytest.param([a_pod(state=ENDED)], ProberPod(None, "questions cannot be read"), id="ended"),
        pytest.param(
            [a_pod(state=WAITS, lastState=ENDED)], ProberPod(None, "questions cannot be read"), id="about to try again"
        ),
        pytest.param(
            [a_pod(lastState=ENDED), a_pod(ready=True)], ProberPod("http://10.0.0.7:8080"), id="a better one beside it"
        ),
    ],
)
def test_the_prober_is_where_its_ready_pod_answers_or_has_last_words(pods: list[Any], found: ProberPod) -> None:
    assert _prober("minilm-2", pods) == found
