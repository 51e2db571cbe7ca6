"""The servers of a revision on one execution provider, and the prober between two revisions.

The pod template of a revision never changes: a new template is a new revision. Triton gets no model control, no
write access to what it serves, and no rights; an init container has checked every byte before it starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from onnx_converter import engines
from onnx_operator.api.common import ExecutionProvider
from onnx_operator.core.names import (
    COMPONENT_LABEL,
    MODEL_LABEL,
    PROVIDER_LABEL,
    REVISION_LABEL,
    SERVER_CONTAINER,
    Component,
    digest_hex,
)
from onnx_operator.core.tell import host_of
from onnx_operator.core.view import side_of
from onnx_operator.render.jobs import arithmetic, placed
from onnx_operator.render.parts import (
    ARTIFACTS,
    GRPC_PORT,
    HTTP_PORT,
    TMP,
    TMP_VOLUME,
    Manifest,
    claim_volume,
    config_map_volume,
    container_basics,
    labels,
    metadata,
    owned_by_model,
    owned_by_revision,
    pod_basics,
    resources,
    stamped,
)

if TYPE_CHECKING:
    from onnx_operator.core.actions import WantProber, WantServers, WantService
    from onnx_operator.core.autoscaling import Autoscaler
    from onnx_operator.core.observation import RevisionSeen
    from onnx_operator.core.traffic import GatewayAddress

METRICS_PORT: Final = 8002
PROBER_PORT: Final = 8080

#: Endpoints lag behind a pod's end: it serves on for so long before it is told to stop.
_PRE_STOP_SECONDS: Final = 10
_EXIT_SECONDS: Final = 30
#: Loading and warm-up of the largest model on the slowest disk; the progress deadline is what people wait for.
_STARTUP_SECONDS: Final = 1800
#: Engines are built before that, each kernel tried on the device.
_BUILDING_SECONDS: Final = 3600
#: A container that starts again finds them; a pod of its own builds its own, as they are of one device and version.
_ENGINES: Final = "engines"

# Triton calls itself alive when a backend process is dead, so the small image brings a check of its own; NVIDIA's
# image has its backend inside the server, where the server's own word counts.
_LIVE: Final = """\
if [ -x /opt/tritonserver/bin/live ]; then exec /opt/tritonserver/bin/live; fi
command -v python3 >/dev/null || exit 0
exec python3 -c 'import urllib.request as u; u.urlopen("http://127.0.0.1:8000/v2/health/live", timeout=4)'
"""


def build_deployment(want: WantServers) -> Manifest:
    labelled = _labels(want)
    placement = next(one for one in want.revision.spec.execution_providers if one.name is want.provider)
    pod = {
        **pod_basics(grace_seconds=_PRE_STOP_SECONDS + _EXIT_SECONDS + 5),
        "initContainers": [_assemble(want)],
        "containers": [_triton(want, resources(placement.resources))],
        "volumes": [
            claim_volume("store", want.revision.spec.artifact_claim_name),
            {"name": "models", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
            *([{"name": _ENGINES, "emptyDir": {}}] if want.provider is ExecutionProvider.TENSORRT else []),
            TMP_VOLUME,
        ],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _selector(want)},
            }
        ],
        **placed(placement),
    }
    return stamped(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": _metadata(want),
            "spec": {
                **({} if want.is_autoscaled else {"replicas": want.replicas}),
                "revisionHistoryLimit": 1,
                "selector": {"matchLabels": _selector(want)},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "template": {"metadata": {"labels": labelled}, "spec": pod},
            },
        }
    )


def build_service(want: WantServers) -> Manifest:
    return _service(_metadata(want), _selector(want))


def build_model_service(want: WantService) -> Manifest:
    """What every server's pod is labelled with from its birth selects it: no pod is ever written to."""
    model, revision = want.model, want.revision
    labelled = labels(model.name, component=Component.SERVER)
    selector = {MODEL_LABEL: model.name, COMPONENT_LABEL: str(Component.SERVER)}
    selector |= {} if revision is None else {REVISION_LABEL: revision}
    return _service(metadata(owned_by_model(model), model.namespace, want.objects[0].name, labelled), selector)


def _service(described: Manifest, selector: dict[str, str]) -> Manifest:
    return stamped(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": described,
            "spec": {
                "type": "ClusterIP",
                "selector": selector,
                "ports": [
                    {"name": "http", "port": HTTP_PORT, "targetPort": "http", "protocol": "TCP"},
                    {
                        "name": "grpc",
                        "port": GRPC_PORT,
                        "targetPort": "grpc",
                        "protocol": "TCP",
                        "appProtocol": "kubernetes.io/h2c",
                    },
                ],
            },
        }
    )


def build_disruption_budget(want: WantServers) -> Manifest:
    return stamped(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": _metadata(want),
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": _selector(want)}},
        }
    )


def build_autoscaler(want: WantServers, scaler: Autoscaler) -> Manifest:
    target = {"type": "AverageValue", "averageValue": scaler.target}
    return stamped(
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": _metadata(want),
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": want.objects[0].name},
                "minReplicas": scaler.least,
                "maxReplicas": scaler.most,
                "metrics": [{"type": "Pods", "pods": {"metric": {"name": scaler.metric}, "target": target}}],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": scaler.stabilization}},
            },
        }
    )


def build_prober(want: WantProber) -> Manifest:
    """Sends golden requests through the pins; its template names both sides, as counters belong to one pair."""
    model, candidate = want.model, want.candidate
    labelled = labels(model.name, revision=candidate.name, component=Component.PROBER)
    selector = {REVISION_LABEL: candidate.name, COMPONENT_LABEL: str(Component.PROBER)}
    probe = {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 5}
    container = {
        "name": "main",
        "image": candidate.spec.operator_image,
        **container_basics(),
        "command": ["python3", "-m", "onnx_operator.prober"],
        "args": _prober_flags(want),
        **_golden_digest(want),
        "ports": [{"name": "http", "containerPort": PROBER_PORT, "protocol": "TCP"}],
        "readinessProbe": probe,
        "livenessProbe": probe | {"failureThreshold": 6},
        "resources": {"requests": {"cpu": "20m", "memory": "96Mi"}, "limits": {"memory": "256Mi"}},
        "volumeMounts": [_golden_mount(want), TMP],
    }
    pod = {
        **pod_basics(grace_seconds=5),
        "containers": [container],
        "volumes": [_golden_volume(want), TMP_VOLUME],
    }
    return stamped(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(owned_by_revision(candidate), model.namespace, want.objects[0].name, labelled),
            "spec": {
                "replicas": 1,
                "revisionHistoryLimit": 1,
                "selector": {"matchLabels": selector},
                # Two probers at once would count two different stretches of time.
                "strategy": {"type": "Recreate"},
                "template": {"metadata": {"labels": labelled}, "spec": pod},
            },
        }
    )


def _prober_flags(want: WantProber) -> list[str]:
    model = want.model
    path = want.golden.key if want.golden else _golden_path(want.stable)
    flags = ["--golden", f"{_golden_mount(want)['mountPath']}/{path}", "--model", model.name]
    flags += ["--stable-version", str(want.stable.spec.number)]
    flags += ["--candidate-version", str(want.candidate.spec.number)]
    flags += ["--host", host_of(model.name, model.namespace, want.class_spec.traffic.domain)]
    flags += _through_the_gateway(want.gateway) if want.gateway is not None else _side_by_side(want)
    return [*flags, "--min-cosine", want.min_cosine, "--listen", f"0.0.0.0:{PROBER_PORT}"]


def _through_the_gateway(gateway: GatewayAddress) -> list[str]:
    flags = []
    if gateway.http_port is not None:
        flags += ["--http", f"{gateway.host}:{gateway.http_port}"]
    if gateway.grpc_port is not None:
        flags += ["--grpc", f"{gateway.host}:{gateway.grpc_port}"]
    return flags


def _side_by_side(want: WantProber) -> list[str]:
    """Each pool of a side is asked beside one of the other side's, at Services of their own."""
    stable, candidate = (side_of(one).services for one in (want.stable, want.candidate))
    pools = max(len(stable), len(candidate))
    pairs = [(stable[pool % len(stable)], candidate[pool % len(candidate)]) for pool in range(pools)]
    flags = []
    for flag, port in (("--http", HTTP_PORT), ("--grpc", GRPC_PORT)):
        for pair in pairs:
            flags += [flag, ",".join(f"{service}:{port}" for service in pair)]
    return flags


def _golden_volume(want: WantProber) -> Manifest:
    if want.golden is None:
        return claim_volume("store", want.stable.spec.artifact_claim_name)
    return config_map_volume("golden", want.golden.name)


def _golden_mount(want: WantProber) -> Manifest:
    if want.golden is None:
        return {"name": "store", "mountPath": "/artifacts", "subPath": ARTIFACTS, "readOnly": True}
    return {"name": "golden", "mountPath": f"/golden/{want.golden.name}", "readOnly": True}


def _golden_path(stable: RevisionSeen) -> str:
    """Older versions published golden requests inside the artifact."""
    return f"{digest_hex(_digest(stable))}{'.' if _told_golden(stable) else '/'}golden.json"


def _golden_digest(want: WantProber) -> Manifest:
    """No flag, as an older revision that comes back brings its own image, which would not know it."""
    told = None if want.golden else _told_golden(want.stable)
    return {"env": [{"name": "GOLDEN_DIGEST", "value": told}]} if told else {}


def _told_golden(stable: RevisionSeen) -> str | None:
    return stable.status.artifact.golden_digest if stable.status.artifact is not None else None


def _assemble(want: WantServers) -> Manifest:
    flags = ["--artifact", "/artifact", "--digest", _digest(want.revision), "--provider", str(want.provider)]
    flags += ["--model-name", want.model.name, "--version", str(want.revision.spec.number), "--repository", "/models"]
    return {
        "name": "assemble",
        "image": want.revision.spec.operator_image,
        **container_basics(),
        "command": ["python3", "-m", "onnx_converter"],
        "args": ["assemble", *flags],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "volumeMounts": [_artifact_mount(want.revision), {"name": "models", "mountPath": "/models"}, TMP],
    }


def _triton(want: WantServers, amounts: Manifest) -> Manifest:
    ready = {"httpGet": {"path": "/v2/health/ready", "port": "http"}, "timeoutSeconds": 5}
    is_built = want.provider is ExecutionProvider.TENSORRT
    startup = _STARTUP_SECONDS + (_BUILDING_SECONDS if is_built else 0)
    return {
        "name": SERVER_CONTAINER,
        "image": want.revision.spec.server_image,
        **container_basics(),
        "command": ["tritonserver"],
        "args": [
            "--model-repository=/models",
            "--model-control-mode=none",
            "--strict-readiness=true",
            "--exit-on-error=true",
            "--disable-auto-complete-config",
            "--allow-metrics=true",
            f"--exit-timeout-secs={_EXIT_SECONDS - 5}",
            f"--http-port={HTTP_PORT}",
            f"--grpc-port={GRPC_PORT}",
            f"--metrics-port={METRICS_PORT}",
        ],
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            {"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
        ],
        "env": [{"name": "HOME", "value": TMP["mountPath"]}, *arithmetic(want.provider)],
        "startupProbe": ready | {"periodSeconds": 2, "failureThreshold": startup // 2},
        "readinessProbe": ready | {"periodSeconds": 5, "failureThreshold": 3},
        # Patient with a slow server, which is the analysis's business; short with a dead one, which cannot unload.
        "livenessProbe": {
            "exec": {"command": ["sh", "-c", _LIVE]},
            "periodSeconds": 10,
            "timeoutSeconds": 20,
            "failureThreshold": 3,
            "terminationGracePeriodSeconds": 5,
        },
        "lifecycle": {"preStop": {"sleep": {"seconds": _PRE_STOP_SECONDS}}},
        "resources": amounts,
        "volumeMounts": [
            _artifact_mount(want.revision),
            {"name": "models", "mountPath": "/models", "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  (a mount of its own)
            *([{"name": _ENGINES, "mountPath": engines.FOLDER}] if is_built else []),
            TMP,
        ],
    }


def _artifact_mount(revision: RevisionSeen) -> Manifest:
    folder = f"{ARTIFACTS}/{digest_hex(_digest(revision))}"
    return {"name": "store", "mountPath": "/artifact", "subPath": folder, "readOnly": True}


def _digest(revision: RevisionSeen) -> str:
    if revision.status.artifact is None:
        raise ValueError(f"revision {revision.name} has no artifact to serve")
    return revision.status.artifact.digest


def _metadata(want: WantServers) -> Manifest:
    name = want.objects[0].name
    return metadata(owned_by_revision(want.revision), want.model.namespace, name, _labels(want))


def _labels(want: WantServers) -> dict[str, str]:
    return labels(want.model.name, revision=want.revision.name, component=Component.SERVER, provider=want.provider)


def _selector(want: WantServers) -> dict[str, str]:
    return {
        REVISION_LABEL: want.revision.name,
        COMPONENT_LABEL: str(Component.SERVER),
        PROVIDER_LABEL: want.provider.short,
    }
