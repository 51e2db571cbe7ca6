"""Scalars and small shapes that every kind of `onnx-operator.io/v1alpha1` shares.

Nothing here talks to a cluster or reads a clock. The CustomResourceDefinitions in crds/ are rendered from these
models (`onnx_operator.api.schema`), so a bound or a description stands in one place.
"""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
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


# Bounded digits, because a span that no timedelta can hold would be refused by nobody and crash every reader.
_DURATION: Final = "^([0-9]{1,5}h)?([0-9]{1,7}m)?([0-9]{1,7}s)?([0-9]{1,9}ms)?([0-9]{1,9}us)?$"
_SECONDS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
DECIMAL: Final = "^(0|[1-9][0-9]*)([.][0-9]+)?([eE]-?[0-9]{1,2})?$"


def parse_duration(text: str) -> timedelta:
    """`"1m30s"` as a timedelta; the units are h, m, s, ms and us, in this order."""
    if not text or not re.fullmatch(_DURATION, text):
        raise ValueError(f"{text!r} is not a duration; write for example 500us, 30s, 5m or 1h30m")
    return timedelta(seconds=sum(int(amount) * _SECONDS[unit] for amount, unit in re.findall("([0-9]+)([a-z]+)", text)))


def duration_field(*, least: str | None = None, most: str | None = None) -> Any:
    """The schema of a span of time, refused in words and not only by a pattern."""
    bounds = [
        (f" && duration(self) >= duration('{least}')", f", at least {least}") if least else ("", ""),
        (f" && duration(self) <= duration('{most}')", f", at most {most}") if most else ("", ""),
    ]
    rule = f"self.matches('{_DURATION}')" + "".join(rule for rule, _ in bounds)
    message = "must be a duration such as 500us, 30s or 1h30m" + "".join(words for _, words in bounds)
    return Field(
        pattern=_DURATION,
        min_length=2,
        max_length=32,
        examples=["30s", "5m"],
        json_schema_extra=schema_extra(cel(rule, message)),
    )


Duration = Annotated[str, duration_field()]
"""A span of time such as `500us`, `30s` or `1h30m`."""

DecimalString = Annotated[
    str,
    Field(
        pattern=DECIMAL,
        max_length=24,
        examples=["1e-3", "0.01"],
        json_schema_extra=schema_extra(
            cel(f"self.matches('{DECIMAL}')", 'must be a number as text, such as "1e-3" or "0.01"')
        ),
    ),
]
"""A non-negative number as text, because floats do not survive every YAML and JSON tool unchanged."""


def share_field(*, least: str = "0", most: str = "1", example: str = "0.05") -> Any:
    """The schema of a share within bounds, refused in words and not only by a pattern."""
    at_least = f" && double(self) >= {float(least)}" if float(least) else ""
    return Field(
        pattern=DECIMAL,
        max_length=24,
        examples=[example],
        json_schema_extra=schema_extra(
            cel(
                f"self.matches('{DECIMAL}'){at_least} && double(self) <= {float(most)}",
                f'must be a number from {least} to {most} as text, such as "{example}"',
            )
        ),
    )


Share = Annotated[str, share_field()]
"""A decimal string that is at most 1."""

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Quantity = Annotated[
    str,
    Field(
        # Narrower than what a Pod takes: nothing negative, and nothing below a thousandth.
        pattern="^([0-9]+([.][0-9]*)?|[.][0-9]+)(m|k|[MGTPE]|[KMGTPE]i|[eE][0-9]{1,2})?$",
        max_length=32,
        json_schema_extra=schema_extra(
            cel(
                "isQuantity(string(self)) && !quantity(string(self)).isLessThan(quantity('0'))",
                "must be an amount such as 500m, 2 or 4Gi",
            ),
            x_kubernetes_int_or_string=True,
        ),
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
#: A number that a container told: bounded, as the API server refuses what 64 bits cannot hold.
Count = Annotated[int, Field(ge=0, le=2**53)]


_SCALES: Final = {"m": Decimal("1e-3"), "k": Decimal(10**3)} | {
    unit + suffix: Decimal(base) ** power
    for suffix, base in (("", 10**3), ("i", 2**10))
    for power, unit in enumerate("KMGTPE", 1)
}


def parse_quantity(text: str) -> Decimal:
    """An amount as a plain number: `"2Gi"` is 2147483648."""
    found = re.fullmatch("([0-9.]+(?:[eE][0-9]+)?)([a-zA-Z]*)", text)
    if found is None or (found[2] and found[2] not in _SCALES):
        raise ValueError(f"{text!r} is not an amount; write for example 500m, 2 or 4Gi")
    return Decimal(found[1]) * (_SCALES[found[2]] if found[2] else 1)


class ExecutionProvider(StrEnum):
    """The onnxruntime execution providers that a model can be made for."""

    CPU = "CPUExecutionProvider"
    CUDA = "CUDAExecutionProvider"
    TENSORRT = "TensorrtExecutionProvider"
    DML = "DmlExecutionProvider"
    COREML = "CoreMLExecutionProvider"
    WEBGPU = "WebGpuExecutionProvider"
    OPENVINO = "OpenVINOExecutionProvider"
    QNN = "QNNExecutionProvider"

    @property
    def short(self) -> str:
        """The provider as it stands in names and labels of objects; four letters at most, as names are full."""
        return {
            ExecutionProvider.CPU: "cpu",
            ExecutionProvider.CUDA: "cuda",
            ExecutionProvider.TENSORRT: "trt",
            ExecutionProvider.DML: "dml",
            ExecutionProvider.COREML: "cml",
            ExecutionProvider.WEBGPU: "wgpu",
            ExecutionProvider.OPENVINO: "ov",
            ExecutionProvider.QNN: "qnn",
        }[self]

    @property
    def is_edge(self) -> bool:
        """Whether it is of devices outside of any cluster."""
        return self in EDGE


#: What is packed and checked against a table, as no node has it.
EDGE: Final = (
    ExecutionProvider.DML,
    ExecutionProvider.COREML,
    ExecutionProvider.WEBGPU,
    ExecutionProvider.OPENVINO,
    ExecutionProvider.QNN,
)


def _resource_names(field: str) -> dict[str, str]:
    return cel(
        # A default is validated before the defaults of its own fields are filled in, hence has().
        f"!has(self.{field}) || self.{field}.all(name, name in ['cpu', 'memory', 'ephemeral-storage']"
        " || name.startsWith('hugepages-') || name.matches('^[a-z0-9.-]+/[A-Za-z0-9._-]+$'))",
        "a resource is cpu, memory, ephemeral-storage, hugepages-<size> or <domain>/<name>, such as nvidia.com/gpu",
        field_path=f".{field}",
    )


_RESOURCE_RULES: Final = schema_extra(
    _resource_names("requests"),
    _resource_names("limits"),
    cel(
        "!has(self.requests) || !has(self.limits) || self.requests.all(name, !(name in self.limits)"
        " || !isQuantity(string(self.requests[name])) || !isQuantity(string(self.limits[name]))"
        " || !quantity(string(self.requests[name])).isGreaterThan(quantity(string(self.limits[name]))))",
        "requests must not be above limits",
        field_path=".requests",
    ),
)
Amounts = Annotated[dict[Annotated[str, Field(max_length=253)], Quantity], Field(max_length=8)]


class Resources(ApiModel):
    """Compute resources of a container, as in a Pod."""

    model_config = {"json_schema_extra": _RESOURCE_RULES}

    requests: Amounts = {}
    """What the scheduler reserves, for example `{cpu: "1", memory: 2Gi}`."""
    limits: Amounts = {}
    """What the container may use at most. A CPU limit below what a request needs makes every answer slow."""


class ConfigMapKey(ApiModel):
    """A key of a ConfigMap in the model's own namespace; mounted by who reads it, never read by the operator."""

    name: ObjectName
    """Name of the ConfigMap."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """The key inside of it."""


class ListedResources(ApiModel):
    """Compute resources as in a Pod, for an entry of a list, inside of which nothing may have a default."""

    model_config = {"json_schema_extra": _RESOURCE_RULES}

    requests: Amounts | None = None
    """What the scheduler reserves, for example `{cpu: "1", memory: 2Gi}`."""
    limits: Amounts | None = None
    """What the container may use at most."""


class Toleration(ApiModel):
    """A taint that the pods of an execution provider tolerate, as in a Pod."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel("self.operator != 'Exists' || !has(self.value)", "value must be unset when operator is Exists"),
            cel("self.operator == 'Exists' || has(self.key)", "key may be unset only when operator is Exists"),
        )
    }

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
