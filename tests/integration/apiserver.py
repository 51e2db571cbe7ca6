"""A real control plane on loopback for the integration tests: etcd, kube-apiserver, kube-controller-manager.

What is real: storage, admission, CRD schemas, server-side apply, watches, RBAC, garbage collection, the controllers of
Jobs, Deployments and autoscalers. What is not there: nodes and metrics; a test writes the statuses that a kubelet
would.

Every process dies with the test run (parent-death signal), so a killed run leaves nothing behind that listens; data
lies in a folder of the run. Each part can be stopped, started, paused and resumed, to test what an outage does.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager")
ADMIN = "admin"
#: What the API server takes for the field manager of a test's writes.
AGENT = "tests"
CONTROLLER_MANAGER = "system:kube-controller-manager"

Manifest = dict[str, Any]
T = TypeVar("T")


#: The parent-death signal comes when the *thread* that started a process ends: so one that lives as long as we do.
_STARTER = ThreadPoolExecutor(1, "starter")


def start_dying_with_us(
    command: list[str], log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process that is killed when this one ends, however that comes about."""
    command = ["setpriv", "--pdeathsig", "KILL", "--", *command]

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=output, env=environment)

    return _STARTER.submit(start).result()


class ApiAnswer(Exception):  # noqa: N818 - what the server answered, not what went wrong in a test
    """The API server refused a request of the test."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


@cache
def find_binaries() -> Path:
    """The folder with the control plane's binaries: KUBEBUILDER_ASSETS, else onebox's cache, built when missing."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets:
        missing = [name for name in BINARIES if not (Path(assets) / name).exists()]
        if missing:
            raise FileNotFoundError(f"KUBEBUILDER_ASSETS={assets} lacks {', '.join(missing)}; unset it to build them")
        return Path(assets)
    command = [sys.executable, "hack/onebox", "tools", "--only", "integration"]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return Path(output.strip().splitlines()[-1])


def wait_until(check: Callable[[], T], *, within: float, what: str, every: float = 0.05) -> T:
    """The first truthy value of `check`, or a failure that says what never came."""
    deadline = time.monotonic() + within
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"within {within:g} s: {what}")
        time.sleep(every)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Part:
    """One process of the control plane."""

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self.process is None or self.process.poll() is not None, f"{self.name} runs already"
        # A quarter of an API server's time is its garbage collector's; here there is memory to spare for it.
        self.process = start_dying_with_us(self.command, self.log, {**os.environ, "GOGC": "200"})

    def kill(self) -> None:
        """SIGKILL: what a crash looks like. Also ends a paused process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def assert_alive(self) -> None:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}:\n{self.tail()}"

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)


@dataclass
class Client:
    """A user of the API server, as plain as can be: JSON in, JSON out. Not the code under test."""

    server: str
    ca: Path
    token: str
    context: ssl.SSLContext = field(init=False)
    _open: threading.local = field(init=False, default_factory=threading.local, repr=False)
    _opened: list[http.client.HTTPSConnection] = field(init=False, default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.context = ssl.create_default_context(cafile=str(self.ca))

    def request(
        self, method: str, path: str, body: Any = None, *, content_type: str = "application/json", timeout: float = 60
    ) -> Manifest:
        answer, content = self._exchange(method, path, body, content_type, timeout)
        if answer >= HTTPStatus.BAD_REQUEST:
            text = content.decode(errors="replace")
            with contextlib.suppress(ValueError, KeyError, TypeError):
                text = json.loads(text)["message"]
            raise ApiAnswer(answer, text)
        found: Manifest = json.loads(content or b"{}")
        return found

    def _exchange(self, method: str, path: str, body: Any, content_type: str, timeout: float) -> tuple[int, bytes]:
        """Over the thread's open connection where there is one: a new one costs more than most requests."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": content_type, "User-Agent": AGENT}
        request = (method, path, None if body is None else json.dumps(body).encode(), headers)
        connection: http.client.HTTPSConnection | None = getattr(self._open, "connection", None)
        if connection is not None and connection.sock is not None and method != "POST":
            with contextlib.suppress(ConnectionError):  # ended while nobody looked; doing it again does no harm
                return _send(connection, timeout, *request)
        where = urlsplit(self.server)
        connection = http.client.HTTPSConnection(str(where.hostname), where.port, timeout=timeout, context=self.context)
        self._open.connection = connection
        self._opened.append(connection)
        return _send(connection, timeout, *request)

    def close(self) -> None:
        for connection in self._opened:
            connection.close()

    def get(self, path: str) -> Manifest | None:
        try:
            return self.request("GET", path)
        except ApiAnswer as answer:
            if answer.status == 404:
                return None
            raise

    def items(self, path: str) -> list[Manifest]:
        items: list[Manifest] = self.request("GET", path)["items"]
        return items

    def watch(self, path: str, version: str) -> http.client.HTTPResponse:
        """The events after a version, one JSON object a line, on a connection of their own."""
        request = urllib.request.Request(
            f"{self.server}{path}?watch=1&resourceVersion={version}", headers={"Authorization": f"Bearer {self.token}"}
        )
        # Longer than a whole tier: a watch that ends in silence would miss something.
        answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=7200, context=self.context)
        return answer

    def create(self, path: str, manifest: Manifest) -> Manifest:
        return self.request("POST", path, manifest)

    def merge(self, path: str, patch: Manifest) -> Manifest:
        return self.request("PATCH", path, patch, content_type="application/merge-patch+json")

    def delete(self, path: str) -> Manifest:
        return self.request("DELETE", path)


def _send(connection: http.client.HTTPSConnection, timeout: float, *request: Any) -> tuple[int, bytes]:
    """The answer, or an OSError and a closed connection; a ConnectionError where the other side had ended it."""
    if connection.sock is not None:
        connection.sock.settimeout(timeout)
    try:
        connection.request(*request)
        answer = connection.getresponse()
        return answer.status, answer.read()
    # TLS has a word of its own for a connection that ends under a long write, which is no ConnectionError.
    except (http.client.HTTPException, ssl.SSLEOFError) as error:
        connection.close()
        raise ConnectionError(repr(error)) from error
    except OSError:
        connection.close()
        raise


@contextlib.contextmanager
def running_control_plane(folder: Path, users: Mapping[str, tuple[str, ...]] | None = None) -> Iterator[ControlPlane]:
    """etcd, API server and controller manager; `users` are the names that may log in beside ADMIN, and their groups."""
    plane = ControlPlane(folder, find_binaries())
    plane.up(users or {})
    try:
        yield plane
    finally:
        plane.down()


class ControlPlane:
    """Start with `up`, end with `down`; the parts are attributes, to be tormented one by one."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.server = ""
        self._tokens: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._clients: dict[str, Client] = {}
        self._binaries = binaries
        self.etcd: Part
        self.apiserver: Part
        self.controller_manager: Part

    @property
    def ca(self) -> Path:
        # kube-apiserver makes this certificate itself and appends the authority that signed it.
        return self.folder / "certs" / "apiserver.crt"

    @property
    def admin(self) -> Client:
        return self.client(ADMIN)

    def client(self, user: str) -> Client:
        return self.client_with(self._tokens[user][0])

    def client_with(self, token: str) -> Client:
        """Its connections stay open until `down`."""
        if token not in self._clients:
            self._clients[token] = Client(self.server, self.ca, token)
        return self._clients[token]

    def kubeconfig(self, user: str = ADMIN) -> Path:
        """A kubeconfig file for one of the users."""
        path = self._kubeconfig_path(user)
        authority = base64.b64encode(self.ca.read_bytes()).decode()
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": self.server, "certificate-authority-data": authority}}],
            "users": [{"name": "u", "user": {"token": self._tokens[user][0]}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(json.dumps(content))
        path.chmod(0o600)
        return path

    def up(self, users: Mapping[str, tuple[str, ...]]) -> None:
        """Start all parts; `users` are the names that may log in and their groups."""
        users = {**users, ADMIN: ("system:masters",), CONTROLLER_MANAGER: ()}
        self._tokens = {name: (secrets.token_hex(16), groups) for name, groups in users.items()}
        self._write_files()
        self._define_parts()
        self.etcd.start()
        self.start_apiserver()
        self.kubeconfig(CONTROLLER_MANAGER)
        self.controller_manager.start()

        # Where the default service account appears, the controllers are at work.
        def is_at_work() -> bool:
            self.controller_manager.assert_alive()
            return self.admin.get("/api/v1/namespaces/default/serviceaccounts/default") is not None

        wait_until(is_at_work, within=60, what="the controller manager makes service accounts")

    def down(self) -> None:
        for client in self._clients.values():
            client.close()
        for part in (self.controller_manager, self.apiserver, self.etcd):
            part.kill()

    def start_apiserver(self) -> None:
        """Start it (again) and wait until it is ready; after `apiserver.kill()` it comes back at the same address."""
        self.apiserver.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        wait_until(self.is_ready, within=90, what="kube-apiserver is ready")

    def is_ready(self) -> bool:
        self._alive()
        if not self.ca.exists():
            return False
        try:
            self.admin.request("GET", "/readyz?exclude=etcd-readiness", timeout=2)
        except json.JSONDecodeError:
            return True  # the page says `ok`, which is no JSON
        except (OSError, ApiAnswer):
            return False
        return True

    def install_crds(self) -> None:
        """Apply every CRD of ours and wait until the API server serves it."""
        import yaml  # noqa: PLC0415

        for path in sorted((ROOT / "crds").glob("*.yaml")):
            for manifest in yaml.safe_load_all(path.read_text()):
                if manifest:
                    self.install_crd(manifest)

    def install_crd(self, manifest: Manifest) -> None:
        collection = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        name = manifest["metadata"]["name"]
        self.admin.request(
            "PATCH",
            f"{collection}/{name}?fieldManager=tests&force=true",
            manifest,
            content_type="application/apply-patch+yaml",
        )
        group, version = manifest["spec"]["group"], manifest["spec"]["versions"][0]["name"]
        plural = manifest["spec"]["names"]["plural"]

        def is_served() -> bool:
            definition = self.admin.get(f"{collection}/{name}") or {}
            conditions = definition.get("status", {}).get("conditions") or []
            known = self.admin.get(f"/apis/{group}/{version}") or {"resources": []}
            return any(c["type"] == "Established" and c["status"] == "True" for c in conditions) and any(
                resource["name"] == plural for resource in known["resources"]
            )

        wait_until(is_served, within=30, what=f"{name} is served")

    # ---- inside

    def _kubeconfig_path(self, user: str) -> Path:
        return self.folder / f"{user.replace(':', '_')}.kubeconfig"

    def _alive(self) -> bool:
        for part in (self.etcd, self.apiserver):
            part.assert_alive()
        return True

    def _write_files(self) -> None:
        rows = [f'{token},{name},{name},"{",".join(groups)}"' for name, (token, groups) in self._tokens.items()]
        tokens = self.folder / "tokens.csv"
        tokens.write_text("\n".join(rows) + "\n")
        tokens.chmod(0o600)
        subprocess.run(
            ["openssl", "genrsa", "-out", str(self.folder / "service-accounts.key"), "2048"],
            check=True,
            capture_output=True,
        )

    def _define_parts(self) -> None:
        client_port, peer_port, secure_port = free_port(), free_port(), free_port()
        self.server = f"https://127.0.0.1:{secure_port}"
        etcd = f"http://127.0.0.1:{client_port}"
        key = str(self.folder / "service-accounts.key")
        self.etcd = self._part(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}",
            f"--initial-cluster=default=http://127.0.0.1:{peer_port}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        self.apiserver = self._part(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={secure_port}",
            f"--cert-dir={self.folder / 'certs'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
            # The controllers' garbage collector and namespaces must act as in life; nodes are not there to be checked.
            "--disable-admission-plugins=ServiceAccount",
            # A watch ends within seconds of a stop, so that outages begin when the test says so.
            "--shutdown-delay-duration=0s",
        )
        self.controller_manager = self._part(
            "kube-controller-manager",
            f"--kubeconfig={self._kubeconfig_path(CONTROLLER_MANAGER)}",
            f"--service-account-private-key-file={key}",
            "--bind-address=127.0.0.1",
            f"--secure-port={free_port()}",
            f"--cert-dir={self.folder / 'controller-manager-certs'}",
            "--leader-elect=false",
            # As kubeadm runs it: every controller with the rights of its own bootstrap role.
            "--use-service-account-credentials=true",
            f"--root-ca-file={self.ca}",
            "--concurrent-gc-syncs=5",
            # Pods here have loopback addresses, which endpoints refuse, and these controllers would try for ever.
            "--controllers=*,-endpoints-controller,-endpointslice-controller",
            "--horizontal-pod-autoscaler-sync-period=1s",
        )

    def _part(self, name: str, *flags: str) -> Part:
        return Part(name, [str(self._binaries / name), *flags], self.folder / f"{name}.log")
