"""A world small enough to hold in the hand: what a decision asks for happens, and nothing else.

No client, no clock, no rendering: the effects of actions on the facts that the next observation is made of. `settle`
looks again and again, as the operator does; `crash` lets a look die after some of its writes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from onnx_converter.summary import Summary
from onnx_operator.api.common import ExecutionProvider, parse_quantity
from onnx_operator.api.model import OnnxModelSpec, OnnxModelStatus
from onnx_operator.api.model_class import OnnxModelClassSpec
from onnx_operator.api.revision import OnnxModelRevisionStatus
from onnx_operator.api.rollout import MetricName
from onnx_operator.core.actions import (
    Action,
    Delete,
    WantAnalysisJob,
    WantConvert,
    WantFetch,
    WantJobsPolicy,
    WantProber,
    WantPublish,
    WantRevision,
    WantRoutes,
    WantServers,
    WantService,
    WantValidate,
)
from onnx_operator.core.analysis import Measurement, Outcome
from onnx_operator.core.autoscaling import Autoscaler, AutoscalerState
from onnx_operator.core.counts import Counts
from onnx_operator.core.decide import Decision, decide
from onnx_operator.core.jobs import AnalysisJobState, JobBlocked, JobFailed, JobRunning, JobState, JobSucceeded
from onnx_operator.core.names import Component, digest_of
from onnx_operator.core.observation import (
    Child,
    ClassSeen,
    DefaultImages,
    ModelSeen,
    ObjectName,
    Observation,
    RevisionSeen,
    ServiceSeen,
)
from onnx_operator.core.scrapes import Scrape, Scrapes
from onnx_operator.core.servers import ServerState
from onnx_operator.core.traffic import GatewayAddress, RouteSeen, Split
from onnx_operator.core.view import look

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx_operator.core.pods import Trouble

START = datetime(2026, 1, 1, tzinfo=UTC)
_GATEWAY = GatewayAddress("10.0.0.1", 80, 9000)
CPU = ExecutionProvider.CPU
CUDA = ExecutionProvider.CUDA
DML = ExecutionProvider.DML


def a_class(**spec: Any) -> ClassSeen:
    given = {
        "artifactStore": {"claimName": "artifacts"},
        "traffic": {"domain": "models.test", "gateway": {"name": "edge", "namespace": "gateway"}, "drain": "10s"},
        "rollout": {
            "steps": [{"weight": 10, "duration": "1m"}, {"weight": 50, "duration": "1m"}],
            "analysis": {"interval": "10s", "metrics": [{"name": "errorRatio", "maximum": "0.05"}]},
            "progressDeadline": "10m",
        },
    } | spec
    return ClassSeen("standard", OnnxModelClassSpec.model_validate(given), is_default=True)


def a_spec(**changes: Any) -> OnnxModelSpec:
    given = {"source": {"persistentVolumeClaim": {"claimName": "checkpoints", "path": "v1"}}} | changes
    return OnnxModelSpec.model_validate(given)


def a_summary(step: str, **details: Any) -> Summary:
    return Summary(step, "Succeeded", "Done", f"{step} is done", 0, details)


def a_benchmark(provider: str) -> dict[str, Any]:
    """As benchmark.py of the converter tells it."""
    original, graph = (
        {
            "p50Milliseconds": p50,
            "p90Milliseconds": "14.2",
            "p99Milliseconds": "21",
            "tokensPerSecond": "1280",
        }
        for p50 in ("12.5", "6.25")
    )
    cell = {"batch": 1, "sequenceLength": 16, "runs": 40, "speedup": "2.00", "original": original, "graph": graph}
    footprint = {"sizeBytes": 90_868_376, "loadMilliseconds": "320", "peakMemoryBytes": 120_000_000}
    return {
        "provider": provider,
        "threads": 1,
        "cells": [cell],
        "original": footprint,
        "graph": footprint,
        "message": "5 s are too short for 8 x 128",
    }


def evaluated(name: str, metric: str = "stsSpearman") -> dict[str, Any]:
    """As it is declared."""
    dataset = {"configMap": {"name": "data", "key": "held-out.jsonl"}, "digest": a_digest("data")}
    return {"name": name, "metric": metric, "dataset": dataset, "maxLoss": "0.01"}


def an_evaluation(name: str) -> dict[str, Any]:
    """As validate.py of the converter tells it."""
    return {
        "name": name,
        "original": "0.8671",
        "graph": "0.8642",
        "loss": "0.00289",
        "lossLow": "-0.0328",
        "lossHigh": "0.0413",
        "samples": 30,
    }


def a_digest(text: str) -> str:
    return f"sha256:{digest_of(text, 64)}"


def _beside(measured: Measurement, percent: int) -> Measurement:
    if not isinstance(measured.candidate, Counts) or measured.stable is None or not percent:
        return measured
    return replace(measured, stable=Counts(0, measured.candidate.total * (100 - percent) // percent))


@dataclass
class World:
    """Facts that actions change, and knobs for what the cluster does by itself."""

    spec: OnnxModelSpec = field(default_factory=a_spec)
    classes: tuple[ClassSeen, ...] = field(default_factory=lambda: (a_class(),))
    #: What the headers of the checkpoint tell; nothing, as from a converter of before.
    sizes: dict[str, int] = field(default_factory=dict)
    now: datetime = START
    status: OnnxModelStatus = field(default_factory=OnnxModelStatus)
    revisions: dict[str, RevisionSeen] = field(default_factory=dict)
    jobs: dict[str, JobState] = field(default_factory=dict)
    #: The Jobs of metrics; they end when a test says how.
    analysis_jobs: dict[str, AnalysisJobState] = field(default_factory=dict)
    #: What a validation says besides.
    timed: dict[str, Any] = field(default_factory=lambda: {"benchmark": a_benchmark(CPU)})
    children: dict[ObjectName, Child] = field(default_factory=dict)
    servers: dict[tuple[str, ExecutionProvider], ServerState] = field(default_factory=dict)
    #: The bounds of each autoscaler, and why those that cannot scale say so.
    autoscalers: dict[tuple[str, ExecutionProvider], Autoscaler] = field(default_factory=dict)
    blind: str = ""
    split: Split | None = None
    #: Where there is no gateway.
    has_gateway_api: bool = True
    service: ServiceSeen | None = None
    is_accepted: bool = False
    generation: int = 1
    gateway: GatewayAddress | None = _GATEWAY
    gateway_problem: str = ""
    #: What the next analysis will find; stable has answered its part of what the candidate has.
    measured: tuple[Measurement, ...] = ()
    #: Of the candidate's largest pod, and what its servers have answered since they started.
    mebibytes: float = 64
    answered: int = 0
    #: The percentage that the candidate really gets; None for the wanted one.
    really_gets: int | None = None
    #: Every split that was ever written, newest last.
    history: list[Split] = field(default_factory=list)
    writes: int = 0
    #: The most servers that were asked for at any moment, by execution provider.
    peak: Counter[str] = field(default_factory=Counter)
    #: What the gateway really does, and since when it sends nothing to a Service.
    in_force: Split | None = None
    idle_since: dict[str, datetime] = field(default_factory=dict)

    # ---- looking

    def observe(self) -> Observation:
        route = None if self.split is None else RouteSeen(self.split, self.is_accepted)
        seen = Observation(
            model=ModelSeen("shop", "minilm", "0a1b2c3d-uid", self.generation, "1", self.spec, self.status),
            classes=self.classes,
            images=DefaultImages("operator:1", "converter:1", "triton:1"),
            revisions=tuple(self.revisions.values()),
            children=tuple(self.children.values()),
            jobs=dict(self.jobs),
            analysis_jobs=dict(self.analysis_jobs),
            servers=dict(self.servers),
            autoscalers={key: AutoscalerState(one.least, self.blind) for key, one in self.autoscalers.items()},
            http_route=route,
            grpc_route=route,
            gateway=self.gateway,
            gateway_problem=self.gateway_problem,
            has_gateway_api=self.has_gateway_api,
            service=self.service,
        )
        view = look(seen, self.now)
        if view.is_analysis_due:
            percent = view.candidate_weight if self.really_gets is None else self.really_gets
            compared = (_beside(one, percent) for one in self.measured)
            seen = replace(seen, measurements=(*compared, *self._by_themselves()))
        return seen

    def _by_themselves(self) -> tuple[Measurement, ...]:
        """Memory, and what the servers tell; each pod is known by the number of its revision."""
        candidate = self.status.candidate
        self.answered += 100
        counts = Counts(0, self.answered)
        scrape = Scrape(candidate.revision[-16:] if candidate else "", 1, self.now, counts)
        return (
            Measurement(MetricName.MEMORY, Outcome.MEASURED, self.mebibytes * 2.0**20, 64.0 * 2**20),
            Measurement(MetricName.THROUGHPUT_PER_REPLICA, Outcome.MEASURED, scrapes=Scrapes(scrape, scrape)),
        )

    def asked_for(self) -> Counter[str]:
        """Servers by execution provider, of all revisions."""
        return sum((Counter({provider: one.replicas}) for (_, provider), one in self.servers.items()), Counter())

    def decide(self) -> Decision:
        return decide(self.observe(), self.now)

    def look(self, *, dies_after: int | None = None) -> Decision:
        """One look with its effects; `dies_after` ends the process after so many writes."""
        decision = self.decide()
        effects: list[Callable[[], None]] = [partial(self._act, action) for action in decision.actions]
        effects += [partial(self._write_revision, one.name, one.status) for one in decision.revisions]
        effects.append(partial(self._write_model, decision.status()))
        for effect in effects[:dies_after]:
            effect()
        return decision

    def settle(self, looks: int = 50) -> Decision:
        """Look until nothing changes any more without help from outside."""
        for _ in range(looks):
            before = self.facts()
            decision = self.look()
            if decision.move is None and self.facts() == before:
                return decision
        raise AssertionError(f"still restless after {looks} looks: {decision.move or decision.actions}")

    def facts(self) -> Any:
        return (
            self.status,
            dict(self.revisions),
            dict(self.jobs),
            dict(self.analysis_jobs),
            sorted((name.kind, name.name) for name in self.children),
            dict(self.servers),
            dict(self.autoscalers),
            self.split,
            self.service,
        )

    def condition(self, kind: str) -> tuple[str, str]:
        found = next(one for one in self.status.conditions if one.type == kind)
        return found.status, found.reason

    def message(self, kind: str) -> str:
        return next(one for one in self.status.conditions if one.type == kind).message

    # ---- what the cluster does

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def change(self, **spec: Any) -> None:
        """The user edits the spec."""
        merged = self.spec.model_dump(mode="json", exclude_none=True, exclude_unset=True) | spec
        self.spec = OnnxModelSpec.model_validate(merged)
        self.generation += 1

    def end_jobs(self, *, digest: str = "one") -> None:
        """Every Job that runs succeeds."""
        for name, state in self.jobs.items():
            if isinstance(state, JobRunning):
                self.jobs[name] = JobSucceeded(self._result(name, digest), 7)

    def steer(self, **rollout: Any) -> None:
        """The user edits a part of the rollout."""
        self.change(rollout=self.spec.rollout.model_dump(mode="json", exclude_none=True, exclude_unset=True) | rollout)

    def fail_job(self, part: str, reason: str, exit_code: int | None = 27) -> None:
        name = next(name for name in self.jobs if part in name)
        self.jobs[name] = JobFailed(reason, f"{reason} happened", exit_code, 5)

    def end_analysis_jobs(self, state: AnalysisJobState) -> None:
        """Every Job of a metric that has not ended does, or stands, like this."""
        for name, before in self.analysis_jobs.items():
            if isinstance(before, JobRunning | JobBlocked):
                self.analysis_jobs[name] = state

    def autoscale(self, wanted: int = 0) -> None:
        """Every autoscaler comes to its conclusion: so many, within its bounds; one of nothing rests."""
        for key, bounds in self.autoscalers.items():
            state = self.servers.get(key)
            if state is not None and state.replicas:
                self.servers[key] = _scaled(state, min(max(wanted or state.replicas, bounds.least), bounds.most))

    def make_ready(self) -> None:
        self.autoscale()
        for key, state in self.servers.items():
            self.servers[key] = replace(state, ready=state.replicas, is_current=True, trouble=None)

    def break_servers(self, revision: str, trouble: Trouble | None) -> None:
        for key, state in self.servers.items():
            if key[0] == revision:
                self.servers[key] = replace(state, ready=0, trouble=trouble)

    def accept(self) -> None:
        """The gateway takes over what the routes say."""
        if self.split is None or self.is_accepted:
            return
        self.is_accepted = True
        self._is_in_force(self.split)

    def behind_the_service(self) -> Split | None:
        """The split that comes of what the Service selects; None where a gateway has taken over."""
        view = look(self.observe(), self.now)
        route = view.routes[0] if view.is_by_ratio else None
        return route.split if route is not None else None

    def _is_in_force(self, split: Split) -> None:
        self.idle_since |= dict.fromkeys(_busy(self.in_force) - _busy(split), self.now)
        self.in_force = split

    def lose_record(self, revision: str) -> None:
        """Somebody deletes an OnnxModelRevision; the garbage collector takes what it owned."""
        del self.revisions[revision]
        for name in [name for name, child in self.children.items() if child.revision == revision]:
            del self.children[name]
        for found in (self.servers, self.autoscalers):
            for key in [key for key in found if key[0] == revision]:
                del found[key]

    def measure(self, bad: int, total: int, *, mirrored: int | None = None) -> None:
        counts, copies = (Counts(bad, total), Counts(0, total)), total if mirrored is None else mirrored
        self.measured = (Measurement(MetricName.ERROR_RATIO, Outcome.MEASURED, *counts, mirrored=copies),)

    def measure_nothing(self, outcome: Outcome) -> None:
        self.measured = (Measurement(MetricName.ERROR_RATIO, outcome, message="silence"),)

    def serve_first(self) -> None:
        """Up to a first revision that answers everything."""
        for _ in range(6):
            self.settle()
            self.end_jobs()
            self.make_ready()
            self.accept()
        self.settle()
        assert self.condition("Ready") == ("True", "Serving")

    def up_to_step(self, step: int, silence: Outcome | None = None) -> None:
        """Up to a step whose weight the gateway has accepted."""
        self.measure(0, 1000)
        if silence is not None:
            self.measure_nothing(silence)
        for _ in range(40):
            self.settle()
            candidate = self.status.candidate
            if candidate is not None and candidate.step == step and candidate.step_started_time is not None:
                return
            self.end_jobs()
            self.make_ready()
            self.accept()
            if self.status.retiring or (candidate is not None and candidate.step_started_time is not None):
                self.wait(10)
        raise AssertionError(f"step {step} never came: {self.status}")

    def goes_on_for(self, seconds: float) -> None:
        """Time passes, the gateway answers, and the operator looks every ten seconds."""
        for _ in range(int(seconds / 10)):
            self.wait(10)
            self.settle()
            self.accept()
        self.settle()

    def goes_bad(self) -> None:
        """After a thousand good answers only bad ones come; what a look sees first, the next one bets on."""
        for total in (2000, 3000):
            self.measure(total - 1000, total)
            self.wait(10)
            self.settle()

    def finish(self, looks: int = 60) -> None:
        """All goes well until nothing is left to do."""
        for _ in range(looks):
            self.settle()
            if self.condition("Ready")[0] == "True":
                return
            self.end_jobs()
            self.make_ready()
            self.accept()
            self.wait(10)
        raise AssertionError(f"not done: {self.status.conditions[0]}")

    @property
    def step(self) -> int | None:
        """The candidate's step; there must be a candidate."""
        assert self.status.candidate is not None, self.status
        return self.status.candidate.step

    @property
    def stable_number(self) -> int | None:
        return self.status.stable.number if self.status.stable is not None else None

    def numbered(self, number: int) -> RevisionSeen:
        return next(one for one in self.revisions.values() if one.spec.number == number)

    def ready_of(self, number: int) -> int:
        return sum(state.ready for (name, _), state in self.servers.items() if name == self.numbered(number).name)

    def weights(self) -> dict[int, int]:
        """Percent of requests by revision number, as written."""
        split = self.behind_the_service() or self.split
        if split is None:
            return {}
        total = sum(one.weight for one in split.backends)
        return {
            revision.spec.number: round(
                100 * sum(one.weight for one in split.backends if one.service.startswith(revision.name)) / total
            )
            for revision in self.revisions.values()
            if any(one.service.startswith(revision.name) for one in split.backends)
        }

    # ---- effects

    def _act(self, action: Action) -> None:  # noqa: C901, PLR0912  (one case per action)
        match action:
            case Delete():
                self._delete(action.object)
            case WantRevision():
                if action.name not in self.revisions:
                    self._wrote()
                    self.revisions[action.name] = RevisionSeen(
                        action.name, f"uid-{action.name}", "1", action.spec, OnnxModelRevisionStatus()
                    )
            case WantFetch() | WantConvert() | WantValidate() | WantPublish():
                if isinstance(action, WantConvert) and action.memory is not None:
                    limit = action.class_spec.jobs.resources.limits.get("memory", "1Ti")
                    assert action.memory <= parse_quantity(limit), "begun where it has no room"
                component = {WantFetch: Component.FETCH, WantConvert: Component.CONVERT}.get(type(action), "")
                self._create(action.objects[0], component, self._revision_of(action))
                self.jobs.setdefault(action.objects[0].name, JobRunning("runs"))
            case WantServers():
                self._serve(action)
            case WantRoutes():
                for name in action.objects:
                    self._create(name, "", "")
                if self.split != action.split:
                    self._wrote()
                    self.split, self.is_accepted = action.split, False
                    self.history.append(action.split)
            case WantService():
                self._create(action.objects[0], Component.SERVER, "")
                if self.service != ServiceSeen(action.revision):
                    self._wrote()
                    self.service = ServiceSeen(action.revision)
                    if (split := self.behind_the_service()) is not None:
                        self._is_in_force(split)
            case WantProber():
                self._create(action.objects[0], Component.PROBER, action.candidate.name)
            case WantJobsPolicy():
                self._create(action.objects[0], "", "")
            case WantAnalysisJob():
                self._create(action.objects[0], Component.ANALYSIS, action.candidate.name)
                self.analysis_jobs.setdefault(action.name, JobRunning(f"Job {action.name} runs"))

    def _serve(self, action: WantServers) -> None:
        key = (action.revision.name, action.provider)
        state = self.servers.get(key)
        for name in action.objects:
            self._create(name, Component.SERVER, action.revision.name)
        if not action.is_autoscaled and (state is None or state.replicas != action.replicas):
            assert state is None or not state.replicas or key not in self.autoscalers, "an autoscaler owns this number"
            self._wrote()
            self.servers[key] = _scaled(state or ServerState(0, 0, is_current=True), action.replicas)
            self.peak |= self.asked_for()
        assert key in self.servers, "a Deployment that does not say how many there are is made with 1"
        if action.autoscaler is not None and self.autoscalers.get(key) != action.autoscaler:
            self._wrote()
            self.autoscalers[key] = action.autoscaler

    def _create(self, name: ObjectName, component: str, revision: str) -> None:
        if name not in self.children:
            self._wrote()
            self.children[name] = Child(
                name.kind, name.name, f"uid-{name.name}", component, revision, is_deleting=False, manifest={}
            )

    def _delete(self, name: ObjectName) -> None:
        self._wrote()
        if name.kind == "OnnxModelRevision":
            self.revisions.pop(name.name, None)
            return
        child = self.children.pop(name, None)
        if name == ObjectName("Service", "minilm"):
            self.service = None
            self._leads_nowhere()
        if name.kind == "HTTPRoute":
            self.split = None
            self._leads_nowhere()
        if name.kind == "Job":
            self.jobs.pop(name.name, None)
            self.analysis_jobs.pop(name.name, None)
        if name.kind == "Deployment":
            self._is_out_of_the_traffic(name.name)
        gone: dict[str, dict[Any, Any]] = {"Deployment": self.servers, "HorizontalPodAutoscaler": self.autoscalers}
        if name.kind in gone and child is not None:
            for provider in ExecutionProvider:
                if name.name == f"{child.revision}-{provider.short}":
                    gone[name.kind].pop((child.revision, provider), None)

    def _leads_nowhere(self) -> None:
        if self.split is None and self.service is None:
            self._is_in_force(Split((), ()))

    def _is_out_of_the_traffic(self, service: str) -> None:
        if self.in_force is not None:
            assert service not in self.in_force.services, f"{service} was removed while the gateway knows it"
        if service in self.idle_since:
            idle = (self.now - self.idle_since[service]).total_seconds()
            assert idle >= 10, f"{service} was removed {idle} s after its last request, before it was drained"

    def _write_revision(self, name: str, status: OnnxModelRevisionStatus) -> None:
        self._wrote()
        told = OnnxModelRevisionStatus.model_validate(status.model_dump(mode="json", exclude_none=True))
        self.revisions[name] = replace(self.revisions[name], status=told)

    def _write_model(self, status: OnnxModelStatus) -> None:
        if status != self.status:
            self._wrote()
            self.status = OnnxModelStatus.model_validate(status.model_dump(mode="json", exclude_none=True))

    def _wrote(self) -> None:
        self.writes += 1

    @staticmethod
    def _revision_of(action: Any) -> str:
        return "" if isinstance(action, WantFetch) else str(action.revision.name)

    def _result(self, job: str, digest: str) -> Summary:
        if job.endswith("-fetch"):
            return a_summary("fetch", digest=a_digest(digest), files=3, bytes=1000, **self.sizes)
        if "-validate-" in job:
            short = job.split("-validate-", 1)[1].rsplit("-", 1)[0]
            provider = next(one for one in ExecutionProvider if one.short == short)
            parity = {"minCosine": "0.99999", "maxAbsolute": "2e-7"}
            declared = self.revisions[job.split("-validate-", 1)[0]].spec.evaluations
            told: dict[str, Any] = {"evaluations": [an_evaluation(one.name) for one in declared]} if declared else {}
            if provider.is_edge:
                told |= {"checked": "3 of 116 nodes fall back to the CPU by its table"}
            return a_summary("validate", provider=provider, parity=parity, samples=300, **told, **self.timed)
        if "-publish-" in job:
            made = a_digest(job.split("-publish-", 1)[0])
            return a_summary(
                "publish", digest=made, bytes=90, files=12, pageDigest=a_digest("page"), goldenDigest=a_digest("golden")
            )
        return a_summary("convert")


def _scaled(state: ServerState, replicas: int) -> ServerState:
    ready = min(state.ready, replicas)
    return replace(state, replicas=replicas, ready=ready, is_current=ready == replicas)


def _busy(split: Split | None) -> set[str]:
    """The Services that get requests which name no track, or copies of them."""
    if split is None:
        return set()
    return {one.service for one in split.backends if one.weight} | {one.service for one in split.mirrors}
