"""A thousand models on one operator: cold start, memory, silence, and the time from an edit to its answer.

    make bench-scale

The API server, etcd and controller manager are real; there are no nodes, so every model waits for its fetch Job, and
has a Job, a pod and a NetworkPolicy. An edit is answered when a watch shows a status that speaks of it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any, Final

from integration.apiserver import running_control_plane, wait_until
from integration.operator.conftest import GROUP, World, add_gateway_and_class

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from integration.processes import OperatorProcess

NAMESPACES: Final = 20
EDITORS: Final = 8
SETTINGS: Final = {"WATCH_NAMESPACES": "", "POD_NAMESPACE": "default"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--rate", type=int, default=100, help="edits a second")
    parser.add_argument("--seconds", type=int, default=60, help="how long to be silent, and how long to edit")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_control_plane(Path(folder)) as plane:
        plane.install_crds()
        add_gateway_and_class(plane)
        measure(World(plane, "", Path(folder)), asked.models, asked.rate, asked.seconds)


def measure(world: World, models: int, rate: int, seconds: int) -> None:
    names = [(f"team-{number % NAMESPACES}", f"model-{number}") for number in range(models)]
    first = world.operator("first", **SETTINGS).start()
    try:
        create(world, names)
        wait_until(lambda: waiting(world) == models, within=900, what="every model waits for its Job", every=1)
    finally:
        first.end()

    begun = time.monotonic()
    operator = world.operator("cold", **SETTINGS).start()
    try:
        operator.wait_leading()
        led = time.monotonic() - begun
        wait_until(lambda: operator.looks() >= models, within=300, what="every model is looked at", every=0.1)
        print(
            f"cold start: {models} models, leading after {led:.1f} s, all reconciled {since(begun) - led:.1f} s later"
        )

        before = versions(world)
        time.sleep(seconds)  # the claim is about a span of time, so there is nothing to be waited for
        print(f"silence: {len(set(versions(world).items()) - set(before.items()))} writes in {seconds} s")

        waits = waited(operator)
        took = edit(world, names, rate=rate, seconds=seconds)
        cuts = quantiles(took, n=100)
        print(
            f"edits: {len(took)} at {rate} a second, from the request to a status that answers it: "
            f"p50 {cuts[49] * 1000:.0f} ms, p99 {cuts[98] * 1000:.0f} ms, longest {max(took) * 1000:.0f} ms"
        )
        waits = waited(operator) - waits
        print(f"from an event to its reconcile: p50 {below(waits, 0.5)}, p99 {below(waits, 0.99)}")
        print(f"memory: {operator.peak_mib()} MiB at most; CPU: {operator.cpu_seconds():.1f} s in {since(begun):.0f} s")
    finally:
        operator.end()


def waited(operator: OperatorProcess) -> Counter[float]:
    """How many reconciles waited at most so many seconds for their turn, by the operator's own histogram."""
    page = operator.page("/metrics")[1]
    found = re.findall(r'^onnx_operator_queue_duration_seconds_bucket{le="(.+)"} (.+)$', page, re.MULTILINE)
    return Counter({float(bound): int(float(count)) for bound, count in found})


def below(waits: Counter[float], share: float) -> str:
    return f"at most {min(bound for bound, count in waits.items() if count >= share * waits[math.inf]) * 1000:.0f} ms"


def since(begun: float) -> float:
    return time.monotonic() - begun


def create(world: World, names: list[tuple[str, str]]) -> None:
    for namespace in sorted({namespace for namespace, _ in names}):
        world.client.create("/api/v1/namespaces", {"metadata": {"name": namespace}})

    def apply(named: tuple[str, str]) -> None:
        World(world.plane, named[0], Path()).apply(named[1])

    with ThreadPoolExecutor(EDITORS) as pool:
        list(pool.map(apply, names))


def waiting(world: World) -> int:
    """How many models have told that they wait for the Job that fetches their source."""
    models = world.client.items(f"{GROUP}/onnxmodels")
    jobs = world.client.items("/apis/batch/v1/jobs")
    pods = world.client.items("/api/v1/pods")
    told = sum(bool((one.get("status") or {}).get("conditions")) for one in models)
    return min(told, len(jobs), len(pods))


def versions(world: World) -> dict[str, str]:
    paths = (f"{GROUP}/onnxmodels", "/apis/batch/v1/jobs", "/apis/networking.k8s.io/v1/networkpolicies")
    return {
        f"{path}/{one['metadata']['namespace']}/{one['metadata']['name']}": one["metadata"]["resourceVersion"]
        for path in paths
        for one in world.client.items(path)
    }


def edit(world: World, names: list[tuple[str, str]], *, rate: int, seconds: int) -> list[float]:
    """Edit the models in turn at a steady rate; seconds from each edit to the first status that speaks of it.

    An edit that was overtaken by the next one of the same model is answered by a status of that one.
    """
    answered: dict[str, dict[int, float]] = defaultdict(dict)
    models = f"{GROUP}/onnxmodels"
    version = world.client.request("GET", f"{models}?limit=1")["metadata"]["resourceVersion"]
    listener = threading.Thread(target=listen, args=(world.client.watch(models, version), answered), daemon=True)
    listener.start()
    begun = time.monotonic()

    def send(number: int) -> tuple[str, int, float]:
        namespace, name = names[number % len(names)]
        time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        asked = time.monotonic()
        change = {"spec": {"rollout": {"paused": number // len(names) % 2 == 0}}}
        changed = world.client.merge(f"{GROUP}/namespaces/{namespace}/onnxmodels/{name}", change)
        return f"{namespace}/{name}", changed["metadata"]["generation"], asked

    with ThreadPoolExecutor(EDITORS) as pool:
        sent = list(pool.map(send, range(rate * seconds)))

    def is_answered() -> bool:
        assert listener.is_alive(), "the watch has ended"
        return all(max(answered[model], default=0) >= generation for model, generation, _ in sent)

    wait_until(is_answered, within=300, what="every model answers its last edit", every=1)
    return [
        min(at for spoken, at in answered[model].items() if spoken >= generation) - asked
        for model, generation, asked in sent
    ]


def listen(watch: HTTPResponse, answered: dict[str, dict[int, float]]) -> None:
    for line in watch:
        event: dict[str, Any] = json.loads(line)
        metadata = event["object"]["metadata"]
        spoken = (event["object"].get("status") or {}).get("observedGeneration", 0)
        answered[f"{metadata['namespace']}/{metadata['name']}"].setdefault(spoken, time.monotonic())


if __name__ == "__main__":
    main()
