"""What Prometheus is asked, and what its samples of Envoy mean."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_operator.core.counts import Counts
from onnx_operator.core.queries import Errors, Series, Sides, Silence, Slowness

if TYPE_CHECKING:
    from collections.abc import Sequence

SIDES = Sides("shop", candidate=("minilm-2-cpu",), stable=("minilm-1-cpu",))
START = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
CANDIDATE, STABLE = "service/shop/minilm-2-cpu", "service/shop/minilm-1-cpu"


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def series(metric: str, cluster: str, values: Sequence[float | None], *, envoy: str = "a", **labels: str) -> Series:
    """A series scraped every two seconds; None is a scrape in which it did not exist."""
    samples = tuple((START.timestamp() + 2 * index, value) for index, value in enumerate(values) if value is not None)
    named = {"__name__": f"envoy_cluster_{metric}", "envoy_cluster_name": cluster, "instance": envoy}
    return Series(named | labels, samples)


def http(cluster: str, code_class: str, values: Sequence[float | None], *, envoy: str = "a") -> Series:
    return series("upstream_rq_xx", f"{cluster}/8000/http", values, envoy=envoy, envoy_response_code_class=code_class)


def grpc(cluster: str, status: int, values: Sequence[float | None]) -> Series:
    return series(
        f"grpc_ModelInfer_{status}",
        f"{cluster}/8001/grpc",
        values,
        envoy_grpc_bridge_service="inference",
        envoy_grpc_bridge_method="GRPCInferenceService",
    )


def bucket(cluster: str, bound: str, values: Sequence[float | None]) -> Series:
    return series("upstream_rq_time_bucket", f"{cluster}/8000/http", values, le=bound)


def candidate_errors(*found: Series) -> Counts:
    counted = Errors(SIDES).count(found, now=at(8))
    assert not isinstance(counted, Silence), counted.why
    return counted[0]


@pytest.mark.parametrize(
    ("question", "seconds", "text"),
    [
        pytest.param(
            Errors(SIDES),
            62.5,
            '{__name__=~"envoy_cluster_(membership_total|upstream_rq_(xx|total|completed|retry|active)|grpc_.+_[0-9]+)",'
            'envoy_cluster_name=~"service/shop/(minilm-1-cpu|minilm-2-cpu)/(8000/http|8001/grpc)"}[62500ms]',
            id="errors of both sides and both protocols in one query",
        ),
        pytest.param(
            Slowness(SIDES, 250),
            60,
            '{__name__=~"envoy_cluster_(membership_total|upstream_rq_(time_bucket|timeout))",'
            'envoy_cluster_name=~"service/shop/(minilm-1-cpu|minilm-2-cpu)/(8000/http|8001/grpc)",'
            'le=~"250([.]0)?|[+]Inf|"}[60000ms]',
            id="only the histogram bounds that count, spelled as either Prometheus spells them",
        ),
        pytest.param(
            Slowness(Sides("shop", ("b-cpu", "b-cuda"), ("a-cpu", "a-cuda")), 0.5),
            86_400,
            '{__name__=~"envoy_cluster_(membership_total|upstream_rq_(time_bucket|timeout))",'
            'envoy_cluster_name=~"service/shop/(a-cpu|a-cuda|b-cpu|b-cuda)/(8000/http|8001/grpc)",'
            'le=~"0[.]5([.]0)?|[+]Inf|"}[86400000ms:288s]',
            id="a window of a day is read at 300 points",
        ),
    ],
)
def test_the_query_is(question: Errors | Slowness, seconds: float, text: str) -> None:
    assert question.text(since=START, now=at(seconds)) == text


@pytest.mark.parametrize("name", ['x"}', "a|b", "A", "", "a.b", "a\\"])
def test_a_name_that_would_change_the_query_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a namespace or Service"):
        Errors(Sides("shop", (name,), ("a-cpu",))).text(since=START, now=at(1))


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="is empty"):
        Errors(SIDES).text(since=START, now=START)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param([http(CANDIDATE, "2", [100, 110, 130])], Counts(0, 30), id="only what was added in the window"),
        pytest.param([http(CANDIDATE, "2", [100])], Counts(0, 0), id="one scrape is no growth"),
        pytest.param(
            [http(CANDIDATE, "2", [0, 5, 9]), http(CANDIDATE, "5", [None, 3, 4])],
            Counts(4, 13),
            id="the first errors count, though their series is born with them",
        ),
        pytest.param(
            [http(STABLE, "2", [10, 20, 30]), http(CANDIDATE, "2", [None, None, 7])],
            Counts(0, 7),
            id="all of a candidate whose first request came after the first scrape",
        ),
        pytest.param(
            [series("membership_total", f"{STABLE}/8000/http", [1, 1, 1]), http(CANDIDATE, "2", [None, 7, 9])],
            Counts(0, 9),
            id="all of a candidate where nobody had asked anything before",
        ),
        pytest.param(
            [series("membership_total", f"{CANDIDATE}/8000/http", [1, 1, 1])],
            Counts(0, 0),
            id="scrapes without requests",
        ),
        pytest.param([http(CANDIDATE, "2", [500, 4, 9])], Counts(0, 9), id="a reset starts at zero"),
        pytest.param(
            [http(CANDIDATE, "2", [500, 510]), http(CANDIDATE, "2", [None, None, 900, 903], envoy="b")],
            Counts(0, 13),
            id="another Envoy that appears is counted from its own first scrape",
        ),
        pytest.param(
            [http(CANDIDATE, "2", [0, 5, float("nan"), 9]), http(CANDIDATE, "5", [0, float("inf"), 1])],
            Counts(1, 10),
            id="values that are no numbers are not there",
        ),
        pytest.param(
            [http(CANDIDATE, code, [0, 1]) for code in "12345"], Counts(1, 5, disputed=1), id="classes of HTTP statuses"
        ),
        pytest.param(
            [grpc(CANDIDATE, status, [0, 1]) for status in range(17)],
            Counts(6, 17, disputed=10),
            id="gRPC statuses: six blame the server, ten the caller",
        ),
        pytest.param(
            [grpc(CANDIDATE, 0, [0, 8]), series("upstream_rq_xx", f"{CANDIDATE}/8001/grpc", [0, 8])],
            Counts(0, 8),
            id="HTTP statuses of gRPC are not counted again",
        ),
        pytest.param(
            [
                http(CANDIDATE, "2", [10, 20]),
                series("upstream_rq_total", f"{CANDIDATE}/8000/http", [12, 30]),
                series("upstream_rq_completed", f"{CANDIDATE}/8000/http", [10, 20]),
                series("upstream_rq_retry", f"{CANDIDATE}/8000/http", [0, 1]),
                series("upstream_rq_active", f"{CANDIDATE}/8000/http", [2, 4]),
            ],
            Counts(0, 15, disputed=5),
            id="callers that hung up: begun, not finished, not going on, not retried",
        ),
        pytest.param(
            [http(CANDIDATE, "5", [0, 9]), series("upstream_rq_completed", f"{CANDIDATE}/8000/http", [0, 9])],
            Counts(9, 9),
            id="requests that found no pod never began and are errors",
        ),
    ],
)
def test_errors_of_the_candidate(found: list[Series], expected: Counts) -> None:
    assert candidate_errors(*found) == expected


def test_each_side_is_counted_by_itself() -> None:
    found = [http(CANDIDATE, "5", [0, 3]), http(STABLE, "2", [0, 40]), http("service/shop/other-9-cpu", "2", [0, 5])]
    assert Errors(SIDES).count(found, now=at(3)) == (Counts(3, 3), Counts(0, 40))


def test_execution_providers_of_a_side_are_added_up() -> None:
    sides = Sides("shop", ("b-cpu", "b-cuda"), ("a-cpu",))
    found = [http("service/shop/b-cpu", "2", [0, 3]), http("service/shop/b-cuda", "5", [0, 4])]
    assert Errors(sides).count(found, now=at(3)) == (Counts(4, 7), Counts(0, 0))


SHADOW = Sides("shop", candidate=("b-cpu", "b-cuda"), stable=("a-cpu",), mirrored_by="minilm")
MIRRORS = [f"httproute/shop/minilm/rule/0-mirror-{number}" for number in (0, 1)]
GRPC_MIRROR = "grpcroute/shop/minilm/rule/0-mirror-0"


def mirrored(name: str, cluster: str, values: Sequence[float | None], **labels: str) -> Series:
    return series(f"upstream_rq_{name}", cluster, values, **labels)


def test_what_is_mirrored_is_asked_for_with_what_is_not() -> None:
    assert (
        'envoy_cluster_name=~"service/shop/(a-cpu|b-cpu|b-cuda)/(8000/http|8001/grpc)'
        "|httproute/shop/minilm/rule/0-mirror-0|httproute/shop/minilm/rule/0-mirror-1"
        '|grpcroute/shop/minilm/rule/0-mirror-0|grpcroute/shop/minilm/rule/0-mirror-1"'
    ) in Errors(SHADOW).text(since=START, now=at(60))
    with pytest.raises(ValueError, match="no name of a namespace or Service"):
        Errors(Sides("shop", ("b-cpu",), ("a-cpu",), 'm"}')).text(since=START, now=at(1))


def test_answers_to_mirrored_requests_are_the_candidates_and_told_apart() -> None:
    question, found = (
        Errors(SHADOW),
        [
            http("service/shop/a-cpu", "2", [100, 140]),
            http("service/shop/b-cpu", "2", [0, 5]),
            mirrored("xx", MIRRORS[0], [0, 6], envoy_response_code_class="2"),
            mirrored("xx", MIRRORS[1], [None, 3], envoy_response_code_class="5"),
        ],
    )
    assert question.count(found, now=at(3)) == (Counts(3, 14), Counts(0, 40))
    assert question.mirrored(found) == 9


def test_grpc_is_left_out_on_both_sides_of_a_shadow_as_nobody_counts_the_mirrored_statuses() -> None:
    question, found = (
        Errors(SHADOW),
        [
            http("service/shop/a-cpu", "2", [0, 40]),
            grpc("service/shop/a-cpu", 13, [0, 7]),
            mirrored("xx", MIRRORS[0], [0, 6], envoy_response_code_class="2"),
            mirrored("completed", GRPC_MIRROR, [0, 8]),
        ],
    )
    assert question.count(found, now=at(3)) == (Counts(0, 6), Counts(0, 40))
    assert question.mirrored(found) == 6


def test_a_shadow_of_grpc_alone_is_silence_about_errors_with_the_way_out() -> None:
    silence = Errors(SHADOW).mirrored([mirrored("completed", GRPC_MIRROR, [0, 8])])
    assert isinstance(silence, Silence)
    assert "all 8 mirrored requests are gRPC" in silence.why
    assert "let slowRatio and disagreement judge the shadow" in silence.why


def test_slow_answers_to_mirrored_requests_count_by_either_protocol() -> None:
    question = Slowness(SHADOW, 250)
    found = [
        mirrored("time_bucket", cluster, values, le=bound)
        for cluster in (MIRRORS[0], GRPC_MIRROR)
        for bound, values in (("250", [0, 4]), ("+Inf", [0, 10]))
    ]
    assert question.count(found, now=at(3)) == (Counts(12, 20), Counts(0, 0))
    assert question.mirrored(found) == 20


@pytest.mark.parametrize(
    ("found", "now", "why"),
    [
        pytest.param([], 2, "knows nothing of these Services", id="no series"),
        pytest.param([http(CANDIDATE, "2", [])], 2, "knows nothing of these Services", id="series without samples"),
        pytest.param([http(CANDIDATE, "2", [1, 2, 3])], 20, "16 s old", id="no scrape for eight intervals"),
        pytest.param(
            [series("upstream_rq_completed", f"{CANDIDATE}/8001/grpc", [0, 3])],
            2,
            "keep envoy_cluster_grpc_",
            id="gRPC answers whose status nobody counts",
        ),
    ],
)
def test_it_is_silence_when_there_are(found: list[Series], now: float, why: str) -> None:
    silence = Errors(SIDES).count(found, now=at(now))
    assert isinstance(silence, Silence)
    assert why in silence.why


def test_scrapes_a_minute_apart_are_fresh_for_three_minutes() -> None:
    samples = tuple((START.timestamp() + 60 * minute, minute) for minute in range(3))
    found = [Series(http(CANDIDATE, "2", []).labels, samples)]
    assert Errors(SIDES).count(found, now=at(120 + 179)) == (Counts(0, 2), Counts(0, 0))
    assert isinstance(Errors(SIDES).count(found, now=at(120 + 181)), Silence)


@pytest.mark.parametrize(
    ("slower_than", "bound"),
    [(1, 1), (100, 100), (101, 250), (250, 250), (0.2, 0.5), (3_600_000, 3_600_000), (3_600_001, None)],
)
def test_slow_is_judged_at_the_next_bound_of_the_histogram(slower_than: float, bound: float | None) -> None:
    question = Slowness.above(timedelta(milliseconds=slower_than), SIDES)
    assert (question and question.bucket) == bound


@pytest.mark.parametrize("bound", ["250", "250.0"])
def test_slow_answers_are_those_above_the_bound_and_those_envoy_gave_up_on(bound: str) -> None:
    found = [
        bucket(CANDIDATE, bound, [5, 15]),
        bucket(CANDIDATE, "+Inf", [6, 20]),
        series("upstream_rq_timeout", f"{CANDIDATE}/8000/http", [0, 2]),
    ]
    assert Slowness(SIDES, 250).count(found, now=at(3)) == (Counts(6, 16), Counts(0, 0))


def test_a_histogram_without_the_bound_is_silence() -> None:
    silence = Slowness(SIDES, 250).count([bucket(CANDIDATE, "+Inf", [6, 20])], now=at(3))
    assert isinstance(silence, Silence)
    assert "no bucket at 250 ms" in silence.why


@given(
    st.lists(st.tuples(st.sampled_from("245"), st.booleans()), max_size=60),
    st.lists(st.integers(0, 59), max_size=3),
)
def test_nothing_is_lost_or_invented_through_births_and_scrapes(
    answers: list[tuple[str, bool]], resets: list[int]
) -> None:
    """Answers arrive one by one, some followed by a scrape; a restart right after a scrape loses nothing."""
    live: dict[str, int] = {"2": 0}
    history: dict[str, list[float | None]] = {"2": [0], "4": [None], "5": [None]}
    counted = 0
    pending = 0
    for index, (code, scraped) in enumerate(answers):
        live[code] = live.get(code, 0) + 1
        pending += 1
        if scraped or index in resets:
            for each, values in history.items():
                values.append(live.get(each))
            counted, pending = counted + pending, 0
            if index in resets:
                live = dict.fromkeys(live, 0)
                for each, values in history.items():
                    values.append(live.get(each))
    total = candidate_errors_at_end(history)
    assert total == counted


def candidate_errors_at_end(history: dict[str, list[float | None]]) -> int:
    length = len(history["2"])
    counted = Errors(SIDES).count(
        [http(CANDIDATE, code, values) for code, values in history.items()], now=at(2 * length)
    )
    assert not isinstance(counted, Silence)
    return counted[0].total
