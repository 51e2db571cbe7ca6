"""What follows from an observation before anything is decided: facts with names.

Pure and cheap; looked at once per decision, so that the rungs and the moves read as sentences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from onnx_operator.api.common import parse_duration
from onnx_operator.api.rollout import AtDeadline
from onnx_operator.core import reasons
from onnx_operator.core.acceptance import (
    Offer,
    Refusal,
    accept,
    duration_of,
    has_gateway,
    percent_of,
    reach_of,
)
from onnx_operator.core.analysis import Verdict, criteria, limit_of
from onnx_operator.core.analysis_jobs import Run, job_name, read_run, told_run
from onnx_operator.core.autoscaling import autoscaler
from onnx_operator.core.capacity import Capacity, Goal, Share, Sides, allot, by_ratio, towards
from onnx_operator.core.conditions import moment
from onnx_operator.core.freezes import frozen_until
from onnx_operator.core.judged import judged
from onnx_operator.core.names import server_name
from onnx_operator.core.pools import DEFAULT_WEIGHT, next_change, parts, weights
from onnx_operator.core.revisions import name_of, resolve, source_key
from onnx_operator.core.traffic import FULL, Side, Split, behind, carries, split, trouble_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from onnx_operator.api.common import ExecutionProvider
    from onnx_operator.api.model import Autoscaling, KnownGood, MetricStatus, OnnxModelStatus, SourceStatus
    from onnx_operator.api.model_class import OnnxModelClassSpec
    from onnx_operator.api.revision import OnnxModelRevisionSpec
    from onnx_operator.core.acceptance import Plan
    from onnx_operator.core.analysis import Criterion, Judgement
    from onnx_operator.core.autoscaling import Autoscaler
    from onnx_operator.core.observation import Observation, RevisionSeen
    from onnx_operator.core.servers import ServerState
    from onnx_operator.core.traffic import RouteSeen


@dataclass(frozen=True, slots=True)
class View:
    """One look at one model."""

    seen: Observation
    now: datetime
    #: The status as it was read, with the judgement of this look's measurements, if there are any.
    ledger: OnnxModelStatus
    accepted: Offer | Refusal
    source_key: str | None
    #: What the spec stands for; None until its source is resolved.
    wanted_spec: OnnxModelRevisionSpec | None
    wanted_name: str | None
    #: What each pool weighs now; one that the spec does not name keeps what it had.
    pool_weights: Mapping[ExecutionProvider, int]
    #: When the open freeze window closes; None while none is open, and while there is nothing that it could hold.
    frozen_until: datetime | None
    #: What was judged in this look; empty where nothing was measured.
    judgements: tuple[Judgement, ...] = ()

    @property
    def offer(self) -> Offer | None:
        return self.accepted if isinstance(self.accepted, Offer) else None

    @property
    def plan(self) -> Plan | None:
        return self.offer.plan if self.offer is not None else None

    @property
    def class_spec(self) -> OnnxModelClassSpec | None:
        return self.accepted.class_spec

    @property
    def source(self) -> SourceStatus | None:
        """The result of fetching the present source; None while there is none."""
        found = self.ledger.source
        return found if found is not None and found.key == self.source_key else None

    @property
    def wanted(self) -> RevisionSeen | None:
        return self.revision(self.wanted_name)

    @property
    def stable(self) -> RevisionSeen | None:
        return self.revision(self.ledger.stable.revision) if self.ledger.stable else None

    @property
    def candidate(self) -> RevisionSeen | None:
        return self.revision(self.ledger.candidate.revision) if self.ledger.candidate else None

    @property
    def retiring(self) -> tuple[RevisionSeen, ...]:
        found = (self.revision(one.revision) for one in self.ledger.retiring)
        return tuple(one for one in found if one is not None)

    @property
    def is_settled_on_wanted(self) -> bool:
        return self.ledger.stable is not None and self.ledger.stable.revision == self.wanted_name

    @property
    def is_to_be_retried(self) -> bool:
        """Whether a person asked for another try that nothing was done about yet."""
        spec = self.seen.model.spec
        return spec is not None and spec.rollout.retry_token != self.ledger.handled_tokens.retry

    @property
    def known_good(self) -> tuple[KnownGood, ...]:
        """The revisions within the rollback window."""
        window = self.plan.rollback_window if self.plan is not None else None
        if window is None:
            return ()
        recent = self.ledger.known_good[: window.revisions]
        if window.duration is None:
            return tuple(recent)
        oldest = self.now - parse_duration(window.duration)
        return tuple(one for one in recent if moment(one.until_time) >= oldest)

    @property
    def goes_back(self) -> bool:
        """Whether the spec goes back from stable to a revision that is known to be good."""
        stable, wanted = self.ledger.stable, self.wanted
        if stable is None or wanted is None or wanted.spec.number >= stable.number:
            return False
        return any((one.revision, one.number) == (wanted.name, wanted.spec.number) for one in self.known_good)

    @property
    def is_rollback(self) -> bool:
        """Whether the candidate is one that the spec goes back to."""
        return self.ledger.candidate is not None and self.ledger.candidate.rollback

    @property
    def serves_nothing(self) -> bool:
        """Whether what is stable is only packed."""
        return self.stable is not None and not is_served(self.stable)

    def revision(self, name: str | None) -> RevisionSeen | None:
        return next((one for one in self.seen.revisions if one.name == name), None)

    # ---- servers

    @property
    def goal(self) -> Goal | None:
        """What the candidate is to be scaled for: its step, or what comes next once nothing but servers is missing."""
        return self._goal(self.plan.capacity) if self.plan is not None else None

    def _goal(self, capacity: Capacity) -> Goal | None:
        plan, candidate, step = self.plan, self.ledger.candidate, self.step_index
        if plan is None or candidate is None:
            return None
        weight, replicas, last = self.candidate_weight, capacity.replicas, len(plan.steps)
        goal = Goal(last, FULL, replicas, replicas)
        can_leap = self.is_hurried and capacity.to_move(weight, FULL) <= capacity.limit
        if self.is_baking or (self.moves_on and can_leap):
            return goal
        index = (-1 if step is None else step) + self.moves_on
        if index == last:
            return goal
        declared = plan.steps[max(index, 0)]
        most = min(declared.replicas or replicas, replicas)
        if index < 0:  # nothing begins now: it may have what nobody has to give up
            return Goal(index, 0, 0, most)
        reach = reach_of(declared)
        return Goal(index, reach, declared.replicas or max(1, capacity.share(reach)), most)

    def wanted_replicas(self, revision: RevisionSeen, provider: ExecutionProvider) -> int:
        """How many servers the revision is to have now; where an autoscaler decides, at least."""
        state = self.seen.servers.get((revision.name, provider))
        if self.plan is None:  # the spec may not be acted on
            return state.replicas if state is not None else 1
        replicas = self.plan.capacity.replicas
        if revision not in (self.stable, self.candidate):
            return min(replicas, state.replicas) if state is not None else replicas
        if self.plan.autoscaling is not None:
            return self._least(revision, provider, self.plan.autoscaling)
        sides = self._sides(provider)
        return sides.stable if revision == self.stable else sides.candidate

    def complete(self, revision: RevisionSeen, provider: ExecutionProvider) -> int:
        """How many servers make the revision available: all it gets for now, and all there are where it is alone."""
        if self.plan is not None and revision == self.stable and self.ledger.candidate is None:
            declared = self.plan.autoscaling
            return self.plan.capacity.replicas if declared is None else declared.min_replicas
        return max(1, self.wanted_replicas(revision, provider))

    def capacity(self, provider: ExecutionProvider) -> Capacity:
        """What the sides share on the execution provider; with autoscaling, full weight takes what stable has now."""
        if self.plan is None:
            raise ValueError("a spec that may not be acted on scales nothing")
        capacity, declared = self.plan.capacity, self.plan.autoscaling
        if declared is None:
            return capacity
        full = min(max(self._asked_for(self.stable, provider), declared.min_replicas), declared.max_replicas)
        return Capacity(full, capacity.limit - full, unavailable=0)

    # ---- autoscaling

    def autoscaler(self, revision: RevisionSeen, provider: ExecutionProvider) -> Autoscaler | None:
        """The autoscaler that the servers are to have; what is on its way out is not scaled any more."""
        declared = self.plan.autoscaling if self.plan is not None else None
        if declared is None or revision not in (self.stable, self.candidate):
            return None
        least = self.wanted_replicas(revision, provider)
        return autoscaler(declared, least) if least else None

    def is_autoscaled(self, revision: RevisionSeen, provider: ExecutionProvider) -> bool:
        """Whether an autoscaler owns the number of servers now. One of 0 servers has nothing to go by and rests."""
        return (revision.name, provider) in self.seen.autoscalers and self._asked_for(revision, provider) > 0

    def start_replicas(self, revision: RevisionSeen, provider: ExecutionProvider) -> int:
        """How many servers are asked for until an autoscaler is there: those that there are, within its bounds."""
        wanted = self.wanted_replicas(revision, provider)
        if (scaled := self.autoscaler(revision, provider)) is None:
            return wanted
        return max(wanted, min(self._asked_for(revision, provider), scaled.most))

    def _least(self, revision: RevisionSeen, provider: ExecutionProvider, declared: Autoscaling) -> int:
        """The fewest that the autoscaler may leave: stable all it has while requests are split, as all of them may come
        back at once; the candidate what its weight, and the next one it is to get, stand for.
        """
        capacity = self.capacity(provider)
        if revision == self.stable:
            return capacity.replicas if self.keeps_stables_servers else declared.min_replicas
        if any(self._leaving(provider)) and not self._asked_for(revision, provider):
            return 0
        goal = self._goal(capacity)
        wanted = capacity.replicas if goal is None or self.stable is None else max(1, goal.servers)
        # What it was scaled to stays, or a doubtful verdict would stop servers again.
        return max(wanted, min(self._floor(revision, provider), declared.max_replicas))

    def _floor(self, revision: RevisionSeen, provider: ExecutionProvider) -> int:
        state = self.seen.autoscalers.get((revision.name, provider))
        return state.least if state is not None else 0

    @property
    def is_split(self) -> bool:
        """Whether the candidate answers requests, or is about to."""
        candidate = self.ledger.candidate
        if candidate is None:
            return False
        return max(self.candidate_weight, self.accepted_weight(candidate.revision, candidate.weight)) > 0

    @property
    def is_floor_raised(self) -> bool:
        """Whether stable's autoscalers may not go as far down as the spec lets them."""
        stable, declared = self.stable, self.plan.autoscaling if self.plan is not None else None
        if stable is None or declared is None:
            return False
        return any(self._floor(stable, provider) > declared.min_replicas for provider in self.servers(stable))

    @property
    def keeps_stables_servers(self) -> bool:
        """Whether stable is not scaled down: while requests are split, and for a while after they were."""
        if self.is_split:
            return True
        after = self.scale_down_after
        return self.is_floor_raised if after is None else self.now < after

    @property
    def scale_down_after(self) -> datetime | None:
        after = self.ledger.scale_down_after_time
        return moment(after) if after is not None else None

    # ---- both sides

    def _sides(self, provider: ExecutionProvider) -> Sides:
        if self.plan is None:
            raise ValueError("a spec that may not be acted on scales nothing")
        stable, candidate, capacity = self.stable, self.candidate, self.plan.capacity
        goal = self.goal
        is_coming = candidate is not None and provider in self.servers(candidate) and self.may_have_servers(candidate)
        if goal is None or not is_coming:
            goal = Goal(-1, 0, 0, 0)
        now = Sides(self._asked_for(stable, provider), self._asked_for(candidate, provider))
        if stable is not None and goal.most and self.is_by_ratio:
            wanted = self._sides_by_ratio(goal)
            if provider not in side_of(stable).providers:
                wanted = replace(wanted, stable=0)
                capacity = replace(capacity, unavailable=capacity.replicas)
            shares = {"stable": self._share(stable, provider), "candidate": self._share(candidate, provider)}
            return towards(capacity, wanted, **shares, leaving=sum(self._leaving(provider)))
        if stable is None or provider not in side_of(stable).providers:
            # Nobody gives way, and nobody has to.
            capacity = replace(capacity, unavailable=capacity.replicas)
            goal = replace(goal, servers=capacity.limit, most=capacity.replicas if stable is None else goal.most)
        return allot(capacity, now, goal, weight=self._weight_in_force, leaving=self._leaving(provider))

    def _sides_by_ratio(self, goal: Goal) -> Sides:
        """What the goal takes where the numbers of servers are the weights."""
        if self.plan is None:
            raise ValueError("a spec that may not be acted on scales nothing")
        capacity, steps = self.plan.capacity, self.plan.steps
        if goal.step < 0:  # nothing begins now: it may have what stable does not need
            return Sides(capacity.replicas, min(goal.most, capacity.surge))
        found = self.plan.sides_of(steps[goal.step]) if goal.step < len(steps) else by_ratio(capacity, FULL)
        if found is None:
            raise ValueError("a step without room is not accepted")
        return found

    def _share(self, revision: RevisionSeen | None, provider: ExecutionProvider) -> Share:
        servers = self._asked_for(revision, provider)
        if revision is None or not self.is_routed(revision):
            return Share(servers, 0)
        state = self.seen.servers.get((revision.name, provider))
        return Share(servers, min(servers, state.ready) if state is not None else 0)

    @property
    def _weight_in_force(self) -> int:
        """The least that the candidate may be answering now: stable answers the rest."""
        candidate = self.ledger.candidate
        if candidate is None:
            return 0
        return min(self.accepted_weight(candidate.revision, candidate.weight), self.candidate_weight)

    def _asked_for(self, revision: RevisionSeen | None, provider: ExecutionProvider) -> int:
        state = self.seen.servers.get((revision.name, provider)) if revision is not None else None
        return state.replicas if state is not None else 0

    def _leaving(self, provider: ExecutionProvider) -> list[int]:
        """The servers of each revision on its way out: until its Deployment is gone, what is drained takes room."""
        staying = {one.name for one in (self.stable, self.candidate) if one is not None}
        found = self.seen.servers.items()
        return [state.replicas for (name, of), state in found if of is provider and name not in staying]

    def may_have_servers(self, revision: RevisionSeen) -> bool:
        """One leaves before the next comes: never more than two generations of servers at a time."""
        has_to_wait = bool(self.ledger.retiring) and not self.has_servers(revision.name)
        return revision.status.artifact is not None and not has_to_wait

    @property
    def is_scaled(self) -> bool:
        """Whether both sides have the servers that the goal asks for, and those of the candidate are ready."""
        candidate, goal = self.candidate, self.goal
        if candidate is None or goal is None or self.plan is None or not self.is_available(candidate):
            return False
        is_a_weight = not self.is_by_ratio or goal.reach == FULL
        for provider in self.servers(candidate):
            least = max(1, self.capacity(provider).need(goal.reach)) if is_a_weight else 1
            if self._asked_for(candidate, provider) < least:
                return False
        if self.plan.autoscaling is not None:
            # Bounds that are in force already: nobody takes away again what the traffic comes for.
            return all(
                self._floor(candidate, provider) >= self.wanted_replicas(candidate, provider)
                for provider in self.servers(candidate)
            )
        return all(
            self._asked_for(one, provider) == self.wanted_replicas(one, provider)
            for one in (self.stable, candidate)
            if one is not None
            for provider in self.servers(one)
        )

    def bears_its_weight(self, revision: RevisionSeen) -> bool:
        """Whether the candidate has servers enough for the step it is in."""
        if self.plan is None or self.step_index is None or revision != self.candidate:
            return False
        reach, most = self.candidate_mirror or self.candidate_weight, self.plan.capacity.limit
        if self.is_by_ratio and reach < FULL and (sides := self.plan.sides_of(self.plan.steps[self.step_index])):
            most = sides.candidate  # what comes closest to the weight may be fewer than it stands for
        return all(
            state is not None and state.ready >= max(1, min(self.capacity(provider).need(reach), most))
            for provider, state in self.servers(revision).items()
        )

    def servers(self, revision: RevisionSeen) -> dict[ExecutionProvider, ServerState | None]:
        return {provider: self.seen.servers.get((revision.name, provider)) for provider in side_of(revision).providers}

    def is_available(self, revision: RevisionSeen) -> bool:
        """Whether every server of the revision is ready."""
        return all(self._is_pool_available(revision, provider) for provider in self.servers(revision))

    def _is_pool_available(self, revision: RevisionSeen, provider: ExecutionProvider) -> bool:
        state, complete = self.seen.servers.get((revision.name, provider)), self.complete(revision, provider)
        if state is None:
            return False
        is_autoscaled = self.autoscaler(revision, provider) is not None
        return state.has(complete) if is_autoscaled else state.is_available(complete)

    def suffices(self, revision: RevisionSeen) -> bool:
        """The same, and where it is the candidate, they are enough for the step it is in."""
        is_in_step = revision == self.candidate and self.step_index is not None
        return self.is_available(revision) and (self.bears_its_weight(revision) or not is_in_step)

    def ready_pools(self, revision: RevisionSeen) -> tuple[bool, ...]:
        """Of each pool, whether it can answer."""
        return tuple(state is not None and state.ready > 0 for state in self.servers(revision).values())

    def has_servers(self, revision_name: str) -> bool:
        return any(child.kind == "Deployment" and child.revision == revision_name for child in self.seen.children)

    def ready_replicas(self, revision_name: str) -> int:
        return sum(state.ready for (name, _), state in self.seen.servers.items() if name == revision_name)

    # ---- traffic

    @property
    def is_by_ratio(self) -> bool:
        """Whether no gateway takes weights: requests come to a Service, which shares them evenly among servers."""
        found = self.class_spec
        return found is not None and not has_gateway(found, has_gateway_api=self.seen.has_gateway_api)

    @property
    def selected(self) -> str | None:
        """Where there is no gateway: the revision whose servers get all requests; None where both sides' do."""
        stable, candidate, weight = self.stable, self.candidate, self.candidate_weight
        if candidate is None or not weight:
            return stable.name if stable is not None else None
        if weight < FULL:
            return None
        # All requests wait for the servers that answer them, where a step is given all of them in mid-step.
        now = self.seen.service
        return candidate.name if now is None or self.bears_its_weight(candidate) else now.revision

    @property
    def routes(self) -> tuple[RouteSeen | None, ...]:
        """What leads to the model: its routes, or the Service where there is no gateway."""
        if not self.is_by_ratio:
            return self.seen.http_route, self.seen.grpc_route
        found = self.seen.service
        if found is None:
            return (None,)
        selected = [one for one in self.seen.revisions if found.revision in {one.name, None}]
        ready = ((one, self.servers(one)) for one in selected if found.revision or self.has_servers(one.name))
        return (
            behind(
                (side_of(one), tuple(state.ready if state is not None else 0 for state in servers.values()))
                for one, servers in ready
            ),
        )

    @property
    def routing_trouble(self) -> tuple[reasons.Reason, str]:
        """Why the traffic is not as wanted yet."""
        if not self.is_by_ratio:
            return trouble_of((("HTTPRoute", self.seen.http_route), ("GRPCRoute", self.seen.grpc_route)))
        if not self.is_programmed:
            return reasons.SERVICE_PENDING, f"waiting for Service {self.seen.model.name} to lead where it should"
        return reasons.SCALING, "the servers that come to the weight of the step are not all there"

    def is_routed(self, revision: RevisionSeen) -> bool:
        """Whether any live route still leads to the revision, be it with weight 0."""
        side = side_of(revision)
        return any(route is not None and route.split.mentions(side) for route in self.routes)

    def is_to_be_drained(self, revision: RevisionSeen) -> bool:
        """Whether the revision may still be answering requests. Connections stay with the servers that they were made
        to, whatever a Service selects since; so do requests under way where the routes are gone.
        """
        return self.has_servers(revision.name) if self.is_by_ratio or self.serves_nothing else self.is_routed(revision)

    @property
    def split(self) -> Split | None:
        """The wanted split; None while nothing serves."""
        if self.stable is None or self.serves_nothing:
            return None
        candidate = self.candidate if is_served(self.candidate) else None
        if candidate is not None and not (self.is_routed(candidate) or self.is_available(candidate)):
            candidate = None
        leaving = () if self.is_drained else tuple(one for one in self.retiring if self.is_routed(one))
        return split(
            stable=self._side(self.stable),
            candidate=self._side(candidate) if candidate is not None else None,
            weight=self._borne(candidate, self.candidate_weight, Split.percent),
            retiring=[side_of(one) for one in leaving],
            mirror=self._borne(candidate, self.candidate_mirror, Split.mirrored_percent),
        )

    def _borne(
        self, candidate: RevisionSeen | None, declared: int, read: Callable[[Split, Collection[str]], int]
    ) -> int:
        """What the candidate gets of a step's share: no more than the route says already until it has the servers, and
        no less until stable has any.
        """
        if candidate is None or self.stable is None:
            return 0
        route = self.seen.http_route
        written = read(route.split, side_of(candidate).services) if route is not None else 0
        if declared < written and self.step_index is not None:
            return declared if any(self.ready_pools(self.stable)) else written
        return declared if declared <= written or self.bears_its_weight(candidate) else written

    def _side(self, revision: RevisionSeen) -> Side:
        """The revision with the shares of its pools."""
        side, ready = side_of(revision), self.ready_pools(revision)
        wanted = [self.pool_weights.get(provider, DEFAULT_WEIGHT) for provider in side.providers]
        return replace(side, parts=parts(wanted, ready), pinned=parts([1] * len(ready), ready))

    @property
    def candidate_weight(self) -> int:
        """The weight of the candidate's step; everything while it bakes."""
        step = self.step_index
        if self.is_baking:
            return FULL
        return 0 if step is None or self.plan is None else self.plan.steps[step].weight

    @property
    def candidate_mirror(self) -> int:
        """The percentage of stable's requests that the candidate's step mirrors to it; what goes back is not tried."""
        step = self.step_index
        if step is None or self.plan is None or self.is_baking or self.is_rollback:
            return 0
        return self.plan.steps[step].mirror or 0

    @property
    def share_words(self) -> str:
        """What the candidate gets in its step."""
        mirrored = f", with a mirror of {self.candidate_mirror} %" if self.candidate_mirror else ""
        made = f", made by {self.servers_in_words}," if self.is_by_ratio and 0 < self.candidate_weight < FULL else ""
        return f"at {self.candidate_weight} %{mirrored}{made}"

    @property
    def servers_in_words(self) -> str:
        """The candidate's part of the ready servers."""
        ready = Sides(*(self.ready_replicas(one.name) if one else 0 for one in (self.stable, self.candidate)))
        total = ready.stable + ready.candidate
        return f"{ready.candidate} of {total} servers" + (f" as {percent_of(ready)} %" if total else "")

    @property
    def is_programmed(self) -> bool:
        """Whether the gateway has accepted the wanted split on both routes; without one, whether the Service has it.
        Where nothing is served, whether they are gone.
        """
        if self.serves_nothing:
            return not any(self.routes)
        if self.is_by_ratio:
            return self.seen.service is not None and self.seen.service.revision == self.selected
        wanted = self.split
        return wanted is not None and carries(self.routes, wanted)

    @property
    def only_pools_are_pending(self) -> bool:
        """Whether stable answers everything, and the gateway has only yet to share it otherwise among the pools."""
        stable, routes = self.stable, [one for one in self.routes if one is not None]
        if (
            self.is_programmed
            or self.is_by_ratio
            or stable is None
            or len(routes) < len(self.routes)
            or not self.is_settled_on_wanted
        ):
            return False
        if self.ledger.candidate or self.ledger.retiring or self.ledger.stable is None:
            return False
        services = side_of(stable).services
        is_all = all(one.split.percent(services) == FULL and not one.problem for one in routes)
        return is_all and self.ledger.stable.weight == FULL

    def accepted_weight(self, revision_name: str, before: int) -> int:
        """The revision's percentage as the gateway has it; the last known one while a change is under way."""
        return self._accepted(self._services(revision_name), before, Split.percent)

    def accepted_mirror(self, revision_name: str, before: int) -> int:
        """The percentage that is mirrored to the revision, in the same way."""
        return self._accepted(self._services(revision_name), before, Split.mirrored_percent)

    def accepted_percent_of_pool(self, provider: ExecutionProvider, before: int) -> int:
        """The percentage of the pods of one execution provider, over all revisions, in the same way."""
        services = [server_name(one.name, provider) for one in self.seen.revisions]
        return self._accepted(services, before, Split.percent)

    def _services(self, revision_name: str) -> Collection[str]:
        revision = self.revision(revision_name)
        return () if revision is None else side_of(revision).services

    def _accepted(self, services: Collection[str], before: int, read: Callable[[Split, Collection[str]], int]) -> int:
        route = self.routes[0]
        if route is None or not services:
            return 0
        if not all(one is not None and one.is_accepted for one in self.routes):
            return before
        return read(route.split, services)

    # ---- time

    @property
    def pools_change(self) -> datetime | None:
        """When the schedules give some pool another weight."""
        spec = self.seen.model.spec
        return next_change(spec.execution_providers, self.now) if spec is not None and self.stable is not None else None

    @property
    def drain(self) -> timedelta:
        return parse_duration(self.class_spec.traffic.drain) if self.class_spec is not None else timedelta()

    @property
    def drain_ends(self) -> datetime | None:
        started = self.ledger.drain_started_time
        return moment(started) + self.drain if started is not None else None

    @property
    def is_drained(self) -> bool:
        return self.drain_ends is not None and self.now >= self.drain_ends

    @property
    def step_index(self) -> int | None:
        """The candidate's step; the last one where the list became shorter meanwhile."""
        candidate = self.ledger.candidate
        if candidate is None or candidate.step is None or self.plan is None:
            return None
        return min(candidate.step, len(self.plan.steps) - 1)

    @property
    def step_ends(self) -> datetime | None:
        """When the candidate's step has lasted long enough; None before the gateway accepted its weight."""
        candidate, step = self.ledger.candidate, self.step_index
        if candidate is None or candidate.step_started_time is None or step is None or self.plan is None:
            return None
        lasts = self.plan.bake if self.is_baking else duration_of(self.plan.steps[step])
        return moment(candidate.step_started_time) + lasts

    @property
    def is_clock_stopped(self) -> bool:
        """Whether the candidate stands still by somebody's will, so that it cannot be late."""
        return self.is_braked or self.waits_for_a_person

    @property
    def is_promotion_asked_for(self) -> bool:
        candidate = self.ledger.candidate
        return candidate is not None and candidate.promotion_asked_time is not None

    @property
    def waits_for_a_person(self) -> bool:
        """Whether a step with pause has passed its analysis and nobody has let it go on."""
        candidate, step = self.ledger.candidate, self.step_index
        if candidate is None or candidate.held_time is None or step is None:
            return False
        return self.needs_a_person and not self.is_promotion_asked_for

    @property
    def needs_a_person(self) -> bool:
        """Whether the step has to be ended by a person; before the first step, whether that one has to be."""
        if self.plan is None or self.is_baking:
            return False
        return self.plan.steps[self.step_index or 0].pause is not None

    @property
    def is_hurried(self) -> bool:
        """Whether the candidate goes as fast as its servers start, whatever the steps say."""
        return self.is_rollback or (self.is_promotion_asked_for and not self.needs_a_person)

    @property
    def moves_on(self) -> bool:
        """Whether nothing but servers keeps the candidate from more traffic."""
        if self.is_braked:
            return False
        is_let_go = self.is_promotion_asked_for or not self.needs_a_person
        return self.step_index is None or self.is_hurried or (self.has_passed and is_let_go)

    @property
    def is_baking(self) -> bool:
        return self.ledger.candidate is not None and self.ledger.candidate.baking

    @property
    def is_braked(self) -> bool:
        """Whether people have declared that no candidate advances now, however good it is."""
        return self.frozen_until is not None or (self.plan is not None and self.plan.is_paused)

    @property
    def has_passed(self) -> bool:
        """Whether the step has lasted long enough and the judgement of all of it is Pass, or is taken for it."""
        candidate, ends = self.ledger.candidate, self.step_ends
        if candidate is None or candidate.verdict_time is None or ends is None or self.now < ends:
            return False
        is_good = candidate.verdict == Verdict.PASS or self.may_proceed_in_doubt
        return is_good and moment(candidate.verdict_time) >= ends

    @property
    def deadline(self) -> datetime | None:
        """When the candidate is given up unless it makes progress."""
        candidate = self.ledger.candidate
        if candidate is None or candidate.progress_time is None or self.plan is None or self.is_clock_stopped:
            return None
        # A bake may be longer than the deadline: what counts is how long it is overdue.
        counts_from = moment(candidate.progress_time)
        if self.is_baking and self.step_ends is not None:
            counts_from = max(counts_from, self.step_ends)
        deadline = counts_from + self.plan.progress_deadline
        return min(deadline, self.verdict_limit or deadline)

    @property
    def verdict_limit(self) -> datetime | None:
        """When the candidate is given up unless it is judged in another way; time that stood still does not count."""
        candidate = self.ledger.candidate
        if candidate is None or self.plan is None or candidate.verdict_since_time is None:
            return None
        limit = limit_of(self.plan.analysis, candidate.verdict)
        # Once the step has passed in doubt, servers are waited for and no verdict.
        if limit is None or candidate.progress_time is None or candidate.scaling_time is not None:
            return None
        return max(moment(candidate.verdict_since_time), moment(candidate.progress_time)) + parse_duration(limit)

    @property
    def next_analysis(self) -> datetime | None:
        """When the candidate is to be judged next: every interval, and at the end of its step."""
        candidate, ends = self.ledger.candidate, self.step_ends
        if candidate is None or candidate.step_started_time is None or ends is None or self.plan is None:
            return None
        judged = moment(candidate.verdict_time) if candidate.verdict_time else None
        interval = parse_duration(self.plan.analysis.interval)
        due = (judged or moment(candidate.step_started_time)) + interval
        return min(due, ends) if judged is None or judged < ends else due

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """What the candidate must fulfil in its step."""
        if self.plan is None:
            return ()
        step = self.step_index
        followed = None if step is None or self.is_baking else self.plan.steps[step].metrics
        weight, mirror = self.candidate_weight, self.candidate_mirror
        return criteria(self.plan.analysis, weight=weight, mirror=mirror, followed=followed)

    @property
    def analysis_jobs(self) -> Mapping[str, Criterion]:
        """The metrics that a Job measures in the present step, by its name."""
        candidate, revision = self.ledger.candidate, self.candidate
        if candidate is None or revision is None or candidate.step_started_time is None:
            return {}
        return {job_name(one, candidate, revision): one for one in self.criteria if one.job is not None}

    @property
    def runs(self) -> Mapping[str, Run]:
        """How these Jobs stand."""
        candidate, seen = self.ledger.candidate, self.seen.analysis_jobs
        if candidate is None:
            return {}
        return {
            name: read_run(wanted, name, seen.get(name), told_run(name, candidate))
            for name, wanted in self.analysis_jobs.items()
        }

    @property
    def may_proceed_in_doubt(self) -> bool:
        """Whether the step's deadline has passed and the spec takes what is inconclusive then as passed; still, while
        the servers of the next step are waited for.
        """
        candidate, deadline = self.ledger.candidate, self.deadline
        if candidate is None or self.plan is None or deadline is None:
            return False
        is_over = self.now >= deadline or candidate.scaling_time is not None
        is_in_doubt = candidate.verdict == Verdict.INCONCLUSIVE
        return is_over and is_in_doubt and self.plan.analysis.on_inconclusive is AtDeadline.PROCEED

    def metric_with(self, verdict: str | None) -> MetricStatus | None:
        """The metric that the last verdict comes from; one that is only told is never it."""
        told = self.ledger.candidate.analysis if self.ledger.candidate is not None else ()
        return next((one for one in told if one.verdict == verdict and not one.dry_run), None)

    @property
    def is_analysis_due(self) -> bool:
        return self.next_analysis is not None and self.now >= self.next_analysis


def look(seen: Observation, now: datetime) -> View:
    """The facts of one observation."""
    accepted = accept(seen.model, seen.classes, has_gateway_api=seen.has_gateway_api)
    key, wanted = None, None
    if isinstance(accepted, Offer):
        key = source_key(accepted, seen.model.status.handled_tokens.retry)
        source = seen.model.status.source
        if source is not None and source.key == key and source.digest is not None:
            wanted = resolve(
                seen.model.name, accepted, seen.images, source_digest=source.digest, number=_next_number(seen)
            )
    name = name_of(wanted) if wanted is not None else None
    view = View(
        seen=seen,
        now=now,
        ledger=seen.model.status,
        accepted=accepted,
        source_key=key,
        wanted_spec=wanted,
        wanted_name=name,
        pool_weights=_pool_weights(seen, now),
        frozen_until=_frozen_until(seen, accepted, now),
    )
    return view if seen.measurements is None else judged(view, seen.measurements)


def _pool_weights(seen: Observation, now: datetime) -> Mapping[ExecutionProvider, int]:
    """Followed even where the rest of the spec is refused: what serves goes on by its schedules."""
    declared = seen.model.spec.execution_providers if seen.model.spec is not None else ()
    return {one.provider: one.weight for one in seen.model.status.pools} | weights(declared, now)


def _frozen_until(seen: Observation, accepted: Offer | Refusal, now: datetime) -> datetime | None:
    """A freeze protects what serves: where nothing does, it holds nothing, nor does it keep what served before out."""
    status = seen.model.status
    if isinstance(accepted, Refusal) or status.stable is None or status.candidate is None or status.candidate.rollback:
        return None
    return frozen_until(accepted.plan.freeze_windows, now)


def side_of(revision: RevisionSeen) -> Side:
    """The revision with the pools that serve it; what is only packed is none."""
    left_out = revision.whose_validation_is("LeftOut")
    served = tuple(
        one.name for one in revision.spec.execution_providers if one.serving is None and one.name not in left_out
    )
    return Side(revision.name, revision.spec.number, served)


def is_served(revision: RevisionSeen | None) -> bool:
    return revision is not None and bool(side_of(revision).providers)


def _next_number(seen: Observation) -> int:
    status = seen.model.status
    in_use = [one.number for one in (status.stable, status.candidate) if one is not None]
    return 1 + max([revision.spec.number for revision in seen.revisions] + in_use, default=0)
