"""serving: none: what is made, validated and published, and gets no servers and no traffic."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from onnx_operator.api.common import ExecutionProvider
from onnx_operator.core.jobs import JobRunning
from unit.core.worlds import CPU, CUDA, DML, World, a_class, a_spec, evaluated

PACKED: list[dict[str, Any]] = [{"name": DML, "serving": "none"}]
BESIDE: list[dict[str, Any]] = [{"name": CPU}, *PACKED]
IS_PACKED = ("True", "Packed")
INT8 = {"scheme": "int8-weight-only"}
WITHOUT_GATEWAY = {"traffic": {"drain": "10s"}}
ALWAYS = [{"schedule": "0 0 * * *", "duration": "24h"}]


def a_world(providers: list[dict[str, Any]], offered: dict[str, Any] | None = None, **spec: Any) -> World:
    return World(spec=a_spec(executionProviders=providers, **spec), classes=(a_class(**offered or {}),))


def publish(world: World) -> None:
    """Everything that Jobs can do is done; servers and gateway do nothing."""
    for _ in range(5):
        world.settle()
        world.end_jobs()
    world.settle()


@pytest.fixture
def packed() -> World:
    """Revision 1 is published."""
    world = a_world(PACKED)
    publish(world)
    return world


@pytest.mark.parametrize("offered", [{}, WITHOUT_GATEWAY], ids=["a gateway", "no gateway"])
def test_a_model_that_is_only_packed_is_ready_once_it_is_published(offered: dict[str, Any]) -> None:
    world = a_world(PACKED, offered)
    world.settle()
    assert world.status.endpoint is None, "nobody is told to ask there"
    publish(world)
    assert [world.condition(kind) for kind in ("Ready", "CandidateAvailable", "TrafficProgrammed")] == [IS_PACKED] * 3
    assert world.condition("Promoted") == ("True", "Promoted")
    assert world.message("Ready") == (
        "revision 1 is published for DmlExecutionProvider; all say serving: none, so nothing is started"
    )
    assert "DmlExecutionProvider: cosine 0.99999, 300 samples, packed and not run there: 3 of 116" in world.message(
        "Validated"
    )
    assert world.stable_number == 1
    assert (world.split, world.service, world.servers, world.status.endpoint) == (None, None, {}, None)
    assert world.status.pools == []
    assert {name.kind for name in world.children} == {"Job", "NetworkPolicy"}


def test_a_model_may_have_all_providers_and_all_evaluations_that_a_spec_takes() -> None:
    providers = [{"name": one, "serving": "none"} for one in ExecutionProvider]
    offered = {"executionProviders": [{"name": one} for one in ExecutionProvider if not one.is_edge]}
    evaluations = [evaluated(f"e{number}") for number in range(6)]
    world = a_world(providers, offered, validation={"evaluations": evaluations})
    publish(world)
    assert world.condition("Ready") == IS_PACKED
    told = world.numbered(1).status
    for measured, times in ((told.parity, 1), (told.benchmark, 1), (told.evaluations, 6)):
        assert len(measured) == times * len(ExecutionProvider)


def test_the_next_revision_replaces_it_as_soon_as_it_is_published(packed: World) -> None:
    packed.change(quantization=INT8)
    publish(packed)
    assert packed.stable_number == 2
    assert packed.numbered(1).status.outcome == "Retired"
    assert packed.condition("Ready") == IS_PACKED
    assert packed.status.retiring == []


@pytest.mark.parametrize(
    ("rollout", "reason"),
    [
        pytest.param({"paused": True}, "Paused", id="paused"),
        pytest.param({"freezeWindows": ALWAYS}, "Frozen", id="frozen"),
    ],
)
def test_people_hold_the_next_one(rollout: dict[str, Any], reason: str, packed: World) -> None:
    packed.change(quantization=INT8, rollout=rollout)
    publish(packed)
    assert (packed.stable_number, packed.condition("Promoted")) == (1, ("Unknown", reason))
    assert packed.condition("CandidateAvailable") == IS_PACKED
    packed.change(rollout={})
    publish(packed)
    assert packed.stable_number == 2


def test_one_that_fails_leaves_the_one_before_and_is_tried_again_when_asked(packed: World) -> None:
    packed.change(quantization=INT8)
    packed.settle()
    packed.end_jobs()
    packed.settle()
    packed.fail_job(f"{packed.numbered(2).name}-validate-dml-", "PlacementFailed", 28)
    packed.settle()
    assert packed.stable_number == 1
    assert packed.condition("Ready") == ("False", "PlacementFailed")
    assert packed.message("Ready").endswith("; revision 1 stays published")
    packed.steer(retryToken="again")
    publish(packed)
    assert packed.stable_number == 2
    assert packed.condition("Ready") == IS_PACKED


def test_beside_a_pool_it_is_validated_and_has_no_part_in_the_traffic() -> None:
    world = a_world(BESIDE)
    world.serve_first()
    assert sorted(name.rsplit("-validate-", 1)[1] for name in world.jobs if "-validate-" in name) == ["cpu-0", "dml-0"]
    assert {provider for _, provider in world.servers} == {CPU}
    assert [one.provider for one in world.status.pools] == [CPU]
    assert world.weights() == {1: 100}
    assert [one.provider for one in world.numbered(1).status.parity] == [CPU, DML]
    assert world.numbered(1).status.parity[1].checked == "3 of 116 nodes fall back to the CPU by its table"


def test_nothing_is_published_before_every_target_is_checked() -> None:
    world = a_world(BESIDE)
    world.settle()
    world.end_jobs()
    world.settle()
    world.end_jobs()
    world.settle()
    dml = next(name for name in world.jobs if "-validate-dml-" in name)
    world.end_jobs()
    world.jobs[dml] = JobRunning("runs")
    world.settle()
    assert not any("-publish-" in name for name in world.jobs)
    assert world.condition("Validated")[0] == "Unknown"


def test_a_pool_that_is_packed_from_now_on_is_canaried_away_like_any_change() -> None:
    world = World(spec=a_spec(executionProviders=[{"name": CPU}, {"name": CUDA}]))
    world.classes = (a_class(executionProviders=[{"name": CPU}, {"name": CUDA}]),)
    world.serve_first()
    world.change(executionProviders=[{"name": CPU}, {"name": CUDA, "serving": "none"}])
    world.up_to_step(0)
    assert world.weights() == {1: 90, 2: 10}
    assert not any("-convert-" in name and world.numbered(2).name in name for name in world.jobs), "its bytes are there"
    world.finish()
    assert {provider for _, provider in world.servers} == {CPU}


@pytest.mark.parametrize("offered", [{}, WITHOUT_GATEWAY], ids=["a gateway", "no gateway"])
def test_what_serves_is_drained_when_nothing_is_to_be_served_any_more(offered: dict[str, Any]) -> None:
    world = a_world([{"name": CPU}], offered)
    world.serve_first()
    world.change(executionProviders=PACKED)
    publish(world)
    assert world.stable_number == 2
    assert (world.split, world.service) == (None, None)
    assert world.ready_of(1) == 1, "requests under way are answered"
    assert world.condition("Ready")[0] == "False"
    world.wait(timedelta(seconds=10).total_seconds())
    world.settle()
    assert world.servers == {}
    assert world.condition("Ready") == IS_PACKED
    assert world.status.endpoint is None


@pytest.mark.parametrize("offered", [{}, WITHOUT_GATEWAY], ids=["a gateway", "no gateway"])
def test_what_is_to_be_served_again_takes_all_requests(offered: dict[str, Any], packed: World) -> None:
    packed.classes = (a_class(**offered),)
    packed.change(executionProviders=BESIDE)
    packed.finish()
    assert packed.stable_number == 2
    assert packed.weights() == {2: 100}
    assert packed.condition("Ready") == ("True", "Serving")
    assert packed.status.endpoint is not None


def test_a_packed_candidate_that_is_held_costs_stable_no_request() -> None:
    world = a_world([{"name": CPU}])
    world.serve_first()
    world.change(executionProviders=PACKED, rollout={"paused": True})
    publish(world)
    assert (world.stable_number, world.weights()) == (1, {1: 100})
    assert world.condition("TrafficProgrammed") == ("True", "TrafficProgrammed")
    world.change(executionProviders=[{"name": CPU}])
    world.settle()
    assert (world.stable_number, world.weights()) == (1, {1: 100})
