"""Every write but the final status: one case per action, and nothing decided on the way.

What already is as wanted costs no request. A refusal that a person has to lift (a name that is taken, a quota, a
missing right) comes back as an `Obstacle` to be told; everything that time heals is raised and left to the queue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from onnx_operator.adapters import kube
from onnx_operator.adapters.errors import (
    AdmissionDenied,
    AlreadyExists,
    ApiError,
    Forbidden,
    Invalid,
    NotFound,
    QuotaExceeded,
    Rejected,
)
from onnx_operator.adapters.kube import controller_uid, resource_of
from onnx_operator.core import reasons
from onnx_operator.core.actions import Delete
from onnx_operator.core.names import FIELD_MANAGER
from onnx_operator.render.compare import is_as_wanted
from onnx_operator.render.manifests import build

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx_operator.adapters.kube import Manifest, Resource
    from onnx_operator.context import Context
    from onnx_operator.core.actions import Action, Want
    from onnx_operator.core.observation import ModelSeen

#: Never changed once they exist, so created and not applied.
_IMMUTABLE: Final = frozenset({"Job", "OnnxModelRevision"})
#: Holds a Deployment's `replicas` from when we let go until its autoscaler writes them for the first time.
_AUTOSCALER_MANAGER: Final = f"{FIELD_MANAGER}-autoscaler"
_RESOURCES: Final[Mapping[str, Resource]] = {
    one.kind: one
    for one in (
        kube.ONNX_MODEL_REVISION,
        kube.JOB,
        kube.DEPLOYMENT,
        kube.SERVICE,
        kube.POD_DISRUPTION_BUDGET,
        kube.HORIZONTAL_POD_AUTOSCALER,
        kube.NETWORK_POLICY,
        kube.HTTP_ROUTE,
        kube.GRPC_ROUTE,
    )
}


@dataclass(frozen=True, slots=True)
class Obstacle:
    """An action that was refused, until somebody does something about it."""

    action: Action
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Performed:
    """What came of the actions."""

    #: Whether the cluster is another one now: then it is worth a look at once, as nobody tells us of our own writes.
    has_changed_something: bool
    obstacle: Obstacle | None = None


async def perform(actions: tuple[Action, ...], model: ModelSeen, context: Context) -> Performed:
    """Carry the actions out in their order; stops at the first that is refused."""
    has_changed = False
    for action in actions:
        try:
            if isinstance(action, Delete):
                has_changed |= await _delete(action, model, context)
            else:
                has_changed |= await _ensure(action, context)
        except (AlreadyExists, Rejected, Forbidden, Invalid, NotFound) as error:
            return Performed(has_changed, Obstacle(action, _reason(error), error.message))
    return Performed(has_changed)


async def _ensure(want: Want, context: Context) -> bool:
    has_changed = False
    for manifest in build(want):
        resource = resource_of(manifest)
        metadata = manifest["metadata"]
        live = context.store.get(resource, metadata["namespace"], metadata["name"])
        if resource.kind in _IMMUTABLE:
            if live is None or controller_uid(live) != controller_uid(manifest):
                await _create(manifest, context)
                has_changed = True
        elif not is_as_wanted(manifest, live):
            await _hand_over(manifest, live, context)
            written = await context.kube.apply(manifest)
            # An edit that apply cannot undo (somebody else's field) must not make us turn in circles.
            has_changed |= live is None or written["metadata"]["resourceVersion"] != live["metadata"]["resourceVersion"]
    return has_changed


async def _hand_over(manifest: Manifest, live: Mapping[str, Any] | None, context: Context) -> None:
    """A field that its only manager applies no longer is dropped, and a Deployment without `replicas` has 1: before we
    stop saying how many there are, somebody else has to hold the number that there is.
    """
    if manifest["kind"] != "Deployment" or "replicas" in manifest["spec"] or live is None:
        return
    metadata = {key: live["metadata"][key] for key in ("namespace", "name", "uid")}
    held = {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "metadata": metadata}
    await context.kube.share({**held, "spec": {"replicas": live["spec"]["replicas"]}}, _AUTOSCALER_MANAGER)


async def _create(manifest: Manifest, context: Context) -> None:
    try:
        await context.kube.create(manifest)
    except AlreadyExists:
        # Written before, but the answer was lost or the watch has not told yet: success, if it is ours.
        metadata: Mapping[str, Any] = manifest["metadata"]
        live = await context.kube.get(resource_of(manifest), metadata["namespace"], metadata["name"])
        if live is not None and controller_uid(live) != controller_uid(manifest):
            raise


async def _delete(action: Delete, model: ModelSeen, context: Context) -> bool:
    resource = _RESOURCES[action.object.kind]
    return await context.kube.delete(resource, model.namespace, action.object.name, action.uid)


def _reason(error: ApiError) -> str:
    match error:
        case AlreadyExists():
            return reasons.NAME_CONFLICT
        case QuotaExceeded():
            return reasons.QUOTA_EXCEEDED
        case AdmissionDenied():
            return reasons.POD_REFUSED
        case Forbidden():
            return reasons.FORBIDDEN
        case _:
            return reasons.WRITE_REFUSED
