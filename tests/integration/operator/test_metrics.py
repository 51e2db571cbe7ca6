"""A rollout judged by what the servers themselves have counted, with no Prometheus anywhere."""

from __future__ import annotations

import http.server
import itertools
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from integration.operator.hands import ready_pod
from onnx_operator.render.servers import METRICS_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.operator.conftest import World

#: An address of its own, for the port is the same in every pod.
ADDRESS = "127.8.0.2"
BY_SERVERS = {
    "interval": "1s",
    "metrics": [
        {"name": "errorRatio", "provider": "triton", "maximum": "0.05", "tolerance": "0.01"},
        {"name": "throughputPerReplica", "minimumValue": "1", "dryRun": True},
    ],
}


@contextmanager
def servers(*, failing: str) -> Iterator[None]:
    """What Tritons of versions 1 and 2 tell, having answered some hundred requests more each time they are asked."""
    answered = itertools.count(100, 100)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            lines, total = [], next(answered)
            for version in ("1", "2"):
                labels, failed = f'model="minilm",version="{version}"', total // 4 if version == failing else 0
                lines += [
                    f"nv_inference_request_success{{{labels}}} {total - failed}",
                    f'nv_inference_request_failure{{{labels},reason="BACKEND"}} {failed}',
                ]
            self.send_response(200)
            self.end_headers()
            self.wfile.write("\n".join((*lines, "")).encode())

        @override
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer((ADDRESS, METRICS_PORT), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def roll_out(world: World) -> None:
    world.fate.server = lambda pod: ready_pod(pod) | {"podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}]}
    world.operator().supervise()
    rollout = {"steps": [{"weight": 20, "duration": "3s"}], "analysis": BY_SERVERS, "progressDeadline": "2m"}
    world.apply("minilm", rollout=rollout)
    world.until_ready("minilm")
    world.patch("minilm", {"quantization": {"scheme": "int8-dynamic"}})


def test_a_candidate_whose_servers_fail_requests_is_rolled_back(world: World) -> None:
    with servers(failing="2"):
        roll_out(world)
        world.until_condition("minilm", "Promoted", "False", "AnalysisFailed")
    assert "errorRatio is 25" in world.condition("minilm", "Promoted")["message"]


def test_a_good_one_is_promoted_and_told_about_meanwhile(world: World) -> None:
    with servers(failing=""):
        roll_out(world)

        def told() -> Any:
            found = (world.status("minilm").get("candidate") or {}).get("analysis") or [{}]
            return found if all(one.get("verdict") == "Pass" for one in found) else None

        errors, throughput = world.until(told, "both metrics pass")
        world.until_ready("minilm")
    assert (errors["candidate"], errors["stable"]) == ("0.0000", "0.0000")
    assert errors["candidateCounts"]["stepTotal"] == errors["candidateSamples"] >= 100
    assert throughput["candidate"].endswith("/s")
    assert throughput["dryRun"] is True
