"""Values, counts that servers keep, and the user's own queries: what they mean for the verdict."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from onnx_operator.adapters import triton
from onnx_operator.adapters.asking import Outage
from onnx_operator.api.rollout import Analysis, Metric, MetricName, PrometheusQuery, Provider
from onnx_operator.core.analysis import Criterion, Measurement, Outcome, Verdict, counted, criteria, in_words, judge
from onnx_operator.core.counts import Counts
from onnx_operator.core.queries import Series, Silence
from onnx_operator.core.questions import (
    Party,
    ServerPod,
    filled_in,
    largest,
    memory_query,
    one_number,
    two_counts,
)
from onnx_operator.core.scrapes import Scrape, Scrapes, Tallies, Tally

if TYPE_CHECKING:
    from onnx_operator.core.evidence import Evidence

START = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
GIB = 2**30
MEMORY = Criterion("memory", 50, maximum_value=Decimal(2 * GIB), maximum_of_stable=Decimal("1.2"))
OWN = Criterion("queue", 50, query=PrometheusQuery(value="q"), minimum_value=Decimal(10))


def looks(wanted: Criterion, *values: tuple[float, float | None] | None) -> list[Verdict]:
    """The verdicts on one value after another, of candidate and stable; None is a look that found nothing."""
    before: tuple[Evidence, ...] = ()
    found = []
    for value in values:
        seen = Measurement(wanted.metric, Outcome.NO_DATA)
        if value is not None:
            seen = Measurement(wanted.metric, Outcome.MEASURED, *value)
        judged = judge(wanted, seen, alpha=1e-4, before=before)
        before = judged.evidence
        found.append(judged.verdict)
    return found


P, I, N, F = Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.NO_DATA, Verdict.FAIL  # noqa: E741
FINE, MUCH, MORE = (1.0 * GIB, 1.0 * GIB), (3.0 * GIB, 3.0 * GIB), (1.5 * GIB, 1.0 * GIB)


@pytest.mark.parametrize(
    ("wanted", "values", "verdicts"),
    [
        pytest.param(MEMORY, [FINE, FINE], [P, P], id="within bounds passes at once"),
        pytest.param(MEMORY, [MUCH, MUCH, MUCH], [I, I, F], id="three looks running above the maximum fail"),
        pytest.param(MEMORY, [MORE, MORE, MORE], [I, I, F], id="three looks running above stable's fail"),
        pytest.param(MEMORY, [MUCH, MUCH, FINE, MUCH], [I, I, P, I], id="a look within the bound begins anew"),
        pytest.param(MEMORY, [MUCH, MORE, MUCH], [I, I, I], id="three looks beyond different bounds prove neither"),
        pytest.param(MEMORY, [MUCH, None, MUCH, MUCH], [I, N, I, F], id="silence neither counts nor clears"),
        pytest.param(MEMORY, [(3.0 * GIB, None)] * 3, [N, N, F], id="an absolute bound needs no stable"),
        pytest.param(MEMORY, [(1.0 * GIB, None)], [N], id="a comparison needs stable"),
        pytest.param(MEMORY, [(1.0 * GIB, 0.0)], [N], id="and more than nothing of it"),
        pytest.param(OWN, [(9.0, 1.0), (10.0, 1.0)], [I, P], id="a minimum is kept by what is equal to it"),
        pytest.param(OWN, [(0.0, None)] * 3, [I, I, F], id="zero is a value"),
        pytest.param(
            replace(OWN, minimum_value=None, minimum_of_stable=Decimal("0.8")),
            [(79.0, 100.0), (81.0, 100.0)],
            [I, P],
            id="a fifth less than stable",
        ),
    ],
)
def test_looks_at_a_value(
    wanted: Criterion, values: list[tuple[float, float | None] | None], verdicts: list[Verdict]
) -> None:
    assert looks(wanted, *values) == verdicts


def test_a_value_is_told_with_its_unit_and_the_bound_it_is_beyond() -> None:
    judged = judge(MEMORY, Measurement("memory", Outcome.MEASURED, 3.0 * GIB, 2.9 * GIB), alpha=1e-4)
    assert judged.message == (
        "memory is 3072.0Mi for the candidate, 2969.6Mi for stable: "
        "beyond maximumValue 2048.0Mi in 1 of 3 looks running"
    )
    assert [in_words("throughputPerReplica", 12.345), in_words("queue", 3.0)] == ["12.35/s", "3"]


def test_a_value_takes_nothing_of_the_promise() -> None:
    assert (MEMORY.bounds, OWN.bounds) == (0, 0)


def test_a_bound_that_changed_begins_anew() -> None:
    seen = Measurement("memory", Outcome.MEASURED, 3.0 * GIB)
    wanted = replace(MEMORY, maximum_of_stable=None)
    before = judge(wanted, seen, alpha=1e-4).evidence
    other = judge(replace(wanted, maximum_value=Decimal(GIB)), seen, alpha=1e-4, before=before)
    assert [one.candidate.bad for one in other.evidence] == [1]


def test_the_api_s_metrics_become_criteria() -> None:
    analysis = Analysis(
        metrics=[
            Metric(name="latencyQuantile", quantile="0.99", slower_than="250ms"),
            Metric(name="memory", maximum_value="2Gi", maximum_of_stable="1.2"),
            Metric(name="throughputPerReplica", minimum_value="500m"),
            Metric(name="errorRatio", maximum="0.05", provider=Provider.TRITON),
            Metric(name="queue", minimum_value="10", prometheus=PrometheusQuery(value="q")),
        ]
    )
    quantile, memory, throughput, errors, own = criteria(analysis, weight=10)
    assert (quantile.maximum, quantile.slower_than) == (Decimal("0.01"), timedelta(milliseconds=250))
    assert (memory, memory.provider) == (MEMORY, Provider.PROMETHEUS)
    assert (throughput.minimum_value, throughput.provider) == (Decimal("0.5"), Provider.TRITON)
    assert (errors.provider, own) == (Provider.TRITON, OWN)


@pytest.mark.parametrize(
    ("weight", "memory", "throughput", "relative"),
    [
        pytest.param(0, "2Gi", None, None, id="a preview owes no throughput and is not compared"),
        pytest.param(50, "2Gi", Decimal(1), Decimal("1.2"), id="with traffic on both sides all is judged"),
        pytest.param(100, "2Gi", Decimal(1), None, id="an idle stable is no yardstick"),
    ],
)
def test_values_where_the_weight_is(
    weight: int, memory: str, throughput: Decimal | None, relative: Decimal | None
) -> None:
    analysis = Analysis(
        metrics=[
            Metric(name="memory", maximum_value=memory, maximum_of_stable="1.2"),
            Metric(name="throughputPerReplica", minimum_value="1"),
        ]
    )
    first, second = criteria(analysis, weight=weight)
    assert first.maximum_value == Decimal(2 * GIB)
    assert (first.maximum_of_stable, second.minimum_value) == (relative, throughput)


def test_a_quantile_is_told_as_one() -> None:
    wanted = Criterion("latencyQuantile", 50, maximum=Decimal("0.01"), slower_than=timedelta(milliseconds=250))
    judged = judge(wanted, Measurement(wanted.metric, Outcome.MEASURED, Counts(200, 1000)), alpha=1e-4)
    assert judged.verdict is Verdict.FAIL
    assert judged.message == "the 0.99 quantile is over 250 ms: 20.00% (200 of 1000) for the candidate were slower"


# ---- stable that does not answer


def test_evidence_of_a_comparison_outlives_a_look_without_stable() -> None:
    wanted = Criterion("errorRatio", 50, maximum=Decimal("0.5"), tolerance=Decimal("0.01"))
    first = judge(wanted, Measurement("errorRatio", Outcome.MEASURED, Counts(9, 100), Counts(0, 900)), alpha=1e-9)
    alone = judge(
        wanted, Measurement("errorRatio", Outcome.MEASURED, Counts(9, 110)), alpha=1e-9, before=first.evidence
    )
    assert alone.verdict is Verdict.NO_DATA
    assert alone.evidence[-1] == first.evidence[-1]


# ---- servers


def scrape(second: int, total: int, bad: int = 0, *, servers: str = "a", replicas: int = 1) -> Scrape:
    return Scrape(servers, replicas, START + timedelta(seconds=second), Counts(bad, total))


@pytest.mark.parametrize(
    ("scrapes", "grown"),
    [
        pytest.param([scrape(0, 1000, 9)], Counts(0, 0), id="what was answered before the first look is nobody's"),
        pytest.param([scrape(0, 1000, 9), scrape(10, 1200, 11)], Counts(2, 200), id="what grew is counted"),
        pytest.param(
            [scrape(0, 1000), scrape(10, 1200), scrape(20, 40, servers="b"), scrape(30, 140, 5, servers="b")],
            Counts(5, 300),
            id="a look in which servers changed counts for nothing",
        ),
        pytest.param(
            [scrape(0, 1000, 9), scrape(10, 990, 9), scrape(20, 1090, 9)],
            Counts(0, 100),
            id="nor one that counts backwards",
        ),
        pytest.param([scrape(0, 10), scrape(10, 10, 1)], Counts(1, 1), id="an error counted before its answer"),
    ],
)
def test_the_growth_of_servers_counts(scrapes: list[Scrape], grown: Counts) -> None:
    tallies = Tallies()
    for one in scrapes:
        seen = counted(Measurement("errorRatio", Outcome.MEASURED, scrapes=Scrapes(one, None)), tallies)
        tallies = tallies.then(Scrapes(one, None))
    assert (seen.candidate, seen.stable) == (grown, None)


def test_throughput_is_good_answers_by_second_and_server_since_the_look_before() -> None:
    first, later = scrape(0, 1000, replicas=2), scrape(10, 1220, 20, replicas=2)
    wanted = MetricName.THROUGHPUT_PER_REPLICA
    begun = counted(Measurement(wanted, Outcome.MEASURED, scrapes=Scrapes(first, first)), Tallies())
    assert (begun.outcome, begun.candidate) == (Outcome.NO_DATA, None)
    before = Tallies().then(Scrapes(first, first))
    seen = counted(Measurement(wanted, Outcome.MEASURED, scrapes=Scrapes(later, None)), before)
    assert (seen.outcome, seen.candidate, seen.stable) == (Outcome.MEASURED, 10.0, None)
    changed = counted(Measurement(wanted, Outcome.MEASURED, scrapes=Scrapes(replace(later, servers="b"), None)), before)
    assert changed.outcome is Outcome.NO_DATA


def test_a_side_that_did_not_answer_stays_what_it_was() -> None:
    tally = Tally("a", START, Counts(0, 10), Counts(0, 3))
    assert Tallies(tally, tally).then(Scrapes(None, None)) == Tallies(tally, tally)


METRICS = """\
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="minilm",version="2"} 90
nv_inference_request_success{model="minilm",version="1"} 7
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{model="minilm",reason="BACKEND",version="2"} 3
nv_inference_request_failure{model="minilm",reason="CANCELED",version="2"} 2
nv_inference_request_failure{model="minilm",reason="REJECTED",version="2"} 1
# TYPE onnxruntime_request_failure counter
onnxruntime_request_failure{model="minilm",reason="GRAPH",version="2"} 10
onnxruntime_request_failure{model="minilm",reason="REQUEST",version="2"} 20
"""


#: As one was seen to tell it, with 100 requests for both in turn.
TWO_GRAPHS = """\
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="minilm",version="1"} 87
nv_inference_request_success{model="minilm",version="2"} 0
nv_inference_request_success{model="minilm-encoder",version="2"} 100
nv_inference_request_success{model="minilm-decoder",version="2"} 400
nv_inference_request_success{model="minilm-other",version="2"} 1
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{model="minilm",reason="OTHER",version="1"} 13
nv_inference_request_failure{model="minilm",reason="OTHER",version="2"} 13
nv_inference_request_failure{model="minilm-decoder",reason="BACKEND",version="2"} 3
# TYPE onnxruntime_request_failure counter
onnxruntime_request_failure{model="minilm-encoder",reason="GRAPH",version="2"} 4
onnxruntime_request_failure{model="minilm-decoder",reason="GRAPH",version="2"} 6
"""


@pytest.mark.parametrize(
    ("body", "counts"),
    [
        pytest.param(METRICS, Counts(14, 96, 22), id="this project's image"),
        pytest.param(METRICS.split("# TYPE onnx", maxsplit=1)[0], Counts(4, 96, 2), id="NVIDIA's image"),
        pytest.param(
            METRICS.replace('version="2"} 90', 'version="2"} 0'), Counts(14, 36, 22), id="errors before their answers"
        ),
        pytest.param(
            METRICS.replace(
                'nv_inference_request_success{model="minilm",version="2"} 90',
                'nv_inference_request_success{gpu_uuid="GPU-a",model="minilm",version="2"} 50\n'
                'nv_inference_request_success{gpu_uuid="GPU-b",model="minilm",version="2"} 40',
            ),
            Counts(14, 96, 22),
            id="two GPUs",
        ),
        pytest.param(
            TWO_GRAPHS,
            Counts(13, 503, 0),
            id="two graphs, and both in turn",
        ),
    ],
)
def test_whose_fault_the_answers_of_a_server_are(body: str, counts: Counts) -> None:
    assert triton.parse(200, body.encode(), model="minilm", version=2) == counts


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        pytest.param(503, METRICS, "answered 503", id="an error"),
        pytest.param(200, METRICS.replace('version="2"', 'version="3"'), "nothing of version 2", id="another version"),
        pytest.param(200, "", "nothing of version 2", id="nothing"),
        pytest.param(200, "<html>{</html>", "nothing of version 2", id="a page"),
        pytest.param(200, METRICS.replace(" 90", " NaN"), "something else", id="no number"),
        pytest.param(200, METRICS.replace(" 90", " 1e30"), "cannot be", id="more than status can hold"),
        pytest.param(200, METRICS.replace(" 90", " -90"), "cannot be", id="less than nothing"),
        pytest.param(200, METRICS.replace('{model="minilm",version="1"}', ""), "something else", id="no labels"),
    ],
)
def test_what_are_no_counters_of_the_version_is_an_outage(status: int, body: str, why: str) -> None:
    found = triton.parse(status, body.encode(), model="minilm", version=2)
    assert isinstance(found, Outage)
    assert why in found.why


# ---- queries


PARTY = Party("minilm-1a2b", 2, ("minilm-1a2b-cpu", "minilm-1a2b-cuda"))


def test_placeholders_are_filled_in() -> None:
    text = 'sum(x{ns="{{namespace}}",m="{{model}}",r="{{revision}}",n="{{number}}",s=~"{{services}}"}[{{window}}])'
    found = filled_in(text, PARTY, namespace="shop", model="minilm", since=START, now=START + timedelta(seconds=136.2))
    assert found == ('sum(x{ns="shop",m="minilm",r="minilm-1a2b",n="2",s=~"minilm-1a2b-cpu|minilm-1a2b-cuda"}[137s])')


def test_only_names_are_filled_in() -> None:
    with pytest.raises(ValueError, match="no name"):
        filled_in("x", PARTY, namespace='shop"}', model="minilm", since=START, now=START)
    with pytest.raises(ValueError, match="no name"):
        memory_query("shop", [ServerPod('a"}', "", "", 0)])


def sample(value: float, second: float = 0, **labels: str) -> Series:
    return Series(labels, ((second - 1, 1.0), (second, value)))


@pytest.mark.parametrize(
    ("series", "found"),
    [
        pytest.param([sample(3.5)], 3.5, id="a number"),
        pytest.param([], "no series", id="nothing is no zero"),
        pytest.param([sample(float("nan"))], "nan", id="NaN is no zero"),
        pytest.param([sample(float("inf"))], "inf", id="nor is a division by zero a number"),
        pytest.param([sample(1), sample(2)], "2 series", id="two numbers"),
    ],
)
def test_a_query_gives_one_number_or_silence(series: list[Series], found: float | str) -> None:
    number = one_number(series)
    assert found in number.why if isinstance(number, Silence) and isinstance(found, str) else number == found


@pytest.mark.parametrize(
    ("bad", "total", "counts"),
    [
        pytest.param(1.4, 10.6, Counts(1, 11), id="extrapolated counts are rounded"),
        pytest.param(10.6, 10.4, Counts(11, 11), id="and may overshoot a little"),
        pytest.param(0.0, 0.0, Counts(0, 0), id="none of none"),
        pytest.param(30.0, 10.0, None, id="more bad answers than answers"),
        pytest.param(-1.0, 10.0, None, id="a rate that was subtracted"),
        pytest.param(0.0, 1e300, None, id="more than status can hold"),
    ],
)
def test_two_numbers_are_counts_or_silence(bad: float, total: float, counts: Counts | None) -> None:
    found = two_counts(bad, total)
    assert isinstance(found, Silence) if counts is None else found == counts


PODS = (ServerPod("a", "", "uid-a", 0), ServerPod("b", "", "uid-b", 0))


@pytest.mark.parametrize(
    ("series", "found"),
    [
        pytest.param([sample(5, pod="a"), sample(7, pod="b")], 7.0, id="the largest pod counts"),
        pytest.param([sample(9, 10, pod="a"), sample(5, 20, pod="a"), sample(7, pod="b")], 7.0, id="its newest sample"),
        pytest.param([sample(5, pod="a")], "1 of 2 pods, and not of b", id="a pod that nobody scrapes"),
        pytest.param([], "0 of 2 pods", id="no cAdvisor"),
    ],
)
def test_memory_is_that_of_all_pods_or_silence(series: list[Series], found: float | str) -> None:
    bytes_ = largest(series, PODS)
    assert found in bytes_.why if isinstance(bytes_, Silence) and isinstance(found, str) else bytes_ == found


SHARE = Criterion(
    "own", 50, maximum=Decimal("0.05"), tolerance=Decimal("0.01"), query=PrometheusQuery(bad="b", total="t")
)


@pytest.mark.parametrize(
    ("candidate", "stable", "expected"),
    [
        pytest.param(Counts(0, 101), Counts(0, 901), P, id="what is fresh grows"),
        pytest.param(
            Counts(0, 100), Counts(0, 901), N, id="Prometheus goes on answering for what it no longer scrapes"
        ),
        pytest.param(Counts(0, 99), Counts(0, 901), N, id="what increase() made of it is a little less"),
        pytest.param(Counts(0, 101), Counts(0, 899), N, id="or of stable's"),
    ],
)
def test_own_counts_that_do_not_go_on_are_no_data_and_are_not_bet_on(
    candidate: Counts, stable: Counts, expected: Verdict
) -> None:
    before = judge(SHARE, Measurement("own", Outcome.MEASURED, Counts(0, 100), Counts(0, 900)), alpha=1e-4).evidence
    judged = judge(SHARE, Measurement("own", Outcome.MEASURED, candidate, stable), alpha=1e-4, before=before)
    assert judged.verdict is expected
    assert (judged.evidence == before) is (expected is N)


def test_a_preview_owes_no_growth() -> None:
    seen = Measurement("own", Outcome.MEASURED, Counts(0, 0), Counts(0, 0))
    before = judge(SHARE.in_preview, seen, alpha=1e-4).evidence
    assert judge(SHARE.in_preview, seen, alpha=1e-4, before=before).verdict is P
