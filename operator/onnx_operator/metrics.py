"""What the operator tells Prometheus about itself.

Values are kept where they arise and read when scraped; nothing here decides anything, and no label ever holds a
message, a URL or another thing of unbounded variety.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx_operator.workqueue import Key

_MODEL = ("namespace", "model")


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
            buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
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

    def rollout_ended(self, outcome: str, reason: str) -> None:
        self.rollouts.labels(outcome=outcome, reason=reason).inc()

    def weights(self, key: Key, *, stable: int, candidate: int) -> None:
        """Where the model's traffic goes."""
        self._stable_weight.labels(*key).set(stable)
        self._candidate_weight.labels(*key).set(candidate)

    def forget(self, key: Key) -> None:
        """The model is gone: a series of a deleted model would show its last weight for ever."""
        for gauge in (self._stable_weight, self._candidate_weight):
            gauge.remove(*key)

    def watch_age_of(self, kind: str, age: Callable[[], float]) -> None:
        self.watch_event_age.labels(kind=kind).set_function(age)
