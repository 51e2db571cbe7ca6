"""A real tritonserver on loopback, started with the command line of a serving pod.

It is laid out by the script that the image uses, from the locked wheels, once per content into the cache; each run of
the tests serves from a copy, as user 1000 where the tests run as root. It never outlives the test run.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import tritonclient.grpc
import tritonclient.http

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    class Model(Protocol):
        """Writes itself into a repository, and files that the repository links to elsewhere."""

        def write(self, repository: Path, artifacts: Path, /) -> None: ...


T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE = REPOSITORY / "triton_image"
LOCK = REPOSITORY / "requirements" / "triton.txt"
USER = 1000

#: What the operator writes into the pod's container, but for the ports.
FLAGS = (
    "--model-control-mode=none",
    "--strict-readiness=true",
    "--exit-on-error=true",
    "--disable-auto-complete-config",
    "--allow-metrics=true",
    "--metrics-config=summary_latencies=true",
    "--exit-timeout-secs=20",
)


def cached_server() -> Path:
    """The wheels, laid out; made once for each lock, recipe and Python."""
    root = os.environ.get("ONNX_OPERATOR_CACHE")
    home = os.environ.get("XDG_CACHE_HOME")
    cache = Path(root) if root else (Path(home) if home else Path.home() / ".cache") / "onnx-operator"
    recipe = IMAGE / "assemble_server.py"
    content = b"".join((LOCK.read_bytes(), recipe.read_bytes(), sys.version.encode()))
    server = cache / f"triton-{hashlib.sha256(content).hexdigest()[:16]}"
    if not server.exists():
        command = [sys.executable, str(recipe), "--requirements", str(LOCK), "--output", str(server)]
        # The environment of the tests has no pip but an uv beside its Python.
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
        # Another run may have made it meanwhile; it is renamed into place when it is complete.
        assert server.exists(), f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return server


def install_server(root: Path) -> None:
    """Copy it, as the image's layers do: the wheels first, our own code over them."""
    shutil.copytree(cached_server(), root, symlinks=True)
    shutil.copytree(IMAGE / "bin", root / "bin")
    shutil.copytree(
        IMAGE / "backends" / "onnxruntime",
        root / "backends" / "onnxruntime",
        ignore=shutil.ignore_patterns("__pycache__"),
    )


def wait_until(check: Callable[[], T], *, within: float, what: str) -> T:
    """The first truthy value of `check`, or a failure that says what never came."""
    deadline = time.monotonic() + within
    while not (value := check()):
        assert time.monotonic() < deadline, f"within {within:g} s: {what}"
        time.sleep(0.05)
    return value


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes

    @property
    def error(self) -> str:
        """The sentence of an error."""
        return str(json.loads(self.body)["error"])


class Server:
    """One tritonserver process with its repository; a context manager that ends it."""

    def __init__(self, root: Path, folder: Path, models: Iterable[Model], flags: Iterable[str] = FLAGS) -> None:
        self.root = root
        self.repository = folder / "models"
        for model in models:
            model.write(self.repository, folder / "artifacts")
        self._make_readable(folder)
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        self.log_file = folder / "tritonserver.log"
        # A name of its own, since a container has a /dev/shm of its own: what a killed server leaves must go with it.
        self.shared_memory = f"onnx-operator-test-{self.http_port}-"
        as_user = ["--reuid", str(USER), "--regid", str(USER), "--clear-groups"] if os.geteuid() == 0 else []
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *("setpriv", *as_user, "--pdeathsig", "KILL", "--"),
                    str(root / "bin" / "tritonserver"),
                    f"--model-repository={self.repository}",
                    *flags,
                    *(f"--{service}-address=127.0.0.1" for service in ("http", "grpc", "metrics")),
                    f"--http-port={self.http_port}",
                    f"--grpc-port={self.grpc_port}",
                    f"--metrics-port={self.metrics_port}",
                    f"--backend-config=python,shm-region-prefix-name={self.shared_memory}",
                ],
                stdout=log,
                stderr=log,
                cwd="/",
            )

    @staticmethod
    def _make_readable(folder: Path) -> None:
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o644)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_for(self, path: str) -> Server:
        """Return when that path answers 200 and the metrics do too; fail with its log when it ends before."""

        def answers() -> bool:
            assert self.process.poll() is None, f"tritonserver ended:\n{self.log}"
            return self.is_up(path) and self.is_up("/metrics", self.metrics_port)

        wait_until(answers, within=60, what=f"tritonserver answers {path}")
        return self

    def wait_ready(self) -> Server:
        """Return when all its models are."""
        return self.wait_for("/v2/health/ready")

    def wait_ended(self) -> int:
        """Its exit code."""
        return self.process.wait(120)

    def stop(self) -> None:
        """Ask it to end and see that it does."""
        for backend in self.backends():
            os.kill(backend, signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            wait_until(lambda: not self.backends(), within=30, what="backend processes notice that it is gone")
            for region in Path("/dev/shm").glob(f"{self.shared_memory}*"):
                region.unlink()

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def is_up(self, path: str, port: int = 0) -> bool:
        try:
            return self.ask(path, port=port).status == http.client.OK
        except OSError:
            return False

    def ask(self, path: str, body: Any = None, *, method: str = "GET", port: int = 0) -> Answer:
        """One plain HTTP request; one with a body is a POST of JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.http_port, timeout=60)
        try:
            content = None if body is None else json.dumps(body)
            connection.request("POST" if content else method, path, content)
            response = connection.getresponse()
            return Answer(response.status, response.read())
        finally:
            connection.close()

    def http(self) -> tritonclient.http.InferenceServerClient:
        return tritonclient.http.InferenceServerClient(f"127.0.0.1:{self.http_port}", network_timeout=60)

    def grpc(self) -> tritonclient.grpc.InferenceServerClient:
        return tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{self.grpc_port}")

    def metric(self, name: str, model: str, **labels: str) -> float:
        """The value of one of Triton's metrics, exactly as Prometheus would name it."""
        wanted = {"model": model, **labels}
        lines = self.ask("/metrics", port=self.metrics_port).body.decode().splitlines()
        found = [
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in wanted.items())
        ]
        assert len(found) == 1, f"{name}{wanted}: {len(found)} such metrics"
        return found[0]

    def backends(self, model: str = "") -> list[int]:
        """Process ids of the backend processes (of one model) that live."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                command = (folder / "cmdline").read_text().split("\0") if folder.name.isdecimal() else []
            except OSError:
                continue
            # Its second argument is the name of its shared memory.
            if len(command) > 2 and command[2].startswith(self.shared_memory) and f"/{model}" in command[1]:
                found.append(int(folder.name))
        return found
