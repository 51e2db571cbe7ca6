"""Models that are held in a phase of their second rollout, all phases at the same time.

One death, one deletion or one outage then meets every phase at once. What holds a model is the world around it (a
Job that does not end, a pod that is not ready, a gateway that does not answer) or its own spec (a pause, a long
step); the operator knows nothing of it.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter, defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any

from integration.apiserver import ApiAnswer
from integration.operator.conftest import GROUP, standard_class
from integration.operator.hands import COMPONENT, EVIDENCE, REVISION, End, ready_pod, sha, success, summary

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from integration.operator.conftest import World

Manifest = dict[str, Any]
MODEL = "onnx-operator.io/model"
V2 = {"source": {"persistentVolumeClaim": {"claimName": "checkpoints", "path": "v2"}}}
QUICK = [{"weight": 20, "duration": "1s"}, {"weight": 60, "duration": "1s"}]

#: Every phase, each the name of the model that is held in it.
PHASES = (
    "fetch",
    "convert",
    "validate",
    "publish",
    "starting",
    "weight-0",
    "step-20",
    "running",
    "step-60",
    "promoting",
    "draining",
    "rolling-back",
)
_JOBS = {"fetch", "convert", "validate", "publish"}
_UNANSWERED_WEIGHTS = {"step-20": 20, "step-60": 60, "promoting": 100}

KINDS = (
    "onnx-operator.io/v1alpha1/onnxmodels",
    "onnx-operator.io/v1alpha1/onnxmodelrevisions",
    "batch/v1/jobs",
    "apps/v1/deployments",
    "apps/v1/replicasets",
    "v1/services",
    "v1/pods",
    "policy/v1/poddisruptionbudgets",
    "autoscaling/v2/horizontalpodautoscalers",
    "networking.k8s.io/v1/networkpolicies",
    "gateway.networking.k8s.io/v1/httproutes",
    "gateway.networking.k8s.io/v1/grpcroutes",
)


def make_class(world: World, kind: str, **spec: Any) -> str:
    """A class of the test's own, never the default one."""
    name = f"{kind}-{world.namespace}"
    manifest = standard_class(name, **spec)
    del manifest["metadata"]["annotations"]
    world.client.create(f"{GROUP}/onnxmodelclasses", manifest)
    return name


def patient_traffic(drain: str) -> Manifest:
    return {"domain": "models.test", "gateway": {"name": "edge", "namespace": "gateway"}, "drain": drain}


def steady_success(pod: Manifest) -> End:
    """Success whose artifact depends on what was made, not on the model's UID."""
    labels = pod["metadata"]["labels"]
    if labels[COMPONENT] != "publish":
        return success(pod)
    return End(0, summary("publish", "Published", digest=sha(labels[REVISION]), bytes=90_000_000, **EVIDENCE))


class Phases:
    """The models of one world, and what holds each of them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._held: set[str] = set()
        self._stable: dict[str, str] = {}
        self._aborted = False
        world.fate.job = self._job
        world.fate.server = self._server
        world.fate.accepts = self._accepts

    def serve(self) -> None:
        """Every model with a first revision that has all traffic."""
        draining = make_class(self.world, "draining", traffic=patient_traffic("20s"))
        for phase in PHASES:
            steps = QUICK
            if phase in {"running", "rolling-back"}:
                steps = [{"weight": 20, "duration": "5m"}]
            extra = {"className": draining} if phase == "draining" else {}
            self.world.apply(phase, rollout={"steps": steps, "paused": False}, **extra)
        for phase in PHASES:
            status = self.world.until_ready(phase)
            self._stable[phase] = status["stable"]["revision"]

    def hold(self) -> None:
        """A second revision for every model, each as far as its phase."""
        self._held = set(PHASES)
        self.change()
        self.world.until(lambda: self.is_held("rolling-back"), "the one to abort has its step")
        self.abort()
        for phase in PHASES:
            self.world.until(partial(self.is_held, phase), f"a model is in phase {phase}")

    def change(self) -> None:
        """The second revision, without hindrance where nothing is to be held."""
        for phase in PHASES:
            extra: Manifest = {}
            if phase in self._held and phase == "weight-0":
                extra = {"rollout": {"paused": True}}
            if phase not in self._held and phase == "running":
                extra = {"rollout": {"steps": QUICK}}
            self.world.patch(phase, V2 | extra)

    def abort(self) -> None:
        self._aborted = True
        self.world.patch("rolling-back", {"rollout": {"abortToken": "stop"}})

    def release(self) -> None:
        self._held = set()
        self.world.patch("weight-0", {"rollout": {"paused": False}})
        self.world.patch("running", {"rollout": {"steps": QUICK}})

    def is_held(self, phase: str) -> bool:
        status = self.world.status(phase)
        candidate = status.get("candidate") or {}
        if phase in _JOBS or phase == "starting":
            return any(self._is_of_second(pod) for pod in self._pods(phase, "server" if phase == "starting" else phase))
        if phase == "weight-0":
            return bool(status["phase"] == "Paused")
        if phase == "running":
            return "stepStartedTime" in candidate
        if phase == "draining":
            return bool(status["phase"] == "Draining" and "drainStartedTime" in status)
        if phase == "rolling-back":
            at_step = "stepStartedTime" in candidate and candidate["weight"] == 20
            return self._share(phase) == 0 and "candidate" not in status if self._aborted else at_step
        return self._share(phase) == _UNANSWERED_WEIGHTS[phase]

    def until_settled(self, within: float = 120) -> None:
        for phase in PHASES:
            if phase == "rolling-back":
                self.world.until_condition(phase, "Stalled", "True", "RolledBack", within=within)
                self.world.until_condition(phase, "Reconciling", "False", within=within)
            else:
                self.world.until_ready(phase, within=within)

    # ---- inside

    def _pods(self, model: str, component: str) -> list[Manifest]:
        wanted = {MODEL: model, COMPONENT: component}
        return [pod for pod in self.world.items("v1/pods") if wanted.items() <= pod["metadata"]["labels"].items()]

    def _is_of_second(self, pod: Manifest) -> bool:
        labels = pod["metadata"]["labels"]
        if labels[COMPONENT] == "fetch":
            return '"v2"' in json.dumps(pod["spec"]["containers"][0]["args"]).replace("\\", "")
        return bool(labels[REVISION] != self._stable.get(labels[MODEL]))

    def _holds(self, pod: Manifest, phase: str) -> bool:
        model = pod["metadata"]["labels"][MODEL]
        return model == phase and phase in self._held and self._is_of_second(pod)

    def _share(self, model: str) -> int:
        return _share_beside(self.world.split(model), self._stable[model])

    def _job(self, pod: Manifest) -> End | None:
        return None if self._holds(pod, pod["metadata"]["labels"][COMPONENT]) else steady_success(pod)

    def _server(self, pod: Manifest) -> Manifest | None:
        return None if self._holds(pod, "starting") else ready_pod(pod)

    def _accepts(self, route: Manifest) -> bool | None:
        model = route["metadata"]["name"]
        if model not in self._held:
            return True
        weights = {one["name"]: one["weight"] for one in route["spec"]["rules"][0]["backendRefs"]}
        share = _share_beside(weights, self._stable[model])
        is_held = share == 0 if model == "rolling-back" and self._aborted else share == _UNANSWERED_WEIGHTS.get(model)
        return None if is_held else True


def _share_beside(weights: dict[str, int], stable: str) -> int:
    return sum(weight for name, weight in weights.items() if not name.startswith(stable))


class Births:
    """Counts what is created in a world's namespace, from now on and by name, whatever becomes of it."""

    def __init__(self, world: World, *kinds: str) -> None:
        self._found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for kind in kinds:
            root = "/api/" if kind.count("/") == 1 else "/apis/"
            group, plural = kind.rsplit("/", 1)
            scope = f"/namespaces/{world.namespace}" if world.namespace else ""
            path = f"{root}{group}{scope}/{plural}"
            version = world.until(partial(_version, world, path), f"{path} can be listed")
            answer = world.client.watch(path, version)
            threading.Thread(target=self._count, args=(answer,), daemon=True).start()

    @property
    def names(self) -> Counter[str]:
        return sum(self._found.values(), Counter())

    def of(self, namespace: str) -> Counter[str]:
        return self._found[namespace]

    def _count(self, answer: HTTPResponse) -> None:
        for line in answer:
            event = json.loads(line)
            if event["type"] == "ADDED":
                metadata = event["object"]["metadata"]
                self._found[metadata["namespace"]][f"{event['object']['kind']}/{metadata['name']}"] += 1


def _version(world: World, path: str) -> str:
    try:
        return str(world.client.request("GET", path)["metadata"]["resourceVersion"])
    except ApiAnswer as answer:
        if answer.status == 429:  # the first list of a kind, right after its CRD was installed
            return ""
        raise


# ---- what is the same in two worlds


def end_state(world: World) -> dict[str, Any]:
    """Every object by kind and name, without what differs between any two runs: times, UIDs, versions."""
    found = {}
    for kind in KINDS:
        if kind in {"v1/pods", "apps/v1/replicasets"}:
            continue  # their names are drawn; how many there are stands in the Jobs' and Deployments' status
        for one in world.items(kind):
            found[f"{kind.rsplit('/', 1)[1]}/{one['metadata']['name']}"] = _essence(world, kind, one)
    text = json.dumps(found).replace(world.namespace, "NAMESPACE")
    for model in world.items(KINDS[0]):
        uid = model["metadata"]["uid"]
        text = text.replace(uid, "UID").replace(uid[:8], "UID8")
    state: dict[str, Any] = json.loads(text)
    return state


def _essence(world: World, kind: str, one: Manifest) -> Manifest:
    metadata = one["metadata"]
    owners = [f"{owner['kind']}/{owner['name']}" for owner in metadata.get("ownerReferences", [])]
    status = one.get("status") or {}
    if kind == "batch/v1/jobs":
        status = {name: status.get(name, 0) for name in ("succeeded", "failed")}
    elif kind.endswith("/onnxmodelrevisions"):
        # When each look came differs between any two runs, and so does all of the record but its end.
        status = status | {"rollout": {"end": (status.get("rollout") or {}).get("end")}}
    elif not kind.startswith(GROUP.removeprefix("/apis/")):
        status = {name: status[name] for name in ("replicas", "readyReplicas") if name in status}
    labels = metadata.get("labels")
    return {"labels": labels, "owners": owners, "spec": _lasting(one["spec"]), "status": _lasting(status)}


_PASSING = {"uid", "controller-uid", "batch.kubernetes.io/controller-uid", "observedGeneration", "seconds"}
_PASSING |= {"clusterIP", "clusterIPs", "nodePort", "healthCheckNodePort"}
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _lasting(inner)
            for name, inner in value.items()
            if name not in _PASSING and name != "time" and not name.endswith("Time")
        }
    if isinstance(value, list):
        return [_lasting(one) for one in value]
    if isinstance(value, str):
        return _MOMENT.sub("TIME", value)
    return value
