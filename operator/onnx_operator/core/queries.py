"""What Envoy counts for a Service: the PromQL that asks for it, and what the answer means.

Pure: text out, samples in. Nothing here sends a query or knows where Prometheus is.

Raw samples are asked for instead of `increase()`, which extrapolates (half an error becomes thinkable) and never
sees the first errors of a candidate: Envoy creates `upstream_rq_xx{5}` at the first 5xx, so the series is born with
that error already in it. Here a series that appears after its Envoy was first scraped in the window starts at 0,
one that was there at that first scrape starts at its value, and one that falls was reset and starts at 0 again.
Nothing from before the window is ever counted.

Whose fault an answer is. Bad: HTTP 5xx, also those Envoy gives because no pod answers, and the gRPC statuses that
blame the server. A gRPC error is HTTP 200, so at gRPC ports the status counters are the only truth, and where they
are missing the answer is silence. Disputed: HTTP 4xx, the other gRPC statuses, and requests whose caller hung up
before an answer: the caller's mistake or impatience, or a candidate that refuses what stable accepts, or one that
hangs. See `analysis.Counts` for how disputes are settled.

What is mirrored has a cluster of its own in Envoy, named by Envoy Gateway after the route, the rule and the filter, not
the Service; its counters go on when the filter comes to mean another one, so only the window tells whose they are. It
has all counters of a Service but the gRPC statuses, as nobody downstream gets the answer. So in a shadow errors are
counted at HTTP alone, on both sides, and a shadow of gRPC requests alone is silence.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import partial
from math import ceil, inf, isfinite
from statistics import median
from typing import TYPE_CHECKING, Final

from onnx_operator.core.counts import Counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime, timedelta

_HTTP: Final = "8000/http"
_GRPC: Final = "8001/grpc"
_SERVER_FAULTS: Final = frozenset({2, 4, 12, 13, 14, 15})
"""UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: as OpenTelemetry draws the line."""
_ALWAYS: Final = "membership_total"
"""Exists from a cluster's first moment, so it shows since when an Envoy is scraped. The counters of requests do not:
Envoy Gateway lets Envoy create them with the first request."""
_BUCKETS: Final = (
    *(0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000),
    *(300_000, 600_000, 1_800_000, 3_600_000),
)
"""Upper bounds in ms of Envoy's default histogram buckets, which Envoy Gateway offers no way to change."""
_RAW_SECONDS: Final = 600
_POINTS: Final = 300
"""Up to ten minutes every scrape is read; of longer windows this many evenly spaced points, to bound the answer."""
_FRESH_SECONDS: Final = 15.0
_FRESH_GAPS: Final = 3
"""Samples are stale when the newest is older than this many scrape intervals, but never before the seconds above."""
_OWN_LABELS: Final = frozenset(
    {
        *("__name__", "envoy_cluster_name", "envoy_response_code_class", "le"),
        *("envoy_grpc_bridge_method", "envoy_grpc_bridge_service"),
    }
)
"""Labels that tell the series of one Envoy apart; the others tell Envoys apart."""
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Series:
    """One series of a query's answer: samples as (seconds, value), oldest first."""

    labels: Mapping[str, str]
    samples: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Silence:
    """There is nothing to count, and why: for whoever runs the cluster."""

    why: str


@dataclass(frozen=True, slots=True)
class Sides:
    """The Services of candidate and stable, one per execution provider."""

    namespace: str
    candidate: tuple[str, ...]
    stable: tuple[str, ...]
    mirrored_by: str = ""
    """Name of the routes whose first rule mirrors to the candidate's Services; empty where nothing is mirrored."""

    @property
    def mirrors(self) -> Clusters:
        """Envoy's clusters for what is mirrored."""
        numbers = range(len(self.candidate)) if self.mirrored_by else ()
        http, grpc = (
            tuple(f"{kind}/{self.namespace}/{self.mirrored_by}/rule/0-mirror-{number}" for number in numbers)
            for kind in ("httproute", "grpcroute")
        )
        return Clusters(http, grpc)

    @property
    def clusters_of_candidate(self) -> Clusters:
        """Envoy's clusters for the candidate, be it asked by weight, by header or by mirror."""
        return self._clusters(self.candidate) + self.mirrors

    @property
    def clusters_of_stable(self) -> Clusters:
        """Envoy's clusters for stable."""
        return self._clusters(self.stable)

    def _clusters(self, services: tuple[str, ...]) -> Clusters:
        http, grpc = (
            tuple(f"service/{self.namespace}/{service}/{port}" for service in services) for port in (_HTTP, _GRPC)
        )
        return Clusters(http, grpc)


@dataclass(frozen=True, slots=True)
class Clusters:
    """Envoy's names of clusters, by protocol."""

    http: tuple[str, ...]
    grpc: tuple[str, ...]

    def __add__(self, other: Clusters) -> Clusters:
        return Clusters(self.http + other.http, self.grpc + other.grpc)


@dataclass(frozen=True, slots=True)
class Errors:
    """Asks how many requests failed or are disputed, over both protocols."""

    sides: Sides
    note: str = ""

    def text(self, *, since: datetime, now: datetime) -> str:
        """The query to send."""
        names = f"envoy_cluster_({_ALWAYS}|upstream_rq_(xx|total|completed|retry|active)|grpc_.+_[0-9]+)"
        return _selector(names, self.sides) + _window(since, now)

    def count(self, series: Iterable[Series], *, now: datetime) -> tuple[Counts, Counts] | Silence:
        """What the answer says about candidate and stable."""
        return _count_both(tuple(series), self.sides, _http_errors if self.sides.mirrored_by else _errors, now=now)

    def mirrored(self, series: Iterable[Series]) -> int | Silence:
        """How many of the candidate's answers are to mirrored requests."""
        grown, mirrors = _Growth(series), self.sides.mirrors
        mirrored = _http_errors(grown, mirrors).total
        unknown = sum(grown.of(cluster, "envoy_cluster_upstream_rq_completed") for cluster in mirrors.grpc)
        if unknown and not mirrored:
            return Silence(
                f"all {unknown} mirrored requests are gRPC, and Envoy counts no gRPC status where nobody gets the "
                "answer: let slowRatio and disagreement judge the shadow, and errorRatio by dryRun: true or not at all"
            )
        return mirrored


@dataclass(frozen=True, slots=True)
class Slowness:
    """Asks how many answers took longer than a bound in ms, which must be one of Envoy's histogram."""

    sides: Sides
    bucket: float

    @classmethod
    def above(cls, slower_than: timedelta, sides: Sides) -> Slowness | None:
        """With the first bound at or above `slower_than`: nothing is called slow that is not. None if there is none."""
        wanted = slower_than.total_seconds() * 1000
        bucket = next((bound for bound in _BUCKETS if bound >= wanted), None)
        return None if bucket is None else cls(sides, bucket)

    @property
    def note(self) -> str:
        """What a reader of the counts must know."""
        return f"slow is above {self.bucket:g} ms, a bound of the gateway's histogram"

    def text(self, *, since: datetime, now: datetime) -> str:
        """The query to send."""
        # Prometheus 3 rewrites le="250" as le="250.0". The empty alternative keeps what has no `le`.
        bound = f"{self.bucket:.15g}".replace(".", "[.]")
        extra = f',le=~"{bound}([.]0)?|[+]Inf|"'
        names = f"envoy_cluster_({_ALWAYS}|upstream_rq_(time_bucket|timeout))"
        return _selector(names, self.sides, extra) + _window(since, now)

    def count(self, series: Iterable[Series], *, now: datetime) -> tuple[Counts, Counts] | Silence:
        """What the answer says about candidate and stable."""
        return _count_both(tuple(series), self.sides, partial(_slow, bucket=self.bucket), now=now)

    def mirrored(self, series: Iterable[Series]) -> int | Silence:
        """How many of the candidate's answers are to mirrored requests."""
        counted = _slow(_Growth(series), self.sides.mirrors, bucket=self.bucket)
        return counted if isinstance(counted, Silence) else counted.total


def _count_both(
    series: tuple[Series, ...],
    sides: Sides,
    count: Callable[[_Growth, Clusters], Counts | Silence],
    *,
    now: datetime,
) -> tuple[Counts, Counts] | Silence:
    if silence := _silence(series, now):
        return silence
    grown = _Growth(series)
    candidate, stable = count(grown, sides.clusters_of_candidate), count(grown, sides.clusters_of_stable)
    if isinstance(candidate, Silence):
        return candidate
    return stable if isinstance(stable, Silence) else (candidate, stable)


def _silence(series: Iterable[Series], now: datetime) -> Silence | None:
    """Why these series are no base for a judgement: there are none, or nobody has scraped Envoy lately."""
    times = sorted({time for each in series for time, _ in each.samples})
    if not times:
        return Silence(
            "Prometheus knows nothing of these Services in this step: does it scrape Envoy and keep "
            f"envoy_cluster_{_ALWAYS}, and does the EnvoyProxy say mergeBackends?"
        )
    gaps = [after - before for before, after in itertools.pairwise(times)]
    allowed = max(_FRESH_SECONDS, _FRESH_GAPS * median(gaps)) if gaps else _FRESH_SECONDS
    age = now.timestamp() - times[-1]
    if age > allowed:
        return Silence(f"Prometheus' newest sample of Envoy is {age:.0f} s old: see whether it still scrapes Envoy")
    return None


def _errors(grown: _Growth, clusters: Clusters) -> Counts | Silence:
    total = _http_errors(grown, clusters)
    for cluster in clusters.grpc:
        counted = _grpc_errors(grown, cluster)
        if isinstance(counted, Silence):
            return counted
        total += counted
    return total


def _slow(grown: _Growth, clusters: Clusters, *, bucket: float) -> Counts | Silence:
    total = Counts(0, 0)
    for cluster in (*clusters.http, *clusters.grpc):
        by_bound = {
            float(label.removeprefix("+")): answers
            for label, answers in grown.by_label(cluster, "envoy_cluster_upstream_rq_time_bucket", "le").items()
        }
        # Envoy's histogram knows only answers, not those it stopped waiting for.
        timeouts = grown.of(cluster, "envoy_cluster_upstream_rq_timeout")
        answered = by_bound.get(inf, 0)
        if answered and bucket not in by_bound:
            return Silence(f"Envoy's histogram of {cluster} has no bucket at {bucket:g} ms: its buckets were changed")
        late = max(0, answered - by_bound.get(bucket, 0))
        total += Counts(late + timeouts, answered + timeouts)
    return total


def _http_errors(grown: _Growth, clusters: Clusters) -> Counts:
    total = Counts(0, 0)
    for cluster in clusters.http:
        by_class = grown.by_label(cluster, "envoy_cluster_upstream_rq_xx", "envoy_response_code_class")
        abandoned = grown.abandoned(cluster)
        total += Counts(
            bad=by_class.get("5", 0),
            total=sum(by_class.values()) + abandoned,
            disputed=by_class.get("4", 0) + abandoned,
        )
    return total


def _grpc_errors(grown: _Growth, cluster: str) -> Counts | Silence:
    by_status = grown.by_grpc_status(cluster)
    if not by_status and grown.of(cluster, "envoy_cluster_upstream_rq_completed"):
        return Silence(
            f"Prometheus has no gRPC statuses of {cluster}: keep envoy_cluster_grpc_* when scraping, and let the "
            "EnvoyProxy count them (telemetry.metrics.enableGRPCStats)"
        )
    abandoned = grown.abandoned(cluster)
    bad = sum(answers for status, answers in by_status.items() if status in _SERVER_FAULTS)
    answered = sum(by_status.values())
    return Counts(bad, answered + abandoned, answered - bad - by_status.get(0, 0) + abandoned)


class _Growth:
    """By how much each series grew within the window, added up over all Envoys."""

    def __init__(self, series: Iterable[Series]) -> None:
        known = [each for each in map(_finite, series) if each.samples]
        first_scrape: dict[frozenset[tuple[str, str]], float] = {}
        for each in known:
            envoy = _envoy(each)
            first_scrape[envoy] = min(each.samples[0][0], first_scrape.get(envoy, each.samples[0][0]))
        self._grown: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        for each in known:
            grow = _change if each.labels.get("__name__", "").endswith("_active") else _increase
            entry = (each.labels, grow(each.samples, since=first_scrape[_envoy(each)]))
            self._grown.setdefault(each.labels.get("envoy_cluster_name", ""), []).append(entry)

    def of(self, cluster: str, name: str) -> int:
        """The growth of a metric that has one series per Envoy."""
        return round(sum(grown for labels, grown in self._grown.get(cluster, ()) if labels.get("__name__") == name))

    def by_label(self, cluster: str, name: str, label: str) -> dict[str, int]:
        """The growth of a metric for each value of a label."""
        found: dict[str, float] = {}
        for labels, grown in self._grown.get(cluster, ()):
            if labels.get("__name__") == name:
                found[labels.get(label, "")] = found.get(labels.get(label, ""), 0) + grown
        return {value: round(grown) for value, grown in found.items()}

    def by_grpc_status(self, cluster: str) -> dict[int, int]:
        """Answers by gRPC status; Envoy writes method and status into the metric's name."""
        found: dict[int, float] = {}
        for labels, grown in self._grown.get(cluster, ()):
            if match := re.fullmatch(r"envoy_cluster_grpc_.+_([0-9]+)", labels.get("__name__", "")):
                found[int(match[1])] = found.get(int(match[1]), 0) + grown
        return {status: round(grown) for status, grown in found.items()}

    def abandoned(self, cluster: str) -> int:
        """Requests sent to a pod and never answered, because the caller hung up.

        Envoy has no counter for them: they are what was begun, less what was finished and what is still going on.
        Requests that found no pod are finished without having begun, which can hide some, never invent any.
        """
        begun = self.of(cluster, "envoy_cluster_upstream_rq_total") - self.of(
            cluster, "envoy_cluster_upstream_rq_retry"
        )
        ended = self.of(cluster, "envoy_cluster_upstream_rq_completed")
        return max(0, begun - ended - self.of(cluster, "envoy_cluster_upstream_rq_active"))


def _finite(series: Series) -> Series:
    return Series(series.labels, tuple((time, value) for time, value in series.samples if isfinite(value)))


def _envoy(series: Series) -> frozenset[tuple[str, str]]:
    return frozenset((name, value) for name, value in series.labels.items() if name not in _OWN_LABELS)


def _increase(samples: tuple[tuple[float, float], ...], *, since: float) -> float:
    """The growth of a counter after `since`, its Envoy's first scrape, through births and resets."""
    grown, before = 0.0, _start(samples, since)
    for _, value in samples:
        grown += value - before if value >= before else value
        before = value
    return grown


def _change(samples: tuple[tuple[float, float], ...], *, since: float) -> float:
    """The change of a gauge."""
    return samples[-1][1] - _start(samples, since)


def _start(samples: tuple[tuple[float, float], ...], since: float) -> float:
    time, value = samples[0]
    return value if time <= since else 0.0


def _selector(names: str, sides: Sides, extra: str = "") -> str:
    services = sorted({*sides.candidate, *sides.stable})
    for name in (sides.namespace, *services, *filter(None, [sides.mirrored_by])):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a namespace or Service")
    clusters = f"service/{sides.namespace}/({'|'.join(services)})/({_HTTP}|{_GRPC})"
    if sides.mirrored_by:
        clusters += "|" + "|".join((*sides.mirrors.http, *sides.mirrors.grpc))
    return f'{{__name__=~"{names}",envoy_cluster_name=~"{clusters}"{extra}}}'


def _window(since: datetime, now: datetime) -> str:
    seconds = (now - since).total_seconds()
    if seconds <= 0:
        raise ValueError(f"the window from {since} to {now} is empty")
    length = f"{ceil(seconds * 1000)}ms"
    return f"[{length}]" if seconds <= _RAW_SECONDS else f"[{length}:{ceil(seconds / _POINTS)}s]"
