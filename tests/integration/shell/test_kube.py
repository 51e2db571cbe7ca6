"""The door to the API server, against a real one."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from integration.apiserver import ControlPlane, wait_until
from onnx_operator.adapters import kube
from onnx_operator.adapters.clock import Clock
from onnx_operator.adapters.errors import (
    AdmissionDenied,
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    NotLeading,
    QuotaExceeded,
    Unauthorized,
    Unavailable,
)
from onnx_operator.adapters.events import Events
from onnx_operator.adapters.kube import Kube, load_configuration
from onnx_operator.adapters.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
def store() -> Store:
    return Store()


@pytest_asyncio.fixture
async def api(control_plane: ControlPlane, store: Store) -> AsyncIterator[Kube]:
    async with Kube(
        await load_configuration(str(control_plane.kubeconfig())), fence=lambda: True, cache=store, timeout=10
    ) as door:
        yield door


def config_map(namespace: str, name: str = "a", **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": namespace, "name": name},
        "data": data,
    }


def service(namespace: str, name: str = "a", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": {kube.MANAGED_BY_LABEL: kube.FIELD_MANAGER, kube.MODEL_LABEL: "m"},
            **metadata,
        },
        "spec": {"ports": [{"name": "http", "port": 8000}], "selector": {"app": "x"}},
    }


def owner(uid: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid, "controller": True}


def owned_by(manifest: dict[str, Any]) -> dict[str, Any]:
    """Metadata of a child."""
    metadata = manifest["metadata"]
    reference = owner(metadata["uid"])
    reference |= {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "name": metadata["name"]}
    return {"namespace": metadata["namespace"], "ownerReferences": [reference]}


def model(namespace: str, name: str = "m") -> dict[str, Any]:
    return {
        "apiVersion": kube.ONNX_MODEL.api_version,
        "kind": "OnnxModel",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "source": {"persistentVolumeClaim": {"claimName": "c", "path": "p"}},
            "executionProviders": [{"name": "CPUExecutionProvider"}],
        },
    }


async def test_what_is_not_there_reads_as_none(api: Kube, namespace: str) -> None:
    assert await api.get(kube.CONFIG_MAP, namespace, "absent") is None


async def test_apply_creates_then_changes_and_drops_what_the_manifest_no_longer_says(api: Kube, namespace: str) -> None:
    created = await api.apply(config_map(namespace, a="1", b="2"))
    changed = await api.apply(config_map(namespace, a="3"))
    assert created["data"] == {"a": "1", "b": "2"}
    assert changed["data"] == {"a": "3"}
    assert "managedFields" not in changed["metadata"]


async def test_what_another_manager_shares_outlives_an_apply_that_says_it_no_longer(api: Kube, namespace: str) -> None:
    applied = await api.apply(config_map(namespace, a="1", b="2"))
    shared = config_map(namespace, a="1")
    shared["metadata"]["uid"] = applied["metadata"]["uid"]
    await api.share(shared, "another")
    assert (await api.apply(config_map(namespace)))["data"] == {"a": "1"}


async def test_what_has_changed_meanwhile_is_not_shared(api: Kube, namespace: str) -> None:
    applied = await api.apply(config_map(namespace, a="2"))
    stale = config_map(namespace, a="1")
    stale["metadata"]["uid"] = applied["metadata"]["uid"]
    with pytest.raises(Conflict):
        await api.share(stale, "another")
    assert await api.get(kube.CONFIG_MAP, namespace, "a") == applied


async def test_applying_the_same_twice_writes_nothing(api: Kube, namespace: str) -> None:
    first = await api.apply(service(namespace))
    second = await api.apply(service(namespace))
    assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]


async def test_apply_leaves_an_object_of_another_owner_alone(api: Kube, namespace: str) -> None:
    theirs = await api.create(service(namespace))
    with pytest.raises(AlreadyExists, match="not ours"):
        await api.apply(service(namespace, ownerReferences=[owner("0d9b6f3c-0000-4000-8000-000000000001")]))
    now = await api.get(kube.SERVICE, namespace, "a")
    assert now is not None
    assert now["metadata"]["resourceVersion"] == theirs["metadata"]["resourceVersion"]


async def test_apply_takes_nothing_over_that_was_made_since_it_looked(
    api: Kube, namespace: str, control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = control_plane.admin.create(kube.CONFIG_MAP.path(namespace), config_map(namespace, a="theirs"))

    async def nothing_yet(*_: object) -> None:
        """What a look a moment earlier would have found."""

    monkeypatch.setattr(api, "get", nothing_yet)
    with pytest.raises(Conflict):
        await api.apply(config_map(namespace, a="ours"))
    assert control_plane.admin.request("GET", kube.CONFIG_MAP.path(namespace, "a")) == theirs


async def test_apply_refuses_an_object_recreated_behind_our_back(
    api: Kube, store: Store, namespace: str, control_plane: ControlPlane
) -> None:
    applied = await api.apply(service(namespace))
    path = kube.SERVICE.path(namespace, "a")
    control_plane.admin.delete(path)
    control_plane.admin.create(kube.SERVICE.path(namespace), service(namespace))
    assert store.get(kube.SERVICE, namespace, "a") == applied
    with pytest.raises(Conflict):
        await api.apply(service(namespace))
    assert store.get(kube.SERVICE, namespace, "a") is None


async def test_apply_makes_anew_what_vanished_behind_our_back(
    api: Kube, store: Store, namespace: str, control_plane: ControlPlane
) -> None:
    first = await api.apply(service(namespace))
    control_plane.admin.delete(kube.SERVICE.path(namespace, "a"))
    with pytest.raises(Conflict):
        await api.apply(service(namespace))
    second = await api.apply(service(namespace))
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert store.get(kube.SERVICE, namespace, "a") == second


@pytest.mark.parametrize("end", ["gone", "going", "another of the name"])
async def test_nothing_is_created_for_an_owner_whose_end_the_watch_has_not_told(
    api: Kube, store: Store, namespace: str, control_plane: ControlPlane, end: str
) -> None:
    path = kube.ONNX_MODEL.path(namespace, "m")
    manifest = model(namespace)
    if end == "going":
        manifest["metadata"]["finalizers"] = ["example.com/hold"]
    first = await api.create(manifest)
    parent = first
    if end == "going":  # the collector waits, so that even a grandchild can be tried
        parent = await api.create(config_map(namespace) | {"metadata": {**owned_by(first), "name": "parent"}})
    control_plane.admin.delete(path)
    if end == "another of the name":
        control_plane.admin.create(kube.ONNX_MODEL.path(namespace), model(namespace))
    for write in (api.create, api.apply):
        with pytest.raises(Conflict, match="its owner, is deleted"):
            await write(service(**owned_by(parent)))
    assert await api.get(kube.SERVICE, namespace, "a") is None
    # The look that comes next knows.
    known = store.get(kube.ONNX_MODEL, namespace, "m")
    assert known != first
    assert (known is None) == (end == "gone")
    if end == "going":
        control_plane.admin.merge(path, {"metadata": {"finalizers": None}})


async def test_whoever_controls_the_model_itself_is_not_asked_for(api: Kube, namespace: str) -> None:
    manifest = model(namespace)
    manifest["metadata"]["ownerReferences"] = [
        owner("0d9b6f3c-0000-4000-8000-000000000001") | {"apiVersion": "example.com/v1", "kind": "App"}
    ]
    await api.apply(service(**owned_by(await api.create(manifest))))
    assert await api.get(kube.SERVICE, namespace, "a") is not None


async def test_own_writes_are_in_the_store_at_once(api: Kube, store: Store, namespace: str) -> None:
    applied = await api.apply(service(namespace))
    assert store.children(kube.SERVICE, namespace, "m") == [applied]
    assert await api.delete(kube.SERVICE, namespace, "a", applied["metadata"]["uid"])
    assert store.children(kube.SERVICE, namespace, "m") == []


async def test_create_says_when_the_name_is_taken(api: Kube, namespace: str) -> None:
    await api.create(config_map(namespace))
    with pytest.raises(AlreadyExists):
        await api.create(config_map(namespace))


async def test_replace_and_status_refuse_an_old_version(api: Kube, namespace: str) -> None:
    old = await api.create(model(namespace))
    newer = await api.patch_status(
        kube.ONNX_MODEL, namespace, "m", {"observedGeneration": 1}, old["metadata"]["resourceVersion"]
    )
    assert newer["status"]["observedGeneration"] == 1
    with pytest.raises(Conflict):
        await api.patch_status(
            kube.ONNX_MODEL, namespace, "m", {"observedGeneration": 2}, old["metadata"]["resourceVersion"]
        )
    with pytest.raises(Conflict):
        await api.replace(old)


async def test_the_status_is_written_as_a_whole(api: Kube, namespace: str) -> None:
    created = await api.create(model(namespace))
    first = await api.patch_status(
        kube.ONNX_MODEL,
        namespace,
        "m",
        {"observedGeneration": 1, "phase": "Converting"},
        created["metadata"]["resourceVersion"],
    )
    second = await api.patch_status(
        kube.ONNX_MODEL, namespace, "m", {"observedGeneration": 1}, first["metadata"]["resourceVersion"]
    )
    assert first["status"]["phase"] == "Converting"
    assert second["status"]["phase"] == "Pending"  # the schema's default


async def test_a_status_that_breaks_the_schema_names_its_field(api: Kube, namespace: str) -> None:
    created = await api.create(model(namespace))
    with pytest.raises(Invalid) as refused:
        await api.patch_status(
            kube.ONNX_MODEL,
            namespace,
            "m",
            {"observedGeneration": "one"},
            created["metadata"]["resourceVersion"],
        )
    assert refused.value.status == 422
    assert [cause.field for cause in refused.value.causes] == ["status.observedGeneration"]


async def test_delete_spares_a_namesake(api: Kube, namespace: str) -> None:
    created = await api.create(config_map(namespace))
    assert not await api.delete(kube.CONFIG_MAP, namespace, "a", "0d9b6f3c-0000-4000-8000-000000000002")
    assert await api.get(kube.CONFIG_MAP, namespace, "a") is not None
    assert await api.delete(kube.CONFIG_MAP, namespace, "a", created["metadata"]["uid"])
    assert not await api.delete(kube.CONFIG_MAP, namespace, "a", created["metadata"]["uid"])


async def test_a_list_comes_whole_though_in_pieces(api: Kube, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "CHUNK", 3)
    for number in range(8):
        await api.create(config_map(namespace, f"part-{number}"))
    listing = await api.list(kube.CONFIG_MAP, namespace)
    names = [item["metadata"]["name"] for item in listing.items]
    assert [name for name in names if name.startswith("part-")] == [f"part-{number}" for number in range(8)]
    assert {item["kind"] for item in listing.items} == {"ConfigMap"}
    assert listing.resource_version >= max(int(item["metadata"]["resourceVersion"]) for item in listing.items)


async def test_selectors_select_on_the_server(api: Kube, namespace: str) -> None:
    await api.create(service(namespace, "ours"))
    await api.create(service(namespace, "theirs", labels={}))
    by_label = await api.list(kube.SERVICE, namespace, kube.MANAGED_BY_US)
    by_field = await api.list(kube.SERVICE, namespace, field_selector="metadata.name=theirs")
    assert [item["metadata"]["name"] for item in by_label.items] == ["ours"]
    assert [item["metadata"]["name"] for item in by_field.items] == ["theirs"]


async def test_a_kind_the_cluster_does_not_know_is_not_found(api: Kube, namespace: str) -> None:
    absent = kube.Resource("nowhere.example", "v1", "things", "Thing")
    with pytest.raises(NotFound):
        await api.list(absent, namespace)


async def test_missing_rights_name_verb_and_resource(control_plane: ControlPlane, namespace: str) -> None:
    async with Kube(await load_configuration(str(control_plane.kubeconfig("nobody"))), fence=lambda: True) as door:
        with pytest.raises(Forbidden) as refused:
            await door.list(kube.JOB, namespace)
    assert (refused.value.verb, refused.value.resource) == ("list", "jobs.batch")


async def test_a_used_up_quota_is_told_from_missing_rights(
    api: Kube, namespace: str, control_plane: ControlPlane
) -> None:
    quotas = f"/api/v1/namespaces/{namespace}/resourcequotas"
    control_plane.admin.create(quotas, {"metadata": {"name": "q"}, "spec": {"hard": {"services": "0"}}})
    wait_until(
        lambda: (control_plane.admin.get(f"{quotas}/q") or {}).get("status", {}).get("hard"),
        within=30,
        what="the quota counts",
    )
    with pytest.raises(QuotaExceeded, match="exceeded quota: q"):
        await api.create(service(namespace))


async def test_pod_security_is_told_from_missing_rights(api: Kube, namespace: str, control_plane: ControlPlane) -> None:
    control_plane.admin.merge(
        f"/api/v1/namespaces/{namespace}",
        {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}},
    )
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": "root"},
        "spec": {"containers": [{"name": "c", "image": "x"}]},
    }
    with pytest.raises(AdmissionDenied) as refused:
        await api.create(pod)
    assert refused.value.by == "restricted:latest"


async def test_an_admission_policy_is_named(api: Kube, namespace: str, control_plane: ControlPlane) -> None:
    group = "/apis/admissionregistration.k8s.io/v1"
    control_plane.admin.create(
        f"{group}/validatingadmissionpolicies",
        {
            "metadata": {"name": namespace},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                    "resourceRules": [
                        {
                            "apiGroups": [""],
                            "apiVersions": ["v1"],
                            "operations": ["CREATE"],
                            "resources": ["configmaps"],
                        }
                    ],
                },
                "validations": [{"expression": "false", "message": "not here"}],
            },
        },
    )
    control_plane.admin.create(
        f"{group}/validatingadmissionpolicybindings",
        {"metadata": {"name": namespace}, "spec": {"policyName": namespace, "validationActions": ["Deny"]}},
    )

    async def create_ever_more() -> None:  # the API server learns of a policy some time after it is there
        for number in itertools.count():
            await api.create(config_map(namespace, f"try-{number}"))

    with pytest.raises(AdmissionDenied, match="not here") as refused:
        await asyncio.wait_for(create_ever_more(), 30)
    assert refused.value.by == namespace


async def test_a_namespace_that_ends_takes_nothing_new(api: Kube, namespace: str, control_plane: ControlPlane) -> None:
    kept = config_map(namespace, "kept")
    kept["metadata"]["finalizers"] = ["tests.example/hold"]
    await api.create(kept)
    control_plane.admin.delete(f"/api/v1/namespaces/{namespace}")
    with pytest.raises(AdmissionDenied) as refused:
        await api.create(config_map(namespace, "late"))
    control_plane.admin.merge(kube.CONFIG_MAP.path(namespace, "kept"), {"metadata": {"finalizers": None}})
    assert refused.value.by == "NamespaceTerminating"


async def test_events_appear_once_and_are_counted(api: Kube, namespace: str, control_plane: ControlPlane) -> None:
    created = await api.create(model(namespace))
    seconds = [0.0]
    clock = Clock(monotonic=lambda: seconds[0])
    # The second one is what a restarted operator has: no memory of what was said.
    for events in (Events(api, clock, instance="pod-1"), Events(api, clock, instance="pod-2")):
        posting = asyncio.create_task(events.run())
        for _ in range(3):
            events.publish(created, "Warning", "RolledBack", "errorRatio 0.2 is above 0.01")
        seconds[0] += 3601
        events.publish(created, "Warning", "RolledBack", "errorRatio 0.2 is above 0.01")
        await events.flush()
        posting.cancel()
    [event] = control_plane.admin.items(kube.EVENT.path(namespace))
    assert (event["reason"], event["type"], event["series"]["count"]) == ("RolledBack", "Warning", 4)
    described = control_plane.admin.items(
        f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name=m,involvedObject.kind=OnnxModel"
    )
    assert [entry["message"] for entry in described] == ["errorRatio 0.2 is above 0.01"]


async def test_nothing_is_written_once_the_lease_may_be_lost(control_plane: ControlPlane, namespace: str) -> None:
    async with Kube(await load_configuration(str(control_plane.kubeconfig())), fence=lambda: False) as door:
        for write in (
            door.create(config_map(namespace)),
            door.apply(config_map(namespace)),
            door.replace(config_map(namespace)),
            door.patch(kube.CONFIG_MAP, namespace, "a", {}),
            door.patch_status(kube.ONNX_MODEL, namespace, "a", {}, "1"),
            door.delete(kube.CONFIG_MAP, namespace, "a", "u"),
        ):
            with pytest.raises(NotLeading):
                await write
        assert await door.get(kube.CONFIG_MAP, namespace, "a") is None


async def test_a_refused_token_is_unauthorized(control_plane: ControlPlane, namespace: str) -> None:
    configuration = await load_configuration(str(control_plane.kubeconfig()))
    configuration.api_key["BearerToken"] = "Bearer wrong"
    async with Kube(configuration, fence=lambda: True) as door:
        with pytest.raises(Unauthorized):
            await door.get(kube.CONFIG_MAP, namespace, "a")


async def test_a_server_that_hangs_or_is_gone_is_unavailable(control_plane: ControlPlane, namespace: str) -> None:
    async with Kube(await load_configuration(str(control_plane.kubeconfig())), fence=lambda: True, timeout=1) as door:
        control_plane.apiserver.pause()
        try:
            with pytest.raises(Unavailable, match="no answer within 1 s"):
                await door.get(kube.CONFIG_MAP, namespace, "a")
        finally:
            control_plane.apiserver.resume()
        control_plane.apiserver.kill()
        try:
            with pytest.raises(Unavailable):
                await door.get(kube.CONFIG_MAP, namespace, "a")
        finally:
            control_plane.start_apiserver()
        assert await door.get(kube.CONFIG_MAP, namespace, "a") is None
