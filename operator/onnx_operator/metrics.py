"""What the operator tells Prometheus about itself.

Values are kept where they arise and read when scraped; nothing here decides anything, and no label ever holds a
message, a URL or another thing of unbounded variety.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

from onnx_operator.core.conditions import ConditionType

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx_operator.api.model import OnnxModelStatus
    from onnx_operator.workqueue import Key

_MODEL = ("namespace", "model")
_SECONDS: Final = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
#: The conditions that sum up the others; what each stage says is in the model's status.
_SUMMARY: Final = frozenset({ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED})


class Metrics:
    """One set of series, in a registry of its own so that tests may have many."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # They register themselves; process_* and python_info are what dashboards expect.
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.reconcile_seconds = Histogram(
            "onnx_operator_reconcile_duration_seconds",
            "Time one reconcile took.",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.queue_seconds = Histogram(
            "onnx_operator_queue_duration_seconds",
            "Time from the event or the hour that asks for a reconcile to its beginning.",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.reconciles = Counter(
            "onnx_operator_reconciles",
            "Reconciles by outcome (done, conflict, throttled, refused, unavailable, timeout, crashed) and reason.",
            ("outcome", "reason"),
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "onnx_operator_queue_depth", "Models due for a reconcile and not taken up yet.", registry=self.registry
        )
        self.queue_oldest = Gauge(
            "onnx_operator_queue_oldest_key_age_seconds",
            "How long the longest-waiting model has been due.",
            registry=self.registry,
        )
        self.watch_event_age = Gauge(
            "onnx_operator_watch_last_event_age_seconds",
            "Time since the watch last told anything, by kind.",
            ("kind",),
            registry=self.registry,
        )
        self.watch_restarts = Counter(
            "onnx_operator_watch_restarts", "Times the watch was set up anew.", registry=self.registry
        )
        self.relist_age = Gauge(
            "onnx_operator_relist_age_seconds",
            "Time since the cluster was last read in full.",
            registry=self.registry,
        )
        self.relist_failures = Counter(
            "onnx_operator_relist_failures", "Full reads that failed, by kind.", ("kind",), registry=self.registry
        )
        self.relist_corrections = Counter(
            "onnx_operator_relist_corrections",
            "Models about which a full read knew something that the watch had not told (yet), by kind.",
            ("kind",),
            registry=self.registry,
        )
        self.leader = Gauge("onnx_operator_leader", "1 while this process leads.", registry=self.registry)
        self.rollouts = Counter(
            "onnx_operator_rollouts",
            "Rollouts ended, by outcome and reason.",
            ("outcome", "reason"),
            registry=self.registry,
        )
        self._stable_weight = Gauge(
            "onnx_operator_model_stable_weight_percent",
            "Share of traffic on the stable revision.",
            _MODEL,
            registry=self.registry,
        )
        self._candidate_weight = Gauge(
            "onnx_operator_model_candidate_weight_percent",
            "Share of traffic on the candidate revision.",
            _MODEL,
            registry=self.registry,
        )
        self._condition = Gauge(
            "onnx_operator_model_condition",
            "1 while the condition (Ready, Reconciling, Stalled) is True, 0 otherwise, with its present reason.",
            (*_MODEL, "condition", "reason"),
            registry=self.registry,
        )
        self._ready_replicas = Gauge(
            "onnx_operator_model_ready_replicas",
            "Ready servers of each side (stable, candidate), over all execution providers.",
            (*_MODEL, "side"),
            registry=self.registry,
        )
        #: Which series of a model exist that others of its will follow.
        self._passing: dict[Key, set[tuple[Gauge, tuple[str, ...]]]] = {}

    def rollout_ended(self, outcome: str, reason: str) -> None:
        self.rollouts.labels(outcome=outcome, reason=reason).inc()

    def told(self, key: Key, status: OnnxModelStatus) -> None:
        """What the model's status says now."""
        stable, candidate = status.stable, status.candidate
        self._stable_weight.labels(*key).set(stable.weight if stable is not None else 0)
        self._candidate_weight.labels(*key).set(candidate.weight if candidate is not None else 0)
        values: dict[tuple[Gauge, tuple[str, ...]], int] = {
            (self._condition, (one.type, one.reason)): int(one.status == "True")
            for one in status.conditions
            if one.type in _SUMMARY
        }
        values |= {
            (self._ready_replicas, (name,)): side.ready_replicas
            for name, side in (("stable", stable), ("candidate", candidate))
            if side is not None
        }
        self._drop(key, self._passing.get(key, set()) - values.keys())
        for (gauge, labels), value in values.items():
            gauge.labels(*key, *labels).set(value)
        self._passing[key] = set(values)

    def forget(self, key: Key) -> None:
        """The model is gone: a series of a deleted model would show its last weight for ever."""
        for gauge in (self._stable_weight, self._candidate_weight):
            gauge.remove(*key)
        self._drop(key, self._passing.pop(key, set()))

    def watch_age_of(self, kind: str, age: Callable[[], float]) -> None:
        self.watch_event_age.labels(kind=kind).set_function(age)
        # A counter that is born with its first event hides that event from increase().
        self.relist_corrections.labels(kind=kind)
        self.relist_failures.labels(kind=kind)

    @staticmethod
    def _drop(key: Key, passed: set[tuple[Gauge, tuple[str, ...]]]) -> None:
        for gauge, labels in passed:
            gauge.remove(*key, *labels)
