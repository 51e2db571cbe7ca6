"""PromQL whose answer is numbers as they are: the user's own, and that for memory. What Envoy counts is in `queries`.

Pure: text out, samples in. What the operator fills in are names that it made itself or the API server has checked, so
nothing can be smuggled into a query; what an expression means is its author's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil, isfinite
from typing import TYPE_CHECKING, Final

from onnx_operator.core.counts import Counts
from onnx_operator.core.names import SERVER_CONTAINER
from onnx_operator.core.queries import Silence

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from onnx_operator.core.queries import Series

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_MEMORY_WINDOW: Final = "2m"
"""Kubelets are scraped every 10 to 60 s; what is older than this is not said of now."""


_MOST_ANSWERS: Final = 2.0**50
"""More than anything answers, and less than status can hold."""


@dataclass(frozen=True, slots=True)
class ServerPod:
    """A ready pod of a side, where its metrics are, and what tells its containers from those before a restart."""

    name: str
    address: str
    uid: str
    restarts: int


@dataclass(frozen=True, slots=True)
class Party:
    """One side of a rollout."""

    revision: str
    number: int
    services: tuple[str, ...]
    """One per execution provider."""
    pods: tuple[ServerPod, ...] = ()


def filled_in(expression: str, party: Party, *, namespace: str, model: str, since: datetime, now: datetime) -> str:
    """The expression with every placeholder replaced by what it stands for on this side."""
    names = (namespace, model, party.revision, *party.services)
    if broken := [name for name in names if not _NAME.fullmatch(name)]:
        raise ValueError(f"{broken[0]!r} is no name that may stand in a query")
    values = {
        "namespace": namespace,
        "model": model,
        "revision": party.revision,
        "number": str(party.number),
        "services": "|".join(party.services),
        "window": f"{max(1, ceil((now - since).total_seconds()))}s",
    }
    return re.sub(r"[{][{]([a-z]+)[}][}]", lambda found: values[found[1]], expression)


def one_number(series: Iterable[Series]) -> float | Silence:
    """The number that an expression gave; neither nothing nor NaN is one."""
    found = tuple(series)
    if len(found) != 1:
        return Silence(f"the query gave {len(found)} series where one number is needed" if found else "no series")
    value = found[0].samples[-1][1]
    return value if isfinite(value) else Silence(f"the query gave {value}")


def two_counts(bad: float, total: float) -> Counts | Silence:
    """What increase() makes of counters, as counts: it extrapolates, so they are rounded."""
    if min(bad, total) < 0 or bad > 1.1 * total + 1 or total > _MOST_ANSWERS:
        return Silence(f"the queries gave {bad:g} bad of {total:g} answers, which cannot be")
    return Counts(round(bad), max(round(bad), round(total)))


def memory_query(namespace: str, pods: Iterable[ServerPod]) -> str:
    """The working sets of pods, as cAdvisor tells them: what the kernel kills for when it is above the limit."""
    names = sorted(pod.name for pod in pods)
    for name in (namespace, *names):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a namespace or pod")
    labels = f'namespace="{namespace}",container="{SERVER_CONTAINER}",pod=~"{"|".join(names)}"'
    return f"container_memory_working_set_bytes{{{labels}}}[{_MEMORY_WINDOW}]"


def largest(series: Iterable[Series], pods: Iterable[ServerPod]) -> float | Silence:
    """Bytes of the largest of these pods; a pod of which nothing is known could be it."""
    # A container that was restarted, or is scraped twice, has several series: the newest sample is how it is.
    newest: dict[str, tuple[float, float]] = {}
    for each in series:
        pod, sample = each.labels.get("pod", ""), each.samples[-1]
        if isfinite(sample[1]):
            newest[pod] = max(newest.get(pod, sample), sample)
    names = {pod.name for pod in pods}
    if missing := sorted(names - newest.keys()):
        return Silence(
            f"Prometheus knows the memory of {len(names) - len(missing)} of {len(names)} pods, and not of "
            f"{missing[0]}: does it scrape the kubelets' cAdvisor?"
        )
    return max((newest[name][1] for name in names), default=None) or Silence("no server is ready")
