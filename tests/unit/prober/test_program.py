"""The program as it runs in a pod, against a server that speaks both inference protocols and answers nonsense.

A real Triton cannot be made to answer most of this; what a real one does is in tests/integration/traffic.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import grpc.aio
import numpy as np
import pytest
from aiohttp import web
from tritonclient.grpc import service_pb2, service_pb2_grpc

from onnx_operator.adapters.asking import Outage
from onnx_operator.adapters.prober import ProberReader
from onnx_operator.prober.__main__ import Plan, _askers, parse_options, probe
from onnx_operator.prober.asking import Answer, GrpcAsker, HttpAsker
from onnx_operator.prober.compare import Tolerance
from onnx_operator.prober.counters import Counters, Side
from onnx_operator.prober.golden import Golden, Tensor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from onnx_operator.prober.asking import Asker

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
VECTOR = struct.pack("<3f", 1.0, 2.0, 3.0)
VERSIONS = {"stable": "1", "candidate": "2"}


@dataclass(frozen=True)
class Said:
    """An answer of inference, which need not make sense."""

    raw: bytes = VECTOR
    shape: tuple[int, ...] = (1, 3)
    name: str = "embedding"
    version: str = ""
    """The side's own when empty."""


ANSWERS = {
    "good": Said(),
    "other": Said(struct.pack("<3f", -1.0, 2.0, -3.0)),
    "nan": Said(struct.pack("<3f", 1.0, float("nan"), 3.0)),
    "short": Said(VECTOR[:4]),
    "shape": Said(shape=(3, 1)),
    "missing": Said(name="logits"),
    "version": Said(version="1"),
}
PAGES = {
    "error": web.HTTPInternalServerError(text='{"error": "too long"}'),
    "page": web.HTTPServiceUnavailable(text="upstream connect error"),
    "no json": web.HTTPOk(text="?", headers={"Inference-Header-Content-Length": "1"}),
    "lies": web.HTTPOk(text="{}", headers={"Inference-Header-Content-Length": "9999"}),
}


@dataclass
class Nonsense(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A server that answers each side by one of the words above, or never."""

    candidate: str = "good"
    stable: str = "good"
    asked: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_known(self) -> bool:
        """Whether each protocol has asked each side twice, and so counted its first answers."""
        return len(self.asked) == len(Side) * 2 and min(self.asked.values()) > 1

    async def over_http(self, request: web.Request) -> web.Response:
        side = request.headers["x-onnx-track"]
        self.asked["http", side, request.headers["Host"]] += 1
        said = await self._said(side)
        if said is None:
            page = PAGES[getattr(self, side)]
            return web.Response(status=page.status, body=page.body, headers=page.headers)
        parameters = {"binary_data_size": len(said.raw)}
        output = {"name": said.name, "datatype": "FP32", "shape": said.shape, "parameters": parameters}
        head = json.dumps({"model_version": said.version or VERSIONS[side], "outputs": [output]}).encode()
        return web.Response(body=head + said.raw, headers={"Inference-Header-Content-Length": str(len(head))})

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        side = dict(context.invocation_metadata())["x-onnx-track"]
        self.asked["grpc", side, request.model_name] += 1
        said = await self._said(side)
        if said is None:
            await context.abort(grpc.StatusCode.INTERNAL, "boom")
            return None
        answer = service_pb2.ModelInferResponse(model_version=said.version or VERSIONS[side])
        answer.outputs.add(name=said.name, datatype="FP32", shape=said.shape)
        answer.raw_output_contents.append(said.raw)
        return answer

    async def _said(self, side: str) -> Said | None:
        if getattr(self, side) == "never":
            await self.over.wait()
        return ANSWERS.get(getattr(self, side))

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[tuple[str, str]]:
        """Addresses of the HTTP and the gRPC listener."""
        app = web.Application()
        app.router.add_post("/v2/models/minilm/infer", self.over_http)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{runner.addresses[0][1]}", f"127.0.0.1:{port}"
        finally:
            self.over.set()
            await server.stop(0)
            await runner.cleanup()


@asynccontextmanager
async def probing(nonsense: Nonsense, *, patience: float = 5.0) -> AsyncIterator[Counters]:
    """Both ways of asking, as fast as they are answered."""
    ids = Tensor("INT64", np.array([[1, 2]]))
    plan = Plan(
        requests=(Golden("a", {"input_ids": ids}, {"embedding": np.array([[1.0, 2.0, 3.0]])}),),
        versions={Side.STABLE: "1", Side.CANDIDATE: "2"},
        pairs_per_second=100,
        slower_than=None,
        tolerance=Tolerance(),
    )
    counters = Counters("minilm", plan.versions)
    async with nonsense.listening() as (http, grpc_address):
        askers: list[Asker] = [
            HttpAsker(http, "minilm.shop.test", "minilm", patience),
            GrpcAsker(grpc_address, "minilm.shop.test", "minilm", patience),
        ]
        tasks = [asyncio.create_task(probe(plan, asker, counters)) for asker in askers]
        try:
            yield counters
            assert not any(task.done() for task in tasks), "probing ended by itself"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for asker in askers:
                await asker.close()


async def counted(nonsense: Nonsense, counters: Counters, wanted: str, at_least: int = 6) -> dict[str, Any]:
    """The counters, once a kind of pair was counted often enough, and by both protocols."""
    deadline = time.monotonic() + 120
    while (told := counters.as_json())["pairs"][wanted] < at_least or not nonsense.is_known:
        assert time.monotonic() < deadline, told
        await asyncio.sleep(0.02)
    return counters.as_json()


@pytest.mark.parametrize(
    ("stable", "candidate", "pair", "reasons", "kinds"),
    [
        pytest.param("good", "good", "agreed", set(), set(), id="the same answers"),
        pytest.param("good", "other", "disagreed", {"Cosine"}, set(), id="another vector"),
        pytest.param("good", "nan", "disagreed", {"NotFinite"}, set(), id="NaN"),
        pytest.param("good", "shape", "disagreed", {"Shape"}, set(), id="another shape"),
        pytest.param("good", "missing", "disagreed", {"MissingOutput"}, set(), id="a missing output"),
        pytest.param("good", "short", "disagreed", {"MissingOutput"}, set(), id="less data than the shape says"),
        pytest.param("good", "error", "candidateFailed", set(), {"Status500", "StatusINTERNAL"}, id="errors"),
        pytest.param("good", "page", "candidateFailed", set(), {"Status503", "StatusINTERNAL"}, id="a gateway's page"),
        pytest.param("good", "no json", "candidateFailed", set(), None, id="a body that is not JSON"),
        pytest.param("good", "lies", "candidateFailed", set(), None, id="a header that lies about the length"),
        pytest.param("error", "good", "stableFailed", set(), set(), id="an error of stable"),
        pytest.param("nan", "nan", "stableFailed", set(), set(), id="NaN on both sides is no agreement"),
        pytest.param("error", "error", "bothFailed", set(), None, id="errors on both sides"),
        pytest.param("good", "version", "misrouted", set(), set(), id="stable's answer in place of the candidate's"),
    ],
)
async def test_every_kind_of_answer_is_counted_as_what_it_is(
    *, stable: str, candidate: str, pair: str, reasons: set[str], kinds: set[str] | None
) -> None:
    nonsense = Nonsense(candidate, stable)
    async with probing(nonsense) as counters:
        told = await counted(nonsense, counters, pair)
    assert {name for name, count in told["pairs"].items() if count} == {pair}
    assert set(told["reasons"]) == reasons
    if kinds is not None:
        assert set(told["sides"]["candidate"]["errorKinds"]) == kinds
    assert {(side, host) for protocol, side, host in nonsense.asked if protocol == "http"} == {
        ("stable", "minilm.shop.test"),
        ("candidate", "minilm.shop.test"),
    }
    assert {side for protocol, side, _ in nonsense.asked if protocol == "grpc"} == {"stable", "candidate"}


async def test_a_side_that_never_answers_is_a_timeout_and_nothing_piles_up() -> None:
    nonsense = Nonsense(candidate="never")
    async with probing(nonsense, patience=0.2) as counters:
        told = await counted(nonsense, counters, "candidateFailed")
    assert set(told["sides"]["candidate"]["errorKinds"]) == {"Timeout"}
    assert abs(told["sides"]["candidate"]["requests"] - told["sides"]["stable"]["requests"]) <= 2


async def test_where_there_is_no_gateway_each_side_is_asked_at_its_own_address() -> None:
    stable, candidate = Nonsense(), Nonsense()
    ids = Tensor("INT64", np.array([[1, 2]]))
    golden = Golden("a", {"input_ids": ids}, {"embedding": np.array([[1.0, 2.0, 3.0]])})
    async with stable.listening() as theirs, candidate.listening() as ours:
        flags = [f"--http={theirs[0]},{ours[0]}", f"--grpc={theirs[1]},{ours[1]}"]
        askers = _askers(parse_options([*REQUIRED, "--model=minilm", *flags]))
        for asker in askers:
            answers = [await asker.ask(golden, side) for side in Side]
            assert [one.version for one in answers if isinstance(one, Answer)] == ["1", "2"]
            await asker.close()
    assert [asker.protocol for asker in askers] == ["http", "grpc"]
    assert {side for _, side, _ in stable.asked} == {"stable"}
    assert {side for _, side, _ in candidate.asked} == {"candidate"}


async def test_errors_of_ever_new_kinds_do_not_make_the_counters_grow() -> None:
    counters = Counters("minilm", {Side.STABLE: "1", Side.CANDIDATE: "2"})
    for number in range(1000):
        counters.count_error(Side.CANDIDATE, "http", f"Status{number}")
    kinds = counters.as_json()["sides"]["candidate"]["errorKinds"]
    assert (len(kinds), sum(kinds.values())) == (33, 1000)


async def test_the_operator_reads_what_the_program_tells(tmp_path: Path) -> None:
    """The program as its pod starts it, until SIGTERM."""
    golden = tmp_path / "golden.json"
    ids = {"datatype": "INT64", "shape": [1, 2], "data": [1, 2]}
    vector = {"datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    golden.write_text(json.dumps([{"name": "a", "inputs": {"input_ids": ids}, "outputs": {"embedding": vector}}]))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        page = f"127.0.0.1:{listener.getsockname()[1]}"
    async with Nonsense(candidate="other").listening() as (http, grpc_address):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "onnx_operator.prober", "--golden", str(golden), "--model", "minilm"),
            *("--host", "minilm.shop.test", "--stable-version", "1", "--candidate-version", "2", "--rate", "200"),
            *("--http", http, "--grpc", grpc_address, "--listen", page, "--slower-than", "1ms"),
            env=ENVIRONMENT | {"PYTHONWARNINGS": "error"},
            stderr=subprocess.PIPE,
        )
        reader = ProberReader()
        try:
            deadline = time.monotonic() + 120
            while isinstance(probed := await reader.read(f"http://{page}"), Outage) or probed.compared < 20:
                assert time.monotonic() < deadline, probed
                await asyncio.sleep(0.1)
            async with aiohttp.ClientSession() as session, session.get(f"http://{page}/metrics") as answer:
                metrics = await answer.text()
            process.terminate()
            _, words = await process.communicate()
        finally:
            await reader.close()
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert (process.returncode, words.decode()) == (0, "")
    assert (probed.stable_version, probed.candidate_version) == ("1", "2")
    assert probed.run > 1_700_000_000_000
    assert probed.compared == probed.disagreeing
    assert probed.reasons == {"Cosine": probed.disagreeing}
    assert probed.not_compared == {}
    assert probed.last_compared_seconds_ago is not None
    assert 'onnx_prober_requests_total{model="minilm",protocol="grpc",side="candidate"}' in metrics
    assert 'onnx_prober_disagreements_total{model="minilm",reason="Cosine"}' in metrics
    assert 'onnx_prober_slow_total{model="minilm",protocol="http",side="stable"}' in metrics


GOLDEN = ["--golden", "/nowhere/golden.json"]
REQUIRED = [*GOLDEN, "--model", "m", "--host", "h", "--stable-version", "1", "--candidate-version", "2"]


def test_without_its_file_it_ends_with_a_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnx_operator.prober", *REQUIRED, "--http", "x:1"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("/nowhere/golden.json cannot be read: No such file")
    assert "Traceback" not in done.stderr


def test_it_asks_nothing_of_a_file_with_another_digest_than_its_pod_was_told(tmp_path: Path) -> None:
    golden = tmp_path / "golden.json"
    golden.write_text("[]")
    done = subprocess.run(
        [sys.executable, "-m", "onnx_operator.prober", *REQUIRED, "--http", "x:1", "--golden", str(golden)],
        env=ENVIRONMENT | {"GOLDEN_DIGEST": f"sha256:{'0' * 64}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "it was changed after it was published" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param([], "give --http or --grpc, or both", id="nobody to ask"),
        pytest.param(["--http", "x:1", "--timeout", "5"], "'5' is not a duration above zero", id="a bare number"),
        pytest.param(["--http", "x:1", "--timeout", "0s"], "'0s' is not a duration above zero", id="no time"),
        pytest.param(["--http", "x:1,y:1,z:1"], "is neither ADDRESS:PORT nor two of them", id="a third side"),
        pytest.param(["--http", "x:1", "--rate", "0"], "0 is not above zero", id="no rate"),
        pytest.param(["--http", "x:1", "--rate", "nan"], "nan is not above zero", id="a rate that is no number"),
        pytest.param(["--http", "x:1", "--min-cosine", "2"], "2 is not between 0 and 1", id="an impossible cosine"),
        pytest.param(["--http", "x:1", "--listen", "8080"], "'8080' is not ADDRESS:PORT", id="half an address"),
    ],
)
def test_a_wrong_start_ends_with_a_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_options([*REQUIRED, *arguments])
    assert words in capsys.readouterr().err


def test_it_understands_what_the_operator_writes() -> None:
    options = parse_options([*REQUIRED, "--grpc", "x:1", "--timeout", "500ms", "--min-cosine", "1e-1"])
    assert (options.timeout, options.min_cosine, options.listen) == (0.5, 0.1, ("0.0.0.0", 8080))
