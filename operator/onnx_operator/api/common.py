"""Scalars and small shapes that every kind of `onnx-operator.io/v1alpha1` shares.

Nothing here talks to a cluster or reads a clock. The CustomResourceDefinitions in crds/ are rendered from these
models (`onnx_operator.api.schema`), so a bound or a description stands in one place.
"""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP: Final = "onnx-operator.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"


class ApiModel(BaseModel):
    """A part of a custom resource: camelCase on the wire, immutable in memory.

    Unknown fields pass, because an older operator must be able to read what a newer one wrote; the API server is
    the one that refuses or prunes what the schema does not know.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
        serialize_by_alias=True,
    )


def cel(rule: str, message: str, *, field_path: str | None = None) -> dict[str, str]:
    """One `x-kubernetes-validations` entry; the API server refuses an object for which `rule` is false."""
    entry = {"rule": rule, "message": message}
    return entry if field_path is None else entry | {"fieldPath": field_path}


def schema_extra(*rules: dict[str, str], **extra: Any) -> dict[str, Any]:
    """Extra schema keys; keyword names use `_` where the schema has `-`."""
    keys = {name.replace("_", "-"): value for name, value in extra.items()}
    return keys | ({"x-kubernetes-validations": list(rules)} if rules else {})


_DURATION: Final = re.compile(r"([0-9]+)(us|ms|s|m|h)")
_UNIT: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> timedelta:
    """`"1m30s"` as a timedelta; the units are us, ms, s, m and h."""
    if not re.fullmatch(r"([0-9]+(us|ms|s|m|h))+", text):
        raise ValueError(f"{text!r} is not a duration; write for example 500us, 30s, 5m or 1h30m")
    return timedelta(seconds=sum(int(amount) * _UNIT[unit] for amount, unit in _DURATION.findall(text)))


Duration = Annotated[str, Field(pattern=r"^([0-9]+(us|ms|s|m|h))+$", max_length=32, examples=["30s", "5m"])]
"""A span of time such as `500us`, `30s` or `1h30m`."""

DecimalString = Annotated[
    str,
    Field(pattern=r"^(0|[1-9][0-9]*)(\.[0-9]+)?([eE]-?[0-9]{1,3})?$", max_length=24, examples=["1e-3", "0.01"]),
]
"""A non-negative number as text, because floats do not survive every YAML and JSON tool unchanged."""

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Quantity = Annotated[
    str,
    Field(
        pattern=r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
        json_schema_extra={"x-kubernetes-int-or-string": True},
    ),
    BeforeValidator(str),  # YAML's `cpu: 1` arrives as a number
]
"""An amount as in a Pod, such as `500m`, `2` or `4Gi`."""
DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=63)]
ObjectName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        min_length=1,
        max_length=253,
    ),
]
Token = Annotated[str, Field(max_length=128)]
Image = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^\S+$")]
Text = Annotated[str, Field(max_length=1024)]


class ExecutionProvider(StrEnum):
    """The onnxruntime execution providers that a model can be served on."""

    CPU = "CPUExecutionProvider"
    CUDA = "CUDAExecutionProvider"

    @property
    def short(self) -> str:
        """The provider as it stands in names and labels of objects."""
        return {ExecutionProvider.CPU: "cpu", ExecutionProvider.CUDA: "cuda"}[self]


class Resources(ApiModel):
    """Compute resources of a container, as in a Pod."""

    requests: Annotated[dict[Annotated[str, Field(max_length=253)], Quantity], Field(max_length=8)] = {}
    """What the scheduler reserves, for example `{cpu: "1", memory: 2Gi}`."""
    limits: Annotated[dict[Annotated[str, Field(max_length=253)], Quantity], Field(max_length=8)] = {}
    """What the container may use at most. A CPU limit below what a request needs makes every answer slow."""


class Toleration(ApiModel):
    """A taint that the pods of an execution provider tolerate, as in a Pod."""

    key: Annotated[str, Field(max_length=253)] | None = None
    """The taint's key; empty with operator Exists matches every taint."""
    operator: Annotated[str, Field(pattern=r"^(Equal|Exists)$")] = "Equal"
    """Exists ignores the value."""
    value: Annotated[str, Field(max_length=253)] | None = None
    """The taint's value."""
    effect: Annotated[str, Field(pattern=r"^(NoSchedule|PreferNoSchedule|NoExecute)$")] | None = None
    """The taint's effect; unset matches all effects."""


class Condition(ApiModel):
    """One observation about the object, in the shape of the Kubernetes API conventions."""

    type: Annotated[str, Field(max_length=64)]
    """What is observed, for example Ready."""
    status: Annotated[str, Field(pattern=r"^(True|False|Unknown)$")]
    """Whether it holds."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The generation of the spec that this was observed for."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When `status` last changed."""
    reason: Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=128)]
    """A documented constant, see docs/reference/reasons.md."""
    message: Annotated[str, Field(max_length=2048)] = ""
    """A sentence for people: what was seen and what to do."""
