"""Faults in the lives of many models, other ones for each: every life goes as an undisturbed one.

The life: a first version; a second, of other pods, that gets a fifth of the traffic and is superseded by a third, of
another source, which is promoted; a fourth that is taken back in mid-canary; deletion, and the same name once more.
Each of these is a chapter with one fault, and ends when the world is what it is at that place of an undisturbed life:
what a fault leaves behind is found in its own chapter, and the next begins as if there had been none. A life creates
what an undisturbed one creates, as often; as what is there in the end is the same, it deletes the same, too.

An undisturbed run tells how many writes and events a chapter has to spoil. `make test` takes a sample that has every
fault in every chapter, from the chapter's beginning to its end; with ONNX_OPERATOR_FAULTS=all all are spoiled in every
way.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from faults.line import Fault, Line, Plan
from integration.apiserver import ControlPlane, running_control_plane, wait_until
from integration.operator.conftest import World, add_gateway_and_class
from integration.operator.hands import Hands
from integration.operator.phases import KINDS, QUICK, Births, end_state, steady_success

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from integration.processes import OperatorProcess

ALL = os.environ.get("ONNX_OPERATOR_FAULTS") == "all"
#: Of seven chapters each.
LIVES = 18
#: How many models are alive at a time.
CROWD = 24
MODEL = "minilm"
UNDISTURBED = "undisturbed"
CREATED = tuple(kind for kind in KINDS if kind not in {"v1/pods", "apps/v1/replicasets"})
SETTINGS = {"RELIST_SECONDS": "5", "REQUEST_SECONDS": "5", "WATCH_NAMESPACES": "", "POD_NAMESPACE": "default"}
LEASE = "/apis/coordination.k8s.io/v1/namespaces/default/leases/onnx-operator"


def source(version: str) -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": "checkpoints", "path": version}}


SLOW = [{"weight": 20, "duration": "30m"}]
#: Looks at a candidate are recorded each time, so that a step without a look is one in which nothing happens.
SELDOM, OFTEN = {"interval": "20m", "metrics": []}, {"interval": "1s", "metrics": []}


@dataclass
class Chapter:
    """What an undisturbed life has at the end of one of its parts, and what that took."""

    title: str
    state: dict[str, Any]
    writes: int
    events: int


class Life:
    """The life of one model, driven forward by `push` as far as it goes.

    Without a reference it is one: then a chapter ends when two looks in a row find the same.
    """

    def __init__(
        self, world: World, line: Line, reference: Sequence[Chapter] = (), plans: Mapping[int, Plan] | None = None
    ) -> None:
        self.chapters: list[Chapter] = []
        self.is_over = False
        #: Faults whose chapter ended without them.
        self.never_came: list[Plan] = []
        self._world = world
        self._line = line
        self._reference = reference
        self._plans = plans or {}
        self._parts = self._live()
        self._title = ""
        self._is_there: Callable[[], bool] = lambda: True
        self._state: dict[str, Any] = {}

    def push(self) -> None:
        """Begin the next chapter if this one has ended."""
        if not self._title or self._has_ended():
            if self._title:
                self._write_down()
            self._line.aim(self._world.namespace, self._plans.get(len(self.chapters)))
            try:
                self._title, self._is_there = next(self._parts)
            except StopIteration:
                self.is_over = True

    def trouble(self) -> list[str]:
        """Where an unfinished life stands, and what is otherwise than in the reference."""
        number = len(self.chapters)
        told = [f"waiting for: {self._title}; fault: {self._plans.get(number)}"]
        if not self._reference:
            return told
        return told + difference(self._reference[number].state, end_state(self._world))

    def _has_ended(self) -> bool:
        if not self._is_there():
            return False
        before, self._state = self._state, end_state(self._world)
        return self._state == (self._reference[len(self.chapters)].state if self._reference else before)

    def _write_down(self) -> None:
        namespace = self._world.namespace
        if namespace in self._line.ahead:
            self.never_came.append(self._line.ahead[namespace])
        self.chapters.append(
            Chapter(self._title, self._state, self._line.writes[namespace], self._line.events[namespace])
        )

    def _live(self) -> Iterator[tuple[str, Callable[[], bool]]]:
        world = self._world
        slow = {"steps": SLOW, "progressDeadline": "1h", "analysis": SELDOM}
        world.apply(MODEL, source=source("v1"), rollout=slow)
        yield "the first version serves", self._is_ready
        world.patch(MODEL, {"serving": {"threads": 2}})
        yield "the second has its step", self._has_step
        world.patch(MODEL, {"source": source("v3"), "rollout": {"steps": QUICK, "analysis": OFTEN}})
        yield "the third is promoted", self._is_ready
        world.patch(MODEL, {"serving": {"threads": 4}, "rollout": slow})
        yield "the fourth has its step", self._has_step
        world.patch(MODEL, {"rollout": {"abortToken": "stop"}})
        yield "the fourth is taken back", self._is_rolled_back
        world.delete(MODEL)
        yield "everything is gone", lambda: not any(world.items(kind) for kind in KINDS)
        world.apply(MODEL, source=source("v1"), rollout=slow)
        yield "the name serves once more", self._is_ready
        world.delete(MODEL)

    def _is(self, *wanted: tuple[str, str, str]) -> bool:
        """Whether these conditions are so, for the spec as it is now."""
        model = self._world.model(MODEL)
        status: dict[str, Any] = model.get("status") or {}
        found = {
            (one["type"], one["status"], one["reason"])
            for one in status.get("conditions") or ()
            if one["observedGeneration"] == model["metadata"]["generation"]
        }
        return found.issuperset(wanted)

    def _is_ready(self) -> bool:
        return self._is(("Ready", "True", "Serving"), ("Reconciling", "False", "Settled"))

    def _is_rolled_back(self) -> bool:
        return self._is(("Stalled", "True", "RolledBack"), ("Reconciling", "False", "Settled"))

    def _has_step(self) -> bool:
        candidate = self._world.status(MODEL).get("candidate") or {}
        return candidate.get("weight") == 20 and "stepStartedTime" in candidate


def plans(reference: Sequence[Chapter]) -> list[dict[int, Plan]]:
    """For each life its faults by chapter: everything, or a sample in which a fault wanders through its chapter."""
    lives: list[dict[int, Plan]] = []
    for number, chapter in enumerate(reference):
        spots = {True: chapter.events, False: chapter.writes}
        every = [Plan(fault, at + 1) for fault in Fault for at in range(spots[fault.is_of_events])]
        if not ALL:
            faults = [fault for fault in Fault if spots[fault.is_of_events]]
            # Chapters begin with other faults, so that a death, which meets every model, comes when they are elsewhere.
            chosen = [faults[(life + 5 * number) % len(faults)] for life in range(LIVES)]
            every = [Plan(one, 1 + life * spots[one.is_of_events] // LIVES) for life, one in enumerate(chosen)]
        lives += ({} for _ in range(len(every) - len(lives)))
        for life, plan in zip(lives, every, strict=False):
            life[number] = plan
    return lives


@pytest.fixture(scope="module")
def own_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane without the models of other tests: here one operator serves all of it."""
    with running_control_plane(tmp_path_factory.mktemp("faults")) as made:
        made.install_crds()
        add_gateway_and_class(made)
        yield made


class Stage:
    """One operator behind a line, hands for every namespace, and the models' lives."""

    def __init__(self, plane: ControlPlane, folder: Path, name: str) -> None:
        self._plane = plane
        self._folder = folder / name
        self._folder.mkdir()
        self.line = Line(plane.admin, kill=self._kill).start()
        everywhere = World(plane, "", self._folder)
        pending = "?fieldSelector=status.phase%3DPending"
        everywhere.hands = Hands(plane.admin, "", everywhere.fate, pods=pending, every=0.4)
        everywhere.fate.job = steady_success
        everywhere.hands.start()
        self._everywhere = everywhere
        self.operator: OperatorProcess = everywhere.operator(name, **SETTINGS, KUBECONFIG=str(self._kubeconfig()))
        self.operator.supervise()

    def close(self) -> None:
        self._everywhere.close()
        self.line.stop()

    def world(self, namespace: str) -> World:
        if self._plane.admin.get(f"/api/v1/namespaces/{namespace}") is None:
            self._plane.admin.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
        return World(self._plane, namespace, self._folder)

    def run(self, lives: Sequence[Life], *, within: float) -> None:
        """Every life to its end, so many at a time; a failure says where each one stands."""
        waiting, alive = list(lives), list[Life]()

        def push() -> bool:
            while waiting and len(alive) < CROWD:
                alive.append(waiting.pop(0))
            for life in alive:
                life.push()
            alive[:] = [life for life in alive if not life.is_over]
            return not alive and not waiting

        try:
            wait_until(push, within=within, what="every life ends", every=1)
        except AssertionError as error:
            stuck = [life.trouble() for life in lives if not life.is_over]
            raise AssertionError(f"{error}; {json.dumps(stuck, indent=1)}\n{self.operator.tail()}") from None

    def _kubeconfig(self) -> Path:
        content = json.loads(self._plane.kubeconfig().read_text())
        content["clusters"][0]["cluster"] = {"server": self.line.server}
        path = self._folder / "kubeconfig"
        path.write_text(json.dumps(content))
        return path

    def _kill(self) -> None:
        """The lease of the dead is taken away: that it runs out by itself is another test's matter."""
        process = self.operator.process
        assert process is not None
        process.kill()
        process.wait()
        if self._plane.admin.get(LEASE) is not None:
            self._plane.admin.delete(LEASE)


@pytest.fixture(scope="module")
def undisturbed(own_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Chapter], Births]:
    """A life without a fault."""
    stage = Stage(own_plane, tmp_path_factory.mktemp("stage"), UNDISTURBED)
    world = stage.world(UNDISTURBED)
    births = Births(world, *CREATED)
    life = Life(world, stage.line)
    try:
        stage.run([life], within=240)
    finally:
        stage.close()
    return life.chapters, births


def test_every_life_goes_as_if_nothing_had_happened(
    own_plane: ControlPlane, undisturbed: tuple[list[Chapter], Births], tmp_path: Path
) -> None:
    reference, expected_births = undisturbed
    chosen = plans(reference)
    stage = Stage(own_plane, tmp_path, "disturbed")
    births = Births(World(own_plane, "", tmp_path), *CREATED)
    names = [f"fault-{number}" for number in range(len(chosen))]
    lives = [Life(stage.world(name), stage.line, reference, each) for name, each in zip(names, chosen, strict=True)]
    try:
        stage.run(lives, within=600 + 20 * len(chosen))
    finally:
        stage.close()

    planned = sum(map(len, chosen))
    never_came = [plan for life in lives for plan in life.never_came]
    # While an operator starts anew after a death, the events of the other models pass by.
    assert planned - len(never_came) >= max(100, 0.8 * planned), f"of {planned} faults these never came: {never_came}"
    wrong = {
        str(each): difference(expected_births.of(UNDISTURBED), births.of(name), "created")
        for name, each in zip(names, chosen, strict=True)
        if births.of(name) != expected_births.of(UNDISTURBED)
    }
    assert not wrong, json.dumps(wrong, indent=1)


def difference(expected: Any, found: Any, path: str = "") -> list[str]:
    """Where two states differ, as far as a person wants to read."""
    if isinstance(expected, dict) and isinstance(found, dict):
        told = []
        for name in sorted({*expected, *found}):
            told += difference(expected.get(name), found.get(name), f"{path}/{name}")
        return told[:10]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        told = []
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            told += difference(one, other, f"{path}/{number}")
        return told[:10]
    return [] if expected == found else [f"{path}: {found!r} instead of {expected!r}"]
