"""Requests through a real Envoy to real Tritons, scraped by a real Prometheus: what is measured is what happened."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from integration.apiserver import ROOT, free_port, wait_until
from integration.traffic.parts import HOST, Gateway, Program, Revision, Scraper, get_json, get_text
from onnx_operator.adapters.prober import ProberReader
from onnx_operator.adapters.prometheus import Prometheus
from onnx_operator.adapters.triton import TritonReader
from onnx_operator.api.rollout import MetricName, PrometheusQuery, Provider
from onnx_operator.core.analysis import Criterion, Judgement, Outcome, Verdict, counted, judge_all
from onnx_operator.core.counts import Counts
from onnx_operator.core.questions import Party, ServerPod
from onnx_operator.core.scrapes import Tallies
from onnx_operator.measure import Instruments, ProberPod, Subject, measure
from triton_server import graphs
from triton_server.serverprocess import Server, install_server

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ERRORS = Criterion(MetricName.ERROR_RATIO, 20, maximum=Decimal("0.05"), tolerance=Decimal("0.01"))
SLOW = Criterion(MetricName.SLOW_RATIO, 20, tolerance=Decimal("0.05"), slower_than=timedelta(milliseconds=200))
DISAGREEMENT = Criterion(MetricName.DISAGREEMENT, 20, maximum=Decimal("0.02"))
QUANTILE = replace(SLOW, metric=MetricName.LATENCY_QUANTILE, maximum=Decimal("0.1"), tolerance=None)
BY_TRITON = replace(ERRORS, provider=Provider.TRITON)
THROUGHPUT = Criterion(MetricName.THROUGHPUT_PER_REPLICA, 20, provider=Provider.TRITON, minimum_value=Decimal(1))
_ANSWERS = 'envoy_cluster_upstream_rq_xx{%s envoy_cluster_name=~"service/{{namespace}}/({{services}})/8000/http"}'
OWN = Criterion(
    "http-errors",
    20,
    maximum=Decimal("0.05"),
    tolerance=Decimal("0.01"),
    query=PrometheusQuery(
        bad=f"""sum(increase({_ANSWERS % 'envoy_response_code_class="5",'}[{{{{window}}}}])) or vector(0)""",
        total=f"sum(increase({_ANSWERS % ''}[{{{{window}}}}]))",
    ),
)
OWN_VALUE = Criterion(
    "busy-gateways",
    20,
    query=PrometheusQuery(value="sum(envoy_server_live) * {{number}}"),
    maximum_of_stable=Decimal("1.5"),
)

STABLE, GOOD, SHORT, MOVED, SLUGGISH = range(1, 6)


def changed(graph: bytes, **constants: np.ndarray) -> bytes:
    """The graph with other weights."""
    model = onnx.load_from_string(graph)
    for tensor in model.graph.initializer:
        if tensor.name in constants:
            tensor.CopyFrom(numpy_helper.from_array(constants[tensor.name], tensor.name))
    return bytes(model.SerializeToString())


def places(count: int) -> np.ndarray:
    """The position table of a model for texts of so many tokens."""
    return np.resize(graphs.PLACES, (count, graphs.WIDTH))


LONGEST = 24
WHOLE = changed(graphs.embedder(), places=places(LONGEST))
MODELS = {
    STABLE: graphs.Model("minilm", WHOLE, graphs.embedder_config(), version=STABLE),
    GOOD: graphs.Model("minilm", WHOLE, graphs.embedder_config(), version=GOOD),
    SHORT: graphs.Model("minilm", graphs.embedder(), graphs.embedder_config(), version=SHORT),
    MOVED: graphs.Model(
        "minilm", changed(WHOLE, words=graphs.WORDS[::-1].copy()), graphs.embedder_config(), version=MOVED
    ),
    SLUGGISH: graphs.Model(
        "minilm",
        WHOLE,
        # Waits for others of the same length, in vain.
        graphs.embedder_config("dynamic_batching { max_queue_delay_microseconds: 600000 }", batch=32),
        version=SLUGGISH,
    ),
}


def golden(lengths: Iterable[int]) -> list[dict[str, Any]]:
    """Texts of so many tokens, as the golden.json beside an artifact has them."""
    requests = []
    for length in lengths:
        ids = (np.arange(length, dtype=np.int64)[None] * 7 + length) % graphs.VOCABULARY
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        vector = (graphs.WORDS[ids] + places(LONGEST)[:length]).sum(axis=1)
        requests.append(
            {
                "name": f"{length} tokens",
                "inputs": {
                    name: {"datatype": "INT64", "shape": list(each.shape), "data": each.ravel().tolist()}
                    for name, each in inputs.items()
                },
                "outputs": {
                    "sentence_embedding": {
                        "datatype": "FP32",
                        "shape": list(vector.shape),
                        "data": vector.ravel().tolist(),
                    }
                },
            }
        )
    return requests


@dataclass
class Rollout:
    """A candidate beside stable, and everything between a client and a verdict."""

    folder: Path
    candidate: int
    server: Server
    stable: Server
    gateway: Gateway
    scraper: Scraper
    prometheus: Program
    programs: list[Program]
    tallies: Tallies = field(default_factory=Tallies)

    @property
    def subject(self) -> Subject:
        parties = self._party(self.candidate, self.server), self._party(STABLE, self.stable)
        return Subject("shop", "minilm", *parties, ProberPod(None))

    @staticmethod
    def _party(number: int, server: Server) -> Party:
        pod = ServerPod(f"minilm-{number}-cpu-0", f"http://127.0.0.1:{server.metrics_port}", f"uid-{number}", 0)
        return Party(f"minilm-{number}", number, (f"minilm-{number}-cpu",), (pod,))

    def send(self, *more: str, lengths: Iterable[int] = range(1, LONGEST + 1)) -> Program:
        """Start the load; a third of the texts is too long for SHORT."""
        requests = self._golden(lengths)
        return self._program("load", [str(ROOT / "tests/load/load.py"), "--requests", str(requests), *more])

    def probe(self, *more: str) -> Program:
        """Start the prober."""
        requests = self._golden(range(1, LONGEST + 1))
        versions = ["--stable-version", str(STABLE), "--candidate-version", str(self.candidate)]
        return self._program("prober", ["-m", "onnx_operator.prober", "--golden", str(requests), *versions, *more])

    def _program(self, name: str, arguments: list[str]) -> Program:
        port = free_port()
        where = [
            *("--http", f"127.0.0.1:{self.gateway.http_port}", "--grpc", f"127.0.0.1:{self.gateway.grpc_port}"),
            *("--host", HOST, "--model", "minilm", "--listen", f"127.0.0.1:{port}"),
        ]
        program = Program(
            name,
            [sys.executable, *arguments, *where],
            self.folder,
            {"PYTHONPATH": str(ROOT / "operator"), "PYTHONWARNINGS": "error"},
            url=f"http://127.0.0.1:{port}",
        )
        program.start()
        self.programs.append(program)
        program.wait_for(f"{program.url}/healthz")
        return program

    def _golden(self, lengths: Iterable[int]) -> Path:
        path = self.folder / "golden.json"
        path.write_text(json.dumps(golden(lengths)))
        return path

    async def judge(self, wanted: Criterion, since: datetime, *, prober: str | None = None) -> Judgement:
        now = datetime.now(UTC)
        subject = replace(self.subject, prober=ProberPod(prober))
        prometheus, reader, servers = Prometheus(self.scraper.url), ProberReader(), TritonReader()
        instruments = Instruments(prometheus, reader, servers)
        try:
            measured = await measure((wanted,), subject, instruments, since=since, now=now)
        finally:
            await prometheus.close()
            await reader.close()
            await servers.close()
        judged = judge_all((wanted,), (counted(one, self.tallies) for one in measured), steps=1, promise=0.001)[0]
        for one in measured:
            self.tallies = self.tallies if one.scrapes is None else self.tallies.then(one.scrapes)
        return judged

    async def judge_until(
        self, verdict: Verdict, wanted: Criterion, since: datetime, *, prober: str | None = None
    ) -> Judgement:
        """Look every half second, as an impatient operator would, until there is this verdict."""
        deadline = time.monotonic() + 120
        while True:
            judged = await self.judge(wanted, since, prober=prober)
            if judged.verdict is verdict:
                return judged
            assert time.monotonic() < deadline, f"never {verdict}: {judged}"
            await asyncio.sleep(0.5)

    def scraped(self) -> None:
        """Wait until Prometheus has scraped once more from now on, and Envoy has merged its histograms."""
        now = time.time()

        def newest() -> bool:
            answer = get_json(f"{self.scraper.url}/api/v1/query?query=timestamp(envoy_server_live)")
            return any(float(each["value"][1]) > now for each in answer["data"]["result"])

        wait_until(newest, within=120, what="Prometheus scrapes Envoy")


@pytest.fixture(scope="module")
def triton() -> Iterator[Path]:
    """An installed tritonserver, in a folder that its user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="onnx-operator-traffic-"))
    folder.chmod(0o755)
    try:
        install_server(folder / "tritonserver")
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def serving(triton: Path, number: int) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(dir=triton) as name:
        Path(name).chmod(0o755)
        with Server(triton / "tritonserver", Path(name), [MODELS[number]]) as server:
            yield server.wait_ready()


@pytest.fixture(scope="module")
def stable(triton: Path) -> Iterator[Server]:
    with serving(triton, STABLE) as server:
        yield server


@pytest.fixture
def rollout(request: pytest.FixtureRequest, triton: Path, stable: Server, tmp_path: Path) -> Iterator[Rollout]:
    """The rollout of the candidate that the test is parametrised with."""
    number: int = request.param
    with serving(triton, number) as server, ExitStack() as stack:
        sides = [
            Revision(STABLE, stable.http_port, stable.grpc_port),
            Revision(number, server.http_port, server.grpc_port),
        ]
        gateway = Gateway(tmp_path, sides[0], sides[1])
        stack.callback(gateway.start().stop)
        scraper = Scraper(tmp_path, gateway.admin_port)
        prometheus = scraper.start()
        stack.callback(prometheus.stop)
        programs: list[Program] = []
        stack.callback(lambda: [program.stop() for program in programs])
        yield Rollout(tmp_path, number, server, stable, gateway, scraper, prometheus, programs)


def candidate(number: int, name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("rollout", [pytest.param(number, id=name)], indirect=True)


def post(program: Program, path: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(f"{program.url}{path}", method="POST"), timeout=10):
        pass


def quiesce(load: Program) -> dict[str, Any]:
    """Stop sending; the counters once every request has come back."""
    post(load, "/stop")

    def settled() -> dict[str, Any] | None:
        counters: dict[str, Any] = get_json(f"{load.url}/counters")
        done = counters["sent"] == counters["ok"] + counters["errors"] + counters["failed"]
        return counters if done else None

    counters = wait_until(settled, within=120, what="all requests have come back")
    assert counters is not None
    return counters


@candidate(GOOD, "an equal candidate")
async def test_what_is_measured_is_exactly_what_clients_saw(rollout: Rollout) -> None:
    rollout.scraped()
    since = datetime.now(UTC)
    rollout.scraped()
    load = rollout.send("--rate", "60", "--min-cosine", "0.999")
    await rollout.judge_until(Verdict.PASS, replace(ERRORS, minimum_samples=150), since)
    await rollout.judge_until(Verdict.PASS, OWN, since)
    await rollout.judge_until(Verdict.PASS, THROUGHPUT, since)
    value = await rollout.judge(OWN_VALUE, since)
    assert (value.candidate, value.stable, value.verdict) == (2.0, 1.0, Verdict.INCONCLUSIVE)
    seen = quiesce(load)
    rollout.scraped()

    judged = await rollout.judge(ERRORS, since)
    upstreams = seen["upstreams"]
    assert judged.verdict is Verdict.PASS
    assert judged.candidate == Counts(0, upstreams["minilm-2-cpu"]["ok"])
    assert judged.stable == Counts(0, upstreams["minilm-1-cpu"]["ok"])
    assert seen["versions"] == {"1": upstreams["minilm-1-cpu"]["ok"], "2": upstreams["minilm-2-cpu"]["ok"]}
    assert seen["errors"] == seen["failed"] == 0
    assert upstreams["minilm-1-cpu"]["wrong"] == upstreams["minilm-2-cpu"]["wrong"] == 0

    # Of a moment at which Prometheus has nothing new to say, nothing can be said either.
    later = Instruments(Prometheus(rollout.scraper.url), ProberReader())
    [stale] = await measure(
        (ERRORS,), rollout.subject, later, since=since, now=datetime.now(UTC) + timedelta(minutes=2)
    )
    assert (stale.outcome, "s old" in stale.message) == (Outcome.NO_DATA, True)
    rollout.prometheus.stop()
    [outage] = await measure((ERRORS,), rollout.subject, later, since=since, now=datetime.now(UTC))
    assert outage.outcome is Outcome.PROVIDER_ERROR
    assert later.prometheus is not None
    await later.prometheus.close()


@candidate(SHORT, "a candidate that fails on long texts")
async def test_a_candidate_that_errs_over_either_protocol_fails_by_its_errors(rollout: Rollout) -> None:
    since = datetime.now(UTC)
    rollout.scraped()
    assert (await rollout.judge(BY_TRITON, since)).verdict is Verdict.NO_DATA, "what came before it looked is counted"
    load = rollout.send("--rate", "60")
    failed = await rollout.judge_until(Verdict.FAIL, ERRORS, since)
    assert "above the maximum of 5%" in failed.message
    own = await rollout.judge_until(Verdict.FAIL, OWN, since)
    assert own.message.startswith("http-errors is ")

    seen = quiesce(load)
    rollout.scraped()
    judged = await rollout.judge(ERRORS, since)
    ours = seen["upstreams"]["minilm-3-cpu"]
    assert judged.candidate == Counts(ours["errors"], ours["ok"] + ours["errors"])
    assert judged.stable == Counts(0, seen["upstreams"]["minilm-1-cpu"]["ok"])
    await rollout.judge_until(Verdict.FAIL, BY_TRITON, since)  # it answers first and counts then
    by_triton = await rollout.judge(BY_TRITON, since)
    assert (by_triton.candidate, by_triton.stable) == (judged.candidate, judged.stable)
    assert seen["failed"] == 0
    assert set(seen["kinds"]) == {"http 500 via_upstream", "grpc INTERNAL via_upstream"}


@candidate(MOVED, "a candidate whose vectors moved")
async def test_a_moved_model_fails_by_disagreement_and_by_nothing_else(rollout: Rollout) -> None:
    since = datetime.now(UTC)
    prober = rollout.probe("--rate", "40")
    judged = await rollout.judge_until(Verdict.FAIL, DISAGREEMENT, since, prober=prober.url)
    assert "above the maximum of 2%; by Cosine" in judged.message
    await rollout.judge_until(Verdict.PASS, ERRORS, since)
    counters = get_json(f"{prober.url}/counters")
    assert counters["sides"]["candidate"]["errors"] == counters["sides"]["stable"]["errors"] == 0
    assert 'onnx_prober_pairs_total{model="minilm",result="disagreed"}' in get_text(f"{prober.url}/metrics")
    assert prober.stop() == 0


@candidate(GOOD, "an equal candidate")
async def test_the_prober_agrees_with_an_equal_model_and_notices_when_it_is_gone(rollout: Rollout) -> None:
    since = datetime.now(UTC)
    prober = rollout.probe("--rate", "40", "--min-cosine", "0.9999", "--max-absolute", "1e-4")
    judged = await rollout.judge_until(Verdict.PASS, DISAGREEMENT, since, prober=prober.url)
    assert isinstance(judged.candidate, Counts)
    assert judged.candidate.bad == 0
    rollout.server.process.kill()
    wait_until(
        lambda: get_json(f"{prober.url}/counters")["pairs"]["candidateFailed"] > 4,
        within=120,
        what="the prober sees that the candidate is gone",
    )
    kinds = get_json(f"{prober.url}/counters")["sides"]["candidate"]["errorKinds"]
    assert set(kinds) <= {"Status503", "StatusUNAVAILABLE", "Timeout"}
    prober.stop()
    assert (await rollout.judge(DISAGREEMENT, since, prober=prober.url)).verdict is Verdict.PROVIDER_ERROR


@candidate(MOVED, "a candidate behind a gateway that ignores pins")
async def test_a_gateway_that_ignores_the_pin_never_looks_like_agreement(rollout: Rollout) -> None:
    """Here the prober is told that the candidate is version 9, which never answers."""
    since = datetime.now(UTC)
    rollout.candidate = 9
    prober = rollout.probe("--rate", "40")
    wait_until(
        lambda: get_json(f"{prober.url}/counters")["pairs"]["misrouted"] > 20, within=120, what="pairs are misrouted"
    )
    judged = await rollout.judge(DISAGREEMENT, since, prober=prober.url)
    assert judged.verdict is Verdict.NO_DATA
    assert "compared no pair yet: misrouted" in judged.message


@candidate(SLUGGISH, "a candidate that is slow")
async def test_a_slow_candidate_fails_by_its_slowness(rollout: Rollout) -> None:
    since = datetime.now(UTC)
    rollout.scraped()
    load = rollout.send("--rate", "20", "--slower-than", "0.25", lengths=[8])
    judged = await rollout.judge_until(Verdict.FAIL, SLOW, since)
    assert judged.message.endswith("slow is above 250 ms, a bound of the gateway's histogram")
    quantile = await rollout.judge_until(Verdict.FAIL, QUANTILE, since)
    assert quantile.message.startswith("the 0.9 quantile is over 200 ms: ")
    await rollout.judge_until(Verdict.PASS, ERRORS, since)
    slow = {name: each["slow"] / each["ok"] for name, each in quiesce(load)["upstreams"].items()}
    assert slow["minilm-5-cpu"] > slow["minilm-1-cpu"]


async def test_memory_is_that_of_the_largest_pod_and_unknown_where_one_is_not_scraped(tmp_path: Path) -> None:
    """As a kubelet's cAdvisor tells it, to a real Prometheus."""
    metric, kubelet = "container_memory_working_set_bytes", tmp_path / "stats"
    kubelet.mkdir()
    lines = [
        f'{metric}{{container="{container}",namespace="shop",pod="{pod}"}} {mebibytes * 2**20}'
        for container, pod, mebibytes in (
            *(("triton", "minilm-2-a", 300), ("triton", "minilm-2-b", 500), ("triton", "minilm-1-a", 400)),
            *(("", "minilm-2-a", 900), ("triton", "other", 900)),
        )
    ]
    (kubelet / "prometheus").write_text("\n".join((f"# TYPE {metric} gauge", *lines, "")))
    port = free_port()
    server = Program("kubelet", [sys.executable, "-m", "http.server", str(port), "-d", str(tmp_path)], tmp_path)
    scraper = Scraper(tmp_path, port)
    wanted = Criterion(MetricName.MEMORY, 20, maximum_value=Decimal(600 * 2**20), maximum_of_stable=Decimal("1.2"))

    async def judge(*pods: str) -> Judgement:
        candidate = Party("minilm-2", 2, ("minilm-2-cpu",), tuple(ServerPod(pod, "", pod, 0) for pod in pods))
        stable = Party("minilm-1", 1, ("minilm-1-cpu",), (ServerPod("minilm-1-a", "", "uid", 0),))
        prometheus, now = Prometheus(scraper.url), datetime.now(UTC)
        subject = Subject("shop", "minilm", candidate, stable, ProberPod(None))
        tools = Instruments(prometheus, ProberReader())
        measured = await measure((wanted,), subject, tools, since=now - timedelta(minutes=1), now=now)
        await prometheus.close()
        return judge_all((wanted,), measured, steps=1, promise=0.001)[0]

    server.start()
    server.wait_for(f"http://127.0.0.1:{port}/stats/prometheus")
    prometheus = scraper.start()
    try:
        query = f"{scraper.url}/api/v1/query?query={metric}"
        wait_until(lambda: get_json(query)["data"]["result"], within=120, what="Prometheus scrapes the kubelet")
        judged = await judge("minilm-2-a", "minilm-2-b")
        assert judged.message == (
            "memory is 500.0Mi for the candidate, 400.0Mi for stable: "
            "beyond maximumOfStable 1.2 in 1 of 3 looks running"
        )
        assert (await judge("minilm-2-a")).verdict is Verdict.PASS
        partly = await judge("minilm-2-a", "minilm-2-c")
        assert (partly.verdict, "of 1 of 2 pods, and not of minilm-2-c" in partly.message) == (Verdict.NO_DATA, True)
    finally:
        prometheus.stop()
        server.stop()


@candidate(GOOD, "a candidate that hangs")
async def test_a_candidate_that_never_answers_fails_though_it_answers_no_error(rollout: Rollout) -> None:
    """Its callers hang up before the gateway does, so there is neither a status nor a time to measure."""
    since = datetime.now(UTC)
    rollout.scraped()
    processes = [rollout.server.process.pid, *rollout.server.backends()]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        rollout.send("--rate", "30", "--timeout", "1")
        judged = await rollout.judge_until(Verdict.FAIL, ERRORS, since)
        assert "more than the tolerance of 1% above stable" in judged.message
        assert isinstance(judged.candidate, Counts)
        assert judged.candidate.bad == 0
        assert judged.candidate.disputed > 0
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


@candidate(GOOD, "a candidate that dies")
async def test_load_tells_errors_of_a_model_from_those_of_the_way_there(rollout: Rollout) -> None:
    load = rollout.send("--rate", "60")
    wait_until(lambda: get_json(f"{load.url}/counters")["ok"] > 100, within=120, what="requests are answered")
    assert quiesce(load)["failed"] == 0
    rollout.server.process.kill()
    post(load, "/start?rate=60")
    wait_until(lambda: get_json(f"{load.url}/counters")["failed"] > 20, within=120, what="requests fail")
    seen = quiesce(load)
    assert seen["errors"] == 0
    assert seen["upstreams"]["minilm-1-cpu"]["errors"] == 0
    assert all("via_upstream" not in kind for kind in seen["kinds"])
    assert all("by minilm-2-cpu (" in failure for failure in seen["failures"])
    post(load, "/reset")
    assert get_json(f"{load.url}/counters")["sent"] == 0
    assert load.stop() == 0
