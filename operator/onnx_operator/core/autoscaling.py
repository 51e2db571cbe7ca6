"""What an autoscaler is told, and what it says.

While there is one, it alone writes how many servers there are: we write between which bounds. Knows neither traffic nor
time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from onnx_operator.api.common import parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx_operator.api.model import Autoscaling

#: The series that files/autoscaling of the chart record for each server's pod.
QUEUE_METRIC: Final = "onnx_operator_server_queue_seconds"
IN_FLIGHT_METRIC: Final = "onnx_operator_server_requests_in_flight"


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """A HorizontalPodAutoscaler as it is to be."""

    least: int
    most: int
    metric: str
    #: What each pod is to have of the metric on average, as a quantity.
    target: str
    #: Seconds for which fewer must have been enough.
    stabilization: int


@dataclass(frozen=True, slots=True)
class AutoscalerState:
    """A HorizontalPodAutoscaler as it is."""

    least: int
    #: Why it cannot scale, in its own words; empty while it can.
    trouble: str = ""


def autoscaler(declared: Autoscaling, least: int) -> Autoscaler:
    """As the spec declares it, but with at least so many servers."""
    target = declared.target
    if target.queue_time is not None:
        milliseconds = -(-parse_duration(target.queue_time) // timedelta(milliseconds=1))
        metric, amount = QUEUE_METRIC, f"{milliseconds}m"
    else:
        metric, amount = IN_FLIGHT_METRIC, str(target.requests_in_flight)
    return Autoscaler(least, declared.max_replicas, metric, amount, int(stabilization(declared).total_seconds()))


def stabilization(declared: Autoscaling) -> timedelta:
    return parse_duration(declared.scale_down_stabilization)


def read_autoscaler(manifest: Mapping[str, Any]) -> AutoscalerState:
    """How the HorizontalPodAutoscaler stands. One that was only made has said nothing yet, which is no trouble."""
    conditions = (manifest.get("status") or {}).get("conditions") or ()
    troubles = [
        f"{one.get('reason')}: {one.get('message', '')}"
        for one in conditions
        if one.get("type") in {"AbleToScale", "ScalingActive"} and one.get("status") == "False"
    ]
    return AutoscalerState(int(manifest["spec"].get("minReplicas", 1)), "; ".join(troubles))
