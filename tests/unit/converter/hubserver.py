"""A server that speaks the hub's own protocol, on loopback: the API, /resolve/, and a content network beside it.

Small files are answered directly, large ones (here: safetensors, and what lies in large/) by a redirect to the content
network, as on the real hub. One repository is a model's, another one may be a dataset's. `Faults` makes it misbehave.
"""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(slots=True)
class Faults:
    """What the hub does wrong; nothing by default."""

    token: str | None = None
    gated: bool = False
    api_status: int | None = None
    #: The commit that every revision resolves to.
    commit: str = COMMIT
    #: File name to bytes that are served in its place, under the old announcement.
    swapped: dict[str, bytes] = field(default_factory=dict)
    #: Files whose body breaks off after so many bytes, that many times.
    broken: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: Where large files are redirected to, in place of the content network.
    redirect: str | None = None
    #: More names that the API lists.
    listed: tuple[str, ...] = ()
    #: File name to the sha256 that the API announces for it.
    announced: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class HubServer:
    """What is served, and what was asked."""

    repository: str
    files: Mapping[str, bytes]
    kind: str = "models"
    faults: Faults = field(default_factory=Faults)
    asked: list[str] = field(default_factory=list)
    authorized: list[str] = field(default_factory=list)
    endpoint: str = ""
    content: str = ""

    def listing(self) -> dict[str, object]:
        siblings: list[dict[str, object]] = []
        for name, data in sorted(self.files.items()):
            entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob_id(data)}
            if is_large(name):
                sha256 = self.faults.announced.get(name, hashlib.sha256(data).hexdigest())
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        siblings += [{"rfilename": name, "size": 1, "blobId": "0" * 40} for name in self.faults.listed]
        return {"id": self.repository, "sha": self.faults.commit, "siblings": siblings}


def is_large(name: str) -> bool:
    return name.endswith(".safetensors") or name.startswith("large/")


def blob_id(data: bytes) -> str:
    """git's name for a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    is_content_network = False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {'content' if self.is_content_network else 'hub'} {path}")
        if "Authorization" in self.headers:
            self.hub.authorized.append("content" if self.is_content_network else "hub")
        if self.is_content_network:
            self._send_file(path.removeprefix("/"))
        elif self._is_refused():
            return
        elif path.startswith(f"/api/{self.hub.kind}/"):
            self._send_listing(path)
        else:
            self._resolve(path)

    def _is_refused(self) -> bool:
        faults = self.hub.faults
        if faults.gated:
            self._send(403, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        elif faults.token is not None and self.headers.get("Authorization") != f"Bearer {faults.token}":
            self._send(401, headers={"X-Error-Message": "Invalid username or password."})
        else:
            return False
        return True

    def _send_listing(self, path: str) -> None:
        repository, _, revision = path.removeprefix(f"/api/{self.hub.kind}/").partition("/revision/")
        if self.hub.faults.api_status is not None:
            self._send(self.hub.faults.api_status)
        elif repository != self.hub.repository:
            self._send(404, headers={"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif revision not in ("main", COMMIT):
            self._send(
                404, headers={"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"}
            )
        else:
            self._send(200, json.dumps(self.hub.listing()).encode(), {"Content-Type": "application/json"})

    def _resolve(self, path: str) -> None:
        folder = "/datasets" if self.hub.kind == "datasets" else ""
        _, _, name = path.removeprefix(f"{folder}/{self.hub.repository}/resolve/").partition("/")
        if name not in self.hub.files:
            self._send(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        data = self.hub.files[name]
        if not is_large(name):
            self._send_file(name)
            return
        self._send(
            302,
            headers={
                "X-Repo-Commit": self.hub.faults.commit,
                "X-Linked-Size": str(len(data)),
                "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
                "Location": self.hub.faults.redirect or f"{self.hub.content}/{name}",
            },
        )

    def _send_file(self, name: str) -> None:
        data = self.hub.faults.swapped.get(name, self.hub.files[name])
        headers = {"X-Repo-Commit": self.hub.faults.commit, "ETag": f'"{blob_id(data)}"', "Accept-Ranges": "bytes"}
        status, first = 200, 0
        if self.headers.get("Range", "").startswith("bytes="):
            first = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
            status = 206
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        times, at = self.hub.faults.broken.get(name, (0, 0))
        if times and self.command == "GET":
            self.hub.faults.broken[name] = (times - 1, at)
            self._send(status, data[first:], headers, only=at)
            self.close_connection = True
            return
        self._send(status, data[first:], headers)

    def _send(
        self, status: int, data: bytes = b"", headers: Mapping[str, str] | None = None, only: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if only is None else data[:only])

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: what was asked is in `asked`."""


@contextmanager
def serving(hub: HubServer) -> Iterator[HubServer]:
    """Runs the hub and its content network, each on a port of its own."""
    servers = []
    for is_content_network in (False, True):
        handler = type("Handler", (_Handler,), {"hub": hub, "is_content_network": is_content_network})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
    hub.endpoint, hub.content = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
