"""Watch, relist and store together on a real API server, through a proxy that can cut the line."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from integration.apiserver import AGENT, ControlPlane, running_control_plane
from onnx_operator.adapters import kube
from onnx_operator.adapters.kube import Kube, load_configuration
from onnx_operator.adapters.store import Store
from onnx_operator.handlers import Inbox, Watch
from onnx_operator.metrics import Metrics
from onnx_operator.relist import Relist
from onnx_operator.settings import read_settings
from onnx_operator.workqueue import Key, WorkQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from integration.shell.conftest import Models


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One of this file's own: it is killed here, and other tests have the Gateway API installed in theirs."""
    with running_control_plane(tmp_path_factory.mktemp("watched")) as plane:
        plane.install_crds()
        yield plane


@dataclass
class Line:
    """A TCP proxy before the API server; `cut` breaks every connection and takes no new one."""

    port: int
    host: str = "127.0.0.1"
    address: int = 0
    _server: asyncio.Server | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _carrying: set[asyncio.Task[None]] = field(default_factory=set)

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._carry, self.host, self.address)
        self.address = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        await asyncio.gather(*self._carrying)
        await self._server.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        try:
            there, back = await asyncio.open_connection(self.host, self.port)
            self._open |= {writer, back}
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
            self._open -= {writer, back}
        finally:
            self._carrying.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()


@dataclass
class Clock:
    """The loop's, and as far ahead of it as a test says."""

    ahead: float = 0.0

    def now(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead


@dataclass
class World:
    """What the leader runs, short of a reconciler."""

    line: Line
    store: Store
    queue: WorkQueue
    relist: Relist
    watch: Watch
    metrics: Metrics
    clock: Clock

    def looked_at(self) -> set[Key]:
        """The keys queued since the last call."""
        keys = set()
        while (key := self.queue.take()) is not None:
            self.queue.done(key)
            keys.add(key)
        return keys

    def restarts(self) -> float:
        return self.metrics.registry.get_sample_value("onnx_operator_watch_restarts_total") or 0.0


@pytest_asyncio.fixture
async def world(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> AsyncIterator[World]:
    line = Line(port=urlsplit(control_plane.server).port or 0)
    await line.up()
    kubeconfig = json.loads(control_plane.kubeconfig().read_text())
    kubeconfig["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{line.address}"
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(kubeconfig))
    environment = {"OPERATOR_IMAGE": "o", "CONVERTER_IMAGE": "c", "TRITON_IMAGE": "t"}
    settings = read_settings(["--watch-namespaces", namespace], environment)
    configuration = await load_configuration(str(path))
    store, queue, metrics, clock = Store(), WorkQueue(), Metrics(), Clock()
    inbox = Inbox(store, queue)
    watch = Watch(settings, configuration, inbox, metrics)
    async with Kube(configuration, fence=lambda: True, cache=store, timeout=10) as api:
        relist = Relist(
            api,
            store,
            queue,
            settings,
            metrics,
            now=clock.now,
            attempted=lambda: None,
            class_changed=inbox.class_changed,
            kinds_changed=watch.restart,
        )
        await relist.first()
        watching = asyncio.create_task(watch.run())
        try:
            yield World(line, store, queue, relist, watch, metrics, clock)
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            await line.cut()


async def until(check: Callable[[], Any], *, within: float = 30, what: str) -> None:
    try:
        async with asyncio.timeout(within):
            while not check():  # noqa: ASYNC110 - what is waited for sends no event
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"within {within:g} s: {what}") from None


def job(namespace: str, name: str, model: str = "m") -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": {kube.MANAGED_BY_LABEL: kube.FIELD_MANAGER, kube.MODEL_LABEL: model},
        },
        "spec": {
            "suspend": True,
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}},
        },
    }


async def test_what_happens_to_a_model_or_its_children_queues_the_model(
    world: World, models: Models, control_plane: ControlPlane, namespace: str
) -> None:
    models.create("m")
    await until(lambda: Key(namespace, "m") in world.looked_at(), what="the new model is queued")
    control_plane.admin.create(kube.JOB.path(namespace), job(namespace, "j"))
    await until(lambda: world.store.children(kube.JOB, namespace, "m"), what="the Job is known")
    await until(lambda: Key(namespace, "m") in world.looked_at(), what="its Job queues the model")
    models.delete("m")
    await until(lambda: world.store.get(kube.ONNX_MODEL, namespace, "m") is None, what="the deletion is known")
    assert Key(namespace, "m") in world.looked_at()


async def test_objects_that_are_not_ours_never_get_here(
    world: World, models: Models, control_plane: ControlPlane, namespace: str
) -> None:
    foreign = job(namespace, "foreign")
    del foreign["metadata"]["labels"][kube.MANAGED_BY_LABEL]
    control_plane.admin.create(kube.JOB.path(namespace), foreign)
    control_plane.admin.create(kube.JOB.path(namespace), job(namespace, "ours"))
    await until(lambda: world.store.get(kube.JOB, namespace, "ours"), what="our Job is known")
    assert world.store.get(kube.JOB, namespace, "foreign") is None


async def test_a_class_queues_the_models_that_use_it(
    world: World, models: Models, control_plane: ControlPlane, namespace: str
) -> None:
    models.create("by-default", "other")
    control_plane.admin.merge(kube.ONNX_MODEL.path(namespace, "other"), {"spec": {"className": "another"}})
    await until(
        lambda: (world.store.get(kube.ONNX_MODEL, namespace, "other") or {}).get("spec", {}).get("className"),
        what="both are known",
    )
    world.looked_at()
    control_plane.admin.create(kube.ONNX_MODEL_CLASS.path(), model_class(namespace))
    try:
        await until(lambda: world.store.get(kube.ONNX_MODEL_CLASS, None, namespace), what="the class is known")
        assert world.looked_at() == {Key(namespace, "by-default")}
    finally:
        control_plane.admin.delete(kube.ONNX_MODEL_CLASS.path(None, namespace))


def model_class(name: str) -> dict[str, Any]:
    return {
        "apiVersion": kube.ONNX_MODEL_CLASS.api_version,
        "kind": kube.ONNX_MODEL_CLASS.kind,
        "metadata": {"name": name},
        "spec": {
            "artifactStore": {"claimName": "artifacts"},
            "images": {},
            "executionProviders": [{"name": "CPUExecutionProvider"}],
            "traffic": {"domain": "models.example", "gateway": {"name": "g", "namespace": "n"}},
        },
    }


async def test_kopf_writes_to_nothing_it_watches(
    world: World, models: Models, control_plane: ControlPlane, namespace: str
) -> None:
    models.create("a", "b")
    control_plane.admin.create(kube.JOB.path(namespace), job(namespace, "j"))
    control_plane.admin.create(kube.SERVICE.path(namespace), service(namespace))
    await until(lambda: world.store.children(kube.SERVICE, namespace, "m"), what="all are known")
    models.change("a", opset=19)
    await until(
        lambda: (world.store.get(kube.ONNX_MODEL, namespace, "a") or {}).get("metadata", {}).get("generation") == 2,
        what="the change is known",
    )
    paths = [kube.ONNX_MODEL.path(namespace), kube.JOB.path(namespace), kube.SERVICE.path(namespace)]
    before = [control_plane.admin.items(path) for path in paths]
    # A second start of Kopf handles every object once more.
    world.watch.restart()
    await until(lambda: world.restarts() == 1, what="the first Kopf has ended")
    models.create("c")
    await until(lambda: world.store.get(kube.ONNX_MODEL, namespace, "c"), what="the watch is back")
    models.delete("c")
    await until(lambda: world.store.get(kube.ONNX_MODEL, namespace, "c") is None, what="and handles events")
    after = [control_plane.admin.items(path) for path in paths]
    assert after == before
    for item in itertools.chain(*after):
        assert not item["metadata"].get("finalizers")
        assert not item["metadata"].get("annotations")
        managers = {entry["manager"] for entry in item["metadata"]["managedFields"]}
        assert managers <= {AGENT, "kube-controller-manager"}
    events = control_plane.admin.items(f"/api/v1/namespaces/{namespace}/events")
    # The API server tells of a Service whose address it does not know yet, by a newer kind of event without a source.
    writers = {event["source"].get("component") or event["reportingComponent"] for event in events}
    assert writers <= {"job-controller", "ipallocator-repair-controller"}


def service(namespace: str) -> dict[str, Any]:
    return {
        "metadata": {"namespace": namespace, "name": "s", "labels": job(namespace, "")["metadata"]["labels"]},
        "spec": {"ports": [{"name": "http", "port": 8000}], "selector": {"app": "x"}},
    }


async def test_a_ghost_that_no_event_tells_of_is_purged_by_the_relist(
    world: World, models: Models, control_plane: ControlPlane, namespace: str
) -> None:
    models.create("ghost", "stays")
    await until(lambda: world.store.get(kube.ONNX_MODEL, namespace, "stays"), what="known")
    world.looked_at()
    await world.line.cut()
    models.delete("ghost")
    # A new API server remembers no event from before its start: the watch gets 410 and lists anew.
    await asyncio.to_thread(control_plane.apiserver.kill)
    await asyncio.to_thread(control_plane.start_apiserver)
    await world.line.up()
    models.create("later")
    await until(lambda: world.store.get(kube.ONNX_MODEL, namespace, "later"), what="the watch is back")

    assert world.store.get(kube.ONNX_MODEL, namespace, "ghost") is not None, "the watch alone keeps it"
    world.looked_at()
    # For a moment after its start the API server may ask for patience (429) with kinds nobody asked for before.
    await world.relist.first()
    assert world.store.get(kube.ONNX_MODEL, namespace, "ghost") is None
    assert Key(namespace, "ghost") in world.looked_at()
    assert world.store.get(kube.ONNX_MODEL, namespace, "stays") is not None


async def test_a_kind_that_appears_later_is_watched_from_then_on(
    world: World, control_plane: ControlPlane, namespace: str
) -> None:
    assert not world.store.is_served(kube.GRPC_ROUTE)
    control_plane.install_crd(route_definition(kube.GRPC_ROUTE))
    try:
        # A kind just installed may answer 429 for a moment, while its storage is set up.
        await world.relist.first()
        assert world.store.is_served(kube.GRPC_ROUTE)
        route = {
            "apiVersion": kube.GRPC_ROUTE.api_version,
            "kind": kube.GRPC_ROUTE.kind,
            "metadata": job(namespace, "r")["metadata"],
        }
        control_plane.admin.create(kube.GRPC_ROUTE.path(namespace), route)
        await until(lambda: world.store.children(kube.GRPC_ROUTE, namespace, "m"), what="the route is watched")
    finally:
        control_plane.admin.delete(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kube.GRPC_ROUTE}")
    # Its kind gone, the watch of the others goes on.
    control_plane.admin.create(kube.JOB.path(namespace), job(namespace, "after"))
    await until(lambda: world.store.get(kube.JOB, namespace, "after"), what="other kinds are still watched")
    async with asyncio.timeout(30):  # the definition goes when its last object is gone
        while await world.relist.once():
            pass
    assert world.store.is_served(kube.GRPC_ROUTE), "it may be back in a moment"
    async with asyncio.timeout(30):
        while world.store.is_served(kube.GRPC_ROUTE):
            world.clock.ahead += 30
            await world.relist.once()


def route_definition(resource: kube.Resource) -> dict[str, Any]:
    """As much of a Gateway API definition as storing a route takes."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": str(resource),
            "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api"},
        },
        "spec": {
            "group": resource.group,
            "scope": "Namespaced",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
            },
            "versions": [
                {
                    "name": resource.version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                }
            ],
        },
    }
