"""The store: whatever order events, lists and own writes come in, the newest known truth stays."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_operator.adapters import kube
from onnx_operator.adapters.kube import Listing, Manifest
from onnx_operator.adapters.store import Store
from onnx_operator.workqueue import Key

NAMESPACE = "ns"


def model(name: str = "m", *, version: int = 1, uid: str = "uid-1", namespace: str = NAMESPACE) -> Manifest:
    return {
        "apiVersion": kube.ONNX_MODEL.api_version,
        "kind": "OnnxModel",
        "metadata": {"namespace": namespace, "name": name, "uid": uid, "resourceVersion": str(version)},
    }


def job(
    name: str = "j", *, version: int = 1, uid: str = "job-1", owner: str = "m", namespace: str = NAMESPACE
) -> Manifest:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": uid,
            "resourceVersion": str(version),
            "labels": {kube.MANAGED_BY_LABEL: kube.FIELD_MANAGER, kube.MODEL_LABEL: owner},
        },
    }


def listing(*items: Manifest, at: int) -> Listing:
    return Listing(list(items), at)


def get(store: Store, name: str = "m") -> Any:
    return store.get(kube.ONNX_MODEL, NAMESPACE, name)


@pytest.fixture
def store() -> Store:
    return Store()


def test_the_newest_version_wins_whatever_the_order(store: Store) -> None:
    assert store.upsert(kube.ONNX_MODEL, model(version=9))
    assert not store.upsert(kube.ONNX_MODEL, model(version=7))
    assert not store.upsert(kube.ONNX_MODEL, model(version=9))
    assert store.upsert(kube.ONNX_MODEL, model(version=10))
    assert get(store)["metadata"]["resourceVersion"] == "10"


def test_versions_are_numbers_not_words(store: Store) -> None:
    store.upsert(kube.ONNX_MODEL, model(version=9))
    assert store.upsert(kube.ONNX_MODEL, model(version=100))


def test_children_are_found_by_their_model_and_leave_with_their_label(store: Store) -> None:
    store.upsert(kube.JOB, job("b", uid="b"))
    store.upsert(kube.JOB, job("a", uid="a"))
    store.upsert(kube.JOB, job("c", uid="c", owner="other"))
    store.upsert(kube.JOB, job("d", uid="d", namespace="elsewhere"))
    assert [child["metadata"]["name"] for child in store.children(kube.JOB, NAMESPACE, "m")] == ["a", "b"]
    store.upsert(kube.JOB, job("a", uid="a", version=2, owner="other"))
    assert [child["metadata"]["name"] for child in store.children(kube.JOB, NAMESPACE, "m")] == ["b"]
    assert [child["metadata"]["name"] for child in store.children(kube.JOB, NAMESPACE, "other")] == ["a", "c"]


def test_objects_of_others_and_kinds_not_kept_are_ignored(store: Store) -> None:
    foreign = job()
    del foreign["metadata"]["labels"][kube.MANAGED_BY_LABEL]
    assert not store.upsert(kube.JOB, foreign)
    assert not store.upsert(kube.CONFIG_MAP, job())
    store.forget(kube.CONFIG_MAP, NAMESPACE, "x", "uid")
    assert store.get(kube.CONFIG_MAP, NAMESPACE, "x") is None


def test_managed_fields_are_not_kept(store: Store) -> None:
    heavy = model()
    heavy["metadata"]["managedFields"] = [{"manager": "x"}]
    store.upsert(kube.ONNX_MODEL, heavy)
    assert "managedFields" not in get(store)["metadata"]


def test_a_deleted_object_does_not_come_back_by_a_late_event(store: Store) -> None:
    store.upsert(kube.ONNX_MODEL, model(version=5))
    store.forget(kube.ONNX_MODEL, NAMESPACE, "m", "uid-1")
    assert not store.upsert(kube.ONNX_MODEL, model(version=6))
    assert get(store) is None


def test_an_object_recreated_under_its_name_is_another(store: Store) -> None:
    store.upsert(kube.ONNX_MODEL, model(version=5, uid="old"))
    store.upsert(kube.ONNX_MODEL, model(version=9, uid="new"))
    store.forget(kube.ONNX_MODEL, NAMESPACE, "m", "old")
    assert get(store)["metadata"]["uid"] == "new"
    assert not store.upsert(kube.ONNX_MODEL, model(version=12, uid="old"))


def test_a_relist_purges_ghosts_and_says_whose_they_were(store: Store) -> None:
    store.upsert(kube.JOB, job("ghost", uid="g", version=3))
    store.upsert(kube.JOB, job("alive", uid="a", version=4, owner="other"))
    touched = store.replace(kube.JOB, None, listing(job("alive", uid="a", version=4, owner="other"), at=10))
    assert store.children(kube.JOB, NAMESPACE, "m") == []
    assert touched == {Key(NAMESPACE, "m")}


def test_a_relist_tells_what_the_watch_did_not(store: Store) -> None:
    store.upsert(kube.ONNX_MODEL, model("old", uid="o", version=3))
    touched = store.replace(
        kube.ONNX_MODEL,
        None,
        listing(model("old", uid="o", version=3), model("new", uid="n", version=9), at=10),
    )
    assert touched == {Key(NAMESPACE, "new")}


def test_a_relist_drops_nothing_that_was_created_since(store: Store) -> None:
    store.upsert(kube.ONNX_MODEL, model("fresh", uid="f", version=12))
    assert store.replace(kube.ONNX_MODEL, None, listing(at=10)) == set()
    assert get(store, "fresh") is not None


def test_a_relist_resurrects_nothing_that_was_deleted_since(store: Store) -> None:
    store.upsert(kube.ONNX_MODEL, model(version=5))
    store.forget(kube.ONNX_MODEL, NAMESPACE, "m", "uid-1")
    assert store.replace(kube.ONNX_MODEL, None, listing(model(version=5), at=10)) == set()
    assert get(store) is None


def test_a_relist_does_not_turn_an_object_back(store: Store) -> None:
    store.upsert(kube.ONNX_MODEL, model(version=12))
    store.replace(kube.ONNX_MODEL, None, listing(model(version=5), at=10))
    assert get(store)["metadata"]["resourceVersion"] == "12"


def test_a_relist_of_one_namespace_leaves_the_others_alone(store: Store) -> None:
    store.upsert(kube.JOB, job("here", uid="h", version=3))
    store.upsert(kube.JOB, job("there", uid="t", version=3, namespace="elsewhere"))
    store.replace(kube.JOB, NAMESPACE, listing(at=10))
    assert store.get(kube.JOB, NAMESPACE, "here") is None
    assert store.get(kube.JOB, "elsewhere", "there") is not None


def test_after_a_restore_from_backup_the_listing_alone_counts(store: Store) -> None:
    store.replace(kube.ONNX_MODEL, None, listing(model(version=900), model("x", uid="x", version=950), at=1000))
    store.forget(kube.ONNX_MODEL, NAMESPACE, "x", "x")
    touched = store.replace(kube.ONNX_MODEL, None, listing(model("x", uid="x", version=100), at=200))
    assert get(store) is None
    assert get(store, "x")["metadata"]["resourceVersion"] == "100"
    assert touched == {Key(NAMESPACE, "m"), Key(NAMESPACE, "x")}


def test_a_kind_that_is_not_served_is_empty_and_says_so(store: Store) -> None:
    store.replace(kube.HTTP_ROUTE, None, listing(at=5))
    assert store.is_served(kube.HTTP_ROUTE)
    store.not_served(kube.HTTP_ROUTE)
    assert not store.is_served(kube.HTTP_ROUTE)
    assert store.all(kube.HTTP_ROUTE) == []


def test_the_dead_are_forgotten_in_the_end() -> None:
    now = [0.0]
    store = Store(now=lambda: now[0])
    store.forget(kube.ONNX_MODEL, NAMESPACE, "m", "uid-1")
    now[0] = 1000.0
    store.replace(kube.ONNX_MODEL, None, listing(at=5))
    assert store._deleted == {}


def test_keys_are_the_models(store: Store) -> None:
    store.upsert(kube.ONNX_MODEL, model("a", uid="a"))
    store.upsert(kube.ONNX_MODEL, model("a", uid="b", namespace="elsewhere"))
    store.upsert(kube.JOB, job())
    assert store.keys() == [Key(NAMESPACE, "a"), Key("elsewhere", "a")]


#: One object's life in the cluster: at each version it exists with a UID, or does not.
lives = st.lists(st.sampled_from(["write", "delete", "recreate"]), min_size=1, max_size=12)


@given(life=lives, data=st.data())
def test_with_events_lost_and_late_a_final_relist_always_tells_the_truth(life: list[str], data: st.DataObject) -> None:
    store = Store()
    history: list[tuple[int, Manifest | None, str]] = []
    uid, exists = 0, False
    for version, step in enumerate(life, start=1):
        if step == "delete" and exists:
            exists = False
            history.append((version, None, f"uid-{uid}"))
        elif step != "delete":
            if not exists:
                uid += 1
            exists = True
            history.append((version, model(version=version, uid=f"uid-{uid}"), f"uid-{uid}"))
    # Any part of the history, in any order, some of it twice: what a broken watch and racing lists may tell.
    told = data.draw(st.lists(st.sampled_from(history), max_size=20)) if history else []
    for version, state, uid_then in told:
        if state is None:
            store.forget(kube.ONNX_MODEL, NAMESPACE, "m", uid_then)
        elif data.draw(st.booleans()):
            store.upsert(kube.ONNX_MODEL, state)
        else:
            store.replace(kube.ONNX_MODEL, None, listing(state, at=version))
    end = len(life) + 1
    now = [history[-1][1]] if history and history[-1][1] is not None else []
    store.replace(kube.ONNX_MODEL, None, listing(*now, at=end))
    assert [item["metadata"]["uid"] for item in store.all(kube.ONNX_MODEL)] == [item["metadata"]["uid"] for item in now]
