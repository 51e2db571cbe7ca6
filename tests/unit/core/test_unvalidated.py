"""A validation that no node takes: told, waited for, and skipped only where the class says so."""

from __future__ import annotations

from typing import Any

import pytest

from onnx_operator.core.jobs import JobBlocked, JobRunning
from onnx_operator.core.names import Component
from unit.core.worlds import CPU, CUDA, World, a_class, a_spec

BOTH = [{"name": CPU}, {"name": CUDA}]
UNVALIDATED = ("True", "NotValidated")


def a_world(after: str | None = "30m", providers: list[dict[str, Any]] | None = None, **spec: Any) -> World:
    """Graphs are made and judged on the CPU, and no node takes the validation on CUDA."""
    cuda = {"name": CUDA} | ({} if after is None else {"serveUnvalidatedAfter": after})
    offered = a_class(executionProviders=[{"name": CPU}, cuda])
    world = World(spec=a_spec(executionProviders=providers or BOTH, **spec), classes=(offered,))
    if spec:
        world.timed = {"scheme": "none", "schemes": []}
    for _ in range(2):
        world.settle()
        world.end_jobs()
    world.settle()
    world.jobs[blocked(world)] = JobBlocked("Unschedulable", "no node has a GPU")
    world.end_jobs()
    world.settle()
    return world


def blocked(world: World) -> str:
    return next(name for name in world.jobs if "-validate-cuda-" in name)


def test_until_then_the_condition_says_what_is_not_validated() -> None:
    world = a_world()
    world.wait(1799)
    world.settle()
    assert world.condition("Validated") == ("False", "Unschedulable")
    assert world.message("Validated") == "CUDAExecutionProvider is not validated: no node has a GPU"
    assert not any(f"-{Component.PUBLISH}-" in name for name in world.jobs)
    assert world.decide().look_again == 1


def test_then_it_is_served_and_the_condition_goes_on_saying_so() -> None:
    world = a_world()
    job = blocked(world)
    world.wait(1800)
    world.settle()
    assert job not in world.jobs, "nobody waits for it any more"
    world.finish()
    assert world.condition("Validated") == UNVALIDATED
    assert world.message("Validated").startswith(
        "CUDAExecutionProvider is not validated and is served all the same, as its class has it: no node has a GPU; "
        "CPUExecutionProvider: cosine"
    )
    assert {provider for _, provider in world.servers} == {CPU, CUDA}
    assert [one.outcome for one in world.numbered(1).status.stages if one.name == "validate-cuda"] == ["Skipped"]


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(lambda: a_world(None), id="the class does not say so"),
        pytest.param(lambda: a_world(providers=BOTH[1:]), id="nothing else was validated"),
        pytest.param(lambda: a_world(quantization={"scheme": "auto"}), id="auto has taken no scheme"),
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


def test_a_node_that_comes_in_time_validates_it() -> None:
    world = a_world()
    world.wait(1000)
    world.jobs[blocked(world)] = JobRunning("runs")
    world.serve_first()
    assert world.condition("Validated") == ("True", "Validated")


def test_other_revisions_prove_it_for_themselves() -> None:
    world = a_world()
    world.wait(1800)
    world.finish()
    world.change(serving={"resources": {"limits": {"memory": "3Gi"}}})
    world.settle()
    assert any(f"{world.numbered(2).name}-{Component.CONVERT}-" in name for name in world.jobs)
