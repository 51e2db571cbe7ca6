"""From a want to the manifests it stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from onnx_operator.api.common import API_VERSION
from onnx_operator.core.actions import (
    WantAnalysisJob,
    WantConvert,
    WantFetch,
    WantJobsPolicy,
    WantProber,
    WantPublish,
    WantRevision,
    WantRoutes,
    WantServers,
    WantService,
    WantValidate,
)
from onnx_operator.render.jobs import (
    build_analysis_job,
    build_convert_job,
    build_fetch_job,
    build_jobs_policy,
    build_publish_job,
    build_validate_job,
)
from onnx_operator.render.parts import Manifest, labels, metadata, owned_by_model
from onnx_operator.render.routes import build_grpc_route, build_http_route
from onnx_operator.render.servers import (
    build_autoscaler,
    build_deployment,
    build_disruption_budget,
    build_model_service,
    build_prober,
    build_service,
)

if TYPE_CHECKING:
    from onnx_operator.core.actions import Want


def build(want: Want) -> tuple[Manifest, ...]:  # noqa: C901, PLR0911  (a table)
    """Every manifest of the want, in the order in which they are best created."""
    match want:
        case WantRevision():
            return (build_revision(want),)
        case WantFetch():
            return (build_fetch_job(want),)
        case WantConvert():
            return (build_convert_job(want),)
        case WantValidate():
            return (build_validate_job(want),)
        case WantPublish():
            return (build_publish_job(want),)
        case WantJobsPolicy():
            return (build_jobs_policy(want),)
        case WantServers():
            scaler = (build_autoscaler(want, want.autoscaler),) if want.autoscaler is not None else ()
            budget = (build_disruption_budget(want),) if want.is_protected else ()
            return (build_service(want), build_deployment(want), *scaler, *budget)
        case WantRoutes():
            return (build_http_route(want), build_grpc_route(want))
        case WantService():
            return (build_model_service(want),)
        case WantProber():
            return (build_prober(want),)
        case WantAnalysisJob():
            return (build_analysis_job(want),)
        case unreachable:
            assert_never(unreachable)


def build_revision(want: WantRevision) -> Manifest:
    model = want.model
    return {
        "apiVersion": API_VERSION,
        "kind": "OnnxModelRevision",
        "metadata": metadata(owned_by_model(model), model.namespace, want.name, labels(model.name)),
        "spec": want.spec.model_dump(mode="json", exclude_none=True),
    }
