"""kubectl, as a user would type it. Knows nothing of models; never retries by itself, and never reads a Secret.

A cluster that cannot be reached is an `UnreachableError`, so that whoever waits may go on waiting while an API
server is away, and nobody mistakes silence for an answer.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

Manifest = dict[str, Any]

_UNREACHABLE: Final = (
    "connection refused",
    "connection reset",
    "i/o timeout",
    "tls handshake timeout",
    "no route to host",
    "unable to connect to the server",
    "the server is currently unable to handle the request",
    "http2: client connection lost",
    "unexpected eof",
    "etcdserver: request timed out",
    "request did not complete within the allotted timeout",
)


class KubectlError(Exception):
    """A command that the cluster refused, with what kubectl said about it."""

    def __init__(self, command: tuple[str, ...], said: str) -> None:
        self.said = said.strip()
        super().__init__(f"kubectl {shlex.join(command)}: {self.said}")


class NotFoundError(KubectlError):
    """There is no such object."""


class UnreachableError(KubectlError):
    """The API server did not answer; nothing is known about the state of the cluster."""


def _error(command: tuple[str, ...], said: str) -> KubectlError:
    lowered = said.lower()
    if any(sign in lowered for sign in _UNREACHABLE):
        return UnreachableError(command, said)
    if "(notfound)" in lowered or "not found" in lowered:
        return NotFoundError(command, said)
    return KubectlError(command, said)


@dataclass(frozen=True, slots=True)
class Kubectl:
    """One cluster, and the namespace that commands go to."""

    binary: Path
    kubeconfig: Path
    namespace: str = "default"

    def within(self, namespace: str) -> Kubectl:
        """The same cluster, another namespace."""
        return replace(self, namespace=namespace)

    def command(self, *arguments: str) -> list[str]:
        """The whole command line, for processes that live longer than one call."""
        return [str(self.binary), f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *arguments]

    def run(self, *arguments: str, stdin: bytes | str | None = None, timeout: float = 60) -> str:
        """What kubectl prints; raises a `KubectlError` with what it complained about."""
        given = stdin.encode() if isinstance(stdin, str) else stdin
        try:
            done = subprocess.run(
                self.command(*arguments),
                input=given,
                stdin=subprocess.DEVNULL if given is None else None,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as timed_out:
            raise UnreachableError(arguments, f"no answer within {timeout:.0f} s") from timed_out
        if done.returncode:
            raise _error(arguments, done.stderr.decode(errors="replace") or done.stdout.decode(errors="replace"))
        return done.stdout.decode()

    def get(self, kind: str, name: str) -> Manifest | None:
        """One object; None when there is no such object."""
        try:
            answer: Manifest = json.loads(self.run("get", kind, name, "--output=json"))
        except NotFoundError:
            return None
        return answer

    def list(self, kinds: str, *, selector: str = "", everywhere: bool = False) -> tuple[Manifest, ...]:
        """All objects of one or, with commas, several kinds."""
        flags = (*((f"--selector={selector}",) if selector else ()), *(("--all-namespaces",) if everywhere else ()))
        return tuple(json.loads(self.run("get", kinds, "--output=json", *flags))["items"])

    def apply(self, manifests: Manifest | Iterable[Manifest]) -> None:
        """Server-side apply of one or several objects."""
        items = [manifests] if isinstance(manifests, dict) else list(manifests)
        listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        self.run("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=listed)

    def apply_file(self, file: Path) -> None:
        """`kubectl apply -f FILE`."""
        self.run("apply", "--filename", str(file))

    def patch(self, kind: str, name: str, patch: Mapping[str, Any]) -> None:
        """A merge patch."""
        self.run("patch", kind, name, "--type=merge", "--patch", json.dumps(patch))

    def delete(self, kind: str, name: str, *, timeout: float = 180) -> None:
        """Delete and wait until it is gone; an object that is not there is fine."""
        self.run(
            "delete", kind, name, "--ignore-not-found", f"--timeout={timeout:.0f}s", timeout=timeout + 10
        )  # fmt: skip

    def execute(
        self,
        pod: str,
        *command: str,
        container: str | None = None,
        stdin: bytes | str | None = None,
        timeout: float = 60,
    ) -> str:
        """Run a command inside a pod."""
        chosen = () if container is None else ("--container", container)
        attached = () if stdin is None else ("--stdin",)
        return self.run("exec", pod, *chosen, *attached, "--", *command, stdin=stdin, timeout=timeout)

    def is_ready(self, pod: str) -> bool:
        """Whether a pod says it is ready."""
        found = self.get("pod", pod)
        conditions = found["status"].get("conditions", []) if found else []
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    def through(self, service: str, port: int | str, path: str, *, method: Literal["GET", "POST"] = "GET") -> Any:
        """JSON from an HTTP port of `pods/NAME` or `services/NAME`, through the API server's own proxy."""
        kind, _, name = service.partition("/")
        target = f"/api/v1/namespaces/{self.namespace}/{kind}/{name}:{port}/proxy/{path}"
        if method == "POST":
            return json.loads(self.run("create", "--raw", target, "--filename=-", stdin="", timeout=15))
        return json.loads(self.run("get", "--raw", target, timeout=15))
