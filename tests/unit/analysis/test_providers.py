"""Whatever Prometheus and the prober answer, or do not, is a value and never an exception."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from onnx_operator.adapters import prober, prometheus
from onnx_operator.adapters.asking import Outage
from onnx_operator.adapters.prober import ProberReader
from onnx_operator.adapters.prometheus import Prometheus
from onnx_operator.adapters.triton import TritonReader
from onnx_operator.api.rollout import MetricName, PrometheusQuery, Provider
from onnx_operator.core.analysis import Criterion, Outcome
from onnx_operator.core.counts import Counts
from onnx_operator.core.queries import Series
from onnx_operator.core.questions import Party, ServerPod
from onnx_operator.measure import Instruments, ProberPod, Subject, measure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
ERRORS = Criterion(MetricName.ERROR_RATIO, 50, maximum=Decimal("0.05"))
SLOW = Criterion(MetricName.SLOW_RATIO, 50, maximum=Decimal("0.05"), slower_than=timedelta(seconds=1))
DISAGREEMENT = Criterion(MetricName.DISAGREEMENT, 50, maximum=Decimal("0.02"))
PARTIES = (Party("minilm-2", 2, ("minilm-2-cpu",)), Party("minilm-1", 1, ("minilm-1-cpu",)))
SUBJECT = Subject("shop", "minilm", *PARTIES, prober=ProberPod(None))


def result(kind: str, values: Any, **more: Any) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": kind, "result": values}} | more


@pytest.mark.parametrize(
    ("answer", "series"),
    [
        pytest.param(
            result("matrix", [{"metric": {"a": "b"}, "values": [[1, "2"], [2.5, "NaN"]]}]),
            [Series({"a": "b"}, ((1.0, 2.0), (2.5, float("nan"))))],
            id="a matrix",
        ),
        pytest.param(
            result("vector", [{"metric": {}, "value": [1, "+Inf"]}]),
            [Series({}, ((1.0, float("inf")),))],
            id="a vector",
        ),
        pytest.param(result("scalar", [1, "2"]), [Series({}, ((1.0, 2.0),))], id="a scalar"),
        pytest.param(result("matrix", []), [], id="nothing"),
        pytest.param(result("vector", [], infos=["be careful"]), [], id="a remark"),
    ],
)
def test_results_become_series(answer: dict[str, Any], series: list[Series]) -> None:
    assert repr(prometheus.parse(200, json.dumps(answer).encode())) == repr(tuple(series))  # NaN is not equal to itself


@pytest.mark.parametrize(
    ("status", "answer", "why"),
    [
        pytest.param(
            422,
            {"status": "error", "errorType": "execution", "error": "query timed out"},
            "422: execution: query timed out",
            id="an error",
        ),
        pytest.param(200, result("vector", [], warnings=["store down"]), "may be partial: store down", id="a warning"),
        pytest.param(200, result("string", [1, "x"]), "something else than a query result", id="a string"),
        pytest.param(200, result("vector", [{"metric": {}}]), "something else", id="a vector without values"),
        pytest.param(200, result("matrix", [{"metric": {}, "values": [[1]]}]), "something else", id="half a sample"),
        pytest.param(200, result("matrix", [3]), "something else", id="a number for a series"),
        pytest.param(200, [], "something else", id="a list"),
        pytest.param(502, "<html>", "502 with something else", id="a page"),
        pytest.param(200, {"status": "success"}, "something else", id="no data"),
    ],
)
def test_what_is_no_result_is_an_outage(status: int, answer: Any, why: str) -> None:
    outage = prometheus.parse(status, answer.encode() if isinstance(answer, str) else json.dumps(answer).encode())
    assert isinstance(outage, Outage)
    assert why in outage.why


COUNTERS = {
    "run": 5,
    "stableVersion": "1",
    "candidateVersion": "2",
    "pairs": {"agreed": 90, "disagreed": 10, "candidateFailed": 3, "misrouted": 0},
    "reasons": {"Shape": 4, "Cosine": 6},
    "lastComparedSecondsAgo": 0.2,
}


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        pytest.param(200, "ok", id="a word"),
        pytest.param(200, "[]", id="a list"),
        pytest.param(404, "{}", id="an empty object"),
        pytest.param(200, json.dumps(COUNTERS | {"pairs": []}), id="a list of pairs"),
        pytest.param(200, json.dumps(COUNTERS | {"run": "x"}), id="a run that is no number"),
    ],
)
def test_what_are_no_counters_is_an_outage(status: int, answer: str) -> None:
    assert isinstance(prober.parse(status, answer.encode()), Outage)


@asynccontextmanager
async def answering(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """A server that answers everything alike."""
    app = web.Application()
    app.router.add_route("*", "/{anything:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def instruments(url: str, *, timeout_seconds: float = 30) -> AsyncIterator[Instruments]:
    chosen = Instruments(
        Prometheus(url, timeout_seconds=timeout_seconds), ProberReader(timeout_seconds=timeout_seconds)
    )
    try:
        yield chosen
    finally:
        assert chosen.prometheus is not None
        await chosen.prometheus.close()
        await chosen.prober.close()


def nobody() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def never(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def elsewhere(_: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 1024 * 1024)


@pytest.mark.parametrize(
    ("handler", "timeout_seconds", "why"),
    [
        pytest.param(never, 0.3, "did not answer within 0.3 s", id="no answer"),
        pytest.param(elsewhere, 30, "answered 302 with something else", id="a redirect is not followed"),
    ],
)
async def test_an_unwell_provider_is_a_provider_error(handler: Any, timeout_seconds: float, why: str) -> None:
    async with answering(handler) as url, instruments(url, timeout_seconds=timeout_seconds) as chosen:
        subject = replace(SUBJECT, prober=ProberPod(url))
        measured = await measure(
            (ERRORS, SLOW, DISAGREEMENT), subject, chosen, since=NOW - timedelta(minutes=1), now=NOW
        )
    assert [each.metric for each in measured] == [ERRORS.metric, SLOW.metric, DISAGREEMENT.metric]
    for each in measured:
        assert each.outcome is Outcome.PROVIDER_ERROR
        assert why in each.message


async def test_a_provider_that_is_not_there_is_a_provider_error() -> None:
    async with instruments(nobody()) as chosen:
        subject = replace(SUBJECT, prober=ProberPod(nobody()))
        measured = await measure((ERRORS, DISAGREEMENT), subject, chosen, since=NOW - timedelta(minutes=1), now=NOW)
    assert [each.outcome for each in measured] == [Outcome.PROVIDER_ERROR] * 2
    assert all("could not be asked" in each.message for each in measured)


async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    async with answering(endless) as url:
        asked = Prometheus(url, timeout_seconds=30)
        outage = await asked.query("up", at=NOW)
        await asked.close()
    assert isinstance(outage, Outage)
    assert "larger than" in outage.why


async def test_an_endless_answer_of_a_prober_is_not_read_to_its_end_either() -> None:
    async with answering(endless) as url:
        reader = ProberReader(timeout_seconds=30)
        outage = await reader.read(url)
        await reader.close()
    assert isinstance(outage, Outage)
    assert "larger than" in outage.why


async def lengthy(_: web.Request) -> web.StreamResponse:
    return web.Response(body=b" " * 2 * 1024 * 1024)


async def test_what_others_may_make_long_is_not_read_to_its_end() -> None:
    """Whoever may write a model or a pod must not be able to keep the operator busy with it."""
    by_triton = Criterion(MetricName.ERROR_RATIO, 50, maximum=Decimal("0.05"), provider=Provider.TRITON)
    async with answering(lengthy) as url, instruments(url) as chosen:
        party = replace(PARTIES[0], pods=(ServerPod("a", url, "uid", 0),))
        subject = replace(SUBJECT, candidate=party)
        found = await measure((OWN, by_triton), subject, chosen, since=NOW - timedelta(minutes=1), now=NOW)
        await chosen.triton.close()
    for each, most in zip(found, ("1048576", "131072"), strict=True):
        assert each.outcome is Outcome.PROVIDER_ERROR
        assert f"is larger than {most} bytes" in each.message


async def test_prometheus_is_asked_as_of_the_moment_of_the_look() -> None:
    asked: list[dict[str, Any]] = []

    async def remember(request: web.Request) -> web.StreamResponse:
        asked.append({"path": request.path, **await request.post()})
        return web.json_response(result("matrix", []))

    async with answering(remember) as url, instruments(f"{url}/prometheus/") as chosen:
        [measured] = await measure((ERRORS,), SUBJECT, chosen, since=NOW - timedelta(seconds=90), now=NOW)
    assert (measured.outcome, len(asked)) == (Outcome.NO_DATA, 1)
    assert asked[0]["path"] == "/prometheus/api/v1/query"
    assert float(asked[0]["time"]) == NOW.timestamp()
    assert asked[0]["query"].endswith("[90000ms]")


@pytest.mark.parametrize(
    ("told", "outcome", "message"),
    [
        pytest.param({}, Outcome.MEASURED, "by Cosine 6, Shape 4", id="pairs that were compared"),
        pytest.param({"lastComparedSecondsAgo": 31}, Outcome.NO_DATA, "for 31 s: candidateFailed 3", id="none lately"),
        pytest.param(
            {"lastComparedSecondsAgo": None}, Outcome.NO_DATA, "no pair yet: candidateFailed 3", id="none yet"
        ),
        pytest.param(
            {"lastComparedSecondsAgo": None, "pairs": {"agreed": 0, "disagreed": 0}},
            Outcome.NO_DATA,
            "no answers at all",
            id="nothing at all",
        ),
        pytest.param(
            {"candidateVersion": "1"},
            Outcome.NO_DATA,
            "still compares version 1 with 1",
            id="the last rollout's prober",
        ),
    ],
)
async def test_disagreement_when_the_prober_tells(told: dict[str, Any], outcome: Outcome, message: str) -> None:
    async def tell(_: web.Request) -> web.StreamResponse:
        return web.json_response(COUNTERS | told)

    async with answering(tell) as url, instruments(url) as chosen:
        [measured] = await measure(
            (DISAGREEMENT,), replace(SUBJECT, prober=ProberPod(url)), chosen, since=NOW, now=NOW + timedelta(seconds=1)
        )
    assert measured.outcome is outcome
    assert message in measured.message
    assert measured.candidate == (Counts(10, 100) if outcome is Outcome.MEASURED else None)


def answers(**numbers: float | None) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """A Prometheus that knows the number of each query, and nothing where it is None."""

    async def answer(request: web.Request) -> web.StreamResponse:
        number = numbers[str((await request.post())["query"])]
        return web.json_response(
            result("vector", [] if number is None else [{"metric": {}, "value": [1, str(number)]}])
        )

    return answer


OWN = Criterion("own", 50, query=PrometheusQuery(bad="bad{{number}}", total="all{{number}}"), maximum=Decimal("0.05"))


@pytest.mark.parametrize(
    ("numbers", "candidate", "stable", "message"),
    [
        pytest.param(
            {"bad2": 3, "all2": 90, "bad1": 1, "all1": 900}, Counts(3, 90), Counts(1, 900), "", id="both sides"
        ),
        pytest.param(
            {"bad2": 3, "all2": 90, "bad1": None, "all1": 900},
            Counts(3, 90),
            None,
            "for stable: no series",
            id="the candidate alone",
        ),
        pytest.param(
            {"bad2": None, "all2": 90, "bad1": 1, "all1": 900},
            None,
            None,
            "for the candidate: no series",
            id="no bad answers are no zero",
        ),
    ],
)
async def test_a_query_of_the_user_s_own_is_asked_for_each_side(
    numbers: dict[str, float | None], candidate: Counts | None, stable: Counts | None, message: str
) -> None:
    async with answering(answers(**numbers)) as url, instruments(url) as chosen:
        [measured] = await measure((OWN,), SUBJECT, chosen, since=NOW - timedelta(minutes=1), now=NOW)
    assert (measured.candidate, measured.stable, measured.message) == (candidate, stable, message)
    assert measured.outcome is (Outcome.NO_DATA if candidate is None else Outcome.MEASURED)


def counters(request: web.Request) -> str:
    return (
        f'nv_inference_request_success{{model="minilm",version="{request.path[1]}"}} {request.path[3:].split("/")[0]}\n'
    )


BY_TRITON = replace(ERRORS, provider=Provider.TRITON)


@pytest.mark.parametrize(
    ("candidate", "stable", "outcome", "total", "message"),
    [
        pytest.param("2/10 2/5", "1/7", Outcome.MEASURED, 15, "", id="the pods of a side are one"),
        pytest.param(
            "2/10 3/5",
            "1/7",
            Outcome.PROVIDER_ERROR,
            None,
            "for the candidate: the server tells nothing",
            id="a pod of two",
        ),
        pytest.param("", "1/7", Outcome.NO_DATA, None, "for the candidate: no server is ready", id="no pod"),
        pytest.param("2/10", "", Outcome.MEASURED, 10, "for stable: no server is ready", id="no pod of stable"),
    ],
)
async def test_the_servers_of_a_side_are_asked_one_by_one(
    candidate: str, stable: str, outcome: Outcome, total: int | None, message: str
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=counters(request))

    async with answering(answer) as url:
        first, second = (
            replace(
                party,
                pods=tuple(ServerPod(pod, f"{url}/{pod}", f"uid-{place}", 0) for place, pod in enumerate(pods.split())),
            )
            for party, pods in zip(PARTIES, (candidate, stable), strict=True)
        )
        chosen = Instruments(None, ProberReader(), TritonReader())
        subject = replace(SUBJECT, candidate=first, stable=second)
        [measured] = await measure((BY_TRITON,), subject, chosen, since=NOW, now=NOW)
        await chosen.triton.close()
    assert measured.outcome is outcome
    assert measured.message.startswith(message)
    scraped = measured.scrapes.candidate if measured.scrapes is not None else None
    assert (scraped.counts.total if scraped is not None else None) == total


async def test_a_container_that_was_restarted_is_another_one() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=counters(request))

    found = set()
    async with answering(answer) as url:
        for restarts in (0, 1, 1):
            party = replace(PARTIES[0], pods=(ServerPod("a", f"{url}/2/10", "uid", restarts),))
            chosen = Instruments(None, ProberReader(), TritonReader())
            [measured] = await measure((BY_TRITON,), replace(SUBJECT, candidate=party), chosen, since=NOW, now=NOW)
            await chosen.triton.close()
            assert measured.scrapes is not None
            assert measured.scrapes.candidate is not None
            found.add(measured.scrapes.candidate.servers)
    assert len(found) == 2


@pytest.mark.parametrize(
    ("wanted", "outcome", "message"),
    [
        pytest.param(
            DISAGREEMENT, Outcome.NO_DATA, "no prober is running yet; the last one ended: no such key", id="no prober"
        ),
        pytest.param(ERRORS, Outcome.PROVIDER_ERROR, "no address of Prometheus", id="no Prometheus"),
    ],
)
async def test_without_instruments_it_says_which(wanted: Criterion, outcome: Outcome, message: str) -> None:
    chosen = Instruments(None, ProberReader())
    subject = replace(SUBJECT, prober=ProberPod(None, "no such key"))
    [measured] = await measure((wanted,), subject, chosen, since=NOW, now=NOW + timedelta(seconds=1))
    assert (measured.outcome, message in measured.message) == (outcome, True)


@pytest.mark.parametrize(
    ("wanted", "seconds", "message"),
    [
        pytest.param(ERRORS, 0, "only just begun", id="a step that begins now"),
        pytest.param(ERRORS, -5, "only just begun", id="a step that begins in the future"),
        pytest.param(replace(SLOW, slower_than=timedelta(hours=2)), 9, "slowerThan", id="a bound beyond the histogram"),
        pytest.param(replace(SLOW, slower_than=None), 9, "slowerThan is missing", id="no bound"),
    ],
)
async def test_what_cannot_be_asked_is_no_data(wanted: Criterion, seconds: float, message: str) -> None:
    async with instruments(nobody()) as chosen:
        subject = replace(SUBJECT, prober=ProberPod(None, "no such key"))
    [measured] = await measure((wanted,), subject, chosen, since=NOW, now=NOW + timedelta(seconds=seconds))
    assert (measured.outcome, message in measured.message) == (Outcome.NO_DATA, True)
