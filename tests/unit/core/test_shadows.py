"""Steps that send copies of stable's requests to the candidate, whose answers go to nobody."""

from __future__ import annotations

from fractions import Fraction

import pytest

from onnx_operator.api.rollout import MetricName
from onnx_operator.core.actions import WantRoutes
from onnx_operator.core.analysis import Measurement, Outcome
from onnx_operator.core.counts import Counts
from onnx_operator.core.decide import obstacle_finding
from onnx_operator.core.pods import Trouble
from onnx_operator.core.scrapes import Scrape, Scrapes
from unit.core.worlds import World

STEPS = [{"weight": 0, "mirror": 25, "duration": "1m"}, {"weight": 50, "duration": "1m"}]


def with_steps(steps: list[dict[str, object]]) -> World:
    world = World()
    world.serve_first()
    world.change(quantization={"scheme": "int8-dynamic"}, rollout={"steps": steps})
    return world


@pytest.fixture
def shadow() -> World:
    """Revision 2 gets copies of a quarter of the requests."""
    world = with_steps(STEPS)
    world.up_to_step(0)
    world.goes_on_for(10)
    return world


def mirrored(world: World) -> dict[str, Fraction]:
    assert world.split is not None
    return {one.service: one.share for one in world.split.mirrors}


def test_a_shadow_gets_copies_and_answers_nobody(shadow: World) -> None:
    assert mirrored(shadow) == {f"{shadow.numbered(2).name}-cpu": Fraction(1, 4)}
    assert shadow.weights() == {1: 100, 2: 0}
    assert "step 1 of 2 at 0 %, with a mirror of 25 %" in shadow.message("Promoted")
    candidate = shadow.status.candidate
    assert candidate is not None
    assert (candidate.weight, candidate.mirror, candidate.verdict) == (0, 25, "Pass")


def test_the_step_after_a_shadow_has_the_traffic_and_no_mirror_in_one_write(shadow: World) -> None:
    writes = len(shadow.history)
    shadow.goes_on_for(60)
    assert shadow.step == 1
    assert (mirrored(shadow), shadow.weights()) == ({}, {1: 50, 2: 50})
    assert len(shadow.history) == writes + 1
    assert shadow.status.candidate is not None
    assert shadow.status.candidate.mirror == 0
    shadow.finish()
    assert shadow.stable_number == 2


def test_a_preview_then_shadows_that_grow_then_traffic() -> None:
    growing = [{"weight": 0, "duration": "10s"}, {"weight": 0, "mirror": 5, "duration": "10s"}, *STEPS]
    world = with_steps(growing)
    world.up_to_step(0)
    seen = []
    while world.stable_number == 1:
        seen.append((sum(mirrored(world).values()), world.weights().get(2)))
        world.goes_on_for(10)
    assert list(dict.fromkeys(seen)) == [(0, 0), (Fraction(1, 20), 0), (Fraction(1, 4), 0), (0, 50)]


def test_harm_in_a_shadow_ends_it_before_anybody_was_answered(shadow: World) -> None:
    writes = len(shadow.history)
    shadow.goes_bad()
    assert shadow.condition("Promoted") == ("False", "AnalysisFailed")
    assert "at 0 %, with a mirror of 25 % of the traffic, errorRatio is" in shadow.message("Promoted")
    assert mirrored(shadow) == {}
    assert shadow.weights() == {1: 100, 2: 0}
    assert len(shadow.history) == writes + 1
    shadow.accept()
    shadow.goes_on_for(30)
    assert shadow.weights() == {1: 100}


def test_a_gateway_that_ignores_mirrors_is_told_and_ends_at_the_deadline() -> None:
    world = with_steps(STEPS)
    world.up_to_step(0)
    world.measure(0, 1000, mirrored=0)
    world.goes_on_for(120)
    assert world.condition("Promoted") == ("Unknown", "AnalysisHolds")
    assert "0 of 50 mirrored samples; the step mirrors 25 % of stable's requests" in world.message("Promoted")
    world.goes_on_for(600)
    assert world.condition("Promoted") == ("False", "AnalysisNoData")
    assert "does the gateway support RequestMirror" in world.message("Promoted")
    assert mirrored(world) == {}


@pytest.mark.parametrize(
    "trouble", [None, Trouble("ContainerFailed", "exit code 139", 139, is_crash=True)], ids=["lost", "crashed"]
)
def test_a_shadow_whose_servers_vanish_gets_no_copies(shadow: World, trouble: Trouble | None) -> None:
    shadow.break_servers(shadow.numbered(2).name, trouble)
    shadow.settle()
    assert mirrored(shadow) == {}


@pytest.mark.parametrize("control", ["abortToken", "promoteToken"])
def test_a_person_who_ends_a_shadow_ends_its_mirror(shadow: World, control: str) -> None:
    shadow.steer(**{control: "now"})
    shadow.settle()
    assert mirrored(shadow) == {}
    assert shadow.weights() in ({1: 100, 2: 0}, {1: 0, 2: 100})


def test_silence_holds_a_shadow_that_is_all_there_is() -> None:
    world = with_steps([{"weight": 0, "mirror": 100, "duration": "10s"}])
    world.up_to_step(0, silence=Outcome.NO_DATA)
    world.goes_on_for(60)
    assert world.condition("Promoted") == ("Unknown", "AnalysisHolds")
    world.measure(0, 1000)
    world.finish()
    assert world.stable_number == 2


def test_a_gateway_api_that_knows_no_mirrors_is_told_with_the_way_out_until_the_deadline() -> None:
    world = with_steps([{"weight": 0, "duration": "10s"}, *STEPS])
    world.up_to_step(0)
    (routes,) = (one for one in world.decide().actions if isinstance(one, WantRoutes))
    refused = ".spec.rules[0].filters[0].requestMirror.percent: field not declared in schema"
    finding = obstacle_finding(routes, "WriteRefused", refused)
    assert (finding.type, finding.status, finding.reason) == ("TrafficProgrammed", "False", "MirrorNotSupported")
    assert "install version 1.3 or later, or take mirror out of rollout.steps" in finding.message

    while world.status.candidate is not None:
        world.wait(10)
        decision = world.look()
        if decision.move is None:
            world.status = decision.status(finding)
    world.settle()
    assert world.condition("Promoted") == ("False", "ProgressDeadlineExceeded")
    assert finding.message in world.message("Promoted")
    assert mirrored(world) == {}


@pytest.mark.parametrize(("copies", "passes"), [(0, False), (10, True)])
def test_golden_requests_alone_pass_no_shadow_that_the_servers_tell_of(copies: int, passes: bool) -> None:  # noqa: FBT001
    by_servers = {"name": "errorRatio", "provider": "triton", "maximum": "0.05"}
    world = with_steps(STEPS)
    world.steer(analysis={"interval": "10s", "metrics": [by_servers, {"name": "disagreement", "maximum": "0.02"}]})
    world.up_to_step(0)
    for look in range(1, 12):
        answered = Counts(0, (50 + copies) * look)
        scrape = Scrape("pods", 1, world.now, answered)
        world.measured = (
            Measurement(MetricName.ERROR_RATIO, Outcome.MEASURED, scrapes=Scrapes(scrape, scrape)),
            Measurement(MetricName.DISAGREEMENT, Outcome.MEASURED, Counts(0, 50 * look)),
        )
        world.goes_on_for(10)
    assert (world.step == 1) is passes
    if not passes:
        assert "0 of 50 mirrored samples" in world.message("Promoted")
