"""All reads of one look: from the store for what is watched, live only where the store cannot know.

Live are: the pods of a Job that just ended (its result must not be missed because the watch lags), the Events of a
Job that gets no pod, the Gateway while a prober needs its address, and the measurements of an analysis that is due.
Nothing is decided here, nothing is written, and no address that a user wrote is ever dialled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import ValidationError

from onnx_operator.adapters import kube
from onnx_operator.adapters.errors import Forbidden
from onnx_operator.adapters.kube import controller_uid
from onnx_operator.adapters.prober import ProberReader
from onnx_operator.adapters.triton import TritonReader
from onnx_operator.api.common import ExecutionProvider
from onnx_operator.api.model import OnnxModelSpec, OnnxModelStatus
from onnx_operator.api.model_class import DEFAULT_CLASS_ANNOTATION, OnnxModelClassSpec
from onnx_operator.api.revision import OnnxModelRevisionSpec, OnnxModelRevisionStatus
from onnx_operator.core.autoscaling import read_autoscaler
from onnx_operator.core.conditions import moment
from onnx_operator.core.jobs import JOB_NAME_LABEL, has_spoken, is_finished, read_analysis_job, read_job
from onnx_operator.core.ladder import needs_prober
from onnx_operator.core.names import COMPONENT_LABEL, PROVIDER_LABEL, REVISION_LABEL, Component
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
from onnx_operator.core.pods import is_ready, url_of
from onnx_operator.core.questions import Party, ServerPod
from onnx_operator.core.servers import read_servers
from onnx_operator.core.traffic import GatewayAddress, read_route
from onnx_operator.core.view import look, side_of
from onnx_operator.measure import Instruments, ProberPod, Subject, measure
from onnx_operator.render.servers import METRICS_PORT, PROBER_PORT

if TYPE_CHECKING:
    from datetime import datetime

    from onnx_operator.adapters.kube import Resource
    from onnx_operator.api.model_class import GatewayReference
    from onnx_operator.context import Context
    from onnx_operator.core.servers import ServerState
    from onnx_operator.core.traffic import RouteSeen
    from onnx_operator.core.view import View
    from onnx_operator.workqueue import Key

Object = Mapping[str, Any]
Spec = TypeVar("Spec", OnnxModelSpec, OnnxModelClassSpec)

_CHILD_KINDS: Final = (
    kube.JOB,
    # Before what it scales: what goes, goes in this order.
    kube.HORIZONTAL_POD_AUTOSCALER,
    kube.DEPLOYMENT,
    kube.SERVICE,
    kube.POD_DISRUPTION_BUDGET,
    kube.NETWORK_POLICY,
    kube.HTTP_ROUTE,
    kube.GRPC_ROUTE,
)


async def observe(key: Key, context: Context, now: datetime) -> Observation | None:
    """Everything that matters for one model; None when it does not exist (any more)."""
    manifest = context.store.get(kube.ONNX_MODEL, key.namespace, key.name)
    if manifest is None:
        return None
    model = _model(manifest)
    revisions = _revisions(context, model)
    children = _children(context, model, revisions)
    pods = context.store.children(kube.POD, key.namespace, key.name)
    jobs = [child for child in children if child.kind == "Job"]
    measuring = [child for child in jobs if child.component == Component.ANALYSIS]
    classes = tuple(_class(one) for one in context.store.all(kube.ONNX_MODEL_CLASS))
    seen = Observation(
        model=model,
        classes=classes,
        images=DefaultImages(
            operator=context.settings.operator_image,
            converter=context.settings.converter_image,
            server=context.settings.triton_image,
        ),
        revisions=revisions,
        children=children,
        jobs={one.name: read_job(*await _job(context, one, pods)) for one in jobs if one not in measuring},
        analysis_jobs={one.name: read_analysis_job(*await _job(context, one, pods)) for one in measuring},
        servers=_servers(children, pods),
        autoscalers={
            (child.revision, _provider(child)): read_autoscaler(child.manifest)
            for child in children
            if child.kind == "HorizontalPodAutoscaler" and not child.is_deleting
        },
        has_gateway_api=context.store.is_served(kube.HTTP_ROUTE) and context.store.is_served(kube.GRPC_ROUTE),
    )
    seen = _with_routes(seen, look(seen, now))
    seen = await _with_gateway(context, seen, look(seen, now))
    return await _with_measurements(context, seen, look(seen, now), pods)


# ---- our own kinds


def _model(manifest: Object) -> ModelSeen:
    metadata = manifest["metadata"]
    spec, problem = _spec(OnnxModelSpec, manifest)
    return ModelSeen(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        resource_version=metadata["resourceVersion"],
        spec=spec,
        problem=problem,
        status=OnnxModelStatus.model_validate(manifest.get("status") or {}),
        is_deleting="deletionTimestamp" in metadata,
    )


def _class(manifest: Object) -> ClassSeen:
    metadata = manifest["metadata"]
    spec, problem = _spec(OnnxModelClassSpec, manifest)
    return ClassSeen(
        name=metadata["name"],
        spec=spec,
        problem=problem,
        is_default=(metadata.get("annotations") or {}).get(DEFAULT_CLASS_ANNOTATION) == "true",
        created=metadata.get("creationTimestamp", ""),
    )


def _spec(kind: type[Spec], manifest: Object) -> tuple[Spec | None, str]:
    """Or what is wrong with it."""
    try:
        return kind.model_validate(manifest["spec"]), ""
    except ValidationError as error:
        return None, _words(error)


def _revisions(context: Context, model: ModelSeen) -> tuple[RevisionSeen, ...]:
    found = context.store.children(kube.ONNX_MODEL_REVISION, model.namespace, model.name)
    # A model that was deleted and made again under its name must not inherit what is being cleaned up.
    return tuple(_revision(one) for one in found if controller_uid(one) == model.uid)


def _revision(manifest: Object) -> RevisionSeen:
    return RevisionSeen(
        name=manifest["metadata"]["name"],
        uid=manifest["metadata"]["uid"],
        resource_version=manifest["metadata"]["resourceVersion"],
        spec=OnnxModelRevisionSpec.model_validate(manifest["spec"]),
        status=OnnxModelRevisionStatus.model_validate(manifest.get("status") or {}),
        is_deleting="deletionTimestamp" in manifest["metadata"],
    )


def _words(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"spec.{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


# ---- children


def _children(context: Context, model: ModelSeen, revisions: tuple[RevisionSeen, ...]) -> tuple[Child, ...]:
    owners = {model.uid} | {one.uid for one in revisions}
    return tuple(
        _child(resource, one)
        for resource in _CHILD_KINDS
        for one in context.store.children(resource, model.namespace, model.name)
        if controller_uid(one) in owners
    )


def _child(resource: Resource, manifest: Object) -> Child:
    metadata = manifest["metadata"]
    labels = metadata.get("labels") or {}
    return Child(
        kind=resource.kind,
        name=metadata["name"],
        uid=metadata["uid"],
        component=labels.get(COMPONENT_LABEL, ""),
        revision=labels.get(REVISION_LABEL, ""),
        is_deleting="deletionTimestamp" in metadata,
        manifest=manifest,
    )


async def _job(context: Context, job: Child, pods: list[Object]) -> tuple[Object, list[Object], list[str]]:
    """The Job with its pods and what refused them."""
    namespace = job.manifest["metadata"]["namespace"]
    mine = [pod for pod in pods if _label(pod, JOB_NAME_LABEL) == job.name]
    if is_finished(job.manifest) and not has_spoken(mine):
        selector = f"{JOB_NAME_LABEL}={job.name}"
        mine = list((await context.kube.list(kube.POD, namespace, label_selector=selector)).items)
    refusals: list[str] = []
    if not mine and not is_finished(job.manifest):
        selector = f"regarding.uid={job.uid},reason=FailedCreate"
        events = (await context.kube.list(kube.EVENT, namespace, field_selector=selector)).items
        refusals = [one.get("note", "") for one in sorted(events, key=_event_time)]
    return job.manifest, mine, refusals


def _event_time(event: Object) -> str:
    return str(event.get("eventTime") or event.get("deprecatedLastTimestamp") or "")


def _servers(children: tuple[Child, ...], pods: list[Object]) -> dict[tuple[str, ExecutionProvider], ServerState]:
    found = {}
    for child in children:
        if child.kind != "Deployment" or child.component != Component.SERVER or child.is_deleting:
            continue
        provider = _provider(child)
        mine = [
            pod
            for pod in pods
            if _label(pod, REVISION_LABEL) == child.revision
            and _label(pod, PROVIDER_LABEL) == provider.short
            and _label(pod, COMPONENT_LABEL) == Component.SERVER
        ]
        found[child.revision, provider] = read_servers(child.manifest, mine)
    return found


def _provider(child: Child) -> ExecutionProvider:
    short = _label(child.manifest, PROVIDER_LABEL)
    return next(one for one in ExecutionProvider if one.short == short)


# ---- traffic


def _with_routes(seen: Observation, view: View) -> Observation:
    if view.class_spec is None:
        return seen
    gateway = view.class_spec.traffic.gateway
    service = next((one for one in seen.children if one.object_name == ObjectName("Service", seen.model.name)), None)
    seen = replace(seen, service=_service(service) if service is not None else None)
    if view.is_by_ratio or gateway is None:
        return seen
    routes = {child.kind: _route(child, gateway) for child in seen.children if child.kind.endswith("Route")}
    return replace(seen, http_route=routes.get("HTTPRoute"), grpc_route=routes.get("GRPCRoute"))


def _service(child: Child) -> ServiceSeen:
    return ServiceSeen((child.manifest["spec"].get("selector") or {}).get(REVISION_LABEL))


def _route(child: Child, gateway: GatewayReference) -> RouteSeen:
    return read_route(child.manifest, gateway)


async def _with_gateway(context: Context, seen: Observation, view: View) -> Observation:
    candidate = view.ledger.candidate
    if view.class_spec is None or candidate is None or candidate.digest is None or not needs_prober(view):
        return seen
    reference = view.class_spec.traffic.gateway
    if view.is_by_ratio or reference is None:
        return seen
    try:
        gateway = await context.kube.get(kube.GATEWAY, reference.namespace, reference.name)
    except Forbidden as error:
        return replace(seen, gateway_problem=error.message)
    return replace(seen, gateway=_address(gateway, reference) if gateway is not None else None)


def _address(gateway: Object, reference: GatewayReference) -> GatewayAddress | None:
    addresses = (gateway.get("status") or {}).get("addresses") or ()
    ports = {one["name"]: int(one["port"]) for one in gateway["spec"].get("listeners") or ()}
    http, grpc = ports.get(reference.http_listener), ports.get(reference.grpc_listener)
    if not addresses or (http is None and grpc is None):
        return None
    return GatewayAddress(str(addresses[0]["value"]), http, grpc)


# ---- measurements


async def _with_measurements(context: Context, seen: Observation, view: View, pods: list[Object]) -> Observation:
    candidate, stable = view.candidate, view.stable
    if candidate is None or stable is None or view.plan is None or view.ledger.candidate is None:
        return seen
    started = view.ledger.candidate.step_started_time
    if started is None or not view.is_analysis_due:
        return seen
    subject = Subject(
        namespace=seen.model.namespace,
        model=seen.model.name,
        candidate=_party(candidate, pods),
        stable=_party(stable, pods),
        prober=_prober(candidate.name, pods),
    )
    instruments = Instruments(prometheus=context.prometheus, prober=ProberReader(), triton=TritonReader())
    try:
        # What a Job measures is read from the Job.
        wanted = tuple(one for one in view.criteria if one.job is None)
        measured = await measure(wanted, subject, instruments, since=moment(started), now=view.now)
    finally:
        await instruments.prober.close()
        await instruments.triton.close()
    return replace(seen, measurements=measured)


def _party(revision: RevisionSeen, pods: list[Object]) -> Party:
    found = (
        _server_pod(pod)
        for pod in pods
        if _label(pod, COMPONENT_LABEL) == Component.SERVER and _label(pod, REVISION_LABEL) == revision.name
    )
    ready = tuple(pod for pod in found if pod is not None)
    return Party(revision.name, revision.spec.number, side_of(revision).services, ready)


def _server_pod(pod: Object) -> ServerPod | None:
    """None for a pod that does not answer requests, or not for long."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    url = url_of(pod, METRICS_PORT)
    if not is_ready(pod) or url is None or "deletionTimestamp" in metadata:
        return None
    restarts = sum(int(one.get("restartCount", 0)) for one in status.get("containerStatuses") or ())
    return ServerPod(metadata["name"], url, metadata["uid"], restarts)


def _prober(revision: str, pods: list[Object]) -> ProberPod:
    said = ""
    for pod in pods:
        if _label(pod, COMPONENT_LABEL) != Component.PROBER or _label(pod, REVISION_LABEL) != revision:
            continue
        # A pod that does not listen yet would look like one that is broken.
        if is_ready(pod) and "deletionTimestamp" not in pod["metadata"]:
            return ProberPod(url_of(pod, PROBER_PORT))
        for container in (pod.get("status") or {}).get("containerStatuses") or ():
            for state in (container.get("lastState") or {}, container.get("state") or {}):
                said = (state.get("terminated") or {}).get("message") or said
    return ProberPod(None, said.strip())


def _label(manifest: Object, name: str) -> str:
    return str((manifest["metadata"].get("labels") or {}).get(name, ""))
