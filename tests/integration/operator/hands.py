"""What kubelets, the scheduler and the gateway's controller do, done by the test: they write statuses.

Everything else is real: API server, Job and Deployment controllers, garbage collector. The hands work in a thread
until stopped; what a test wants to go otherwise it says in `Fate`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from integration.apiserver import ApiAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

    from integration.apiserver import Client

Manifest = dict[str, Any]
NOW = "2026-01-01T00:00:00Z"
COMPONENT = "onnx-operator.io/component"
REVISION = "onnx-operator.io/revision"


def sha(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


#: Digests of what publish puts beside an artifact.
EVIDENCE: dict[str, Any] = {f"{name}Digest": sha(name) for name in ("report", "page", "golden")}


def summary(step: str, reason: str, message: str = "done", *, exit_code: int = 0, **details: Any) -> str:
    outcome = "Failed" if exit_code else "Succeeded"
    return json.dumps(
        {
            "step": step,
            "outcome": outcome,
            "reason": reason,
            "message": message,
            "exitCode": exit_code,
            "details": details,
        }
    )


@dataclass(frozen=True)
class End:
    """How a Job's container ends."""

    exit_code: int
    message: str
    reason: str = ""


def success(pod: Manifest) -> End:
    """What the converter says when all is well; the digest of a checkpoint is that of its declared source."""
    component = pod["metadata"]["labels"][COMPONENT]
    args = pod["spec"]["containers"][0]["args"]
    match component:
        case "fetch":
            source = args[args.index("--source") + 1]
            return End(0, summary("fetch", "Fetched", digest=sha(source), files=3, bytes=1000))
        case "convert":
            return End(0, summary("convert", "Converted", "a graph of 324 nodes", architecture="bert"))
        case "validate":
            parity = {"minCosine": "0.99999", "maxAbsolute": "2e-7", "maxRelative": "1e-6", "minLabelAgreement": None}
            provider = args[args.index("--provider") + 1]
            seconds = args[args.index("--benchmark") + 1]
            benchmark = {"provider": provider, "threads": 1, "message": f"{seconds} s are too short for 1 x 16"}
            return End(
                0,
                summary(
                    "validate",
                    "Validated",
                    provider=provider,
                    parity=parity,
                    samples=320,
                    reportDigest=sha("report"),
                    benchmark=benchmark,
                ),
            )
        case _:
            mounts = pod["spec"]["containers"][0]["volumeMounts"]
            work = [one["subPath"] for one in mounts if one["mountPath"].startswith("/conversion/")]
            digest = sha(" ".join(sorted(work)))
            return End(0, summary("publish", "Published", digest=digest, bytes=90_000_000, **EVIDENCE))


def ready_pod(pod: Manifest) -> Manifest:
    names = [one["name"] for one in pod["spec"]["containers"]]
    return {
        "phase": "Running",
        "podIP": "127.0.0.1",
        "podIPs": [{"ip": "127.0.0.1"}],
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": NOW}],
        "containerStatuses": [
            {
                "name": name,
                "image": "i",
                "imageID": "i",
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": NOW}},
            }
            for name in names
        ],
    }


def always(_: Manifest) -> bool:
    return True


def never(_: Manifest) -> bool:
    return False


@dataclass
class Fate:
    """What the test wants to happen; each function may answer None for `nothing yet`."""

    #: How a Job's pod ends, or the status it has meanwhile.
    job: Callable[[Manifest], End | Manifest | None] = success
    #: The status of a server's pod, by the pod; None leaves it pending.
    server: Callable[[Manifest], Manifest | None] = ready_pod
    #: Whether the gateway accepts a route as it is now; None while it has not looked yet.
    accepts: Callable[[Manifest], bool | None] = always


def ended_pod(end: End) -> Manifest:
    terminated = {"exitCode": end.exit_code, "message": end.message, "startedAt": NOW, "finishedAt": NOW}
    terminated["reason"] = end.reason or ("Completed" if end.exit_code == 0 else "Error")
    return {
        "phase": "Succeeded" if end.exit_code == 0 else "Failed",
        "containerStatuses": [
            {
                "name": "main",
                "image": "i",
                "imageID": "i",
                "ready": False,
                "restartCount": 0,
                "state": {"terminated": terminated},
            }
        ],
    }


def unschedulable_pod(message: str) -> Manifest:
    return {
        "phase": "Pending",
        "conditions": [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": message,
                "lastTransitionTime": NOW,
            }
        ],
    }


def waiting_pod(reason: str, message: str, *, container: str = "main") -> Manifest:
    return {
        "phase": "Pending",
        "containerStatuses": [
            {
                "name": container,
                "image": "i",
                "imageID": "",
                "ready": False,
                "restartCount": 0,
                "state": {"waiting": {"reason": reason, "message": message}},
            }
        ],
    }


def crashed_pod(exit_code: int, message: str, *, container: str = "triton") -> Manifest:
    ended = {"exitCode": exit_code, "reason": "Error", "message": message, "startedAt": NOW, "finishedAt": NOW}
    return {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": NOW}],
        "containerStatuses": [
            {
                "name": container,
                "image": "i",
                "imageID": "i",
                "ready": False,
                "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                "lastState": {"terminated": ended},
            }
        ],
    }


class Hands:
    """Work on one namespace, or on all if it is empty, until stopped.

    `pods` may narrow which pods are looked at, `every` is the pause in seconds between two looks.
    """

    def __init__(self, client: Client, namespace: str, fate: Fate, *, pods: str = "", every: float = 0.05) -> None:
        self._client = client
        self._scope = f"namespaces/{namespace}/" if namespace else ""
        self._pods = pods
        self._every = every
        self.fate = fate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.trouble: list[str] = []
        #: Weights by Service, as the gateway took them over, one after the other.
        self.accepted: list[dict[str, int]] = []

    def start(self) -> Hands:
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self.trouble, self.trouble

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self._look()
            except (OSError, ApiAnswer):
                continue  # the control plane is being tormented
            except Exception as error:  # noqa: BLE001 - a thread's trouble must reach the test
                self.trouble.append(repr(error))
                return

    def _look(self) -> None:
        for pod in self._client.items(f"/api/v1/{self._scope}pods{self._pods}"):
            if not pod["metadata"].get("deletionTimestamp"):
                self._pod(pod)
        for plural in ("httproutes", "grpcroutes"):
            for route in self._client.items(f"/apis/gateway.networking.k8s.io/v1/{self._scope}{plural}"):
                self._route(route, plural)

    def _pod(self, pod: Manifest) -> None:
        component = pod["metadata"]["labels"].get(COMPONENT)
        if component in {"server", "prober"}:
            wanted = self.fate.server(pod) if component == "server" else ready_pod(pod)
        else:
            end = self.fate.job(pod)
            wanted = ended_pod(end) if isinstance(end, End) else end
        if wanted is None or _holds(wanted, pod.get("status") or {}):
            return
        self._write("", "v1", "pods", pod, wanted)

    def _route(self, route: Manifest, plural: str) -> None:
        generation = route["metadata"]["generation"]
        accepted = self.fate.accepts(route)
        if accepted is None:
            return
        status = "True" if accepted else "False"
        reason = "Accepted" if status == "True" else "NoMatchingParent"
        conditions = [
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": "",
                "observedGeneration": generation,
                "lastTransitionTime": NOW,
            }
            for kind in ("Accepted", "ResolvedRefs")
        ]
        wanted = {
            "parents": [
                {
                    "parentRef": route["spec"]["parentRefs"][0],
                    "controllerName": "example.com/gateway",
                    "conditions": conditions,
                }
            ]
        }
        if not _holds(wanted, route.get("status") or {}):
            self._write("gateway.networking.k8s.io", "v1", plural, route, wanted)
            if plural == "httproutes" and accepted:
                self.accepted.append({one["name"]: one["weight"] for one in route["spec"]["rules"][0]["backendRefs"]})

    def _write(self, group: str, version: str, plural: str, manifest: Manifest, status: Manifest) -> None:
        root = f"/apis/{group}/{version}" if group else f"/api/{version}"
        metadata = manifest["metadata"]
        path = f"{root}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}/status"
        self._client.merge(path, {"status": status})


def _holds(wanted: Any, live: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(_holds(value, live.get(name)) for name, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(live, list) and len(live) == len(wanted) and all(map(_holds, wanted, live))
    return bool(wanted == live)
