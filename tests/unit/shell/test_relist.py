"""The relist: what one read of everything leads to, with an API server that is told what to answer."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, cast

import pytest

from onnx_operator.adapters import kube
from onnx_operator.adapters.errors import ApiError, Call, NotFound, TooManyRequests
from onnx_operator.adapters.kube import Kube, Listing, Resource
from onnx_operator.adapters.store import OPTIONAL_KINDS, Store
from onnx_operator.metrics import Metrics
from onnx_operator.relist import Relist
from onnx_operator.settings import read_settings
from onnx_operator.workqueue import WorkQueue

if TYPE_CHECKING:
    from collections.abc import Mapping

ENVIRONMENT = {"OPERATOR_IMAGE": "o", "CONVERTER_IMAGE": "c", "TRITON_IMAGE": "t"}
CALL = Call("list", "things", None, None)
BUSY = TooManyRequests(CALL, "storage is (re)initializing", status=429, retry_after=1)
ABSENT = NotFound(CALL, "the server could not find the requested resource", status=404)


class Server:
    """Lists nothing of every kind, or answers as it is told to."""

    def __init__(self) -> None:
        self.answers: Mapping[Resource, ApiError] = dict.fromkeys(OPTIONAL_KINDS, ABSENT)
        self._versions = itertools.count(1)

    async def list(self, resource: Resource, namespace: str | None, selector: str | None) -> Listing:
        del namespace, selector
        if resource in self.answers:
            raise self.answers[resource]
        return Listing([], next(self._versions))


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def restarts() -> list[str]:
    """One entry for each time that the watch was asked to start anew."""
    return []


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def seconds() -> list[float]:
    """The clock; its last entry is now."""
    return [0.0]


@pytest.fixture
def relist(server: Server, store: Store, seconds: list[float], restarts: list[str]) -> Relist:
    return Relist(
        cast("Kube", server),
        store,
        WorkQueue(),
        read_settings([], ENVIRONMENT),
        Metrics(),
        now=lambda: seconds[-1],
        attempted=lambda: None,
        class_changed=lambda _: None,
        kinds_changed=lambda: restarts.append("again"),
    )


async def test_a_kind_that_appears_starts_the_watch_anew_once(
    server: Server, relist: Relist, restarts: list[str]
) -> None:
    assert await relist.once()
    assert await relist.once()
    assert not restarts
    server.answers = {}
    assert await relist.once()
    assert await relist.once()
    assert len(restarts) == 1


async def test_a_kind_that_appears_while_another_cannot_be_read_is_watched_when_all_can(
    server: Server, relist: Relist, restarts: list[str]
) -> None:
    assert await relist.once()
    server.answers = {kube.JOB: BUSY}
    assert not await relist.once()
    assert not restarts
    server.answers = {}
    assert await relist.once()
    assert len(restarts) == 1


async def test_a_kind_of_ours_that_is_not_served_is_a_trouble(server: Server, relist: Relist) -> None:
    server.answers = {kube.ONNX_MODEL: ABSENT}
    assert not await relist.once()
    assert relist.age == float("inf")
    server.answers = {}
    assert await relist.once()
    assert relist.age == 0


async def test_a_kind_that_is_missing_for_a_moment_is_a_trouble_and_what_it_has_stays(
    server: Server, relist: Relist, store: Store, seconds: list[float], restarts: list[str]
) -> None:
    server.answers = {}
    assert await relist.once()
    for server.answers, moment, is_well in (
        ({kube.HTTP_ROUTE: ABSENT}, 10, False),
        ({kube.HTTP_ROUTE: ABSENT}, 69, False),
        ({}, 70, True),
        ({kube.HTTP_ROUTE: ABSENT}, 75, False),
        ({kube.HTTP_ROUTE: ABSENT}, 134, False),
    ):
        seconds.append(moment)
        assert await relist.once() == is_well
        assert store.is_served(kube.HTTP_ROUTE)
    assert not restarts


async def test_a_kind_that_is_missing_for_a_minute_is_gone(
    server: Server, relist: Relist, store: Store, seconds: list[float], restarts: list[str]
) -> None:
    server.answers = {}
    assert await relist.once()
    server.answers = {kube.HTTP_ROUTE: ABSENT}
    assert not await relist.once()
    seconds.append(60)
    assert await relist.once()
    assert not store.is_served(kube.HTTP_ROUTE)
    assert len(restarts) == 1
