"""A real Envoy has the series that alerts and dashboard use, under the names and with the labels they look for."""

from __future__ import annotations

import http.server
import re
import threading
import urllib.error
import urllib.request
from concurrent import futures
from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
import pytest
from typing_extensions import override

import series
from integration.apiserver import free_port, wait_until
from integration.traffic.parts import HOST, Gateway, Revision, get_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class _Http(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(500)
        self.send_header("content-length", "0")
        self.end_headers()

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""


class _Grpc(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, call: object) -> grpc.RpcMethodHandler:  # noqa: ARG002 - every method fails
        def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
            context.abort(grpc.StatusCode.INTERNAL, "as asked")
            return b""

        return grpc.unary_unary_rpc_method_handler(fail)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """An Envoy in front of servers that answer nothing but errors."""
    revision = Revision(1, free_port(), free_port())
    web = http.server.ThreadingHTTPServer(("127.0.0.1", revision.http_port), _Http)
    rpc = grpc.server(futures.ThreadPoolExecutor(1), handlers=(_Grpc(),))
    rpc.add_insecure_port(f"127.0.0.1:{revision.grpc_port}")
    gateway = Gateway(tmp_path, revision, Revision(2, revision.http_port, revision.grpc_port))
    with ExitStack() as closing:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        closing.callback(web.server_close)
        closing.callback(web.shutdown)
        rpc.start()
        closing.callback(rpc.stop, None)
        envoy = gateway.start()
        closing.callback(envoy.stop)
        yield gateway


def exported(gateway: Gateway) -> dict[str, set[str]]:
    # prometheus_client's own parser would give counters the names they ought to have.
    text = get_text(f"http://127.0.0.1:{gateway.admin_port}/stats/prometheus")
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+){(.*)} ", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def test_envoy_exports_what_is_used_of_it(gateway: Gateway) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{gateway.http_port}/v2", headers={"Host": HOST})
    with pytest.raises(urllib.error.HTTPError, match="500"):
        urllib.request.urlopen(request, timeout=10)
    options = [("grpc.default_authority", HOST)]
    channel = grpc.insecure_channel(f"127.0.0.1:{gateway.grpc_port}", options=options)
    with channel, pytest.raises(grpc.RpcError, match="INTERNAL"):
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"", timeout=10)

    def has_all() -> bool:
        # Envoy merges its histograms every five seconds.
        now = exported(gateway)
        return all(labels <= now.get(name, set()) for name, labels in series.ENVOY.items())

    wait_until(has_all, within=60, every=0.2, what=f"Envoy exports {', '.join(series.ENVOY)}")
