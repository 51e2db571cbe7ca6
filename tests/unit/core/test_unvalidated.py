"""A validation that no node takes: told, waited for, and then left out, or skipped where the class says so."""

from __future__ import annotations

from typing import Any

import pytest

from onnx_operator.core.jobs import JobBlocked, JobRunning
from onnx_operator.core.names import Component
from unit.core.worlds import CPU, CUDA, World, a_class, a_spec

BOTH = [{"name": CPU}, {"name": CUDA}]
UNVALIDATED = ("True", "NotValidated")
SKIP = {"serveUnvalidatedAfter": "30m"}


def a_world(cuda: dict[str, Any] | None = None, providers: list[dict[str, Any]] | None = None, **spec: Any) -> World:
    """Graphs are made and judged on the CPU, and no node takes the validation on CUDA."""
    offered = a_class(executionProviders=[{"name": CPU}, {"name": CUDA} | (cuda or {})])
    world = World(spec=a_spec(executionProviders=providers or BOTH, **spec), classes=(offered,))
    if spec:
        world.timed = {"scheme": "none", "schemes": []}
    up_to_validation(world)
    return world


def up_to_validation(world: World) -> None:
    """Fetching, which only a new source needs, and converting come first."""
    world.settle()
    while (job := blocked(world)) is None:
        world.end_jobs()
        world.settle()
    world.jobs[job] = JobBlocked("Unschedulable", "no node has a GPU")
    world.end_jobs()
    world.settle()


def blocked(world: World) -> str | None:
    """The validation that is wanted and has not ended."""
    running = (name for name, state in world.jobs.items() if isinstance(state, JobRunning | JobBlocked))
    return next((name for name in running if "-validate-cuda-" in name), None)


def a_node_comes(world: World) -> None:
    job = blocked(world)
    assert job is not None
    world.jobs[job] = JobRunning("runs")


def ended_as(world: World, number: int) -> list[str]:
    return [one.outcome for one in world.numbered(number).status.stages if one.name == "validate-cuda"]


@pytest.mark.parametrize(
    ("cuda", "seconds", "then"),
    [
        pytest.param(
            SKIP, 1800, "from 2026-01-01T00:30:00Z on it is served all the same, as its class has it", id="skip"
        ),
        pytest.param(None, 600, "from 2026-01-01T00:10:00Z on the revision is served without it", id="by itself"),
        pytest.param(
            {"leaveOutAfter": "1m"},
            60,
            "from 2026-01-01T00:01:00Z on the revision is served without it",
            id="leave out",
        ),
    ],
)
def test_until_then_the_condition_says_what_is_not_validated(cuda: Any, seconds: int, then: str) -> None:
    world = a_world(cuda)
    world.wait(seconds - 1)
    world.settle()
    assert world.condition("Validated") == ("False", "Unschedulable")
    assert world.message("Validated") == f"CUDAExecutionProvider is not validated: no node has a GPU; {then}"
    assert not any(f"-{Component.PUBLISH}-" in name for name in world.jobs)
    assert world.decide().look_again == 1


def test_then_it_is_served_and_the_condition_goes_on_saying_so() -> None:
    world = a_world(SKIP)
    assert blocked(world)
    world.wait(1800)
    world.settle()
    assert not blocked(world), "nobody waits for it any more"
    world.finish()
    assert world.condition("Validated") == UNVALIDATED
    assert world.message("Validated").startswith(
        "CUDAExecutionProvider is not validated, and it is served all the same, as its class has it: no node has a "
        "GPU; CPUExecutionProvider: cosine"
    )
    assert {provider for _, provider in world.servers} == {CPU, CUDA}
    assert ended_as(world, 1) == ["Skipped"]


def test_or_the_revision_is_served_without_it() -> None:
    world = a_world()
    world.wait(600)
    world.finish()
    assert world.condition("Validated") == UNVALIDATED
    assert world.message("Validated").startswith(
        "CUDAExecutionProvider is not validated, and the revision is served without it: no node has a GPU; "
        "CPUExecutionProvider: cosine"
    )
    assert {provider for _, provider in world.servers} == {CPU}
    assert [(one.provider, one.percent) for one in world.status.pools] == [(CPU, 100)]
    assert world.message("Ready").endswith(", without CUDAExecutionProvider, which no node validates")
    assert ended_as(world, 1) == ["LeftOut"]


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(lambda: a_world(SKIP, providers=BOTH[1:]), id="nothing else to be served all the same"),
        pytest.param(lambda: a_world(providers=BOTH[1:]), id="nothing else to be served without it"),
        pytest.param(lambda: a_world(SKIP, quantization={"scheme": "auto"}), id="auto has taken no scheme"),
        pytest.param(
            lambda: a_world(providers=[{"name": CPU, "serving": "none"}, {"name": CUDA}]), id="the other is only packed"
        ),
        pytest.param(
            lambda: a_world(providers=[{"name": CPU}, {"name": CUDA, "serving": "none"}]), id="it is only packed"
        ),
    ],
)
def test_else_it_is_waited_for_until_the_job_ends(world: Any) -> None:
    found: World = world()
    found.wait(3000)
    found.settle()
    assert found.condition("Validated") == ("False", "Unschedulable")
    found.fail_job("-validate-cuda-", "JobDeadlineExceeded", None)
    found.settle()
    assert found.condition("Stalled") == ("True", "JobDeadlineExceeded")
    assert "it was waiting: CUDAExecutionProvider is not validated: no node has a GPU" in found.message("Stalled")
    assert found.servers == {}


def test_auto_needs_no_scheme_where_nothing_is_served() -> None:
    world = a_world(quantization={"scheme": "auto"})
    world.wait(600)
    world.finish()
    assert {provider for _, provider in world.servers} == {CPU}


def test_a_node_that_comes_in_time_validates_it() -> None:
    world = a_world()
    world.wait(500)
    a_node_comes(world)
    world.serve_first()
    assert world.condition("Validated") == ("True", "Validated")


@pytest.mark.parametrize(("cuda", "seconds"), [(SKIP, 1800), (None, 600)])
def test_other_revisions_prove_it_for_themselves(cuda: Any, seconds: int) -> None:
    world = a_world(cuda)
    world.wait(seconds)
    world.finish()
    world.change(serving={"resources": {"limits": {"memory": "3Gi"}}})
    world.settle()
    assert any(f"{world.numbered(2).name}-{Component.CONVERT}-" in name for name in world.jobs)


def test_a_later_revision_is_served_there_once_a_node_validates_it() -> None:
    world = a_world()
    world.wait(600)
    world.finish()
    world.change(quantization={"scheme": "int8-weight-only"})
    world.up_to_step(0)
    assert {provider for name, provider in world.servers if name == world.numbered(2).name} == {CPU, CUDA}
    assert world.condition("Validated") == ("True", "Validated")


def test_what_answers_requests_now_is_not_left_out() -> None:
    """The other pool would have to take them, and nobody has asked whether it can."""
    world = a_world()
    a_node_comes(world)
    world.serve_first()
    world.change(quantization={"scheme": "int8-weight-only"})
    up_to_validation(world)
    world.wait(3000)
    world.settle()
    assert world.message("Validated") == "CUDAExecutionProvider is not validated: no node has a GPU"
    assert {provider for _, provider in world.servers} == {CPU, CUDA}


def test_a_record_made_anew_still_says_what_is_left_out() -> None:
    world = a_world()
    world.wait(600)
    world.finish()
    del world.revisions[world.numbered(1).name]
    world.finish()
    assert {provider for _, provider in world.servers} == {CPU}
    assert world.condition("Validated") == UNVALIDATED
    assert "the revision is served without it" in world.message("Validated")


def test_a_retry_validates_what_was_left_out() -> None:
    world = a_world()
    world.wait(600)
    world.settle()
    world.fail_job("-publish-", "ArtifactCorrupt")
    world.settle()
    world.steer(retryToken="again")
    world.serve_first()
    assert {provider for _, provider in world.servers} == {CPU, CUDA}
