"""`OnnxModelClass`: what a platform team offers, as a StorageClass does for claims."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from onnx_operator.api.common import (
    EDGE,
    GROUP,
    Amounts,
    ApiModel,
    DnsLabel,
    Duration,
    ExecutionProvider,
    Image,
    ObjectName,
    Resources,
    Toleration,
    cel,
    duration_field,
    schema_extra,
)
from onnx_operator.api.rollout import RolloutDefaults

DEFAULT_CLASS_ANNOTATION: Final = f"{GROUP}/is-default-class"


class SourceKind(StrEnum):
    """Sources that a class can allow."""

    PERSISTENT_VOLUME_CLAIM = "persistentVolumeClaim"
    HUGGING_FACE = "huggingFace"


class ArtifactStore(ApiModel):
    """Where checkpoints under work and published artifacts are kept."""

    claim_name: ObjectName
    """Name of a PersistentVolumeClaim that must exist in every namespace that uses this class. ReadWriteMany
    where Jobs and servers run on several nodes."""


class Images(ApiModel):
    """Images that the models of this class use; the operator's own defaults when unset. A change is a new
    revision of every model of the class, canaried like any other.
    """

    converter: Image | None = None
    """Runs fetch, convert, validate and publish."""
    server: Image | None = None
    """Triton; 26.07 or later in production, older ones have known critical vulnerabilities."""


class HuggingFacePolicy(ApiModel):
    """Which hub, and how strictly."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^\s@]+$", max_length=512)] | None = None
    """Base address of the hub; the public hub when unset. Only the fetch Job ever dials it."""
    allow_mutable_revisions: bool = False
    """Whether a branch or tag may be named instead of a 40-digit commit."""


class SourcePolicy(ApiModel):
    """Which sources models of this class may name."""

    allowed: Annotated[
        list[SourceKind], Field(max_length=2, json_schema_extra=schema_extra(x_kubernetes_list_type="set"))
    ] = [SourceKind.PERSISTENT_VOLUME_CLAIM, SourceKind.HUGGING_FACE]
    """The kinds of source. Calibration texts and data for evaluations may lie on a claim only where
    persistentVolumeClaim is among them, and on the hub only where huggingFace is."""
    hugging_face: HuggingFacePolicy = HuggingFacePolicy()
    """Rules for Hugging Face hubs."""


class ProviderPlacement(ApiModel):
    """On which nodes an execution provider runs, and with what."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                f"!(self.name in [{', '.join(repr(str(one)) for one in EDGE)}])",
                f"{', '.join(EDGE)} run outside of the cluster, so there are no nodes to name; every class lets models "
                "be packed for them",
                field_path=".name",
            ),
            cel(
                "!(has(self.serveUnvalidatedAfter) && has(self.leaveOutAfter))",
                "an execution provider that no node validates is either served all the same or left out: set "
                "serveUnvalidatedAfter or leaveOutAfter, not both",
                field_path=".leaveOutAfter",
            ),
        )
    }

    name: ExecutionProvider
    """The execution provider."""
    node_selector: Annotated[
        dict[Annotated[str, Field(max_length=317)], Annotated[str, Field(max_length=63)]],
        Field(max_length=16),
    ] = {}
    """Labels a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = []
    """Taints the pods tolerate."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods, for example nvidia."""
    resources: Resources = Resources(requests={"cpu": "250m", "memory": "512Mi"}, limits={"memory": "2Gi"})
    """Resources of a server container whose model names none, and of validation."""
    serve_unvalidated_after: Annotated[str, duration_field(least="1s")] | None = None
    """How long a validation waits for a node before its execution provider is served without one, such as 30m, where
    another provider of the model was validated; for hardware that servers hold, or that comes later. Unset, never."""
    leave_out_after: Annotated[str, duration_field(least="1s")] | None = None
    """How long a validation waits for a node before the model is served without this execution provider, where another
    one that serves was validated, and stable is not served on this one, whose requests it would take. Unset, 10m,
    unless serveUnvalidatedAfter is set. A later revision is validated anew."""


class JobPolicy(ApiModel):
    """Bounds on the Jobs that convert models."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                # Where jobs is left out its default is tried before those inside of it are filled in.
                "!has(self.benchmark) || !has(self.deadline) || duration(self.benchmark) < duration(self.deadline)",
                "benchmark must be shorter than deadline, which counts for the whole Job; give the Job longer, or "
                "measure less",
                field_path=".benchmark",
            )
        )
    }

    deadline: Annotated[str, duration_field(least="10s")] = "1h"
    """The longest that one Job may run, retries included."""
    resources: Resources = Resources(requests={"cpu": "500m"}, limits={"memory": "6Gi"})
    """Resources of the fetch, convert and publish containers, and the memory of validation. Where requests name no
    memory, convert and validate request what the headers of the checkpoint say they take, and the others 512Mi. A
    checkpoint that takes more than limits.memory is refused before anything of it is loaded."""
    benchmark: Annotated[str, duration_field(most="10m")] = "5s"
    """How long a validation that passed goes on to measure speed, graph beside original; 0s measures nothing. A request
    under way is not cut short. Fails no validation and makes no revision."""


class GatewayReference(ApiModel):
    """The Gateway that the models' routes attach to; its listeners must allow routes from their namespaces."""

    name: ObjectName
    """Name of the Gateway."""
    namespace: DnsLabel
    """Namespace of the Gateway. The one reference across namespaces: written by the platform team, and granted
    by the Gateway's allowedRoutes."""
    http_listener: ObjectName = "http"
    """Listener for HTTP."""
    grpc_listener: ObjectName = "grpc"
    """Listener for gRPC."""


class Traffic(ApiModel):
    """How requests reach models."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                "has(self.gateway) == has(self.domain)",
                "gateway and domain belong together: give both, or neither, and each model answers at a Service of its "
                "name, where rollouts go by the number of servers",
            )
        )
    }

    domain: (
        Annotated[
            str,
            Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", max_length=120),
        ]
        | None
    ) = None
    """A model answers at <model>.<namespace>.<domain>, through the gateway."""
    gateway: GatewayReference | None = None
    """The Gateway. Where none is named, and in a cluster without the Gateway API, a model answers at the Service
    <model>.<namespace>.svc, and a candidate has as much of the requests as it has of the ready servers."""
    drain: Duration = "10s"
    """How long a revision that was taken out of the traffic keeps running for requests under way."""


class Limits(ApiModel):
    """What a model of this class may ask for at most."""

    max_replicas: Annotated[int, Field(ge=1, le=100)] = 10
    """Upper bound of serving.replicas and serving.autoscaling.maxReplicas."""
    allowed_analysis_images: Annotated[
        list[Image], Field(max_length=16, json_schema_extra=schema_extra(x_kubernetes_list_type="set"))
    ] = []
    """Which images rollout.analysis.metrics[].job may run, by how they begin: registry.example/checks allows
    registry.example/checks:1 and registry.example/checks/accuracy:2, and not registry.example/checks-of-others:1. None
    by default: such a Job reaches the network of the model's namespace, and what it runs there is up to the model, as
    is any Secret of the namespace that it is given. So whoever may write models reads those Secrets, too."""
    max_analysis_deadline: Annotated[str, duration_field(least="1s")] = "15m"
    """Upper bound of the deadline of such a Job."""
    max_analysis_resources: Amounts = {"cpu": "500m", "memory": "1Gi"}
    """Upper bound of the resources of such a Job, which may name no other; its limits where it names none."""


class ValidationPolicy(ApiModel):
    """What validation may do."""

    run_generated_code: bool = False
    """Whether evaluations by passAtK may run programs that a model has written. They run in the validate Job, each in a
    process that the kernel lets compute and nothing else: no file, no network, no other process. That is as good as
    seccomp and Python are; the Job itself has no network, token or credential."""


class OnnxModelClassSpec(ApiModel):
    """What the platform offers."""

    artifact_store: ArtifactStore
    """Where artifacts are kept."""
    traffic: Traffic = Traffic()
    """How requests reach models."""
    images: Images = Images()
    """Images of Jobs and servers."""
    sources: SourcePolicy = SourcePolicy()
    """Which sources are allowed."""
    execution_providers: Annotated[
        list[ProviderPlacement],
        Field(
            min_length=1,
            max_length=3,
            json_schema_extra=schema_extra(x_kubernetes_list_type="map", x_kubernetes_list_map_keys=["name"]),
        ),
    ] = [ProviderPlacement(name=ExecutionProvider.CPU)]
    """The execution providers on offer."""
    jobs: JobPolicy = JobPolicy()
    """Bounds on Jobs."""
    validation: ValidationPolicy = ValidationPolicy()
    """What validation may do."""
    rollout: RolloutDefaults = RolloutDefaults()
    """Rollout of models that say nothing about it."""
    limits: Limits = Limits()
    """Upper bounds."""


class OnnxModelClass:
    """Names of the kind."""

    KIND: ClassVar = "OnnxModelClass"
    PLURAL: ClassVar = "onnxmodelclasses"
    SINGULAR: ClassVar = "onnxmodelclass"
    SHORT: ClassVar = "omc"
