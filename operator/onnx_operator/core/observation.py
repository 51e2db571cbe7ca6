"""Everything one decision rests on, read once and frozen.

Deciding looks at nothing else: no client, no clock, no memory of earlier decisions besides the ledgers in status.
Whatever has to be understood about a Job, a pod or a route is understood before it gets in here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnx_operator.core.names import validate_stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx_operator.api.common import ExecutionProvider
    from onnx_operator.api.model import OnnxModelSpec, OnnxModelStatus
    from onnx_operator.api.model_class import OnnxModelClassSpec
    from onnx_operator.api.revision import OnnxModelRevisionSpec, OnnxModelRevisionStatus
    from onnx_operator.core.analysis import Measurement
    from onnx_operator.core.autoscaling import AutoscalerState
    from onnx_operator.core.jobs import AnalysisJobState, JobState
    from onnx_operator.core.servers import ServerState
    from onnx_operator.core.traffic import GatewayAddress, RouteSeen


@dataclass(frozen=True, slots=True)
class ModelSeen:
    """The OnnxModel."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    #: None when it cannot be read; `problem` then names the field.
    spec: OnnxModelSpec | None
    status: OnnxModelStatus
    problem: str = ""
    is_deleting: bool = False


@dataclass(frozen=True, slots=True)
class ClassSeen:
    """An OnnxModelClass."""

    name: str
    #: None when it cannot be read; `problem` then names the field.
    spec: OnnxModelClassSpec | None
    problem: str = ""
    is_default: bool = False
    created: str = ""


@dataclass(frozen=True, slots=True)
class RevisionSeen:
    """An OnnxModelRevision."""

    name: str
    uid: str
    resource_version: str
    spec: OnnxModelRevisionSpec
    status: OnnxModelRevisionStatus
    is_deleting: bool = False

    def whose_validation_is(self, outcome: str) -> tuple[ExecutionProvider, ...]:
        """The execution providers whose validation ended so."""
        stages = {one.name for one in self.status.stages if one.outcome == outcome}
        return tuple(one.name for one in self.spec.execution_providers if validate_stage(one.name) in stages)


@dataclass(frozen=True, slots=True)
class ObjectName:
    """A child within the model's namespace."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Child:
    """An object that the model or one of its revisions owns, as it is in the cluster."""

    kind: str
    name: str
    uid: str
    component: str
    revision: str
    is_deleting: bool
    manifest: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def object_name(self) -> ObjectName:
        return ObjectName(self.kind, self.name)


@dataclass(frozen=True, slots=True)
class ServiceSeen:
    """The Service of the model's name."""

    #: The revision whose servers it selects; None for those of all.
    revision: str | None


@dataclass(frozen=True, slots=True)
class DefaultImages:
    """The images that this operator came with, for classes that name none."""

    operator: str
    converter: str
    server: str


@dataclass(frozen=True, slots=True)
class Observation:
    """The world as far as one model is concerned."""

    model: ModelSeen
    classes: tuple[ClassSeen, ...]
    images: DefaultImages
    revisions: tuple[RevisionSeen, ...] = ()
    children: tuple[Child, ...] = ()
    #: By the Job's name.
    jobs: Mapping[str, JobState] = field(default_factory=dict)
    #: The Jobs of metrics, by the Job's name.
    analysis_jobs: Mapping[str, AnalysisJobState] = field(default_factory=dict)
    #: By revision and execution provider; only where the Deployment exists.
    servers: Mapping[tuple[str, ExecutionProvider], ServerState] = field(default_factory=dict)
    #: By revision and execution provider; only where the HorizontalPodAutoscaler exists.
    autoscalers: Mapping[tuple[str, ExecutionProvider], AutoscalerState] = field(default_factory=dict)
    http_route: RouteSeen | None = None
    grpc_route: RouteSeen | None = None
    has_gateway_api: bool = True
    #: The Service that requests come to where there is no gateway, or was none.
    service: ServiceSeen | None = None
    #: Read only while a prober is wanted; None otherwise, and when the Gateway has no address yet.
    gateway: GatewayAddress | None = None
    #: Why it could not even be read.
    gateway_problem: str = ""
    #: None unless an analysis was due and carried out.
    measurements: tuple[Measurement, ...] | None = None
