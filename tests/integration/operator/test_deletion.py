"""`kubectl delete onnxmodel` at any moment removes everything it owns, by the cluster's own garbage collector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from integration.operator.conftest import GROUP
from integration.operator.phases import KINDS, PHASES, V2, Phases

if TYPE_CHECKING:
    from integration.operator.conftest import World


def left_over(world: World) -> list[str]:
    return [f"{kind}/{name}" for kind in KINDS for name in world.names(kind)]


def until_gone(world: World) -> None:
    try:
        world.until(lambda: not left_over(world), "everything is gone", within=300)
    except AssertionError as error:
        raise AssertionError(f"left over: {left_over(world)}\n{error}") from None


def assert_no_finalizers(world: World) -> None:
    """None but those of the cluster's own controllers."""
    ours = [one for kind in KINDS for one in world.items(kind) if kind not in {"v1/pods", "batch/v1/jobs"}]
    assert not [one["metadata"]["name"] for one in ours if one["metadata"].get("finalizers")]


def test_a_deletion_in_any_phase_leaves_nothing_behind(world: World) -> None:
    phases = Phases(world)
    operator = world.operator().supervise()
    phases.serve()
    phases.hold()
    assert_no_finalizers(world)
    for number, phase in enumerate(PHASES):
        # As kubectl does by default and with --cascade=foreground.
        policy = ("Background", "Foreground")[number % 2]
        world.client.delete(f"{GROUP}/namespaces/{world.namespace}/onnxmodels/{phase}?propagationPolicy={policy}")
    until_gone(world)
    assert not operator.lines(level="ERROR")


def test_a_deletion_needs_no_operator_and_a_new_model_of_the_name_starts_afresh(world: World) -> None:
    operator = world.operator().supervise()
    world.apply("canary", rollout={"steps": [{"weight": 20, "duration": "5m"}]})
    world.apply("still")
    uid = world.until_ready("canary") and world.model("canary")["metadata"]["uid"]
    world.until_ready("still")
    world.patch("canary", V2)
    world.until(lambda: (world.status("canary").get("candidate") or {}).get("weight") == 20, "there is a canary")
    operator.end()
    for name in ("canary", "still"):
        world.delete(name)
    until_gone(world)

    world.apply("canary")
    world.operator("later").supervise()
    status = world.until_ready("canary")
    assert status["stable"]["number"] == 1
    assert world.model("canary")["metadata"]["uid"] != uid


def test_a_model_made_again_at_once_inherits_nothing_from_the_one_that_goes(world: World) -> None:
    world.operator().supervise()
    world.apply("minilm")
    world.until_ready("minilm")
    before = {one["metadata"]["uid"] for kind in KINDS for one in world.items(kind)}
    world.delete("minilm")
    world.apply("minilm")
    # What still has the name belongs to the one that goes: told as a conflict at worst, and over once it is gone.
    world.until_ready("minilm")
    after = {one["metadata"]["uid"] for kind in KINDS for one in world.items(kind)}
    world.until(lambda: not before & {o["metadata"]["uid"] for k in KINDS for o in world.items(k)}, "the old is gone")
    assert after
    world.until_ready("minilm")
