"""The split that was measured beside the one that the gateway has accepted."""

from __future__ import annotations

from datetime import timedelta
from random import Random

import pytest

from onnx_operator.api.rollout import MetricName
from onnx_operator.core.analysis import Measurement, Outcome
from onnx_operator.core.counts import Counts
from onnx_operator.core.followed import PAIRS_PER_SECOND, followed
from onnx_operator.core.scrapes import Scrape, Scrapes
from onnx_operator.prober.__main__ import parse_options
from unit.core.worlds import World, a_class

INT8 = {"scheme": "int8-dynamic"}
GOLDEN = {
    "steps": [{"weight": 10, "duration": "1m"}, {"weight": 50, "duration": "1m"}],
    "analysis": {
        "interval": "10s",
        "metrics": [{"name": "errorRatio", "maximum": "0.05"}, {"name": "disagreement", "maximum": "0.02"}],
    },
    "progressDeadline": "10m",
}


@pytest.mark.parametrize(
    ("counted", "wanted", "pairs", "seconds", "told"),
    [
        pytest.param((80, 320), 20, None, 60, (20, True), id="as wanted"),
        pytest.param((60, 340), 20, None, 60, (15, True), id="a little off, as happens"),
        pytest.param((0, 400), 20, None, 60, (0, False), id="nothing reached the candidate"),
        pytest.param((200, 200), 20, None, 60, (50, False), id="weights are ignored"),
        pytest.param((0, 400), 20, None, 29, (0, True), id="too early to tell"),
        pytest.param((0, 30), 20, None, 60, (0, True), id="too few requests to tell"),
        pytest.param((203_000, 797_000), 20, None, 600, (20, True), id="sure, but too little to matter"),
        pytest.param((0, 4000), 1, None, 60, (0, False), id="nothing of one percent"),
        pytest.param((4000, 0), 100, None, 60, (100, True), id="everything"),
        pytest.param((3000, 1000), 100, None, 60, (75, False), id="not everything"),
        pytest.param((50, 50), 50, None, 60, (50, True), id="half"),
        pytest.param((2000, 0), 50, None, 60, (100, False), id="all instead of half"),
        pytest.param((1900, 3100), 20, 1500, 300, (20, True), id="as wanted, besides the golden requests"),
        pytest.param((1500, 3500), 20, 1500, 300, (0, False), id="nothing but golden requests"),
        pytest.param((300, 700), 20, 300, 60, (0, True), id="so few that the golden ones may be some of them"),
        pytest.param((300, 300), 20, 300, 60, None, id="golden requests alone"),
        pytest.param((900, 2700), 20, 1500, 60, (20, True), id="some golden ones are from before the step"),
        pytest.param((0, 0), 20, None, 60, None, id="no requests"),
        pytest.param((100, 0), 0, None, 60, None, id="a preview"),
    ],
)
def test_a_split_is_told_and_called_another_only_where_chance_cannot_be_it(
    counted: tuple[int, int], wanted: int, pairs: int | None, seconds: int, told: tuple[int, bool] | None
) -> None:
    found = followed(*counted, percent=wanted, pairs=pairs, elapsed=timedelta(seconds=seconds))
    assert (found and (found.percent, found.is_as_wanted)) == told


@pytest.mark.parametrize("wanted", [1, 10, 50, 99])
def test_a_gateway_that_draws_each_side_by_its_weight_is_never_doubted(wanted: int) -> None:
    drawn = Random(wanted)  # noqa: S311  (a simulation)
    ours = 0
    for total in range(1, 20_001):
        ours += drawn.random() * 100 < wanted
        found = followed(ours, total - ours, percent=wanted, pairs=None, elapsed=timedelta(seconds=60))
        assert found is not None
        assert found.is_as_wanted, (ours, total)


def test_golden_requests_come_as_fast_as_the_prober_sends_them() -> None:
    given = ["--model=m", "--stable-version=1", "--candidate-version=2", "--host=h", "--golden=g"]
    assert parse_options([*given, "--http=127.0.0.1:80"]).rate == PAIRS_PER_SECOND


@pytest.fixture
def canary() -> World:
    """Revision 2 has 10 %."""
    world = World(classes=(a_class(rollout=GOLDEN),))
    world.serve_first()
    world.change(quantization=INT8)
    world.up_to_step(0)
    return world


def measure(world: World, requests: int, pairs: int) -> None:
    world.measured = (
        Measurement(MetricName.ERROR_RATIO, Outcome.MEASURED, Counts(0, requests), Counts(0, requests)),
        Measurement(MetricName.DISAGREEMENT, Outcome.MEASURED, Counts(0, pairs)),
    )


def test_a_split_that_is_followed_is_told(canary: World) -> None:
    measure(canary, 10_000, 0)
    canary.wait(10)
    canary.settle()
    assert canary.status.candidate is not None
    found = canary.status.candidate.measured_split
    assert found is not None
    assert (found.percent, found.candidate_requests, found.requests, found.as_wanted) == (10, 10_000, 100_000, True)
    assert canary.condition("TrafficProgrammed") == ("True", "TrafficProgrammed")


def test_a_split_that_is_not_followed_is_told_and_nothing_else_comes_of_it(canary: World) -> None:
    canary.really_gets = 50
    measure(canary, 10_000, 100)
    canary.goes_on_for(30)
    assert canary.condition("TrafficProgrammed") == ("True", "SplitNotFollowed")
    assert "of 10 % that the candidate should get, 50 % reached it" in canary.message("TrafficProgrammed")
    assert "9900 of 19800 requests" in canary.message("TrafficProgrammed")
    canary.goes_on_for(30)
    assert canary.step == 1


def test_golden_requests_of_an_earlier_step_are_not_taken_out_again(canary: World) -> None:
    measure(canary, 10_000, 250)
    canary.goes_on_for(60)
    assert canary.step == 1
    measure(canary, 10_000, 300)
    canary.goes_on_for(20)
    assert canary.status.candidate is not None
    found = canary.status.candidate.measured_split
    assert found is not None
    assert (canary.status.candidate.golden_requests_before, found.requests) == (250, 20_000 - 2 * 50)


def test_where_the_prober_is_silent_no_split_is_told(canary: World) -> None:
    measure(canary, 10_000, 100)
    canary.measured = (canary.measured[0], Measurement(MetricName.DISAGREEMENT, Outcome.PROVIDER_ERROR))
    canary.wait(10)
    canary.settle()
    assert canary.status.candidate is not None
    assert canary.status.candidate.measured_split is None


def test_what_servers_have_counted_tells_no_split(canary: World) -> None:
    """They count from the second look on, and a side whose pods come or go misses a look that the other has."""
    by_servers = {"name": "errorRatio", "provider": "triton", "maximum": "0.05"}
    canary.steer(analysis={"interval": "10s", "metrics": [by_servers, {"name": "disagreement", "maximum": "0.02"}]})
    for look in range(5):
        scrapes = Scrapes(
            Scrape(f"pods {look // 2}", 1, canary.now, Counts(0, 100 * look)),
            Scrape("pods", 1, canary.now, Counts(0, 900 * look)),
        )
        canary.measured = (
            Measurement(MetricName.ERROR_RATIO, Outcome.MEASURED, scrapes=scrapes),
            Measurement(MetricName.DISAGREEMENT, Outcome.MEASURED, Counts(0, 50 * look)),
        )
        canary.wait(10)
        canary.settle()
    assert canary.status.candidate is not None
    assert canary.status.candidate.measured_split is None
    assert canary.condition("TrafficProgrammed") == ("True", "TrafficProgrammed")
