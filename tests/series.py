"""The series that rules and dashboard may name, and their labels: ours as the programs export them, others' listed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_operator.api.model import OnnxModelStatus
from onnx_operator.core.conditions import ConditionType
from onnx_operator.metrics import Metrics
from onnx_operator.prober.counters import Counters, Side
from onnx_operator.workqueue import Key

if TYPE_CHECKING:
    from collections.abc import Mapping

Labels = frozenset[str]

_CLUSTER = "envoy_cluster_name"
_BRIDGE = ("envoy_grpc_bridge_method", "envoy_grpc_bridge_service")
ENVOY: Mapping[str, Labels] = {
    # https://www.envoyproxy.io/docs/envoy/v1.39.1/configuration/upstream/cluster_manager/cluster_stats
    "envoy_cluster_upstream_rq_total": frozenset({_CLUSTER}),
    "envoy_cluster_upstream_rq_xx": frozenset({_CLUSTER, "envoy_response_code_class"}),
    "envoy_cluster_upstream_rq_time_bucket": frozenset({_CLUSTER, "le"}),
    # https://www.envoyproxy.io/docs/envoy/v1.39.1/configuration/http/http_filters/grpc_stats_filter
    "envoy_cluster_grpc_ModelInfer_total": frozenset({_CLUSTER, *_BRIDGE}),
    "envoy_cluster_grpc_ModelInfer_13": frozenset({_CLUSTER, *_BRIDGE}),
}
"""What is used of Envoy's own series. tests/integration/traffic/test_series.py asks a real one for them."""

_MODEL = frozenset({"model", "version"})
TRITON: Mapping[str, Labels] = {
    # https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md
    "nv_inference_request_success": _MODEL,
    "nv_inference_request_failure": _MODEL | {"reason"},
    "nv_inference_queue_duration_us": _MODEL,
    "nv_inference_request_duration_us": _MODEL,
    "nv_inference_pending_request_count": _MODEL,
}
"""What is used of Triton's own series. tests/triton_server/test_series.py asks a real one for them."""

TARGET: Labels = frozenset({"job", "instance", "namespace"})
"""Labels that whoever scrapes puts on every series."""


def a_status() -> OnnxModelStatus:
    """A status that has everything a series is made of."""
    side: dict[str, Any] = {"revision": "m-1", "number": 1}
    time = "2026-01-01T00:00:00Z"
    condition = {"status": "True", "reason": "Serving", "message": "", "lastTransitionTime": time}
    return OnnxModelStatus.model_validate(
        {
            "conditions": [{**condition, "type": kind, "observedGeneration": 1} for kind in ConditionType],
            "stable": side,
            "candidate": {**side, "startedTime": time},
        }
    )


def operator() -> dict[str, Labels]:
    """What the operator exports once it has done some of everything."""
    metrics = Metrics()
    metrics.told(Key("shop", "minilm"), a_status())
    metrics.watch_age_of("OnnxModel", lambda: 0.0)
    metrics.rollout_ended("RolledBack", "AnalysisFailed")
    metrics.reconciles.labels(outcome="done", reason="")
    return {sample.name: frozenset(sample.labels) for family in metrics.registry.collect() for sample in family.samples}


def prober() -> dict[str, Labels]:
    """What a prober exports from its start."""
    counters = Counters("minilm", {Side.STABLE: "1", Side.CANDIDATE: "2"})
    return {sample.name: frozenset(sample.labels) for family in counters.collect() for sample in family.samples}


def known() -> dict[str, Labels]:
    """All of them."""
    return {**operator(), **prober(), **ENVOY, **TRITON}
