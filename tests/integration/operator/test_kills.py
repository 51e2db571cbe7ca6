"""`kill -9` of the active operator: the other goes on, and nobody can tell afterwards."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from integration.operator.conftest import World
from integration.operator.phases import PHASES, V2, Births, Phases, end_state, steady_success

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.apiserver import ControlPlane
    from integration.processes import OperatorProcess

#: The lease lasts 15 s and a standby looks every 2 s or so.
TAKEOVER_SECONDS = 20.0
CREATED = ("batch/v1/jobs", "onnx-operator.io/v1alpha1/onnxmodelrevisions")
_NUMBERS = itertools.count(1)


@pytest.fixture
def twin(plane: ControlPlane, tmp_path: Path) -> Iterator[World]:
    """A world beside `world`, in which nothing is killed."""
    name = f"undisturbed-{next(_NUMBERS)}"
    plane.admin.create("/api/v1/namespaces", {"metadata": {"name": name}})
    folder = tmp_path / "twin"
    folder.mkdir()
    made = World(plane, name, folder)
    made.hands.start()
    yield made
    made.close()


def lease_path(world: World) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{world.namespace}/leases/onnx-operator"


def holder(world: World) -> str:
    """The identity in the lease: the process's name, and what tells it from its restarts."""
    lease = world.client.get(lease_path(world)) or {"spec": {}}
    return str(lease["spec"].get("holderIdentity") or "")


def kill_the_active(world: World, operators: dict[str, OperatorProcess]) -> str:
    """SIGKILL to the process that holds the lease; its identity."""
    active: str = world.until(lambda: holder(world), "somebody leads")
    process = operators[active.rpartition("_")[0]].process
    assert process is not None
    process.kill()
    process.wait()
    return active


def assert_same_end(world: World, twin: World) -> None:
    ours, theirs = end_state(world), end_state(twin)
    assert any(name.startswith("httproutes/") for name in ours)
    assert any(name.startswith("jobs/") for name in ours)
    assert sorted(ours) == sorted(theirs)
    for name, state in ours.items():
        assert state == theirs[name], name


def test_a_kill_in_any_phase_leaves_the_end_as_it_would_have_been(world: World, twin: World) -> None:
    disturbed, reference = Phases(world), Phases(twin)
    operators = {name: world.operator(name).supervise() for name in ("one", "two")}
    twin.operator("undisturbed").supervise()
    births, expected = Births(world, *CREATED), Births(twin, *CREATED)
    disturbed.serve()
    reference.serve()
    disturbed.hold()

    started = world.status("running")["candidate"]["stepStartedTime"]
    dead = kill_the_active(world, operators)
    reference.change()
    world.until(lambda: holder(world) not in {"", dead}, "the other leads", within=TAKEOVER_SECONDS)
    assert world.status("running")["candidate"]["stepStartedTime"] == started
    disturbed.release()
    twin.until(lambda: reference.is_held("rolling-back"), "the one to abort has its step")
    reference.abort()

    disturbed.until_settled()
    reference.until_settled()
    assert [one["status"]["outcome"] for one in world.revisions()].count("Stable") == len(PHASES)
    assert births.names == expected.names
    assert set(births.names.values()) == {1}
    assert_same_end(world, twin)


class Turns:
    """Kills the active operator at every turn that its model takes."""

    def __init__(self, world: World, operators: dict[str, OperatorProcess]) -> None:
        self._world = world
        self._operators = operators
        self._told: set[Any] = set()
        self.deaths = 0

    def kill_until_settled(self, kind: str, reason: str) -> None:
        def is_over() -> bool:
            if self._is_new():
                self._kill()
            model, found = self._world.model("minilm"), self._world.condition("minilm", kind)
            is_current = found.get("observedGeneration") == model["metadata"]["generation"]
            is_at_rest = self._world.condition("minilm", "Reconciling").get("status") == "False"
            return bool(is_current and is_at_rest and (found["status"], found["reason"]) == ("True", reason))

        self._world.until(is_over, f"{kind} is True, {reason}")

    def _is_new(self) -> bool:
        status = self._world.status("minilm")
        candidate, stable = status.get("candidate") or {}, status.get("stable") or {}
        turn = (
            status.get("phase"),
            stable.get("number"),
            candidate.get("number"),
            candidate.get("step"),
            "stepStartedTime" in candidate,
            "drainStartedTime" in status,
        )
        is_new = turn not in self._told
        self._told.add(turn)
        return is_new

    def _kill(self) -> None:
        """The lease is taken from the dead: that its 15 s run out by themselves is the other test's matter."""
        kill_the_active(self._world, self._operators)
        self._world.client.delete(lease_path(self._world))
        self.deaths += 1


def test_a_kill_at_every_turn_of_a_promotion_and_a_rollback_changes_nothing(world: World, twin: World) -> None:
    births, expected = Births(world, *CREATED), Births(twin, *CREATED)
    turns = Turns(world, {name: world.operator(name).supervise() for name in ("one", "two")})
    twin.operator("undisturbed").supervise()
    both = (world, twin)
    for here in both:
        here.fate.job = steady_success
        here.apply("minilm")
    turns.kill_until_settled("Ready", "Serving")
    twin.until_ready("minilm")
    for here in both:
        here.patch("minilm", V2)
    turns.kill_until_settled("Ready", "Serving")
    twin.until_ready("minilm")
    promotion = turns.deaths

    slow = {"quantization": {"scheme": "int8-dynamic"}, "rollout": {"steps": [{"weight": 20, "duration": "5m"}]}}
    for here in both:
        here.patch("minilm", slow)
    for here in both:
        until_share(here, 20)
        here.patch("minilm", {"rollout": {"abortToken": "stop"}})
    turns.kill_until_settled("Stalled", "RolledBack")
    twin.until_condition("minilm", "Stalled", "True", "RolledBack")
    twin.until_condition("minilm", "Reconciling", "False")

    assert promotion >= 10
    assert turns.deaths > promotion
    assert births.names == expected.names
    assert set(births.names.values()) == {1}
    assert_same_end(world, twin)


def until_share(world: World, share: int) -> None:
    world.until(
        lambda: (world.status("minilm").get("candidate") or {}).get("weight") == share, f"the candidate has {share} %"
    )
