"""Splits: what is written, and what counts."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from onnx_operator.api.model_class import GatewayReference
from onnx_operator.core.traffic import Backend, Mirror, Pin, Side, Track, carries, read_route, split, trouble_of
from unit.core.worlds import CPU, CUDA

GATEWAY = GatewayReference(name="edge", namespace="gateway")
STABLE, CANDIDATE, OLD = Side("m-1", 1, (CPU,)), Side("m-2", 2, (CPU,)), Side("m-0", 0, (CPU,))


def a_route(wanted: Any, *, conditions: dict[str, str] | None = None, seen: int = 3, parent: str = "edge") -> Any:
    rules: list[Any] = [{"backendRefs": [{"name": one.service, "weight": one.weight} for one in wanted.backends]}]
    rules[0]["filters"] = [
        {
            "type": "RequestMirror",
            "requestMirror": {"backendRef": {"name": one.service}, "percent": int(100 * one.share)},
        }
        for one in wanted.mirrors
    ]
    rules += [
        {
            "matches": [
                {"headers": [{"name": name, "value": str(value)}]}
                for name, value in (("x-onnx-version", pin.version), ("x-onnx-track", pin.track))
                if value is not None
            ],
            "backendRefs": [{"name": one.service, "weight": one.weight} for one in pin.backends],
        }
        for pin in wanted.pins
    ]
    given = conditions if conditions is not None else {"Accepted": "True", "ResolvedRefs": "True"}
    status = [
        {"type": kind, "status": value, "reason": "Because", "message": "words", "observedGeneration": seen}
        for kind, value in given.items()
    ]
    return {
        "metadata": {"generation": 3},
        "spec": {"rules": rules},
        "status": {"parents": [{"parentRef": {"name": parent, "namespace": "gateway"}, "conditions": status}]},
    }


def test_a_candidates_weight_is_taken_from_stable() -> None:
    found = split(stable=STABLE, candidate=CANDIDATE, weight=10, retiring=[])
    assert [(one.service, one.weight) for one in found.backends] == [("m-1-cpu", 90), ("m-2-cpu", 10)]
    assert (found.percent(STABLE.services), found.percent(CANDIDATE.services)) == (90, 10)


def test_every_side_is_always_pinned_even_at_weight_0() -> None:
    found = split(stable=STABLE, candidate=CANDIDATE, weight=0, retiring=[OLD])
    assert found.pins == (
        Pin(2, Track.CANDIDATE, (Backend("m-2-cpu", 1),)),
        Pin(1, Track.STABLE, (Backend("m-1-cpu", 1),)),
        Pin(0, None, (Backend("m-0-cpu", 1),)),
    )


@pytest.mark.parametrize(
    ("theirs", "ours", "weights"),
    [
        pytest.param((3, 1), (3, 1), [270, 90, 30, 10], id="by their weights"),
        pytest.param((3, 1), (0, 1), [270, 90, 0, 40], id="one pool of the candidate alone"),
        pytest.param((1, 0), (3, 1), [360, 0, 30, 10], id="one pool of stable alone"),
        pytest.param((1, 999), (1, 999), [90, 89910, 10, 9990], id="far apart"),
    ],
)
def test_what_pools_share_is_what_their_side_has(
    theirs: tuple[int, ...], ours: tuple[int, ...], weights: list[int]
) -> None:
    stable, candidate = Side("m-1", 1, (CPU, CUDA), theirs), Side("m-2", 2, (CPU, CUDA), ours)
    found = split(stable=stable, candidate=candidate, weight=10, retiring=[OLD])
    assert [one.weight for one in found.backends] == [*weights, 0]
    assert (found.percent(stable.services), found.percent(candidate.services)) == (90, 10)
    assert max(weights) <= 1_000_000  # more is no Gateway API weight


@pytest.mark.parametrize("weight", [0, 1, 33, 50, 99, 100])
def test_one_provider_here_and_two_there_still_share_exactly(weight: int) -> None:
    two = Side("m-2", 2, (CPU, CUDA))
    found = split(stable=STABLE, candidate=two, weight=weight, retiring=[])
    total = sum(one.weight for one in found.backends)
    mine = {one.weight for one in found.backends if one.service in two.services}
    assert len(mine) == 1
    assert 2 * mine.pop() * 100 == weight * total


@pytest.mark.parametrize("mirror", [0, 25])
def test_a_route_reads_back_as_it_was_written(mirror: int) -> None:
    pools = Side("m-2", 2, (CPU, CUDA), parts=(3, 0), pinned=(1, 1))
    wanted = split(stable=STABLE, candidate=pools, weight=10, retiring=[OLD], mirror=mirror)
    assert read_route(a_route(wanted), GATEWAY).split == wanted


def test_a_rule_that_asks_for_a_header_is_never_taken_for_the_shared_one() -> None:
    wanted = split(stable=STABLE, candidate=None, weight=0, retiring=[])
    route = a_route(wanted)
    other = {
        "matches": [{"headers": [{"name": "x-onnx-track", "value": "retiring"}]}],
        "backendRefs": [{"name": "m-0-cpu"}],
    }
    route["spec"]["rules"].append(other)
    found = read_route(route, GATEWAY)
    assert found.split.backends == wanted.backends
    assert found.split.mentions(OLD)
    assert not carries([found], wanted)


def test_a_mirror_takes_nothing_from_stable_and_is_shared_by_the_providers() -> None:
    candidate = Side("m-2", 2, (CPU, CUDA), parts=(3, 1))
    found = split(stable=STABLE, candidate=candidate, weight=0, retiring=[], mirror=25)
    assert found.mirrors == (Mirror("m-2-cpu", Fraction(3, 16)), Mirror("m-2-cuda", Fraction(1, 16)))
    assert (found.percent(STABLE.services), found.mirrored_percent(STABLE.services)) == (100, 0)
    assert found.mirrored_percent(candidate.services) == 25


def test_nothing_is_mirrored_to_a_pool_without_a_share() -> None:
    lost = Side("m-2", 2, (CPU, CUDA), parts=(1, 0))
    assert split(stable=STABLE, candidate=lost, weight=0, retiring=[], mirror=25).mirrors == (
        Mirror("m-2-cpu", Fraction(1, 4)),
    )


def test_a_service_that_is_only_mirrored_to_is_mentioned() -> None:
    wanted = split(stable=STABLE, candidate=None, weight=0, retiring=[])
    mirrored = replace(wanted, mirrors=(Mirror("m-2-cpu", Fraction(1)),))
    assert mirrored.mentions(CANDIDATE)
    assert not wanted.mentions(CANDIDATE)


@pytest.mark.parametrize(
    ("said", "share"),
    [
        ({"percent": 25}, Fraction(1, 4)),
        ({"fraction": {"numerator": 25}}, Fraction(1, 4)),
        ({"fraction": {"numerator": 1, "denominator": 8}}, Fraction(1, 8)),
        ({}, Fraction(1)),
    ],
)
def test_a_mirror_is_read_in_every_way_it_can_be_written(said: dict[str, Any], share: Fraction) -> None:
    route = a_route(WANTED)
    route["spec"]["rules"][0]["filters"] = [
        {"type": "ResponseHeaderModifier", "responseHeaderModifier": {}},
        {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "m-2-cpu"}, **said}},
    ]
    assert read_route(route, GATEWAY).split.mirrors == (Mirror("m-2-cpu", share),)


WANTED = split(stable=STABLE, candidate=CANDIDATE, weight=10, retiring=[])


@pytest.mark.parametrize(
    ("route", "counts"),
    [
        pytest.param(a_route(WANTED), True, id="accepted as it is"),
        pytest.param(a_route(WANTED, seen=2), False, id="an older generation was accepted"),
        pytest.param(a_route(WANTED, conditions={"Accepted": "True"}), False, id="references not resolved yet"),
        pytest.param(
            a_route(WANTED, conditions={"Accepted": "True", "ResolvedRefs": "False"}), False, id="a Service is missing"
        ),
        pytest.param(a_route(WANTED, conditions={}), False, id="nothing said yet"),
        pytest.param(a_route(WANTED, parent="other"), False, id="another gateway said so"),
        pytest.param(
            a_route(split(stable=STABLE, candidate=CANDIDATE, weight=20, retiring=[])), False, id="another weight"
        ),
        pytest.param(
            a_route(split(stable=STABLE, candidate=CANDIDATE, weight=10, retiring=[], mirror=5)), False, id="a mirror"
        ),
    ],
)
def test_a_weight_counts_only_once_the_gateway_has_accepted_it(route: Any, counts: bool) -> None:  # noqa: FBT001
    seen = read_route(route, GATEWAY)
    assert carries((seen, seen), WANTED) is counts


def test_both_routes_have_to_be_accepted() -> None:
    good, bad = read_route(a_route(WANTED), GATEWAY), read_route(a_route(WANTED, seen=2), GATEWAY)
    assert not carries((good, bad), WANTED)
    assert not carries((good, None), WANTED)


def test_a_refused_route_is_told_in_the_gateways_words() -> None:
    bad = read_route(a_route(WANTED, conditions={"Accepted": "False"}), GATEWAY)
    reason, message = trouble_of((("HTTPRoute", None), ("GRPCRoute", bad)))
    assert reason == "RoutesRefused"
    assert message == "the gateway refuses the GRPCRoute: Because: words"
