"""What a decision asks for: effects as values, performed elsewhere.

A `Want` says that something must exist; rendered and compared with what is there, it costs no write when nothing
differs. A `Delete` carries the UID, so that it never hits a successor of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx_operator.core.names import (
    fetch_job_name,
    jobs_policy_name,
    prober_name,
    server_name,
    stage_job_name,
    validate_stage,
)
from onnx_operator.core.observation import ObjectName

if TYPE_CHECKING:
    from datetime import datetime

    from onnx_operator.api.common import ConfigMapKey, ExecutionProvider
    from onnx_operator.api.model_class import OnnxModelClassSpec
    from onnx_operator.api.revision import OnnxModelRevisionSpec
    from onnx_operator.api.rollout import AnalysisJob
    from onnx_operator.core.acceptance import Offer
    from onnx_operator.core.autoscaling import Autoscaler
    from onnx_operator.core.observation import ModelSeen, RevisionSeen
    from onnx_operator.core.traffic import GatewayAddress, Split


@dataclass(frozen=True, slots=True)
class WantJobsPolicy:
    """No network for the Jobs that open a checkpoint."""

    model: ModelSeen

    @property
    def objects(self) -> tuple[ObjectName, ...]:
        return (ObjectName("NetworkPolicy", jobs_policy_name(self.model.name)),)


@dataclass(frozen=True, slots=True)
class WantFetch:
    """The Job that brings the checkpoint and tells its digest."""

    model: ModelSeen
    offer: Offer
    source_key: str
    converter_image: str

    @property
    def objects(self) -> tuple[ObjectName, ...]:
        return (ObjectName("Job", fetch_job_name(self.model.name, self.source_key)),)


@dataclass(frozen=True, slots=True)
class WantRevision:
    """The immutable record of what the spec stands for."""

    model: ModelSeen
    name: str
    spec: OnnxModelRevisionSpec

    @property
    def objects(self) -> tuple[ObjectName, ...]:
        return (ObjectName("OnnxModelRevision", self.name),)


@dataclass(frozen=True, slots=True)
class WantConvert:
    """The Job that writes a graph per execution provider."""

    model: ModelSeen
    revision: RevisionSeen
    class_spec: OnnxModelClassSpec
    #: What it takes at its peak, in bytes; None where that is not known.
    memory: int | None

    @property
    def objects(self) -> tuple[ObjectName, ...]:
        return (ObjectName("Job", stage_job_name(self.revision.name, "convert", self.revision.status.attempt)),)


@dataclass(frozen=True, slots=True)
class WantValidate:
    """The Job that compares one graph with the original."""

    model: ModelSeen
    revision: RevisionSeen
    class_spec: OnnxModelClassSpec
    provider: ExecutionProvider
    #: What it takes at its peak, in bytes; None where that is not known.
    memory: int | None

    @property
    def objects(self) -> tuple[ObjectName, ...]:
        stage = validate_stage(self.provider)
        return (ObjectName("Job", stage_job_name(self.revision.name, stage, self.revision.status.attempt)),)


@dataclass(frozen=True, slots=True)
class WantPublish:
    """The Job that writes the artifact under its digest."""

    model: ModelSeen
    revision: RevisionSeen
    class_spec: OnnxModelClassSpec

    @property
    def objects(self) -> tuple[ObjectName, ...]:
        return (ObjectName("Job", stage_job_name(self.revision.name, "publish", self.revision.status.attempt)),)


@dataclass(frozen=True, slots=True)
class WantServers:
    """Deployment, Service and, above one replica, PodDisruptionBudget of a revision on one execution provider; where
    the load decides how many there are, also their HorizontalPodAutoscaler.
    """

    model: ModelSeen
    revision: RevisionSeen
    provider: ExecutionProvider
    replicas: int
    autoscaler: Autoscaler | None = None
    #: Whether an autoscaler is there: then `replicas` is its business and is not written.
    is_autoscaled: bool = False

    @property
    def is_protected(self) -> bool:
        """Whether node drains are kept from taking all servers at once."""
        return (self.replicas if self.autoscaler is None else self.autoscaler.most) > 1

    @property
    def objects(self) -> tuple[ObjectName, ...]:
        name = server_name(self.revision.name, self.provider)
        kinds = ["Service", "Deployment"]
        kinds += ["HorizontalPodAutoscaler"] if self.autoscaler is not None else []
        kinds += ["PodDisruptionBudget"] if self.is_protected else []
        return tuple(ObjectName(kind, name) for kind in kinds)


@dataclass(frozen=True, slots=True)
class WantRoutes:
    """The HTTPRoute and the GRPCRoute with a split."""

    model: ModelSeen
    class_spec: OnnxModelClassSpec
    split: Split

    @property
    def objects(self) -> tuple[ObjectName, ...]:
        return (ObjectName("HTTPRoute", self.model.name), ObjectName("GRPCRoute", self.model.name))


@dataclass(frozen=True, slots=True)
class WantService:
    """The Service that requests come to where there is no gateway."""

    model: ModelSeen
    #: Whose servers it selects; None for those of all revisions.
    revision: str | None

    @property
    def objects(self) -> tuple[ObjectName, ...]:
        return (ObjectName("Service", self.model.name),)


@dataclass(frozen=True, slots=True)
class WantProber:
    """The Deployment that sends golden requests to both sides and counts where they differ."""

    model: ModelSeen
    class_spec: OnnxModelClassSpec
    stable: RevisionSeen
    candidate: RevisionSeen
    #: None where both sides are asked at their own Services.
    gateway: GatewayAddress | None
    min_cosine: str
    golden: ConfigMapKey | None = None

    @property
    def objects(self) -> tuple[ObjectName, ...]:
        return (ObjectName("Deployment", prober_name(self.candidate.name)),)


@dataclass(frozen=True, slots=True)
class WantAnalysisJob:
    """The Job that measures one metric in the present step."""

    model: ModelSeen
    class_spec: OnnxModelClassSpec
    stable: RevisionSeen
    candidate: RevisionSeen
    name: str
    metric: str
    job: AnalysisJob
    #: When the step began, and now.
    since: datetime
    now: datetime

    @property
    def objects(self) -> tuple[ObjectName, ...]:
        return (ObjectName("Job", self.name),)


JobWant = WantFetch | WantConvert | WantValidate | WantPublish
Want = WantJobsPolicy | WantRevision | JobWant | WantServers | WantRoutes | WantService | WantProber | WantAnalysisJob


@dataclass(frozen=True, slots=True)
class Delete:
    """This very object must go."""

    object: ObjectName
    uid: str


Action = Want | Delete
