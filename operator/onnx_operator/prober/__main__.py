"""`python -m onnx_operator.prober`: asks both sides of a rollout golden requests until it is told to stop.

Decides nothing and stops by itself only when it was started wrongly. One request at a time for each protocol, so a
side that is slow is never buried; the rate is an upper bound.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import re
import signal
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from onnx_operator.prober.asking import Answer, Asker, BySide, Failure, GrpcAsker, HttpAsker
from onnx_operator.prober.compare import Tolerance, difference, is_sound
from onnx_operator.prober.counters import Counters, Pair, Side
from onnx_operator.prober.golden import GoldenError, read_golden

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from onnx_operator.prober.golden import Golden

_UNIT: Final = {"ms": 0.001, "s": 1.0, "m": 60.0}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask, how often, and what counts as the same answer."""

    requests: tuple[Golden, ...]
    versions: dict[Side, str]
    pairs_per_second: float
    slower_than: float | None
    tolerance: Tolerance


async def probe(plan: Plan, asker: Asker, counters: Counters) -> None:
    """Ask one pair after the other, for ever."""
    order = itertools.cycle([(Side.STABLE, Side.CANDIDATE), (Side.CANDIDATE, Side.STABLE)])
    due = time.monotonic()
    for golden, sides in zip(itertools.cycle(plan.requests), order, strict=False):
        await _ask_both(plan, asker, counters, golden, sides)
        # What a slow side made late is not made up for.
        due = max(due + 1 / plan.pairs_per_second, time.monotonic())
        await asyncio.sleep(due - time.monotonic())


async def _ask_both(plan: Plan, asker: Asker, counters: Counters, golden: Golden, sides: tuple[Side, Side]) -> None:
    answers: dict[Side, Answer | Failure] = {}
    for side in sides:
        answer = await asker.ask(golden, side)
        answers[side] = answer
        if isinstance(answer, Failure):
            counters.count_error(side, asker.protocol, answer.kind)
        else:
            slow = plan.slower_than is not None and answer.seconds > plan.slower_than
            counters.count_answer(side, asker.protocol, slow=slow)
    _compare(plan, counters, golden, answers[Side.STABLE], answers[Side.CANDIDATE])


def _compare(
    plan: Plan, counters: Counters, golden: Golden, stable: Answer | Failure, candidate: Answer | Failure
) -> None:
    if isinstance(stable, Failure):
        counters.count_pair(Pair.BOTH_FAILED if isinstance(candidate, Failure) else Pair.STABLE_FAILED)
        return
    if isinstance(candidate, Failure):
        counters.count_pair(Pair.CANDIDATE_FAILED)
        return
    if (stable.version, candidate.version) != (plan.versions[Side.STABLE], plan.versions[Side.CANDIDATE]):
        counters.count_pair(Pair.MISROUTED)
        return
    if not is_sound(stable.outputs, golden.outputs):
        counters.count_pair(Pair.STABLE_FAILED)
        return
    found = difference(stable.outputs, candidate.outputs, golden.outputs, plan.tolerance, mask=golden.mask)
    counters.count_pair(Pair.AGREED if found is None else Pair.DISAGREED, found)


def _pages(counters: Counters) -> web.Application:
    registry = CollectorRegistry()
    registry.register(counters)

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def as_json(_: web.Request) -> web.Response:
        return web.json_response(counters.as_json())

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/counters", as_json), web.get("/metrics", metrics)])
    return app


async def run(options: argparse.Namespace) -> None:
    """Serve the pages and probe until SIGTERM or SIGINT."""
    requests = read_golden(options.golden, os.environ.get("GOLDEN_DIGEST"))
    versions = {Side.STABLE: options.stable_version, Side.CANDIDATE: options.candidate_version}
    counters = Counters(options.model, versions)
    async with AsyncExitStack() as stack:
        askers = _askers(options)
        for asker in askers:
            stack.push_async_callback(asker.close)
        plan = Plan(
            requests=requests,
            versions=versions,
            pairs_per_second=options.rate / len(askers),
            slower_than=options.slower_than,
            tolerance=Tolerance(options.min_cosine, options.max_absolute, options.min_label_agreement),
        )
        runner = web.AppRunner(_pages(counters), access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, *options.listen).start()
        await _until_told_to_stop([probe(plan, asker, counters) for asker in askers])


def _askers(options: argparse.Namespace) -> list[Asker]:
    made = ((HttpAsker, options.http), (GrpcAsker, options.grpc))
    return [_asker(kind, addresses, options) for kind, places in made for addresses in places]


def _asker(kind: type[HttpAsker | GrpcAsker], addresses: list[str], options: argparse.Namespace) -> Asker:
    askers = [kind(address, options.host, options.model, options.timeout) for address in addresses]
    return askers[0] if len(askers) == 1 else BySide(dict(zip(Side, askers, strict=True)))


async def _until_told_to_stop(works: list[Coroutine[Any, Any, None]]) -> None:
    """Work side by side. Work never ends by itself, so an error in it ends the program and is seen."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
        await told.wait()
        for task in tasks:
            task.cancel()


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m)", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration above zero; write for example 500ms or 5s")
    return float(match[1]) * _UNIT[match[2]]


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:  # noqa: PLR2004 - no rate or tolerance is as large
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def _addresses(text: str) -> list[str]:
    addresses = text.split(",")
    if len(addresses) > len(Side):
        raise argparse.ArgumentTypeError(f"{text!r} is neither ADDRESS:PORT nor two of them, stable's first")
    return addresses


def _listen(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT")
    return host, int(port)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ends the program with a sentence where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m onnx_operator.prober", description=__doc__)
    option = parser.add_argument
    option("--golden", type=Path, required=True, help="a list of requests; GOLDEN_DIGEST, if set, must be its digest")
    option("--model", required=True, help="Triton's name of the model, which is the OnnxModel's")
    option("--stable-version", required=True, help="stable's revision number; other versions are not compared")
    option("--candidate-version", required=True, help="the candidate's revision number")
    option("--host", required=True, help="host name of the model's routes")
    for flag, protocol in (("--http", "HTTP"), ("--grpc", "gRPC")):
        option(
            flag,
            type=_addresses,
            action="append",
            default=[],
            metavar="ADDRESS:PORT",
            help=f"the gateway's {protocol} listener; where there is none, stable's and the candidate's addresses, "
            "with a comma between them, once for each pool",
        )
    option("--rate", type=_positive, default=5.0, help="pairs of requests per second, both protocols together")
    option("--timeout", type=_seconds, default=5.0, help="how long to wait for an answer")
    option("--slower-than", type=_seconds, help="answers that take longer are counted as slow")
    option("--min-cosine", type=_share, default=0.95, help="vectors below this cosine differ")
    option("--max-absolute", type=_positive, help="values further apart than this differ")
    option("--min-label-agreement", type=_share, default=1.0, help="share of labels of `logits` that must be the same")
    option("--listen", type=_listen, default=("0.0.0.0", 8080), help="where the counters are served")  # noqa: S104 - a pod's own address is not known before
    options = parser.parse_args(arguments)
    if not options.http and not options.grpc:
        parser.error("give --http or --grpc, or both: without a listener there is nobody to ask")
    return options


def main() -> int:
    """Run the program and say in one line why it cannot, if so."""
    try:
        asyncio.run(run(parse_options()))
    except GoldenError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the container's termination message is its last words
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
