"""One model on CPUs and on GPUs, under traffic: a version comes to both, and requests go where the time of day says.

There is no GPU here. Some are pretended, in the way in which real ones are made known: the node counts them, and pods
that ask for one get what they need (pretended_gpu/). What computes is the CPU, so this shows what pools do with
requests, and nothing about CUDA.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import pytest

from demo.waiting import until
from e2e.rollouts import (
    QUICK,
    RATE,
    assert_nothing_lost,
    declare,
    declared,
    finish,
    own_class,
    stable_version,
    traffic,
    until_model,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.kubectl import Manifest
    from demo.model import Model
    from demo.scenario import Stage
    from demo.site import Site

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
GPU: Final = "nvidia.com/gpu"
CLASS: Final = "with-gpus"
PRETENDED: Final = Path(__file__).parent / "pretended_gpu"
SHARED: Final = [{"name": CPU, "weight": 1}, {"name": CUDA, "weight": 3}]
#: Five and a half hours from UTC: whoever forgets the zone, or rounds it to hours, is at the wrong time.
ZONE: Final = "Asia/Kolkata"
#: The longest way of a weight from the spec to the gateway.
SECONDS: Final = 30


@pytest.fixture(scope="module")
def gpus(cluster: Site, served: Stage) -> Iterator[None]:
    """Four GPUs on the node, and a class that offers them."""
    (node,) = cluster.kubectl.list("nodes")

    def count(operation: str, **value: str) -> None:
        change = [{"op": operation, "path": f"/status/capacity/{GPU.replace('/', '~1')}", **value}]
        cluster.kubectl.run(
            *("patch", "node", node["metadata"]["name"], "--subresource=status", "--type=json"),
            f"--patch={json.dumps(change)}",
        )

    small = {"cpu": "100m", "memory": "256Mi"}
    offered = [
        {"name": CPU, "resources": {"requests": small, "limits": {"memory": "1Gi"}}},
        {"name": CUDA, "resources": {"requests": small, "limits": {"memory": "1Gi", GPU: 1}}},
    ]
    module = PRETENDED / "sitecustomize.py"
    files = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "pretended-gpu"},
        "data": {module.name: module.read_text()},
    }
    count("add", value="4")
    cluster.kubectl.apply_file(PRETENDED / "policy.yaml")
    served.kubectl.apply(files)
    with own_class(cluster, CLASS, executionProviders=offered):
        yield
        traffic(served).at(RATE)
        declare(served, declared(stable_version(served), steps=QUICK))
        assert finish(served).is_promoted
    cluster.kubectl.run("delete", "--filename", str(PRETENDED / "policy.yaml"))
    count("remove")


def version(pools: list[dict[str, Any]], **serving: Any) -> Manifest:
    manifest = declared("v1", steps=QUICK)
    manifest["spec"] |= {"className": CLASS, "executionProviders": pools}
    manifest["spec"].setdefault("serving", {}).update(serving)
    return manifest


def split(stage: Stage) -> dict[str, int]:
    """The weight of each Service among which the model's HTTPRoute shares requests that name no side."""
    route = stage.kubectl.get("httproute", stage.name)
    assert route is not None
    return {one["name"]: one["weight"] for one in route["spec"]["rules"][0]["backendRefs"]}


def percents(model: Model) -> tuple[int, ...]:
    return tuple(pool.percent for pool in model.status.pools)


def good(stage: Stage, service: str) -> int:
    """The requests that this pool of a revision has answered well."""
    found = stage.counters().by_upstream.get(service)
    return found.good if found else 0


@pytest.fixture
def fleet(served: Stage, gpus: None) -> Stage:
    """The model on both pools, at rest, and requests are counted from now on."""
    traffic(served).at(RATE)
    declare(served, version(SHARED))
    end = finish(served)
    assert end.is_promoted, end.message("Ready")
    traffic(served).count_anew()
    return served


def test_a_version_comes_to_both_pools_of_a_model_and_each_answers_its_share(fleet: Stage) -> None:
    declare(fleet, version(SHARED, batching={"maxBatchSize": 16}))
    midway = until_model(fleet, "the next version to get half of it", lambda it: it.candidate_weight == 50)
    shares = split(fleet)
    end = finish(fleet)

    assert end.is_promoted, end.message("Ready")
    old, new = midway.status.stable, midway.status.candidate
    assert old is not None
    assert new is not None
    parts = [shares[f"{revision}-{pool}"] for revision in (old.revision, new.revision) for pool in ("cpu", "cuda")]
    assert [round(100 * part / sum(parts), 1) for part in parts] == [12.5, 37.5, 12.5, 37.5]
    assert percents(end) == (25, 75)
    for revision in (old.revision, new.revision):
        assert good(fleet, f"{revision}-cuda") > good(fleet, f"{revision}-cpu") > 0
    assert_nothing_lost(fleet)


def test_requests_move_to_the_gpus_and_back_when_the_schedule_says_so(fleet: Stage) -> None:
    stable = fleet.model().status.stable
    assert stable is not None
    off_peak = [{"name": CPU, "weight": 1}, {"name": CUDA, "weight": 0}]
    fleet.kubectl.patch("onnxmodel", fleet.name, {"spec": {"executionProviders": off_peak}})
    until_model(fleet, "all requests to go to the CPU", lambda it: percents(it) == (100, 0))
    # A minute that has not begun, with room for the new spec to arrive before it does.
    opens = (datetime.now(UTC) + timedelta(seconds=75)).replace(second=0, microsecond=0)
    local = opens.astimezone(ZoneInfo(ZONE))
    peak = {"schedule": f"{local.minute} {local.hour} * * *", "duration": "1m", "timeZone": ZONE}
    scheduled = [
        {**off_peak[0], "schedules": [{**peak, "weight": 0}]},
        {**off_peak[1], "schedules": [{**peak, "weight": 1}]},
    ]
    fleet.kubectl.patch("onnxmodel", fleet.name, {"spec": {"executionProviders": scheduled}})

    until_model(fleet, "the window to open", lambda it: percents(it) == (0, 100))
    opened = datetime.now(UTC)
    before = good(fleet, f"{stable.revision}-cpu"), good(fleet, f"{stable.revision}-cuda")
    until("the GPU to answer", lambda: good(fleet, f"{stable.revision}-cuda") > before[1] + 1000, seconds=60)
    during = good(fleet, f"{stable.revision}-cpu")
    until_model(fleet, "the window to close", lambda it: percents(it) == (100, 0))
    closed = datetime.now(UTC)
    until("the CPU to answer again", lambda: good(fleet, f"{stable.revision}-cpu") > during + 1000, seconds=60)

    late = timedelta(seconds=SECONDS)
    assert opens <= opened <= opens + late
    assert opens + timedelta(minutes=1) <= closed <= opens + timedelta(minutes=1) + late
    # What was under way when the weights changed, and no more.
    assert during - before[0] < 200
    end = fleet.model()
    assert end.is_promoted, end.message("Ready")
    assert end.status.stable is not None
    assert end.status.stable.revision == stable.revision
    assert_nothing_lost(fleet)
