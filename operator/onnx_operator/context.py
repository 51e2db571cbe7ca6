"""What a reconcile may use: handed in once, so that nothing reaches for globals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx_operator.workqueue import Key

if TYPE_CHECKING:
    from onnx_operator.adapters.clock import Clock
    from onnx_operator.adapters.events import Events
    from onnx_operator.adapters.kube import Kube
    from onnx_operator.adapters.prometheus import Prometheus
    from onnx_operator.adapters.store import Store
    from onnx_operator.metrics import Metrics
    from onnx_operator.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """The world as one leading operator process sees it."""

    kube: Kube
    store: Store
    events: Events
    settings: Settings
    clock: Clock
    #: None when no PROMETHEUS_URL is set: measurements are then NoData, never Pass.
    prometheus: Prometheus | None
    metrics: Metrics
    #: Whether this process still leads. Kube asks before every write; ask again before a decision that a write
    #: cannot take back.
    fence: Callable[[], bool]


#: Returns the seconds until the key wants another look without being told, or None.
Reconcile = Callable[[Key, Context], Awaitable[float | None]]
