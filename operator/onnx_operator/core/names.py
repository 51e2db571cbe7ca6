"""Names of everything the operator creates: deterministic, so that doing something twice is doing it once.

Refuses randomness and clocks. A model's name is cut to `_CUT` characters where others are added, and the hash that
follows covers the whole of it, so no two models meet in one name.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from onnx_operator.api.common import GROUP

if TYPE_CHECKING:
    from onnx_operator.api.common import ExecutionProvider

FIELD_MANAGER: Final = "onnx-operator"
MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
MODEL_LABEL: Final = f"{GROUP}/model"
REVISION_LABEL: Final = f"{GROUP}/revision"
COMPONENT_LABEL: Final = f"{GROUP}/component"
PROVIDER_LABEL: Final = f"{GROUP}/provider"
METRIC_LABEL: Final = f"{GROUP}/metric"
#: Hash of what was applied last; tells that a newer operator or spec wants something else.
APPLIED_ANNOTATION: Final = f"{GROUP}/applied"

#: The longest name built on a revision's is its CUDA validation Job on attempt 99: 35 + 11 + 17 = 63.
_CUT: Final = 35

#: The container of a server's pod that answers requests.
SERVER_CONTAINER: Final = "triton"


class Component(StrEnum):
    """What a Job, Deployment or pod is for."""

    FETCH = "fetch"
    CONVERT = "convert"
    VALIDATE = "validate"
    PUBLISH = "publish"
    SERVER = "server"
    PROBER = "prober"
    ANALYSIS = "analysis"


def digest_of(value: Any, length: int) -> str:
    """The first hexadecimal digits of the SHA-256 over the value as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def revision_name(model: str, identity: str) -> str:
    return f"{model[:_CUT].rstrip('-')}-{identity}"


def fetch_job_name(model: str, source_key: str) -> str:
    return f"{revision_name(model, digest_of([model, source_key], 10))}-fetch"


def stage_job_name(revision: str, stage: str, attempt: int) -> str:
    """`stage` is convert, publish or validate-<provider>."""
    return f"{revision}-{stage}-{attempt}"


def analysis_job_name(revision: str, identity: Any) -> str:
    """As long as the longest; `identity` tells one metric of one step from another."""
    return f"{revision}-check-{digest_of(identity, 10)}"


def validate_stage(provider: ExecutionProvider) -> str:
    return f"validate-{provider.short}"


def server_name(revision: str, provider: ExecutionProvider) -> str:
    """The Deployment, Service and PodDisruptionBudget of a revision on one execution provider."""
    return f"{revision}-{provider.short}"


def prober_name(revision: str) -> str:
    return f"{revision}-prober"


def jobs_policy_name(model: str) -> str:
    return f"{model}-jobs"


def work_folder(model: str, uid: str) -> str:
    """The model's place in the artifact claim; a model recreated under the same name gets a new one."""
    return f"work/{model}-{uid[:8]}"


def digest_hex(digest: str) -> str:
    """A digest as the name of a folder."""
    return digest.removeprefix("sha256:")
