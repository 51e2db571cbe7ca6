"""Everything that can become of a Job: told by its own reason, never retried in a storm, never at stable's cost.

All models fail at the same time in one namespace, which enforces Pod Security `restricted`; each test looks at one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from integration.operator.conftest import GROUP, World
from integration.operator.hands import (
    COMPONENT,
    End,
    ended_pod,
    success,
    summary,
    unschedulable_pod,
    waiting_pod,
)
from integration.operator.phases import MODEL, V2, Births, make_class

if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.apiserver import ControlPlane

Manifest = dict[str, Any]
JOB = "batch.kubernetes.io/job-name"
#: What becomes of the given pod, which is the Job's n-th.
Outcome = End | Manifest | None
V3 = {"source": {"persistentVolumeClaim": {"claimName": "checkpoints", "path": "v3"}}}


def says(step: str, reason: str, exit_code: int, message: str = "config.json is to blame", **details: Any) -> End:
    return End(exit_code, summary(step, reason, message, exit_code=exit_code, **details))


def evicted() -> Manifest:
    disrupted = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    status = ended_pod(End(137, "", "Error"))
    return status | {"conditions": [disrupted], "reason": "Evicted", "message": "the node was low on memory"}


@dataclass(frozen=True)
class Ending:
    """A Job that fails for good."""

    component: str
    outcome: Outcome
    reason: str
    stage: str
    exit_code: int | None
    pods: int = 1


SOURCE, CONVERTED, VALIDATED, PUBLISHED = "SourceResolved", "Converted", "Validated", "Published"
UNREADABLE = "ResultUnreadable"
ENDINGS = {
    "pickle": Ending("fetch", says("fetch", "PickleRefused", 14), "PickleRefused", SOURCE, 14),
    "architecture": Ending(
        "convert", says("convert", "ArchitectureUnsupported", 22), "ArchitectureUnsupported", CONVERTED, 22
    ),
    "parity": Ending("validate", says("validate", "ParityFailed", 27), "ParityFailed", VALIDATED, 27),
    "usage": Ending("publish", says("publish", "UsageError", 2), "UsageError", PUBLISHED, 2),
    "memory": Ending("convert", End(137, "", "OOMKilled"), "OOMKilled", CONVERTED, 137),
    "silent": Ending("convert", End(0, ""), UNREADABLE, CONVERTED, 0),
    "garbled": Ending("validate", End(0, '{"step": "valid'), UNREADABLE, VALIDATED, 0),
    "empty": Ending("publish", says("publish", "Published", 0), UNREADABLE, PUBLISHED, 0),
    "misshapen": Ending("validate", says("validate", "Validated", 0, parity=[1]), UNREADABLE, VALIDATED, 0),
    "contradicting": Ending("validate", End(0, says("validate", "ParityFailed", 27).message), UNREADABLE, VALIDATED, 0),
    "mistaken": Ending("convert", End(0, says("fetch", "Fetched", 0).message), UNREADABLE, CONVERTED, 0),
    "unspeakable": Ending(
        "convert", says("convert", "no reason!\n", 22, "\ud800\u0000 " * 2000), "ContainerFailed", CONVERTED, 22
    ),
    "endless": Ending("convert", None, "JobDeadlineExceeded", CONVERTED, None),
    "transient": Ending("publish", says("publish", "DiskFull", 31), "DiskFull", PUBLISHED, 31, pods=3),
    "crash": Ending("fetch", End(139, "Segmentation fault"), "ContainerFailed", SOURCE, 139, pods=3),
}


@dataclass(frozen=True)
class Wait:
    """A Job that goes on once what it waits for is there."""

    component: str
    status: Manifest
    reason: str
    condition: str


NO_NODE = "0/3 nodes are available: 3 Insufficient memory."
NO_CLAIM = 'persistentvolumeclaim "artifacts" not found'
WAITS = {
    "unschedulable": Wait("convert", unschedulable_pod(NO_NODE), "Unschedulable", "Converted"),
    "claim": Wait("fetch", unschedulable_pod(NO_CLAIM), "ClaimNotFound", "SourceResolved"),
    "image": Wait("validate", waiting_pod("ImagePullBackOff", "not found"), "ImagePullFailed", "Validated"),
    "secret": Wait(
        "publish",
        waiting_pod("CreateContainerConfigError", 'secret "x" not found'),
        "ContainerConfigError",
        "CandidateAvailable",
    ),
}
#: The first pod of the Job ends so; the second one does its work.
STUMBLES: dict[str, tuple[str, Outcome]] = {
    "evicted": ("convert", evicted()),
    "unreachable": ("fetch", says("fetch", "SourceUnreachable", 30)),
}


class Wrecks:
    """All the models, each with its own mishap in its second revision."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.stable: dict[str, str] = {}
        self.births = Births(world, "batch/v1/jobs")
        self._is_well = True
        self._lifted: set[str] = set()
        self._first_jobs: set[str] = set()
        world.fate.job = self._job

    def wreck(self) -> None:
        impatient = make_class(self.world, "impatient")
        names = [*ENDINGS, *WAITS, *STUMBLES]
        for name in names:
            self.world.apply(name, **({"className": impatient} if name == "endless" else {}))
        for name in names:
            self.stable[name] = self.world.until_ready(name)["stable"]["revision"]
        self._is_well = False
        self._first_jobs = {one["metadata"]["uid"] for one in self.world.items("batch/v1/jobs")}
        self.world.client.merge(f"{GROUP}/onnxmodelclasses/{impatient}", {"spec": {"jobs": {"deadline": "15s"}}})
        for name in names:
            self.world.patch(name, V2)

    def lift(self, *names: str) -> None:
        self._lifted |= set(names)

    def jobs(self, name: str, component: str) -> list[Manifest]:
        """The model's Jobs of a stage, without those of its first revision."""
        wanted = {MODEL: name, COMPONENT: component}
        found = (
            one for one in self.world.items("batch/v1/jobs") if wanted.items() <= one["metadata"]["labels"].items()
        )
        return [one for one in found if one["metadata"]["uid"] not in self._first_jobs]

    def pods(self, job: Manifest) -> list[Manifest]:
        name = job["metadata"]["name"]
        return [one for one in self.world.items("v1/pods") if one["metadata"]["labels"].get(JOB) == name]

    def assert_stable_serves(self, name: str) -> None:
        split = {f"{self.stable[name]}-cpu": 100}
        assert self.world.split(name) == split == self.world.split(name, "grpcroutes")
        stable = self.world.status(name)["stable"]
        assert (stable["revision"], stable["weight"], stable["readyReplicas"]) == (self.stable[name], 100, 1)

    def _job(self, pod: Manifest) -> Outcome:
        if (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
            return None
        name, component = (pod["metadata"]["labels"][label] for label in (MODEL, COMPONENT))
        if self._is_well or name in self._lifted:
            return success(pod)
        if name in ENDINGS and ENDINGS[name].component == component:
            return ENDINGS[name].outcome
        if name in WAITS and WAITS[name].component == component:
            return WAITS[name].status
        if name in STUMBLES and STUMBLES[name][0] == component and self._is_first(pod):
            return STUMBLES[name][1]
        return success(pod)

    def _is_first(self, pod: Manifest) -> bool:
        """Whether no other pod of the same Job has failed yet."""
        job = {"metadata": {"name": pod["metadata"]["labels"][JOB]}}
        others = (one for one in self.pods(job) if one["metadata"]["uid"] != pod["metadata"]["uid"])
        return not any((one.get("status") or {}).get("phase") == "Failed" for one in others)


@pytest.fixture(scope="module")
def wrecks(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wrecks]:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    plane.admin.create("/api/v1/namespaces", {"metadata": {"name": "wrecks", "labels": labels}})
    world = World(plane, "wrecks", tmp_path_factory.mktemp("wrecks"))
    made = Wrecks(world)
    world.hands.start()
    world.operator().supervise()
    made.wreck()
    yield made
    world.close()


@pytest.mark.parametrize("name", ENDINGS)
def test_a_failed_job_is_told_by_its_reason_and_costs_stable_nothing(wrecks: Wrecks, name: str) -> None:
    ending, world = ENDINGS[name], wrecks.world
    stalled = world.until_condition(name, "Stalled", "True", ending.reason)
    assert "keeps serving" in stalled["message"]
    assert world.condition(name, "Ready")["reason"] == ending.reason
    failure = world.status(name)["lastFailure"]
    assert (failure["stage"], failure["reason"]) == (ending.stage, ending.reason)
    assert failure.get("exitCode") == ending.exit_code
    wrecks.assert_stable_serves(name)
    (job,) = wrecks.jobs(name, ending.component)
    assert job["status"].get("failed", 0) + job["status"].get("succeeded", 0) == ending.pods


@pytest.mark.parametrize("name", WAITS)
def test_a_job_that_waits_says_for_what_and_goes_on_once_it_is_there(wrecks: Wrecks, name: str) -> None:
    wait, world = WAITS[name], wrecks.world
    found = world.until_condition(name, wait.condition, "False", wait.reason)
    assert found["message"]
    assert world.condition(name, "Stalled")["status"] == "False"
    assert world.condition(name, "Reconciling")["status"] == "True"
    wrecks.assert_stable_serves(name)
    wrecks.lift(name)
    assert world.until_ready(name)["stable"]["number"] == 2


@pytest.mark.parametrize("name", STUMBLES)
def test_what_was_not_the_jobs_own_fault_is_tried_again_by_the_same_job(wrecks: Wrecks, name: str) -> None:
    assert wrecks.world.until_ready(name)["stable"]["number"] == 2
    component, _ = STUMBLES[name]
    (job,) = wrecks.jobs(name, component)
    assert job["status"]["succeeded"] == 1
    assert len(wrecks.pods(job)) == 2


def test_a_better_spec_and_a_retry_recover_and_no_job_was_made_twice(wrecks: Wrecks) -> None:
    world = wrecks.world
    for name, ending in ENDINGS.items():
        world.until_condition(name, "Stalled", "True", ending.reason)
    assert set(wrecks.births.names.values()) == {1}
    wrecks.lift(*ENDINGS)
    by_spec, by_token = list(ENDINGS)[::2], list(ENDINGS)[1::2]
    for name in by_spec:
        world.patch(name, V3)
    for name in by_token:
        world.patch(name, {"rollout": {"retryToken": "again"}})
    for name in (*by_spec, *by_token):
        assert world.until_ready(name)["stable"]["revision"] != wrecks.stable[name]
    assert set(wrecks.births.names.values()) == {1}


def test_a_quota_and_a_limit_range_are_told_and_waited_for(world: World) -> None:
    world.operator(RELIST_SECONDS="5").supervise()
    world.apply("minilm")
    stable = f"{world.until_ready('minilm')['stable']['revision']}-cpu"
    root = f"/api/v1/namespaces/{world.namespace}"
    limits = [{"type": "Container", "max": {"memory": "1Gi"}}]
    obstacles = [
        ("resourcequotas", {"hard": {"pods": "1"}}, "QuotaExceeded"),
        ("limitranges", {"limits": limits}, "PodRefused"),
        ("resourcequotas", {"hard": {"count/jobs.batch": "1"}}, "QuotaExceeded"),
    ]
    for number, (plural, spec, reason) in enumerate(obstacles, start=2):
        path = f"{root}/{plural}/obstacle"
        world.client.create(f"{root}/{plural}", {"metadata": {"name": "obstacle"}, "spec": spec})
        if plural == "resourcequotas":
            until_in_force(world, path)
        world.patch("minilm", {"source": {"persistentVolumeClaim": {"claimName": "checkpoints", "path": f"p{number}"}}})
        found = world.until_condition("minilm", "SourceResolved", "False", reason)
        assert "obstacle" in found["message"] or "maximum memory" in found["message"]
        assert world.condition("minilm", "Stalled")["status"] == "False"
        assert world.split("minilm") == {stable: 100}
        world.client.delete(path)
        stable = f"{world.until_ready('minilm')['stable']['revision']}-cpu"
        assert world.status("minilm")["stable"]["number"] == number


def until_in_force(world: World, quota: str) -> None:
    world.until(lambda: world.client.request("GET", quota).get("status", {}).get("used"), "the quota is in force")
