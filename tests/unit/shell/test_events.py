"""Events: said once, never in the way."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from onnx_operator.adapters.clock import Clock
from onnx_operator.adapters.errors import AlreadyExists, Call, Forbidden, Unavailable
from onnx_operator.adapters.events import Events

if TYPE_CHECKING:
    from onnx_operator.adapters.kube import Kube, Manifest

CALL = Call("create", "events", "ns", "e")
MODEL = {
    "apiVersion": "onnx-operator.io/v1alpha1",
    "kind": "OnnxModel",
    "metadata": {"namespace": "ns", "name": "minilm", "uid": "uid-1"},
}


class Server:
    """Takes Events, or answers with the errors put before it."""

    def __init__(self) -> None:
        self.created: list[Manifest] = []
        self.patched: list[Manifest] = []
        self.errors: list[Exception] = []

    async def create(self, manifest: Manifest) -> Manifest:
        if self.errors:
            raise self.errors.pop(0)
        if manifest["metadata"]["name"] in {event["metadata"]["name"] for event in self.created}:
            raise AlreadyExists(CALL, "taken")
        self.created.append(manifest)
        return manifest

    async def patch(self, *whereabouts_and_patch: Any) -> Manifest:
        patch: Manifest = whereabouts_and_patch[-1]
        self.patched.append(patch)
        return patch


class World:
    def __init__(self) -> None:
        self.server = Server()
        self.seconds = 0.0
        self.events = self.restarted()

    def restarted(self) -> Events:
        door: Kube = self.server  # type: ignore[assignment]
        clock = Clock(now=lambda: datetime(2026, 1, 1, tzinfo=UTC), monotonic=lambda: self.seconds)
        return Events(door, clock, instance="pod-1")

    async def posted(self) -> list[Manifest]:
        running = asyncio.create_task(self.events.run())
        await self.events.flush()
        running.cancel()
        return self.server.created


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("onnx_operator.adapters.events.asyncio.sleep", sleep)
    return waits


async def test_an_event_says_what_about_what(world: World) -> None:
    world.events.publish(MODEL, "Warning", "RolledBack", "errorRatio 0.2 is above 0.01")
    [event] = await world.posted()
    assert event["regarding"]["uid"] == "uid-1"
    assert (event["type"], event["reason"], event["note"]) == ("Warning", "RolledBack", "errorRatio 0.2 is above 0.01")
    assert event["metadata"]["namespace"] == "ns"
    assert event["metadata"]["name"].startswith("minilm.")


async def test_the_same_words_are_said_once_an_hour(world: World) -> None:
    for _ in range(50):
        world.events.publish(MODEL, "Normal", "Converting", "started")
        world.seconds += 60
    assert len(await world.posted()) == 1


async def test_other_words_or_another_object_are_another_event(world: World) -> None:
    other: dict[str, Any] = {**MODEL, "metadata": {**MODEL["metadata"], "uid": "uid-2"}}  # type: ignore[dict-item]
    world.events.publish(MODEL, "Normal", "Converting", "started")
    world.events.publish(MODEL, "Normal", "Converting", "finished")
    world.events.publish(MODEL, "Normal", "Validating", "started")
    world.events.publish(other, "Normal", "Converting", "started")
    assert len(await world.posted()) == 4


async def test_a_restarted_operator_does_not_repeat_itself(world: World) -> None:
    world.events.publish(MODEL, "Normal", "Converting", "started")
    await world.posted()
    world.events = world.restarted()
    world.events.publish(MODEL, "Normal", "Converting", "started")
    assert len(await world.posted()) == 1


async def test_what_was_said_again_is_counted_when_the_hour_is_over(world: World) -> None:
    for _ in range(3):
        world.events.publish(MODEL, "Normal", "Converting", "started")
    world.seconds += 3601
    world.events.publish(MODEL, "Normal", "Converting", "started")
    await world.posted()
    assert [patch["series"]["count"] for patch in world.server.patched] == [4]


async def test_events_about_cluster_scoped_objects_live_in_default(world: World) -> None:
    world.events.publish({**MODEL, "metadata": {"name": "standard", "uid": "u"}}, "Normal", "Seen", "x")
    [event] = await world.posted()
    assert event["metadata"]["namespace"] == "default"


async def test_long_messages_and_names_fit(world: World) -> None:
    named: dict[str, Any] = {**MODEL, "metadata": {"namespace": "ns", "name": "n" * 253, "uid": "u"}}
    world.events.publish(named, "Normal", "Seen", "x" * 5000)
    [event] = await world.posted()
    assert len(event["note"]) == 1024
    assert len(event["metadata"]["name"]) <= 253


async def test_an_api_server_that_is_away_for_a_moment_loses_no_event(world: World, no_waiting: list[float]) -> None:
    world.server.errors = [Unavailable(CALL, "refused"), Unavailable(CALL, "refused")]
    world.events.publish(MODEL, "Normal", "Converting", "started")
    assert len(await world.posted()) == 1
    assert no_waiting == [1.0, 2.0]


async def test_events_that_may_not_be_written_trouble_nobody(world: World, no_waiting: list[float]) -> None:
    world.server.errors = [Forbidden(CALL, "no", status=403, verb="create", resource="events"), ValueError("odd")]
    for reason in ("A", "B", "C"):
        world.events.publish(MODEL, "Normal", reason, "x")
    assert [event["reason"] for event in await world.posted()] == ["C"]
    assert no_waiting == []


async def test_a_flood_is_dropped_rather_than_waited_for(world: World) -> None:
    for number in range(5000):
        world.events.publish(MODEL, "Normal", "Flood", str(number))
    assert len(await world.posted()) == 1000
