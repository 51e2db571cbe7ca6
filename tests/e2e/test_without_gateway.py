"""A class without a gateway in a cluster that has one: a model answers at its Service, and its servers are the weights.

Each request has a connection of its own, because that is what a Service shares. One that is kept stays with its server
to the end, and Triton, while it ends, still answers it, with NOT_FOUND.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml
from rich.console import Console

from demo import objects, texts
from demo.scenario import Stage
from demo.screen import PlainScreen
from demo.site import EXAMPLES, ROOT
from demo.waiting import until
from e2e.rollouts import declare, declared, finish, own_class, small_jobs_of, until_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from demo.kubectl import Kubectl, Manifest
    from demo.site import Site

NAME: Final = "by-servers"
CLASS: Final = "without-gateway"
LOAD: Final = "load-by-servers"
STEPS: Final = [{"weight": 50, "duration": "10s"}]
METRICS: Final = [
    {"name": "errorRatio", "maximum": "0.05", "tolerance": "0.01"},
    {"name": "disagreement", "maximum": "0.05"},
]


def version(key: str) -> Manifest:
    """One of the demo's versions, as a model of the class without a gateway."""
    manifest = declared(key, steps=STEPS, analysis={"interval": "2s", "minimumSamples": 40, "metrics": METRICS})
    manifest["metadata"]["name"] = NAME
    manifest["spec"]["className"] = CLASS
    return manifest


@pytest.fixture(scope="module")
def plain(cluster: Site, models: Kubectl) -> Iterator[Stage]:
    """The first version, which serves, with traffic on its Service."""
    offered = next(
        one
        for one in yaml.safe_load_all((EXAMPLES / "without-gateway.yaml").read_text())
        if one["kind"] == "OnnxModelClass"
    )
    stage = Stage(models, PlainScreen(Console(width=200)), name=NAME)
    # Two models and their servers are on the node as well.
    with own_class(cluster, CLASS, traffic=offered["spec"]["traffic"], jobs=small_jobs_of(cluster)):
        declare(stage, version("v1"))
        end = finish(stage)
        assert end.is_promoted, end.message("Ready")
        assert end.status.endpoint is not None
        files = {
            "load.py": (ROOT / "tests" / "load" / "load.py").read_text(),
            "requests.json": texts.as_json(20),
        }
        host = end.status.endpoint.host
        arguments = [f"--http={host}:8000", "--close", f"--host={host}", f"--model={NAME}", "--rate=20"]
        models.apply(objects.load_pod(LOAD, image=cluster.images["operator"], files=files, arguments=arguments))
        until("the load pod to be ready", lambda: models.is_ready(LOAD), seconds=60)
        yield stage
        models.delete("pod", LOAD)
        models.delete("onnxmodel", NAME, timeout=60)


def counted(stage: Stage) -> Mapping[str, Any]:
    found: Mapping[str, Any] = stage.kubectl.through(f"pods/{LOAD}", 8080, "counters")
    return found


def selected(stage: Stage) -> str | None:
    """The revision that the model's Service leads to; None for all."""
    service = stage.kubectl.get("service", NAME)
    assert service is not None
    found: str | None = service["spec"]["selector"].get("onnx-operator.io/revision")
    return found


def endpoints(stage: Stage) -> int:
    slices = stage.kubectl.list("endpointslices", selector=f"kubernetes.io/service-name={NAME}")
    return sum(bool(each["conditions"].get("ready")) for one in slices for each in one.get("endpoints") or ())


def test_a_good_version_gets_its_part_of_the_servers_and_then_all_requests(plain: Stage) -> None:
    assert not any(plain.kubectl.get(kind, NAME) for kind in ("httproute", "grpcroute"))
    before = counted(plain)
    declare(plain, version("v2"))
    midway = until_model(plain, "the candidate to get requests", lambda it: it.candidate_weight)
    assert midway.candidate_weight == 50
    assert selected(plain) is None
    until("both servers to be behind the Service", lambda: endpoints(plain) == 2, seconds=20)

    end = finish(plain)

    assert end.is_promoted, end.message("Ready")
    assert end.status.stable is not None
    assert selected(plain) == end.status.stable.revision
    after = counted(plain)
    assert after["failed"] == before["failed"], after["failures"]
    assert after["sent"] > before["sent"]


def test_a_version_whose_answers_moved_is_taken_back_and_costs_no_request(plain: Stage) -> None:
    before, stable = counted(plain), plain.model().status.stable
    assert stable is not None
    declare(plain, version("v3c"))

    end = finish(plain)

    assert end.is_given_up
    assert end.reason("Promoted") == "AnalysisFailed"
    assert "disagreement" in end.message("Promoted")
    assert selected(plain) == stable.revision
    assert endpoints(plain) == 1
    after = counted(plain)
    assert after["failed"] == before["failed"], after["failures"]
