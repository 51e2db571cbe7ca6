"""Whether the class allows what a spec asks for, and what follows where the spec says nothing.

Judges declarations only, never the state of the cluster: the same spec and class give the same answer for ever, as long
as the cluster knows the Gateway API or does not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from onnx_operator.api.common import parse_duration, parse_quantity
from onnx_operator.api.model_class import SourceKind
from onnx_operator.api.rollout import DEFAULT_JOB_DEADLINE, DEFAULT_STEP_DURATION, MetricName, Provider
from onnx_operator.core import reasons
from onnx_operator.core.capacity import Capacity, amount, by_ratio, shortage, shortage_by_ratio
from onnx_operator.core.pools import DEFAULT_WEIGHT
from onnx_operator.core.traffic import FULL
from onnx_operator.core.windows import problem_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from onnx_operator.api.model import Autoscaling, Dataset, OnnxModelSpec, Serving, Source
    from onnx_operator.api.model_class import Limits, OnnxModelClassSpec
    from onnx_operator.api.rollout import (
        Analysis,
        AnalysisJob,
        FreezeWindow,
        Metric,
        RollbackWindow,
        Rollout,
        RolloutDefaults,
        Step,
    )
    from onnx_operator.core.capacity import Sides
    from onnx_operator.core.observation import ClassSeen, ModelSeen

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Plan:
    """How a new revision takes over, with the class's word where the model has none."""

    steps: tuple[Step, ...]
    analysis: Analysis
    progress_deadline: timedelta
    #: Zero for none.
    bake: timedelta
    #: The class's and the model's own.
    freeze_windows: tuple[FreezeWindow, ...]
    rollback_window: RollbackWindow | None
    #: With an autoscaler, the most that there may be.
    capacity: Capacity
    autoscaling: Autoscaling | None
    is_paused: bool
    #: Whether no gateway takes weights, so that the numbers of servers are all there is.
    is_by_ratio: bool

    def sides_of(self, step: Step) -> Sides | None:
        """The servers that come to the step's weight where the numbers of servers are all there is."""
        return by_ratio(self.capacity, step.weight, _declared(step, self.capacity.replicas))

    @property
    def stops(self) -> int:
        """How often a candidate is judged anew: in every step and in the bake."""
        return len(self.steps) + (self.bake > timedelta())


@dataclass(frozen=True, slots=True)
class Offer:
    """A spec that may be acted on, with its class."""

    spec: OnnxModelSpec
    class_name: str
    class_spec: OnnxModelClassSpec
    plan: Plan


@dataclass(frozen=True, slots=True)
class Refusal:
    """A spec that may not be acted on, and the way out."""

    reason: str
    message: str
    #: None where there is no class to speak of: then nothing at all may be touched.
    class_spec: OnnxModelClassSpec | None = None


def accept(model: ModelSeen, classes: tuple[ClassSeen, ...], *, has_gateway_api: bool = True) -> Offer | Refusal:
    """The model with its class, or why not."""
    if model.spec is None:
        return Refusal(reasons.INVALID_SPEC, model.problem)
    chosen = choose_class(model.spec.class_name, classes)
    if isinstance(chosen, Refusal):
        return chosen
    if chosen.spec is None:
        return Refusal(reasons.CLASS_INVALID, f"OnnxModelClass {chosen.name} cannot be used: {chosen.problem}")
    plan = plan_of(model.spec, chosen.spec)
    if not has_gateway(chosen.spec, has_gateway_api=has_gateway_api):
        plan = replace(plan, is_by_ratio=True, analysis=_asking_servers(plan.analysis))
    offer = Offer(model.spec, chosen.name, chosen.spec, plan)
    for check in _CHECKS:
        if (refusal := check(offer)) is not None:
            return replace(refusal, class_spec=chosen.spec)
    return offer


def choose_class(name: str | None, classes: tuple[ClassSeen, ...]) -> ClassSeen | Refusal:
    """The named class, else the default one; of several defaults the newest, as with StorageClass."""
    if name is not None:
        found = next((one for one in classes if one.name == name), None)
        return found or Refusal(
            reasons.CLASS_NOT_FOUND,
            f"spec.className names OnnxModelClass {name}, which does not exist; there is {_listed(classes)}",
        )
    defaults = sorted((one for one in classes if one.is_default), key=lambda one: (one.created, one.name))
    if not defaults:
        return Refusal(
            reasons.CLASS_NOT_FOUND,
            "spec.className is unset and no OnnxModelClass is the default; name one, or annotate one with "
            f'onnx-operator.io/is-default-class: "true"; there is {_listed(classes)}',
        )
    return defaults[-1]


def plan_of(spec: OnnxModelSpec, class_spec: OnnxModelClassSpec) -> Plan:
    rollout, fallback = spec.rollout, class_spec.rollout
    return Plan(
        steps=tuple(rollout.steps or fallback.steps),
        analysis=rollout.analysis or fallback.analysis,
        progress_deadline=parse_duration(rollout.progress_deadline or fallback.progress_deadline),
        bake=parse_duration(bake.duration) if (bake := rollout.bake or fallback.bake) else timedelta(),
        freeze_windows=(*fallback.freeze_windows, *rollout.freeze_windows),
        rollback_window=rollout.rollback_window or fallback.rollback_window,
        capacity=_capacity(_most(spec.serving), rollout, fallback),
        autoscaling=spec.serving.autoscaling,
        is_paused=rollout.paused,
        is_by_ratio=False,
    )


def has_gateway(class_spec: OnnxModelClassSpec, *, has_gateway_api: bool) -> bool:
    """Whether requests come through a gateway that takes weights."""
    return class_spec.traffic.gateway is not None and has_gateway_api


def _asking_servers(analysis: Analysis) -> Analysis:
    """Errors are counted by the servers where the spec does not say by whom, as there is no gateway that could."""
    metrics = [
        one.model_copy(update={"provider": Provider.TRITON})
        if one.name == MetricName.ERROR_RATIO and one.provider is None
        else one
        for one in analysis.metrics
    ]
    return analysis.model_copy(update={"metrics": metrics})


def _most(serving: Serving) -> int:
    return serving.autoscaling.max_replicas if serving.autoscaling is not None else serving.replicas or 1


def _capacity(replicas: int, rollout: Rollout, fallback: RolloutDefaults) -> Capacity:
    return Capacity(
        replicas=replicas,
        surge=amount(rollout.max_surge or fallback.max_surge, replicas, rounds_up=True),
        unavailable=amount(rollout.max_unavailable or fallback.max_unavailable, replicas, rounds_up=False),
    )


def duration_of(step: Step) -> timedelta:
    """How long the step lasts at least; one with pause has no time of its own."""
    return timedelta() if step.pause is not None else parse_duration(step.duration or DEFAULT_STEP_DURATION)


def reach_of(step: Step) -> int:
    """Percent of the requests that come to the candidate in the step, be it as copies."""
    return step.mirror or step.weight


def _sources(offer: Offer) -> Iterator[tuple[str, Source | Dataset]]:
    yield "source", offer.spec.source
    yield from offer.spec.datasets.items()


def _source_is_not_allowed(offer: Offer) -> Refusal | None:
    for field, source in _sources(offer):
        named = {
            SourceKind.PERSISTENT_VOLUME_CLAIM: source.persistent_volume_claim,
            SourceKind.HUGGING_FACE: source.hugging_face,
        }
        for kind in named.keys() - offer.class_spec.sources.allowed:
            if named[kind] is not None:
                message = f"spec.{field}.{kind} is not allowed by OnnxModelClass {offer.class_name}"
                return Refusal(reasons.SOURCE_NOT_ALLOWED, message)
    return None


def _revision_is_mutable(offer: Offer) -> Refusal | None:
    if offer.class_spec.sources.hugging_face.allow_mutable_revisions:
        return None
    for field, source in _sources(offer):
        hub = source.hugging_face
        if hub is not None and not _COMMIT.fullmatch(hub.revision):
            message = (
                f"spec.{field}.huggingFace.revision is {hub.revision!r}, a branch or tag; OnnxModelClass "
                f"{offer.class_name} wants the commit as 40 hexadecimal digits"
            )
            return Refusal(reasons.MUTABLE_REVISION, message)
    return None


def _generated_code_is_not_allowed(offer: Offer) -> Refusal | None:
    run = [one for one in offer.spec.validation.evaluations if one.runs_programs]
    if not run or offer.class_spec.validation.run_generated_code:
        return None
    message = (
        f"spec.validation.evaluations[{run[0].name}].metric {run[0].metric} runs programs that the model writes, and "
        f"validation.runGeneratedCode of OnnxModelClass {offer.class_name} is false: leave the evaluation out; whoever "
        "may change that class can allow it"
    )
    return Refusal(reasons.GENERATED_CODE_NOT_ALLOWED, message)


def _provider_is_not_offered(offer: Offer) -> Refusal | None:
    offered = {one.name for one in offer.class_spec.execution_providers}
    missing = [one.name for one in offer.spec.execution_providers if one.name not in offered and not one.name.is_edge]
    if not missing:
        return None
    message = (
        f"spec.executionProviders names {', '.join(missing)}, which OnnxModelClass {offer.class_name} does not offer; "
        f"it offers {', '.join(sorted(offered))}"
    )
    return Refusal(reasons.PROVIDER_NOT_OFFERED, message)


def _replicas_are_too_many(offer: Offer) -> Refusal | None:
    limit, most = offer.class_spec.limits.max_replicas, _most(offer.spec.serving)
    if most <= limit:
        return None
    field = "replicas" if offer.spec.serving.autoscaling is None else "autoscaling.maxReplicas"
    message = f"spec.serving.{field} is {most}, above the limit of {limit} of OnnxModelClass {offer.class_name}"
    return Refusal(reasons.REPLICAS_ABOVE_LIMIT, message)


def _step_is_too_long(offer: Offer) -> Refusal | None:
    plan = offer.plan
    for index, step in enumerate(plan.steps):
        if duration_of(step) >= plan.progress_deadline:
            message = (
                f"rollout step {index} lasts {step.duration or DEFAULT_STEP_DURATION}, not less than the progress "
                f"deadline of {plan.progress_deadline}, so no candidate could pass it; change rollout.steps or "
                f"rollout.progressDeadline (what the model leaves unset comes from OnnxModelClass {offer.class_name})"
            )
            return Refusal(reasons.STEP_ABOVE_DEADLINE, message)
    return None


def _a_step_names_no_metric(offer: Offer) -> Refusal | None:
    known = [metric.name for metric in offer.plan.analysis.metrics]
    for index, step in enumerate(offer.plan.steps):
        if unknown := [name for name in step.metrics or () if name not in known]:
            message = (
                f"rollout step {index} rests on the metric {unknown[0]}, and there is none of this name in "
                f"rollout.analysis.metrics; there is {', '.join(known) or 'none at all'} (what the model leaves unset "
                f"comes from OnnxModelClass {offer.class_name})"
            )
            return Refusal(reasons.STEP_WITHOUT_METRIC, message)
    return None


def _freeze_window_is_unreadable(offer: Offer) -> Refusal | None:
    theirs, ours = offer.class_spec.rollout.freeze_windows, offer.spec.rollout.freeze_windows
    for whose, windows in ((f"OnnxModelClass {offer.class_name}, ", theirs), ("", ours)):
        for index, window in enumerate(windows):
            if problem := problem_of(window):
                message = f"{whose}spec.rollout.freezeWindows[{index}]: {problem}; until then nothing is rolled out"
                return Refusal(reasons.FREEZE_WINDOW_INVALID, message)
    return None


def _pool_schedule_is_unreadable(offer: Offer) -> Refusal | None:
    for pool in offer.spec.execution_providers:
        for index, window in enumerate(pool.schedules or ()):
            if problem := problem_of(window):
                where = f"spec.executionProviders[name={pool.name}].schedules[{index}]"
                message = f"{where}: {problem}; until then the window never opens"
                return Refusal(reasons.POOL_SCHEDULE_INVALID, message)
    return None


def _a_gateway_is_needed(offer: Offer) -> Refusal | None:
    if not offer.plan.is_by_ratio:
        return None
    field = next(_only_by_a_gateway(offer), None)
    if field is None:
        return None
    message = (
        f"{field}, and there is none: OnnxModelClass {offer.class_name} names no gateway, or the cluster has no "
        "Gateway API. Add what is missing, or leave this out (what the model leaves unset comes from the class)"
    )
    return Refusal(reasons.GATEWAY_NEEDED, message)


def _only_by_a_gateway(offer: Offer) -> Iterator[str]:
    plan, pools = offer.plan, [one for one in offer.spec.execution_providers if one.serving is None]
    for index, step in enumerate(plan.steps):
        if step.mirror:
            yield f"rollout.steps[{index}].mirror needs a gateway that copies requests"
    for metric in plan.analysis.metrics:
        where = f"rollout.analysis.metrics[name={metric.name}]"
        if metric.name in {MetricName.SLOW_RATIO, MetricName.LATENCY_QUANTILE}:
            yield f"{where} needs a gateway that measures how long answers take"
        if metric.name == MetricName.ERROR_RATIO and metric.provider is not Provider.TRITON:
            yield f"{where}.provider: {metric.provider} needs a gateway that counts errors (triton asks the servers)"
    if plan.autoscaling is not None:
        yield "spec.serving.autoscaling needs a gateway, as without one the numbers of servers are the weights"
    for pool in pools:
        if pool.schedules and len(pools) > 1:
            yield f"spec.executionProviders[name={pool.name}].schedules needs a gateway that shares by weight"
    if len({DEFAULT_WEIGHT if pool.weight is None else pool.weight for pool in pools}) > 1:
        yield "spec.executionProviders[].weight needs a gateway that shares by weight"


def rounded_weights(plan: Plan) -> str:
    """What the steps come to where only the numbers of servers decide; empty where that is what they ask for."""
    told = [
        f"{weight_in_words(sides)} for the {step.weight} % of step {index}"
        for index, step in enumerate(plan.steps)
        if 0 < step.weight < FULL and (sides := plan.sides_of(step)) and percent_of(sides) != step.weight
    ]
    return ", ".join(told)


def percent_of(sides: Sides) -> int:
    """The candidate's percentage of the servers."""
    return round(FULL * sides.candidate / (sides.stable + sides.candidate))


def weight_in_words(sides: Sides) -> str:
    return f"{sides.candidate} of {sides.stable + sides.candidate} servers, {percent_of(sides)} %,"


def _declared(step: Step, replicas: int) -> int | None:
    return min(step.replicas, replicas) if step.replicas is not None else None


def _autoscaling_has_no_room(offer: Offer) -> Refusal | None:
    """Both sides scale up from what they have: neither gives up servers, and nobody says how many they are."""
    plan, capacity = offer.plan, offer.plan.capacity
    if plan.autoscaling is None:
        return None
    whose = f"(what the model leaves unset comes from OnnxModelClass {offer.class_name})"
    if capacity.surge < capacity.replicas or capacity.unavailable:
        message = (
            "spec.serving.autoscaling takes room for both sides: set rollout.maxSurge to 100% and "
            "rollout.maxUnavailable to 0, or, where hardware is too scarce for two, spec.serving.replicas instead of "
            f"autoscaling {whose}"
        )
        return Refusal(reasons.AUTOSCALING_WITHOUT_ROOM, message)
    for index, step in enumerate(plan.steps):
        if step.replicas is not None:
            message = (
                f"rollout step {index} has replicas: {step.replicas}, but with spec.serving.autoscaling a step has "
                f"what its weight needs of the servers that stable has by then; take replicas out {whose}"
            )
            return Refusal(reasons.AUTOSCALING_WITHOUT_ROOM, message)
    return None


def _a_step_has_no_room(offer: Offer) -> Refusal | None:
    plan, capacity = offer.plan, offer.plan.capacity
    if plan.is_by_ratio:
        declared = [(step.weight, _declared(step, capacity.replicas)) for step in plan.steps]
        short = shortage_by_ratio(capacity, declared)
    else:
        short = shortage(capacity, [(step.weight, reach_of(step)) for step in plan.steps])
    if short is None:
        return None
    where = f"rollout step {short.step}" if short.step is not None else "the end of the last rollout step"
    message = (
        f"{where} takes {short.servers} servers per execution provider, and serving.replicas of {capacity.replicas} "
        f"with maxSurge and maxUnavailable of {capacity.surge} and {capacity.unavailable} allows {capacity.limit}; "
        f"a maxSurge of {short.most - capacity.replicas} is enough for all steps, or take smaller steps "
        f"(what the model leaves unset comes from OnnxModelClass {offer.class_name})"
    )
    if capacity.limit == 1:
        message += "; with a single server the only step can be one of weight 100, with a maxUnavailable of 1"
    return Refusal(reasons.STEP_WITHOUT_ROOM, message)


def _a_step_has_too_few_replicas(offer: Offer) -> Refusal | None:
    if offer.plan.is_by_ratio:
        return None  # there, they are the weight
    for index, step in enumerate(offer.plan.steps):
        need = offer.plan.capacity.need(reach_of(step))
        if step.replicas is not None and step.replicas < need:
            message = (
                f"rollout step {index} has replicas: {step.replicas}, but {reach_of(step)} % of the requests need "
                f"{need} of {offer.plan.capacity.replicas} servers"
            )
            return Refusal(reasons.STEP_WITHOUT_ROOM, message)
    return None


def _stable_has_no_servers(offer: Offer) -> Refusal | None:
    """Where the candidate has all servers that there may be, nothing is warm and nothing can be compared."""
    plan = offer.plan
    if plan.capacity.surge:
        return None
    if plan.bake:
        message = "rollout.bake keeps servers of the revision before, which takes a maxSurge of at least 1"
        return Refusal(reasons.STEP_WITHOUT_ROOM, message)
    all_of_it = [step for step in plan.steps if step.weight == FULL]
    compared = [
        one.name
        for one in plan.analysis.metrics
        if _asks_stable(one) and not one.dry_run and any(_rests_on(step, one) for step in all_of_it)
    ]
    if compared:
        message = (
            f"a rollout step of weight 100 leaves stable no servers with a maxSurge of 0, so {compared[0]} has nothing "
            "to compare with; leave that metric out, or allow a maxSurge of 1"
        )
        return Refusal(reasons.STEP_WITHOUT_ROOM, message)
    return None


def _rests_on(step: Step, metric: Metric) -> bool:
    return step.metrics is None or metric.name in step.metrics


def _asks_stable(metric: Metric) -> bool:
    """Whether requests are sent to stable whatever its weight."""
    of_stable = metric.maximum_of_stable or metric.minimum_of_stable
    return metric.name == MetricName.DISAGREEMENT or (metric.job is not None and of_stable is not None)


def _an_analysis_job_is_not_allowed(offer: Offer) -> Refusal | None:
    for metric in offer.plan.analysis.metrics:
        if metric.job is not None and (problem := _beyond(metric.job, offer.class_spec.limits)):
            message = (
                f"rollout.analysis.metrics[name={metric.name}].job.{problem} of OnnxModelClass {offer.class_name}; "
                "whoever may change that class can allow it"
            )
            return Refusal(reasons.ANALYSIS_JOB_NOT_ALLOWED, message)
    return None


def _beyond(job: AnalysisJob, limits: Limits) -> str:
    """Which field the class does not allow, and why; empty where it allows all."""
    if not any(_begins(job.image, one) for one in limits.allowed_analysis_images):
        allowed = ", ".join(limits.allowed_analysis_images) or "none"
        return f"image is {job.image}, not among the limits.allowedAnalysisImages ({allowed})"
    deadline = job.deadline or DEFAULT_JOB_DEADLINE
    if parse_duration(deadline) > parse_duration(limits.max_analysis_deadline):
        return f"deadline is {deadline}, above the limits.maxAnalysisDeadline of {limits.max_analysis_deadline}"
    if job.resources is None:
        return ""
    most = limits.max_analysis_resources
    for field, amounts in (("requests", job.resources.requests), ("limits", job.resources.limits)):
        for name, amount_ in (amounts or {}).items():
            if name not in most or parse_quantity(amount_) > parse_quantity(most[name]):
                allowed = most.get(name, "none")
                return f"resources.{field} asks for {amount_} of {name}, above limits.maxAnalysisResources ({allowed})"
    return ""


def _begins(image: str, allowed: str) -> bool:
    """Whether the image is in that registry, folder or repository; half a name is none of them."""
    if not image.startswith(allowed):
        return False
    rest = image[len(allowed) :]
    if rest.startswith("/"):
        # python is an image of Docker's own, and python/any one of whoever has that name there.
        return "/" in allowed or "." in allowed
    # A colon begins a tag, unless it begins the port of a registry of a longer name.
    return not rest or allowed.endswith("/") or rest[0] == "@" or (rest[0] == ":" and "/" not in rest)


_CHECKS: Final[tuple[Callable[[Offer], Refusal | None], ...]] = (
    _source_is_not_allowed,
    _revision_is_mutable,
    _generated_code_is_not_allowed,
    _provider_is_not_offered,
    _replicas_are_too_many,
    _step_is_too_long,
    _a_step_names_no_metric,
    _a_gateway_is_needed,
    _autoscaling_has_no_room,
    _a_step_has_no_room,
    _a_step_has_too_few_replicas,
    _stable_has_no_servers,
    _an_analysis_job_is_not_allowed,
    _freeze_window_is_unreadable,
    _pool_schedule_is_unreadable,
)


def _listed(classes: Iterable[ClassSeen]) -> str:
    return ", ".join(sorted(one.name for one in classes)) or "none"
