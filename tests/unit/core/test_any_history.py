"""Whatever happens in whatever order: what must hold at every moment, and how every story ends."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from typing_extensions import override

from onnx_operator.api.common import Resources
from onnx_operator.api.model_class import JobPolicy
from onnx_operator.core.analysis import Outcome
from onnx_operator.core.counts import Counts
from onnx_operator.core.freezes import frozen_until
from onnx_operator.core.jobs import JobBlocked, JobFailed, JobPassed, JobRunning
from onnx_operator.core.names import server_name
from onnx_operator.core.observation import ObjectName
from onnx_operator.core.pods import Trouble
from onnx_operator.core.record import MOST_MOMENTS, MOST_POINTS, read
from onnx_operator.core.traffic import FULL, Split
from onnx_operator.core.view import side_of
from unit.core.worlds import CPU, CUDA, World, a_class, a_spec, evaluated

if TYPE_CHECKING:
    from collections import Counter

    from onnx_operator.api.common import ExecutionProvider
    from onnx_operator.api.model import CandidateStatus, OnnxModelStatus
    from onnx_operator.core.jobs import AnalysisJobState
    from onnx_operator.core.servers import ServerState
    from onnx_operator.core.traffic import Backend
    from onnx_operator.core.view import View

    Servers = dict[tuple[str, ExecutionProvider], ServerState]

WEIGHTS = {10, 50}
STEPS = st.sampled_from(
    [
        None,
        [{"weight": 0, "pause": {}}],
        [{"weight": 0, "duration": "30s"}, {"weight": 50, "pause": {}}],
        [{"weight": 10, "pause": {}}, {"weight": 50, "duration": "20s"}],
        [{"weight": 10, "duration": "20s", "metrics": ["errorRatio"]}, {"weight": 50, "duration": "20s"}],
        [{"weight": 0, "mirror": 5}, {"weight": 0, "mirror": 25, "pause": {}}, {"weight": 50, "duration": "20s"}],
    ]
)
SERVERS = st.sampled_from(
    [
        None,
        Trouble("ImagePullFailed", "no such image"),
        Trouble("ContainerFailed", "exit code 139", 139, is_crash=True),
        Trouble("ArtifactCorrupt", "changed", 29, is_crash=True, is_final=True),
    ]
)
FREEZES = st.sampled_from(
    [
        [],
        [{"schedule": "0 * * * *", "duration": "30m"}],
        [{"schedule": "0,20 * * * *", "duration": "12m"}, {"schedule": "50 * * * *", "duration": "5m"}],
    ]
)
#: The first quarter of every hour on CPU alone, the second on CUDA alone; outside of the windows on either or both.
QUARTERS = [
    {"schedule": "0 * * * *", "duration": "15m", "weight": 1},
    {"schedule": "15 * * * *", "duration": "15m", "weight": 0},
]
POOLS = st.sampled_from(
    [
        [{"name": CPU}],
        [{"name": CPU}, {"name": CUDA}],
        [{"name": CPU, "weight": 0}, {"name": CUDA, "weight": 7}],
        [{"name": CPU, "weight": 3, "schedules": QUARTERS}, {"name": CUDA, "schedules": QUARTERS[::-1]}],
        [{"name": CPU, "schedules": QUARTERS}, {"name": CUDA, "weight": 0}],
    ]
)
BAKES = st.sampled_from([None, {"duration": "40s"}, {"duration": "20m"}])
ERRORS = {"name": "errorRatio", "maximum": "0.05"}
CHECK = {"name": "accuracy", "maximumValue": "2", "job": {"image": "checks:1"}}
ANALYSES = st.sampled_from(
    [
        None,
        {"interval": "10s", "metrics": [ERRORS, {"name": "memory", "maximumValue": "128Mi", "maximumOfStable": "1.5"}]},
        {
            "interval": "10s",
            "metrics": [ERRORS, {"name": "throughputPerReplica", "minimumValue": "1"}],
            "limits": {"noData": "3m", "providerError": "1m", "inconclusive": "2m"},
        },
        {"interval": "10s", "metrics": [ERRORS, {"name": "memory", "maximumValue": "128Mi", "dryRun": True}]},
        {
            "interval": "10s",
            "metrics": [ERRORS, {"name": "accuracy", "maximumValue": "2", "job": {"image": "checks:1"}}],
        },
    ]
)
#: How a Job that measures ends, or what it waits for; only the first is good and only the next two are bad.
CHECKED = st.sampled_from(
    [
        JobPassed('{"value": 1}'),
        JobPassed('{"value": 3}'),
        JobFailed("ContainerFailed", "exit code 1", 1, 5),
        JobFailed("OOMKilled", "too large", 137, 5),
        JobPassed("gone"),
        JobBlocked("Unschedulable", "no node fits"),
    ]
)
WINDOWS = st.sampled_from([None, {"revisions": 1}, {"revisions": 3, "duration": "20m"}])
SURGES = st.sampled_from(
    [
        {"maxSurge": "100%", "maxUnavailable": 0},
        {"maxSurge": 0, "maxUnavailable": 1},
        {"maxSurge": 1, "maxUnavailable": "50%"},
    ]
)
SCALED = {"minReplicas": 2, "maxReplicas": 6, "target": {"requestsInFlight": 4}, "scaleDownStabilization": "2m"}
SERVINGS = st.sampled_from(
    [
        *({"replicas": one} for one in (1, 2, 3, 50)),
        {"autoscaling": SCALED},
        {"autoscaling": SCALED | {"minReplicas": 1}},
    ]
)
ROLLOUTS = st.builds(
    lambda plan, surge: plan | surge,
    st.fixed_dictionaries(
        {"steps": STEPS, "freezeWindows": FREEZES, "bake": BAKES, "analysis": ANALYSES, "rollbackWindow": WINDOWS}
    ),
    SURGES,
)
FOUND = st.sampled_from([0, 0, 500, Outcome.NO_DATA, Outcome.PROVIDER_ERROR])
TOKENS = st.sampled_from(["", "a", "b"])


class AnyHistory(RuleBasedStateMachine):
    """Users, the cluster and time act in any order; the operator looks now and then, and sometimes dies."""

    traffic: ClassVar[dict[str, Any]] = {}

    @initialize()
    def start(self) -> None:
        providers = [{"name": CPU}, {"name": CUDA}]
        offered = a_class(executionProviders=providers, limits={"allowedAnalysisImages": ["checks"]}, **self.traffic)
        spec = a_spec(executionProviders=[{"name": CPU}, {"name": CUDA}])
        self.world = World(spec=spec, classes=(offered,), sizes={"parameters": 20_000_000, "vocabulary": 30_000})
        self.world.measure(0, 1000)
        self.classes = self.world.classes
        #: What stable had on each execution provider when the last step with traffic was entered.
        self.full: dict[tuple[str, ExecutionProvider], int] = {}
        self.world.serve_first()

    # ---- users

    @rule(threads=st.integers(1, 5))
    def edit(self, threads: int) -> None:
        self.world.change(serving=self._serving(threads=threads))

    @rule(threads=st.integers(1, 5), looks=st.integers(1, 5))
    def edit_in_mid_rollout(self, threads: int, looks: int) -> None:
        self.edit(threads)
        self.be_well(looks)

    @rule(names=st.sets(st.sampled_from(["sts", "search"])))
    def evaluate(self, names: set[str]) -> None:
        self.world.change(validation={"evaluations": [evaluated(name) for name in names]})

    @rule(path=st.sampled_from(["v1", "v2"]), serving=SERVINGS, is_there=st.integers(0, 4))
    def change_something_else(self, path: str, serving: dict[str, Any], is_there: int) -> None:
        source = {"persistentVolumeClaim": {"claimName": "checkpoints", "path": path}}
        self.full = {}
        self.world.change(serving=self._serving(replicas=None, autoscaling=None) | serving, source=source)
        self.world.classes = self.classes if is_there else ()

    @rule(limit=st.sampled_from(["256Mi", "6Gi"]))
    def limit_memory(self, limit: str) -> None:
        """The platform team, between too little for any checkpoint and enough for this one."""
        jobs = JobPolicy(resources=Resources(limits={"memory": limit}))
        spec = self.classes[0].spec
        assert spec is not None
        self.world.classes = (replace(self.classes[0], spec=spec.model_copy(update={"jobs": jobs})),)

    @rule(paused=st.booleans(), promote=TOKENS, abort=TOKENS, retry=TOKENS)
    def control(self, paused: bool, promote: str, abort: str, retry: str) -> None:  # noqa: FBT001
        self.world.steer(paused=paused, promoteToken=promote, abortToken=abort, retryToken=retry)

    @rule(rollout=ROLLOUTS)
    def plan(self, rollout: dict[str, Any]) -> None:
        self.world.steer(**rollout)

    @rule(threads=st.integers(1, 5), looks=st.integers(5, 25), load=st.integers(1, 6))
    def roll_out_under_a_load(self, threads: int, looks: int, load: int) -> None:
        """Chance alone hardly ever lets an autoscaler meet a rollout that it may."""
        self.full = {}
        self.world.change(serving=self._serving(replicas=None, autoscaling=SCALED))
        self.world.steer(maxSurge="100%", maxUnavailable=0, paused=False)
        self.edit(threads)
        for look in range(looks):
            self.scale(1 + (load + look // 4) % 6)
            self.be_well(1)

    @rule(pools=POOLS)
    def weigh(self, pools: list[dict[str, Any]]) -> None:
        self.world.change(executionProviders=pools)

    @rule(threads=st.integers(1, 5), rollout=ROLLOUTS, times=st.integers(5, 25), found=FOUND)
    def roll_out(self, threads: int, rollout: dict[str, Any], times: int, found: int | Outcome) -> None:
        """A rollout by itself gets as far as it likes; without this few histories hold one."""
        self.world.steer(**rollout, paused=False)
        self.edit(threads)
        self.world.classes = self.classes
        self.measure(found)
        for _ in range(times):
            self.be_well(1)
            if times % 2 and self.world.condition("Promoted")[1] == "WaitingForPromoteToken":
                self.world.steer(promoteToken=f"at {self.world.now}")

    @precondition(lambda self: self.world.status.known_good)
    @rule(data=st.data(), looks=st.integers(1, 5))
    def go_back(self, data: st.DataObject, looks: int) -> None:
        """Chance alone hardly ever comes back to a version that was promoted before."""
        earlier = self.world.revisions.get(data.draw(st.sampled_from(self.world.status.known_good)).revision)
        if earlier is None:
            return
        serving = self._serving(threads=earlier.spec.threads)
        source = earlier.spec.source.model_dump(mode="json", exclude_none=True)
        self.world.change(serving=serving, source=source)
        self.world.steer(rollbackWindow={"revisions": 3}, paused=False)
        self.be_well(looks)

    # ---- the cluster

    @precondition(lambda self: self._running())
    @rule(data=st.data())
    def fail_a_job(self, data: st.DataObject) -> None:
        self.world.fail_job(data.draw(st.sampled_from(self._running())), "ParityFailed")

    @precondition(lambda self: self._running())
    @rule(data=st.data())
    def block_a_job(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self._running()))
        self.world.jobs[name] = JobBlocked("Unschedulable", "no node fits")

    @precondition(lambda self: self.world.analysis_jobs)
    @rule(state=CHECKED, looks=st.integers(0, 2))
    def end_a_check(self, state: AnalysisJobState, looks: int) -> None:
        self.world.end_analysis_jobs(state)
        for _ in range(looks):
            self.world.wait(10)
            self._looked(self.world.look)

    @precondition(lambda self: self.world.analysis_jobs)
    @rule()
    def lose_the_checks(self) -> None:
        """Their time to live is over, or somebody deletes them."""
        for name in list(self.world.analysis_jobs):
            self.world.analysis_jobs.pop(name)
            self.world.children.pop(ObjectName("Job", name), None)

    @precondition(lambda self: self.world.servers)
    @rule(data=st.data(), trouble=SERVERS)
    def break_servers(self, data: st.DataObject, trouble: Trouble | None) -> None:
        name, _ = data.draw(st.sampled_from(sorted(self.world.servers)))
        self.world.break_servers(name, trouble)

    @precondition(lambda self: self.world.servers)
    @rule(data=st.data(), looks=st.integers(0, 3))
    def lose_a_pool(self, data: st.DataObject, looks: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.world.servers)))
        self.world.servers[key] = replace(self.world.servers[key], ready=0)
        for _ in range(looks):
            self.world.accept()
            self._looked(self.world.look)

    @rule(load=st.integers(1, 6))
    def scale(self, load: int) -> None:
        """Autoscalers look whenever they like, and go wherever their bounds let them."""
        self.world.autoscale(load)
        in_force, stable, world = self.world.in_force, self.world.status.stable, self.world
        if (
            in_force is None
            or stable is None
            or in_force.percent(side_of(world.revisions[stable.revision]).services) == 100
        ):
            return
        for name, provider in world.autoscalers.keys() & world.servers.keys():
            full = self.full.get((stable.revision, provider), 0)
            percent = (
                100 if name == stable.revision else in_force.percent([server_name(name, one) for one in (CPU, CUDA)])
            )
            assert world.servers[name, provider].replicas >= -(-full * percent // 100)

    @rule()
    def accept(self) -> None:
        self.world.accept()

    @rule(seconds=st.sampled_from([5, 10, 60, 700]))
    def wait(self, seconds: int) -> None:
        self.world.wait(seconds)

    @rule(percent=st.sampled_from([None, 1, 50, 100]))
    def split_otherwise(self, percent: int | None) -> None:
        """The gateway does not do as it says; that is told and changes nothing."""
        self.world.really_gets = percent

    @rule(found=FOUND)
    def measure(self, found: int | Outcome) -> None:
        if isinstance(found, Outcome):
            self.world.measure_nothing(found)
        else:
            self.world.measure(found, 1000)

    @rule(mebibytes=st.sampled_from([64, 64, 100, 200]))
    def grow(self, mebibytes: int) -> None:
        self.world.mebibytes = mebibytes

    @rule(times=st.integers(1, 6))
    def be_well(self, times: int) -> None:
        """Everything goes right for a while; without this hardly any story gets as far as a rollout."""
        for _ in range(times):
            self.settle()
            self._end_jobs()
            self.world.make_ready()
            self.world.accept()
            self.world.wait(10)
            self.settle()

    # ---- the operator

    @rule()
    def look(self) -> None:
        self._looked(self.world.look)

    @rule()
    def settle(self) -> None:
        for _ in range(60):
            before = self.world.facts()
            self._looked(self.world.look)
            if self.world.facts() == before:
                return
        raise AssertionError("restless")

    @rule(writes=st.integers(0, 4))
    def die_in_mid_look(self, writes: int) -> None:
        """The process that takes over ends up where the dead one would have."""
        undisturbed = copy.deepcopy(self.world)
        undisturbed.settle()
        self.world.look(dies_after=writes)
        self.world.settle()
        assert _as_it_ends(self.world) == _as_it_ends(undisturbed)

    # ---- at every moment

    @invariant()
    def whoever_has_traffic_has_servers(self) -> None:
        if not hasattr(self, "world"):
            return
        deployed = {child.revision for child in self.world.children.values() if child.kind == "Deployment"}
        for number in self.world.weights():
            assert self.world.numbered(number).name in deployed

    @invariant()
    def copies_go_to_the_candidate_alone_and_while_it_answers_nobody(self) -> None:
        if not hasattr(self, "world") or self.world.split is None or not self.world.split.mirrors:
            return
        split = self.world.split
        mirrored = {one.service for one in split.mirrors}
        (track,) = {pin.track for pin in split.pins for one in pin.backends if one.service in mirrored}
        assert track == "candidate"
        assert not sum(one.weight for one in split.backends if one.service in mirrored)
        if self.world.is_accepted and self.world.status.candidate is not None:
            assert not self.world.status.candidate.rollback, "what goes back is not tried"
        assert mirrored <= {name.name for name in self.world.children if name.kind == "Service"}

    @invariant()
    def never_more_than_two_generations_of_servers(self) -> None:
        if hasattr(self, "world"):
            assert len({revision for revision, _ in self.world.servers}) <= 2

    @invariant()
    def only_one_job_checks_a_candidate(self) -> None:
        if hasattr(self, "world") and self.world.status.candidate is not None:
            candidate = self.world.status.candidate.revision
            checks = [one for one in self.world.children.values() if one.component == "analysis"]
            assert len([one for one in checks if one.revision == candidate]) <= 2, "the one before goes with the next"

    @invariant()
    def numbers_are_never_used_twice(self) -> None:
        if hasattr(self, "world"):
            numbers = [one.spec.number for one in self.world.revisions.values()]
            assert len(numbers) == len(set(numbers))

    @invariant()
    def ready_means_that_the_revision_of_this_spec_answers_everything(self) -> None:
        if not hasattr(self, "world") or not self.world.status.conditions:
            return
        status = self.world.status
        if self.world.condition("Ready")[0] == "True" and status.observed_generation == self.world.generation:
            assert status.stable is not None
            assert status.candidate is None
            assert status.retiring == []

    @invariant()
    def every_rollout_is_on_record_and_only_the_candidates_has_no_end(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        for revision in world.revisions.values():
            record = revision.status.rollout
            if record is None:
                continue
            points = [read(line) for line in record.points]
            times = [one.seconds for one in points]
            assert times == sorted(set(times))
            assert {one.weight for one in points} <= {0, 100} | WEIGHTS
            assert len(points) <= MOST_POINTS
            moments = [one.time for one in record.moments]
            assert moments == sorted(moments)
            assert len(moments) <= MOST_MOMENTS
            candidate = world.status.candidate
            is_candidate = candidate is not None and candidate.revision == revision.name
            assert record.end is not None or is_candidate

    def _looked(self, look: Any) -> None:
        before, servers, in_force = self.world.status, dict(self.world.servers), self.world.in_force
        asked, splits = self.world.asked_for(), len(self.world.history)
        self.world.peak.clear()
        decision = look()
        self._may_scale(decision.view, servers, asked, in_force)
        for before_it, split in itertools.pairwise(self.world.history[max(0, splits - 1) :]):
            self._is_shared_well(split)
            self._has_servers_for_more(decision.view, before_it, split)
        if before.candidate and not self.world.status.candidate:
            self._may_be_taken_back(before, self.world.status)
        self._may_move(decision.view, before)
        for revision in self.world.revisions.values():
            timed = [one.provider for one in revision.status.benchmark]
            assert timed == [one.provider for one in revision.status.parity], "what was proved was timed once"
            told = sorted((one.provider, one.name) for one in revision.status.evaluations)
            names = [one.name for one in revision.spec.evaluations]
            assert told == sorted(itertools.product(timed, names)), "what was declared was measured once"

    def _may_move(self, view: View, before: OnnxModelStatus) -> None:
        after, candidate = self.world.status, before.candidate
        if before.stable is not None and after.stable is not None and before.stable.revision != after.stable.revision:
            assert candidate is not None
            assert candidate.revision == after.stable.revision
            if candidate.rollback:
                assert not self.world.spec.rollout.paused
                assert before.stable.number > candidate.number, "went back to a later one"
                return
            assert candidate.baking or not self.world.spec.rollout.bake, "promoted without a bake"
            if candidate.baking and view.wanted_name != candidate.revision:
                self._may_begin(candidate)  # another spec ends a bake
            else:
                self._may_advance(candidate, is_promotion=True)
        elif candidate and after.candidate and after.candidate.baking:
            if not candidate.baking:
                self._may_advance(candidate, is_promotion=True)
        elif candidate and after.candidate and after.candidate.step is not None:
            assert candidate.revision == after.candidate.revision
            began = -1 if candidate.step is None else candidate.step
            assert after.candidate.step - began in {0, 1}
            if after.candidate.step > began:
                self._has_servers_for(view, after.candidate)
                stable = after.stable.revision if after.stable is not None else ""
                self.full = {key: one.replicas for key, one in self.world.servers.items() if key[0] == stable}
            if after.candidate.step > began >= 0 and not candidate.rollback:
                self._may_advance(candidate, is_promotion=False)
            elif after.candidate.step > began:
                self._may_begin(candidate)

    @staticmethod
    def _may_be_taken_back(before: OnnxModelStatus, after: OnnxModelStatus) -> None:
        """By a value only when two looks running before this one found it beyond its bound."""
        failure, candidate = after.last_failure, before.candidate
        if candidate is None or failure is None or failure == before.last_failure:
            return
        if failure.reason in {"AnalysisFailed", "BakeFailed"} and "accuracy" in failure.message:
            (told,) = [one.job for one in candidate.analysis if one.job is not None]
            assert (told.outcome, told.value) in {("Failed", None), ("Measured", "3.0")}
        if "memory is" not in failure.message:
            return
        memory = next(one for one in candidate.analysis if one.name == "memory")
        assert not memory.dry_run
        assert max(one.candidate_bad for one in memory.evidence) >= 2

    def _is_shared_well(self, split: Split) -> None:
        """Pools share what their side has, whatever that is; those that cannot answer get nothing."""
        total = sum(one.weight for one in split.backends)
        sides: dict[str, list[Backend]] = {}
        for one in split.backends:
            sides.setdefault(one.service.rpartition("-")[0], []).append(one)
        shares = sorted(100 * sum(one.weight for one in side) / total for side in sides.values())
        assert shares[-1] == 100 or set(shares) & WEIGHTS, shares
        ready = {server_name(*key) for key, state in self.world.servers.items() if state.ready}
        pins = [list(pin.backends) for pin in split.pins if pin.track is not None]
        for pools in (*sides.values(), *pins):
            if ready & {one.service for one in pools}:
                assert {one.service for one in pools if one.weight} <= ready, (
                    "no pod is ready, and another pool has some"
                )

    def _may_scale(self, view: View, before: Servers, asked: Counter[str], in_force: Split | None) -> None:
        """Never more than the limit; and nobody gives up what the weight in force needs."""
        if view.plan is None or view.stable is None:
            return
        capacity, stable = view.plan.capacity, view.stable
        for provider, most in self.world.peak.items():
            assert most <= max(capacity.limit, asked[provider])
        for key, state in self.world.servers.items():
            if key[0] == stable.name and key in before and state.replicas < before[key].replicas and in_force:
                assert state.replicas >= capacity.need(in_force.percent(side_of(stable).services))

    def _has_servers_for_more(self, view: View, before: Split, after: Split) -> None:
        """No share of the candidate rises before its servers are there."""
        if view.plan is None or view.candidate is None:
            return
        services = side_of(view.candidate).services
        for share in (Split.percent, Split.mirrored_percent):
            if share(after, services) > share(before, services):
                for one in view.servers(view.candidate):
                    need = max(1, view.capacity(one).need(share(after, services)))
                    assert self.world.servers[view.candidate.name, one].ready >= need

    def _has_servers_for(self, view: View, candidate: CandidateStatus) -> None:
        assert view.plan is not None
        assert candidate.step is not None
        step = view.plan.steps[candidate.step]
        ready = {of: one.ready for (name, of), one in self.world.servers.items() if name == candidate.revision}
        assert ready
        for provider, found in ready.items():
            assert found >= max(1, view.capacity(provider).need(step.mirror or step.weight))

    def _may_begin(self, candidate: CandidateStatus) -> None:
        rollout = self.world.spec.rollout
        assert not rollout.paused
        assert candidate.rollback or frozen_until(rollout.freeze_windows, self.world.now) is None, (
            "advanced in a freeze"
        )

    def _may_advance(self, candidate: CandidateStatus, *, is_promotion: bool) -> None:
        """Only by a Pass; out of a step with pause only by a person as well; past the steps by a person alone."""
        self._may_begin(candidate)
        by_class = self.classes[0].spec
        assert by_class is not None
        steps = self.world.spec.rollout.steps or by_class.rollout.steps
        step = steps[min(candidate.step or 0, len(steps) - 1)]
        is_held = step.pause is not None and not candidate.baking
        is_asked = candidate.promotion_asked_time is not None
        assert is_asked or not is_held, "a step with pause ended without a person"
        if not is_asked or is_held:
            # The last judgement may have been made in this very look.
            found = self.world.measured[0].candidate
            is_good = candidate.verdict == "Pass" or (isinstance(found, Counts) and not found.bad)
            owes_nothing = step.weight == 0 and not step.mirror and not candidate.baking
            assert is_good or owes_nothing, "advanced without a Pass"
            told = [one.job for one in candidate.analysis if one.name == "accuracy"]
            assert all(one is not None and (one.outcome, one.value) == ("Measured", "1.0") for one in told)
        is_scarce = self.world.spec.rollout.max_surge not in {None, "100%"}
        assert is_promotion or not is_asked or is_held or is_scarce, "a person's word was cut short"

    # ---- the end of every story

    @override
    def teardown(self) -> None:
        """Once the spec rests and the cluster is well, it ends, and then there is silence."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.classes = self.classes
        world.measure(0, 1000)
        world.mebibytes = 64
        # Two of which one may be missing can be rolled out in any steps, and only a bake takes a server more.
        resting = [{"name": one.name, "weight": one.weight} for one in world.spec.execution_providers]
        is_autoscaled = world.spec.serving.autoscaling is not None
        serving = self._serving() if is_autoscaled else self._serving(replicas=2)
        world.change(serving=serving, executionProviders=resting)
        world.steer(paused=False, maxUnavailable=0 if is_autoscaled else 1)
        if is_autoscaled:
            world.steer(maxSurge="100%")
        elif world.spec.rollout.max_surge == "0":
            world.steer(bake=None)
        for look in range(200):
            self.settle()
            if world.condition("Reconciling")[0] == "False":
                break
            if world.condition("Promoted")[1] == "WaitingForPromoteToken":
                world.steer(promoteToken=f"go {look}")
            if world.condition("Promoted")[1] == "Frozen":
                world.wait(600)
            self._end_jobs()
            world.make_ready()
            world.accept()
            world.wait(20)
        world.settle()
        is_ready, is_stalled = world.condition("Ready")[0], world.condition("Stalled")[0]
        assert (is_ready, is_stalled) in {("True", "False"), ("False", "True")}, world.status.conditions
        assert world.condition("Reconciling")[0] == "False"
        assert world.status.candidate is None
        world.wait(3600)  # what a window of time kept is history now
        world.settle()
        before = world.writes
        for _ in range(5):
            world.wait(600)
            world.look()
        assert world.writes == before

    def _serving(self, **changes: Any) -> dict[str, Any]:
        return self.world.spec.serving.model_dump(mode="json", exclude_none=True) | changes

    def _running(self) -> list[str]:
        return sorted(name for name, state in self.world.jobs.items() if isinstance(state, JobRunning | JobBlocked))

    def _end_jobs(self) -> None:
        for name, state in self.world.jobs.items():
            if isinstance(state, JobBlocked):
                self.world.jobs[name] = JobRunning("runs")
        self.world.end_analysis_jobs(JobPassed('{"value": 1}'))
        claim = self.world.spec.source.persistent_volume_claim
        assert claim is not None
        self.world.end_jobs(digest=claim.path)


def _as_it_ends(world: World) -> Any:
    """The facts without when conditions flipped: of a flip there and back that was never written nobody can know."""
    conditions = [one.model_copy(update={"last_transition_time": ""}) for one in world.status.conditions]
    return world.status.model_copy(update={"conditions": conditions}), *world.facts()[1:]


AnyHistory.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestAnyHistory = AnyHistory.TestCase


class AnyHistoryWithoutGateway(AnyHistory):
    """The same where the servers are the weights."""

    traffic: ClassVar = {"traffic": {"drain": "10s"}}

    @invariant()
    def the_split_is_the_ratio_of_ready_servers_and_nobody_but_stable_is_selected_alone(self) -> None:
        if not hasattr(self, "world") or self.world.service is None or self.world.status.stable is None:
            return
        world, selected, candidate = self.world, self.world.service.revision, self.world.status.candidate
        ready = {one.name: 0 for one in world.revisions.values()}
        for (revision, _), state in world.servers.items():
            ready[revision] = ready.get(revision, 0) + state.ready
        total = sum(ready.values())
        if selected is None and total:
            weights = {world.numbered(number).name: weight for number, weight in world.weights().items()}
            assert weights == {name: round(100 * ready[name] / total) for name in weights}
        elif selected is not None:
            assert set(world.weights().values()) <= {100}
        assert world.split is None
        if candidate is None or candidate.step is None:
            in_force = {world.numbered(number).name for number, weight in world.weights().items() if weight}
            assert len(in_force) <= 1 or world.decide().actions, "the candidate of no step has requests"

    @override
    def _may_scale(self, view: View, before: Servers, asked: Counter[str], in_force: Split | None) -> None:
        """Never more than the limit; and who gives servers up leaves enough of those that answer."""
        if view.plan is None or view.stable is None:
            return
        capacity = view.plan.capacity
        for provider, most in self.world.peak.items():
            assert most <= max(capacity.limit, asked[provider])
        for key, state in self.world.servers.items():
            if key not in before or state.replicas >= before[key].replicas or not in_force:
                continue
            answering = [
                min(one.ready, one.replicas)
                for other, one in self.world.servers.items()
                if other[1] == key[1] and server_name(*other) in in_force.services and other != key
            ]
            if server_name(*key) in in_force.services and key[0] in {view.stable.name, view.wanted_name}:
                assert state.replicas + sum(answering) >= min(capacity.least, before[key].replicas)

    @override
    def _has_servers_for(self, view: View, candidate: CandidateStatus) -> None:
        """One is enough to enter a step that others share: the weight is made within it."""
        assert view.plan is not None
        assert candidate.step is not None
        need = view.plan.capacity.least if view.plan.steps[candidate.step].weight == FULL else 1
        ready = [state.ready for (name, _), state in self.world.servers.items() if name == candidate.revision]
        assert ready
        assert min(ready) >= max(1, need)


AnyHistoryWithoutGateway.TestCase.settings = settings(AnyHistory.TestCase.settings, max_examples=15)
TestAnyHistoryWithoutGateway = AnyHistoryWithoutGateway.TestCase
