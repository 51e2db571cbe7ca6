"""The one door to the API server: plain objects in, plain objects out, our own errors.

Built on the transport of `kubernetes.aio` (configuration, credentials and their refresh, TLS, connection pool);
its dynamic client is passed by, as it discovers kinds at run time and wraps every answer, while we know our kinds.

What this module refuses to do:

* to send a write while this process may have lost its lease (`fence`), whoever asks;
* to overwrite an object that another controller owns: apply checks the owner first, delete carries the UID;
* to create an object whose owner is gone or going, whatever the watch has told so far: the owners are read live;
* to retry: an answer is an answer, and the work queue decides when to ask again.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import client, config
from typing_extensions import override

from onnx_operator.adapters.errors import (
    AlreadyExists,
    Call,
    Conflict,
    Expired,
    Invalid,
    NotFound,
    NotLeading,
    Unavailable,
    error_from_response,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType


Manifest = dict[str, Any]
Propagation = Literal["Background", "Foreground", "Orphan"]

FIELD_MANAGER = "onnx-operator"
GROUP = "onnx-operator.io"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MODEL_LABEL = f"{GROUP}/model"
MANAGED_BY_US = f"{MANAGED_BY_LABEL}={FIELD_MANAGER}"

#: Lists come in pieces of this size, so that neither side holds everything at once.
CHUNK = 500


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object and where the API server keeps it."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @override
    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of an object, of a namespace's collection, or of the whole collection."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
        if subresource is not None:
            parts.append(subresource)
        return "/" + "/".join(quote(part, safe="") for part in parts)


ONNX_MODEL = Resource(GROUP, "v1alpha1", "onnxmodels", "OnnxModel")
ONNX_MODEL_REVISION = Resource(GROUP, "v1alpha1", "onnxmodelrevisions", "OnnxModelRevision")
ONNX_MODEL_CLASS = Resource(GROUP, "v1alpha1", "onnxmodelclasses", "OnnxModelClass", namespaced=False)
JOB = Resource("batch", "v1", "jobs", "Job")
DEPLOYMENT = Resource("apps", "v1", "deployments", "Deployment")
SERVICE = Resource("", "v1", "services", "Service")
POD = Resource("", "v1", "pods", "Pod")
EVENT = Resource("events.k8s.io", "v1", "events", "Event")
HTTP_ROUTE = Resource("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute")
GRPC_ROUTE = Resource("gateway.networking.k8s.io", "v1", "grpcroutes", "GRPCRoute")
GATEWAY = Resource("gateway.networking.k8s.io", "v1", "gateways", "Gateway")
LEASE = Resource("coordination.k8s.io", "v1", "leases", "Lease")
PERSISTENT_VOLUME_CLAIM = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
CONFIG_MAP = Resource("", "v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNT = Resource("", "v1", "serviceaccounts", "ServiceAccount")
NODE = Resource("", "v1", "nodes", "Node", namespaced=False)
NETWORK_POLICY = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
POD_DISRUPTION_BUDGET = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")

HORIZONTAL_POD_AUTOSCALER = Resource("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")

RESOURCES = (
    ONNX_MODEL,
    ONNX_MODEL_REVISION,
    ONNX_MODEL_CLASS,
    JOB,
    DEPLOYMENT,
    SERVICE,
    POD,
    EVENT,
    HTTP_ROUTE,
    GRPC_ROUTE,
    GATEWAY,
    LEASE,
    PERSISTENT_VOLUME_CLAIM,
    CONFIG_MAP,
    SERVICE_ACCOUNT,
    NODE,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    HORIZONTAL_POD_AUTOSCALER,
)
_BY_KIND = {(resource.api_version, resource.kind): resource for resource in RESOURCES}


def resource_of(manifest: Mapping[str, Any]) -> Resource:
    """The kind of a manifest; a KeyError for one this operator has no business with."""
    return _BY_KIND[manifest["apiVersion"], manifest["kind"]]


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects of a kind (in a namespace) as of one moment, the `resource_version`."""

    items: list[Manifest]
    resource_version: int


class Cache(Protocol):
    """Where answers to our own writes go, so that the next reconcile reads them."""

    def get(self, resource: Resource, namespace: str | None, name: str) -> Mapping[str, Any] | None: ...
    def upsert(self, resource: Resource, manifest: Manifest) -> bool: ...
    def forget(self, resource: Resource, namespace: str | None, name: str, uid: str) -> None: ...


async def load_configuration(kubeconfig: str | None) -> client.Configuration:
    """Where the API server is and who we are there: a kubeconfig file, or the pod's own service account."""
    configuration = client.Configuration()
    if kubeconfig is None:
        config.load_incluster_config(client_configuration=configuration)
    else:
        await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    # A proxy meant for the world outside is never the way to our own API server.
    configuration.client_session_kwargs = {"trust_env": False}
    return configuration


class Kube:
    """Reads and writes objects; every request has a time-out, every write passes the fence."""

    def __init__(
        self,
        configuration: client.Configuration,
        *,
        fence: Callable[[], bool],
        cache: Cache | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._api = client.ApiClient(configuration)
        self._fence = fence
        self._cache = cache
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._api.close()

    # ---- reading

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest | None:
        """The object as it is now, or None."""
        call = Call("get", str(resource), namespace, name)
        try:
            return await self._object(call, "GET", resource.path(namespace, name))
        except NotFound:
            return None

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> Listing:
        """All objects as of one moment. NotFound here means that the cluster does not serve the kind."""
        call = Call("list", str(resource), namespace, None)
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        query = {name: value for name, value in selectors.items() if value is not None}
        try:
            return await self._list_in_chunks(call, resource, {**query, "limit": CHUNK})
        except Expired:
            # The list outlived the server's memory between two pieces: then all of it at once.
            return await self._list_in_chunks(call, resource, query)

    # ---- writing

    async def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply: what the manifest says is so afterwards, what it no longer says is dropped.

        Where the name is taken by an object that another controller owns: AlreadyExists, nothing changed.
        """
        resource, namespace, name = _whereabouts(manifest)
        call = Call("apply", str(resource), namespace, name)
        uid = await self._uid_if_ours(call, resource, manifest)
        query = {"fieldManager": FIELD_MANAGER}
        if uid is None:
            # Without force, so that nothing is taken over that somebody made since we looked.
            await self._check_owners(call, manifest)
        else:
            # The server compares it: an object recreated under this name by somebody else stays untouched.
            manifest = {**manifest, "metadata": {**manifest["metadata"], "uid": uid}}
            query["force"] = "true"
        return await self._apply(call, manifest, uid, query)

    async def share(self, manifest: Manifest, manager: str) -> Manifest:
        """Let another manager hold fields of an object of ours, named by its UID, at the values that they have: so they
        outlive an apply that says them no longer. Conflict where one has another value by now.
        """
        resource, namespace, name = _whereabouts(manifest)
        call = Call("apply", str(resource), namespace, name)
        return await self._apply(call, manifest, str(manifest["metadata"]["uid"]), {"fieldManager": manager})

    async def create(self, manifest: Manifest) -> Manifest:
        """Create the object; AlreadyExists where the name is taken."""
        resource, namespace, name = _whereabouts(manifest)
        call = Call("create", str(resource), namespace, name)
        await self._check_owners(call, manifest)
        return await self._write(
            call, "POST", resource.path(namespace), query={"fieldManager": FIELD_MANAGER}, body=manifest
        )

    async def replace(self, manifest: Manifest) -> Manifest:
        """Write the whole object; Conflict unless its resourceVersion is still the latest."""
        resource, namespace, name = _whereabouts(manifest)
        call = Call("update", str(resource), namespace, name)
        return await self._write(
            call, "PUT", resource.path(namespace, name), query={"fieldManager": FIELD_MANAGER}, body=manifest
        )

    async def patch(self, resource: Resource, namespace: str | None, name: str, patch: Manifest) -> Manifest:
        """Merge the patch into the object; None clears a field."""
        call = Call("patch", str(resource), namespace, name)
        return await self._write(
            call,
            "PATCH",
            resource.path(namespace, name),
            query={"fieldManager": FIELD_MANAGER},
            body=patch,
            content_type="application/merge-patch+json",
        )

    async def patch_status(
        self, resource: Resource, namespace: str | None, name: str, status: Manifest, resource_version: str
    ) -> Manifest:
        """Make `status` the object's whole status; Conflict unless `resource_version` is still the latest.

        A JSON patch, since a merge patch would keep every key that the new status no longer has.
        """
        call = Call("patch", f"{resource}/status", namespace, name)
        return await self._write(
            call,
            "PATCH",
            resource.path(namespace, name, "status"),
            query={"fieldManager": FIELD_MANAGER},
            body=[
                {"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version},
                {"op": "add", "path": "/status", "value": status},
            ],
            content_type="application/json-patch+json",
        )

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        uid: str,
        propagation: Propagation = "Background",
    ) -> bool:
        """Delete this very object; False when it is gone already, even if the name lives on."""
        call = Call("delete", str(resource), namespace, name)
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
            "preconditions": {"uid": uid},
        }
        try:
            answer = await self._object(call, "DELETE", resource.path(namespace, name), body=body)
        except NotFound:
            self._forget(resource, namespace, name, uid)
            return False
        except Conflict:
            # Mostly another object has the name now. It may be this one, too, and then it has to be tried again.
            live = await self.get(resource, namespace, name)
            if live is not None and live["metadata"]["uid"] == uid:
                raise
            self._forget(resource, namespace, name, uid)
            return False
        if answer["metadata"].get("deletionTimestamp"):  # finalizers or a grace period keep it for a while
            self._remember(answer)
        else:  # a Status, or for some kinds the object as it was
            self._forget(resource, namespace, name, uid)
        return True

    # ---- inside

    async def _list_in_chunks(self, call: Call, resource: Resource, query: Manifest) -> Listing:
        items: list[Manifest] = []
        named = {"apiVersion": resource.api_version, "kind": resource.kind}  # items of a list leave it out
        while True:
            answer = await self._object(call, "GET", resource.path(call.namespace), query=query)
            items += ({**named, **_trimmed(item)} for item in answer["items"])
            going_on = answer["metadata"].get("continue")
            if not going_on:
                return Listing(items, int(answer["metadata"]["resourceVersion"]))
            query = {**query, "continue": going_on}

    async def _apply(self, call: Call, manifest: Manifest, uid: str | None, query: Mapping[str, str]) -> Manifest:
        resource, namespace, name = _whereabouts(manifest)
        try:
            return await self._write(
                call,
                "PATCH",
                resource.path(namespace, name),
                query=query,
                body=manifest,
                content_type="application/apply-patch+yaml",
            )
        except Invalid as error:
            if uid is None or "metadata.uid" not in {cause.field for cause in error.causes}:
                raise
            self._forget(resource, namespace, name, uid)
            raise Conflict(call, "the object was replaced by another of its name", status=409) from error
        except Conflict:
            if uid is not None and await self.get(resource, namespace, name) is None:
                self._forget(resource, namespace, name, uid)
            raise

    async def _uid_if_ours(self, call: Call, resource: Resource, manifest: Manifest) -> str | None:
        owner = controller_uid(manifest)
        namespace, name = manifest["metadata"].get("namespace"), manifest["metadata"]["name"]
        known = self._cache.get(resource, namespace, name) if self._cache is not None else None
        if known is None or controller_uid(known) != owner:
            known = await self.get(resource, namespace, name)
        if known is None:
            return None
        if controller_uid(known) != owner:
            message = f"{resource.kind} {namespace}/{name} exists and is not ours; rename or delete it"
            raise AlreadyExists(call, message, status=409)
        return str(known["metadata"]["uid"])

    async def _check_owners(self, call: Call, manifest: Manifest) -> None:
        """Conflict, and the cache knows why, unless every owner is there to stay.

        A child that is missing may be one that the garbage collector took, told before its owner's own end. What the
        collector did the owner's deletion preceded, so that a read from now on shows it.
        """
        reference = _controller(manifest)
        if reference is None or resource_of(manifest) == ONNX_MODEL:  # what users own by what is theirs
            return None
        resource, namespace, name = resource_of(reference), manifest["metadata"]["namespace"], reference["name"]
        owner = await self.get(resource, namespace, name)
        if owner is None:
            self._forget(resource, namespace, name, reference["uid"])
        elif owner["metadata"]["uid"] != reference["uid"] or "deletionTimestamp" in owner["metadata"]:
            self._remember(owner)
        else:
            return await self._check_owners(call, owner)
        raise Conflict(call, f"{resource.kind} {namespace}/{name}, its owner, is deleted")

    async def _write(
        self,
        call: Call,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any,
        content_type: str = "application/json",
    ) -> Manifest:
        answer = await self._object(call, method, path, query=query, body=body, content_type=content_type)
        self._remember(answer)
        return answer

    async def _object(self, call: Call, method: str, path: str, **request: Any) -> Manifest:
        body = await self._request(call, method, path, **request)
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise Unavailable(call, "the answer is not JSON; is a proxy in between?") from error
        return _trimmed(answer)

    async def _request(
        self,
        call: Call,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> bytes:
        if method != "GET" and not self._fence():
            raise NotLeading(call)
        try:
            async with asyncio.timeout(self._timeout):
                status, headers, answer = await self._exchange(method, path, query, body, content_type)
        except TimeoutError as error:
            raise Unavailable(call, f"no answer within {self._timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(call, f"{type(error).__name__}: {error}") from error
        if 200 <= status < 300:  # noqa: PLR2004
            return answer
        raise error_from_response(call, status, headers, answer)

    async def _exchange(
        self, method: str, path: str, query: Mapping[str, Any] | None, body: Any, content_type: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        if query:
            path = f"{path}?{urlencode(query)}"
        request = await self._api.param_serialize(
            method,
            path,
            header_params={"Accept": "application/json", "Content-Type": content_type},
            auth_settings=["BearerToken"],
        )
        verb, url, headers, *_ = request
        response = await self._api.call_api(
            verb, url, headers, body, _request_timeout=aiohttp.ClientTimeout(total=self._timeout)
        )
        return response.status, response.headers, await response.read()

    def _remember(self, manifest: Manifest) -> None:
        if self._cache is not None:
            self._cache.upsert(resource_of(manifest), manifest)

    def _forget(self, resource: Resource, namespace: str | None, name: str, uid: str) -> None:
        if self._cache is not None:
            self._cache.forget(resource, namespace, name, uid)


def controller_uid(manifest: Mapping[str, Any]) -> str | None:
    """The UID of the owner that controls the object."""
    reference = _controller(manifest)
    return None if reference is None else str(reference["uid"])


def _controller(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    references: Iterable[Mapping[str, Any]] = manifest["metadata"].get("ownerReferences") or ()
    return next((one for one in references if one.get("controller")), None)


def _whereabouts(manifest: Manifest) -> tuple[Resource, str | None, str]:
    resource = resource_of(manifest)
    return resource, manifest["metadata"].get("namespace"), manifest["metadata"]["name"]


def _trimmed(manifest: Manifest) -> Manifest:
    """Without managedFields: half of an object's bytes, and nothing here reads them."""
    metadata = manifest.get("metadata")
    if isinstance(metadata, dict):
        metadata.pop("managedFields", None)
    return manifest
