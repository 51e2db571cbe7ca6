"""Steady traffic from a pod: sends inference requests through the gateway and says who answered what.

One file, delivered by a ConfigMap and run on the operator's image. Judges nothing and retries nothing: each request
is sent once, at its time, and counted once.

Who answered is told by the gateway, which must add two headers to every answer (Envoy Gateway: a ClientTrafficPolicy
with lateResponseHeaders): `x-onnx-upstream: %UPSTREAM_CLUSTER%` and `x-onnx-details: %RESPONSE_CODE_DETAILS%`. The
details are `via_upstream` when a pod answered and something else when the gateway did, so an error that a bad model
answers is never mixed up with one that moving traffic caused. Without the headers, errors count as failed.

    sent = ok + errors (a model server answered with an error) + failed (nobody answered, or the gateway) + in flight
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import signal
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import grpc
import grpc.aio
import numpy as np
import tritonclient.http.aio as triton_http
from aiohttp import web
from tritonclient.grpc import service_pb2, service_pb2_grpc

from onnx_operator.prober.compare import Tolerance, difference
from onnx_operator.prober.golden import Golden, Tensor, read_golden

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

UPSTREAM: Final = "x-onnx-upstream"
DETAILS: Final = "x-onnx-details"
LENGTH: Final = "Inference-Header-Content-Length"
MOST_FAILURES_TOLD: Final = 200


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, ready to be sent by either protocol as often as needed: preparing costs more than sending."""

    golden: Golden
    http_body: bytes
    http_headers: Mapping[str, str]
    grpc_request: service_pb2.ModelInferRequest


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `status` is OK, or an HTTP or gRPC status, or why there is none."""

    status: str
    seconds: float
    upstream: str = ""
    details: str = ""
    version: str = ""
    outputs: Mapping[str, NDArray[Any]] | None = None

    @property
    def is_from_a_model(self) -> bool:
        return self.details == "via_upstream"


@dataclass(slots=True)
class Answers:
    """What one Service answered; `slow` and `wrong` are among the `ok`."""

    ok: int = 0
    errors: int = 0
    slow: int = 0
    wrong: int = 0
    timeouts: int = 0
    """The gateway stopped waiting for it; these are among the failed."""
    first_bad: float | None = None
    """When the first answer came that was an error, slow or wrong; seconds since the epoch, as `last`."""
    last: float | None = None
    """When the last answer came, good or bad."""


@dataclass(slots=True)
class Counts:
    """Everything counted since the start or the last reset."""

    started: float = field(default_factory=time.time)
    sent: int = 0
    ok: int = 0
    errors: int = 0
    failed: int = 0
    late: int = 0
    """Requests that had to wait because too many were under way: the rate asked for was not reached."""
    kinds: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    """Good answers by the version they carry, which is the revision's number."""
    upstreams: dict[str, Answers] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    longest_gap: float = 0.0
    """Seconds between two good answers."""
    last_ok: float | None = None

    def add(self, protocol: str, reply: Reply, *, slow: bool, wrong: bool) -> None:
        """Count one reply."""
        by = self.upstreams.setdefault(reply.upstream or "unknown", Answers())
        if reply.is_from_a_model:
            by.last = time.time()
            if by.first_bad is None and (slow or wrong or reply.status != "OK"):
                by.first_bad = by.last
        if reply.status == "OK":
            self.ok += 1
            by.ok += 1
            by.slow += slow
            by.wrong += wrong
            self.versions[reply.version] += 1
            self._end_gap()
            return
        by.timeouts += reply.details.startswith("response_timeout")
        if reply.is_from_a_model:
            self.errors += 1
            by.errors += 1
        else:
            self.failed += 1
            self._tell(protocol, reply)
        self.kinds[f"{protocol} {reply.status} {reply.details}".strip()] += 1

    def as_json(self) -> dict[str, Any]:
        """As `/counters` tells it."""
        gap = 0.0 if self.last_ok is None else time.monotonic() - self.last_ok
        return {
            **{name: getattr(self, name) for name in ("started", "sent", "ok", "errors", "failed", "late")},
            "now": time.time(),
            "answered": self.ok,
            "kinds": dict(self.kinds),
            "versions": dict(self.versions),
            "upstreams": {name: asdict(answers) for name, answers in self.upstreams.items()},
            "failures": list(self.failures),
            "longest_gap": max(self.longest_gap, gap),
        }

    def _end_gap(self) -> None:
        now = time.monotonic()
        if self.last_ok is not None:
            self.longest_gap = max(self.longest_gap, now - self.last_ok)
        self.last_ok = now

    def _tell(self, protocol: str, reply: Reply) -> None:
        if len(self.failures) < MOST_FAILURES_TOLD:
            clock = time.strftime("%H:%M:%S", time.gmtime())
            answered = f"by {reply.upstream or 'nobody'} ({reply.details or 'no details'}) after {reply.seconds:.2f} s"
            self.failures.append(f"{clock} {protocol} {reply.status} {answered}")


class Http:
    """Sends by HTTP over a few connections that stay open, or a new one for each request."""

    protocol = "http"

    def __init__(self, address: str, host: str, model: str, timeout: float, *, closes: bool = False) -> None:
        self._url = f"http://{address}/v2/models/{model}/infer"
        self._host = {"Host": host}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True)
            if closes
            else aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=timeout),
        )

    async def send(self, request: Prepared) -> Reply:
        began = time.monotonic()
        try:
            async with self._session.post(
                self._url, data=request.http_body, headers={**self._host, **request.http_headers}
            ) as answer:
                body = await answer.read()
                headers = answer.headers
                status = str(answer.status)
        except TimeoutError:
            return Reply("Timeout", time.monotonic() - began)
        except (aiohttp.ClientError, OSError) as error:
            return Reply(type(error).__name__, time.monotonic() - began)
        version, outputs = "", None
        if status == "200":
            try:
                length = headers.get(LENGTH)
                result = triton_http.InferenceServerClient.parse_response_body(
                    body, header_length=None if length is None else int(length)
                )
                version = result.get_response()["model_version"]
                outputs = {name: result.as_numpy(name) for name in request.golden.outputs}
                status = "OK"
            except (KeyError, TypeError, ValueError) as error:
                status = f"Malformed{type(error).__name__}"
        seconds = time.monotonic() - began
        return Reply(status, seconds, service_of(headers.get(UPSTREAM, "")), headers.get(DETAILS, ""), version, outputs)

    async def close(self) -> None:
        await self._session.close()


class Grpc:
    """Sends by gRPC over a few channels, each with a connection of its own."""

    protocol = "grpc"

    def __init__(self, address: str, host: str, timeout: float, channels: int = 2) -> None:
        options = [
            ("grpc.default_authority", host),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        self._channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(channels)]
        stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in self._channels]
        self._stubs = itertools.cycle(stubs)
        self._timeout = timeout

    async def send(self, request: Prepared) -> Reply:
        began = time.monotonic()
        call = next(self._stubs).ModelInfer(request.grpc_request, timeout=self._timeout)
        version, outputs = "", None
        try:
            answer = await call
            status, version = "OK", answer.model_version
            outputs = raw_outputs(answer)
        except grpc.aio.AioRpcError as error:
            status = "Timeout" if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else error.code().name
        except (KeyError, ValueError) as error:
            status = f"Malformed{type(error).__name__}"
        seconds = time.monotonic() - began
        # An answer without a message carries everything in the trailers.
        headers = dict(await call.trailing_metadata() or ()) | dict(await call.initial_metadata() or ())
        return Reply(status, seconds, service_of(headers.get(UPSTREAM, "")), headers.get(DETAILS, ""), version, outputs)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


def raw_outputs(answer: service_pb2.ModelInferResponse) -> dict[str, NDArray[Any]]:
    types = {"FP32": np.float32, "INT64": np.int64, "FP16": np.float16, "FP64": np.float64, "INT32": np.int32}
    return {
        output.name: np.frombuffer(raw, types[output.datatype]).reshape(output.shape)
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


def service_of(cluster: str) -> str:
    """`service/<namespace>/<service>/<port>/<protocol>` is how Envoy Gateway names what stands for a Service."""
    parts = cluster.split("/")
    return parts[2] if parts[0] == "service" and len(parts) > 3 else cluster


def prepare(golden: Golden, model: str) -> Prepared:
    inputs = []
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, tensor in golden.inputs.items():
        entry = triton_http.InferInput(name, list(tensor.values.shape), tensor.datatype)
        entry.set_data_from_numpy(tensor.values, binary_data=True)
        inputs.append(entry)
        request.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.values.shape)
        request.raw_input_contents.append(tensor.values.tobytes())
    body, length = triton_http.InferenceServerClient.generate_request_body(inputs)
    return Prepared(golden, body, {LENGTH: str(length), "Content-Type": "application/octet-stream"}, request)


def texts(names: Sequence[str], longest: int) -> Iterator[Golden]:
    """A hundred requests of token ids as texts have them: most of 5 to 20 tokens, one in twenty near the longest."""
    chance = random.Random(20260701)  # noqa: S311  (texts, not secrets)
    for number in range(100):
        most = min(20, longest)
        length = chance.randint(max(1, longest // 2 + 1), longest) if number % 20 == 19 else chance.randint(4, most)
        ids = np.array([[101, *(chance.randint(1996, 20_000) for _ in range(max(0, length - 2))), 102][:length]])
        values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        yield Golden(f"generated {number}", {name: Tensor("INT64", values[name]) for name in names}, {})


@dataclass(slots=True)
class Load:
    """The traffic to one model and what came of it."""

    model: str
    senders: list[Http | Grpc]
    requests: list[Prepared]
    slower_than: float
    tolerance: Tolerance | None
    counts: Counts = field(default_factory=Counts)

    async def send(self, sender: Http | Grpc, request: Prepared) -> None:
        counts = self.counts  # a request sent before a reset is not counted after it
        counts.sent += 1
        reply = await sender.send(request)
        wrong = False
        if self.tolerance is not None and reply.outputs is not None:
            expected = {name: values for name, values in request.golden.outputs.items() if values is not None}
            wrong = difference(expected, reply.outputs, expected, self.tolerance) is not None
        counts.add(sender.protocol, reply, slow=reply.seconds > self.slower_than, wrong=wrong)


class Traffic:
    """Sends to all models at a rate for each, which can be changed while it runs."""

    def __init__(self, loads: list[Load], rate: float, most_in_flight: int, group: asyncio.TaskGroup) -> None:
        self.loads = loads
        self.rate = rate
        self._places = asyncio.Semaphore(most_in_flight)
        self._group = group

    async def run(self) -> None:
        turns = [(load, itertools.cycle(load.senders), itertools.cycle(load.requests)) for load in self.loads]
        due = time.monotonic()
        while True:
            if self.rate <= 0:
                await asyncio.sleep(0.05)
                due = time.monotonic()
                continue
            for load, senders, requests in turns:
                load.counts.late += self._places.locked()
                await self._places.acquire()
                self._group.create_task(load.send(next(senders), next(requests))).add_done_callback(
                    lambda _: self._places.release()
                )
            # A second of lateness is made up for, more is not: that would be a burst, not steady traffic.
            due = max(due + 1 / self.rate, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def tell(self) -> None:
        """Print what happened in each second, as a line of JSON."""
        before = {load.model: load.counts for load in self.loads}
        sent: Counter[str] = Counter()
        while True:
            await asyncio.sleep(1)
            for load in self.loads:
                if before[load.model] is not load.counts:  # reset
                    before[load.model], sent = load.counts, Counter()
                now = Counter({name: getattr(load.counts, name) for name in ("sent", "ok", "errors", "failed", "late")})
                line = {name: now[name] - sent[f"{load.model}/{name}"] for name in now}
                sent.update({f"{load.model}/{name}": change for name, change in line.items()})
                print(json.dumps({"time": round(time.time(), 3), "model": load.model} | line), flush=True)  # noqa: T201

    def as_json(self) -> dict[str, Any]:
        """Each model by its name; at the top the only one, where there is but one."""
        models = {load.model: load.counts.as_json() for load in self.loads}
        top = next(iter(models.values())) if len(models) == 1 else {}
        return top | {"rate": self.rate, "models": models}

    def reset(self) -> None:
        for load in self.loads:
            load.counts = Counts()


def pages(traffic: Traffic) -> web.Application:
    """GET /counters and /healthz; POST /stop, /start?rate=N and /reset."""

    async def counters(_: web.Request) -> web.Response:
        return web.json_response(traffic.as_json())

    async def start(request: web.Request) -> web.Response:
        try:
            traffic.rate = float(request.query["rate"])
        except (KeyError, ValueError):
            return web.Response(status=400, text="say how many requests per second: /start?rate=40\n")
        return web.json_response(traffic.as_json())

    async def stop(_: web.Request) -> web.Response:
        traffic.rate = 0
        return web.json_response(traffic.as_json())

    async def reset(_: web.Request) -> web.Response:
        traffic.reset()
        return web.json_response(traffic.as_json())

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    app = web.Application()
    app.add_routes([web.get("/counters", counters), web.get("/healthz", healthz)])
    app.add_routes([web.post("/start", start), web.post("/stop", stop), web.post("/reset", reset)])
    return app


async def run(options: argparse.Namespace) -> None:
    """Send until SIGTERM or SIGINT, then wait for the requests under way."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    async with contextlib.AsyncExitStack() as stack:
        loads = []
        for model, host in zip(options.model, options.host, strict=True):
            senders: list[Http | Grpc] = []
            if options.http:
                senders.append(Http(options.http, host, model, options.timeout, closes=options.close))
            if options.grpc:
                senders.append(Grpc(options.grpc, host, options.timeout))
            for sender in senders:
                stack.push_async_callback(sender.close)
            asked = read_golden(options.requests) if options.requests else texts(options.inputs, options.longest)
            tolerance = None if options.min_cosine is None else Tolerance(options.min_cosine)
            loads.append(Load(model, senders, [prepare(each, model) for each in asked], options.slower_than, tolerance))
        async with asyncio.TaskGroup() as group:  # a bug in a task must not look like calm: it ends the program
            traffic = Traffic(loads, options.rate, options.most_in_flight, group)
            runner = web.AppRunner(pages(traffic), access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            address, _, port = options.listen.rpartition(":")
            await web.TCPSite(runner, address, int(port)).start()
            endless = [group.create_task(traffic.run()), group.create_task(traffic.tell())]
            await told.wait()
            for task in endless:
                task.cancel()
        print(json.dumps(traffic.as_json()), flush=True)  # noqa: T201


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--model", action="append", required=True, help="name of a model; may be given several times")
    option("--host", action="append", required=True, help="host name of its routes, in the order of the models")
    option("--http", metavar="ADDRESS:PORT", help="the gateway's HTTP listener")
    option("--grpc", metavar="ADDRESS:PORT", help="the gateway's gRPC listener")
    option("--close", action="store_true", help="a new connection for each request by HTTP")
    option("--requests", type=Path, help="requests as in the golden.json beside an artifact; made up when not given")
    option("--inputs", type=lambda text: text.split(","), default=["input_ids", "attention_mask", "token_type_ids"])
    option("--longest", type=int, default=256, help="length of the longest made-up text, in tokens")
    option("--rate", type=float, default=40.0, help="requests per second and model; 0 waits for /start")
    option(
        "--timeout", type=float, default=20.0, help="seconds; longer than the gateway's own, which names the Service"
    )
    option("--slower-than", type=float, default=0.5, help="seconds above which a good answer is counted as slow")
    option("--min-cosine", type=float, help="count answers further from those in the requests' file as wrong")
    option("--most-in-flight", type=int, default=32, help="the rate falls before requests pile up at a server")
    option("--listen", metavar="ADDRESS:PORT", default="0.0.0.0:8080", help="where the counters are served")
    options = parser.parse_args(arguments)
    if not options.http and not options.grpc:
        parser.error("give --http or --grpc, or both")
    if len(options.model) != len(options.host):
        parser.error("give as many --host as --model")
    return options


if __name__ == "__main__":
    asyncio.run(run(parse_options()))
