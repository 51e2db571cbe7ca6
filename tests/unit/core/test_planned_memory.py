"""Memory is planned before it is used: what headers tell is requested, and what the class has no room for not begun."""

from __future__ import annotations

import pytest

from onnx_converter import footprint
from onnx_operator.core.actions import WantConvert, WantFetch, WantPublish, WantValidate
from onnx_operator.render.manifests import build
from unit.core.worlds import World, a_class

LARGE = {"parameters": 1_000_000_000, "vocabulary": 50_000}
SMALL = {"parameters": 20_000_000, "vocabulary": 30_000}
NEEDED = footprint.told(footprint.peak(footprint.Sizes(**SMALL), "none"))


def a_world(sizes: dict[str, int], **resources: dict[str, str]) -> World:
    world = World(classes=(a_class(jobs={"resources": resources or {"limits": {"memory": "6Gi"}}}),), sizes=sizes)
    world.settle()
    world.end_jobs()
    world.settle()
    return world


def converts(world: World) -> list[str]:
    return [name for name in world.jobs if "-convert-" in name]


def test_a_checkpoint_that_takes_more_than_the_class_allows_is_refused_before_any_memory_is_used() -> None:
    world = a_world(LARGE)
    assert world.condition("Converted") == ("False", "MemoryAboveLimit")
    assert world.condition("Stalled")[0] == "True"
    assert not converts(world)
    needed = footprint.told(footprint.peak(footprint.Sizes(**LARGE), "none"))
    for part in (needed, "6Gi", "jobs.resources.limits.memory", "raise"):
        assert part in world.message("Converted")


def test_what_was_refused_goes_on_once_the_class_allows_it() -> None:
    world = a_world(LARGE)
    world.classes = (a_class(jobs={"resources": {"limits": {"memory": "64Gi"}}}),)
    world.settle()
    assert converts(world)
    world.serve_first()
    assert world.condition("Ready") == ("True", "Serving")


def test_a_checkpoint_of_which_nothing_is_known_is_tried() -> None:
    assert converts(a_world({}))


def test_a_class_without_a_limit_refuses_nothing() -> None:
    assert converts(a_world(LARGE, requests={"cpu": "1"}))


REQUESTED = {
    "the estimate, where the class names nothing": ({"limits": {"memory": "6Gi"}}, NEEDED, "512Mi"),
    "what the class names, whatever it is": (
        {"requests": {"memory": "2Gi"}, "limits": {"memory": "6Gi"}},
        "2Gi",
        "2Gi",
    ),
    "the estimate, without any limit": ({"requests": {"cpu": "1"}}, NEEDED, "512Mi"),
}


@pytest.mark.parametrize("case", REQUESTED, ids=lambda case: case.replace(" ", "-"))
def test_the_jobs_that_load_weights_request(case: str) -> None:
    resources, loading, others = REQUESTED[case]
    assert requested(World(classes=(a_class(jobs={"resources": resources}),), sizes=SMALL)) == {
        "fetch": others,
        "convert": loading,
        "validate": loading,
        "publish": others,
    }


def test_no_job_requests_more_than_its_limit() -> None:
    tight = (a_class(jobs={"resources": {"limits": {"memory": "256Mi"}}}),)
    assert requested(World(classes=tight)) == dict.fromkeys(("fetch", "convert", "validate", "publish"), "256Mi")


@pytest.mark.parametrize(
    ("components", "scheme"),
    [
        ({}, "none"),
        ({"decoder": "int4-weight-only"}, "none"),
        ({"encoder": "int8-weight-only", "decoder": "int4-weight-only"}, "int8-weight-only"),
    ],
)
def test_memory_is_planned_for_the_schemes_that_graphs_have(components: dict[str, str], scheme: str) -> None:
    world = World(classes=(a_class(jobs={"resources": {"requests": {"cpu": "1"}}}),), sizes=LARGE)
    parts = {part: {"scheme": one} for part, one in components.items()}
    world.change(quantization={"scheme": "none", "components": parts} if parts else {"scheme": "none"})
    assert requested(world)["convert"] == footprint.told(footprint.peak(footprint.Sizes(**LARGE), scheme))


def test_memory_is_planned_for_what_gptq_holds_besides() -> None:
    found, planned = [], []
    for algorithm in ("rtn", "gptq"):
        world = World(classes=(a_class(jobs={"resources": {"requests": {"cpu": "1"}}}),), sizes=LARGE)
        world.change(quantization={"scheme": "int4-weight-only", "algorithm": algorithm})
        found.append(requested(world)["convert"])
        planned.append(footprint.told(footprint.peak(footprint.Sizes(**LARGE), "int4-weight-only", algorithm)))
    assert found == planned
    assert found[0] != found[1]


def test_a_longer_text_takes_more_and_a_shorter_one_is_a_way_out() -> None:
    sizes = SMALL | {"cache": 4096, "positions": 32_768}
    found = []
    for length in (None, 16_384):
        world = World(classes=(a_class(jobs={"resources": {"requests": {"cpu": "1"}}}),), sizes=sizes)
        world.change(maxSequenceLength=length)
        found.append(requested(world)["convert"])
    assert found == [
        footprint.told(footprint.peak(footprint.Sizes(**sizes), "none", length=length)) for length in (2048, 16_384)
    ]
    world = World(classes=(a_class(jobs={"resources": {"limits": {"memory": "2Gi"}}}),), sizes=sizes)
    world.change(maxSequenceLength=16_384)
    world.settle()
    world.end_jobs()
    world.settle()
    assert world.condition("Converted") == ("False", "MemoryAboveLimit")
    assert "maxSequenceLength" in world.message("Converted")
    assert "maxSequenceLength" not in a_world(LARGE).message("Converted")


def requested(world: World) -> dict[str, str]:
    """The memory that each Job requests, on the way to servers."""
    found = {}
    for _ in range(12):
        for action in world.look().actions:
            if isinstance(action, WantFetch | WantConvert | WantValidate | WantPublish):
                (container,) = build(action)[0]["spec"]["template"]["spec"]["containers"]
                found[container["args"][0]] = container["resources"]["requests"]["memory"]
        world.end_jobs()
    return found
