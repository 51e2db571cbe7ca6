"""The CustomResourceDefinitions, rendered from the models of this package.

`python -m onnx_operator.api.schema crds/` writes them; a test fails when a file in crds/ differs from what the
models say. This module knows structural schemas and nothing of what the fields mean.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import yaml

from onnx_operator.api.common import GROUP, VERSION, cel
from onnx_operator.api.model import OnnxModel, OnnxModelSpec, OnnxModelStatus
from onnx_operator.api.model_class import OnnxModelClass, OnnxModelClassSpec
from onnx_operator.api.revision import OnnxModelRevision, OnnxModelRevisionSpec, OnnxModelRevisionStatus

if TYPE_CHECKING:
    from pydantic import BaseModel

Names = type[OnnxModel] | type[OnnxModelRevision] | type[OnnxModelClass]

# JSON-schema keywords that a structural schema takes over as they are.
_KEPT: Final = (
    "type", "format", "description", "default", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "minItems", "maxItems", "required", "maxProperties",
)  # fmt: skip


class Column(NamedTuple):
    """A column of `kubectl get`."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0


class Kind(NamedTuple):
    """One CustomResourceDefinition."""

    names: Names
    scope: str
    description: str
    spec: type[BaseModel]
    status: type[BaseModel] | None
    rules: tuple[dict[str, str], ...]
    columns: tuple[Column, ...]


def _condition(kind: str, field: str = "status") -> str:
    return f".status.conditions[?(@.type=='{kind}')].{field}"


KINDS: Final = (
    Kind(
        OnnxModel,
        "Namespaced",
        "A language model that is converted to ONNX, validated against its original, served on Triton and rolled "
        "out step by step. Change the spec to get a new version; the one that serves keeps serving until the new "
        "one has proved itself.",
        OnnxModelSpec,
        OnnxModelStatus,
        (
            cel(
                "self.metadata.name.matches('^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$')",
                "metadata.name must begin with a letter and have at most 63 characters a-z, 0-9 and -, no dots: it "
                "becomes part of a host name, of Services' names and of labels",
            ),
        ),
        (
            Column("Ready", _condition("Ready")),
            Column("Phase", ".status.phase"),
            Column("Stable", ".status.stable.number", "integer"),
            Column("Candidate", ".status.candidate.number", "integer"),
            Column("Weight", ".status.candidate.weight", "integer"),
            Column("Reason", _condition("Ready", "reason")),
            Column("Verdict", ".status.candidate.verdict", priority=1),
            Column("Host", ".status.endpoint.host", priority=1),
            Column("Message", _condition("Ready", "message"), priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    ),
    Kind(
        OnnxModelRevision,
        "Namespaced",
        "One immutable version of an OnnxModel with its digests, measured parity and fate. Written by the operator.",
        OnnxModelRevisionSpec,
        OnnxModelRevisionStatus,
        (),
        (
            Column("Model", ".spec.modelName"),
            Column("Number", ".spec.number", "integer"),
            Column("Outcome", ".status.outcome"),
            Column("Scheme", ".spec.quantization.scheme"),
            Column("Cosine", ".status.parity[0].minCosine"),
            Column("Quarantine", ".status.quarantine.reason"),
            Column("Source", ".spec.sourceDigest", priority=1),
            Column("Artifact", ".status.artifact.digest", priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    ),
    Kind(
        OnnxModelClass,
        "Cluster",
        "What a platform team offers to OnnxModels: allowed sources, artifact store, images, placement of execution "
        "providers, gateway, default rollout and limits. The class annotated "
        'onnx-operator.io/is-default-class: "true" serves models that name none.',
        OnnxModelClassSpec,
        None,
        (),
        (
            Column("Default", ".metadata.annotations.onnx-operator\\.io/is-default-class"),
            Column("Domain", ".spec.traffic.domain"),
            Column("Store", ".spec.artifactStore.claimName"),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    ),
)


def structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A pydantic JSON schema as a structural one: references inlined, `X | None` as optional X."""
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[-1]]
        # What stands beside a reference (a field's own description, its default) wins over the target's.
        return structural(target | {key: value for key, value in schema.items() if key != "$ref"}, definitions)
    if "anyOf" in schema:
        (variant,) = (option for option in schema["anyOf"] if option.get("type") != "null")
        return structural(variant | {key: value for key, value in schema.items() if key != "anyOf"}, definitions)
    result = {key: schema[key] for key in _KEPT if schema.get(key) is not None}
    result |= {key: value for key, value in schema.items() if key.startswith("x-kubernetes-")}
    if "description" in result:
        result["description"] = " ".join(result["description"].split())
    if result.get("x-kubernetes-int-or-string"):
        del result["type"]
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if schema.get("properties"):  # the API server drops an empty one, which would look like an edit
        result["properties"] = {name: structural(value, definitions) for name, value in schema["properties"].items()}
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = structural(schema["additionalProperties"], definitions)
    if "items" in schema:
        result["items"] = structural(schema["items"], definitions)
    if "default" in result:
        result["default"] = _default(result)
    return result


def _default(schema: dict[str, Any]) -> Any:
    """The default without what the fields' own defaults below it say already: each stands only once."""
    default = _without_nulls(schema["default"])
    if not isinstance(default, dict) or "properties" not in schema:
        return default
    fields = schema["properties"]
    return {
        name: value
        for name, value in default.items()
        if fields[name].get("default") != value and not ("properties" in fields[name] and "default" in fields[name])
    }


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _schema_of(model: type[BaseModel]) -> dict[str, Any]:
    raw = model.model_json_schema(by_alias=True, mode="validation")
    return structural(raw, raw.get("$defs", {}))


def render(kind: Kind) -> dict[str, Any]:
    """One CustomResourceDefinition as it stands in crds/."""
    names = kind.names
    properties: dict[str, Any] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": _schema_of(kind.spec),
    }
    version: dict[str, Any] = {"name": VERSION, "served": True, "storage": True}
    if kind.status is not None:
        # Never without a status: kstatus (`helm upgrade --wait`) calls a custom resource that has none current, so
        # it would report success before the operator has looked. observedGeneration 0 says "not seen yet".
        properties["status"] = _schema_of(kind.status) | {"default": {}}
        version["subresources"] = {"status": {}}
    root: dict[str, Any] = {
        "type": "object",
        "description": " ".join(kind.description.split()),
        "required": ["spec"],
        "properties": properties,
    }
    if kind.rules:
        root["x-kubernetes-validations"] = list(kind.rules)
    version["additionalPrinterColumns"] = [
        {"name": column.name, "type": column.type, "jsonPath": column.path}
        | ({"priority": column.priority} if column.priority else {})
        for column in kind.columns
    ]
    version["schema"] = {"openAPIV3Schema": root}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": [names.SHORT],
                "categories": ["onnx"],
            },
            "scope": kind.scope,
            "versions": [version],
        },
    }


def to_yaml(definition: dict[str, Any]) -> str:
    """The definition as the text of its file."""
    header = "# Rendered from onnx_operator.api by `make crds`; edit the models there.\n"
    return header + yaml.safe_dump(definition, sort_keys=False, width=110, allow_unicode=True)


def main(folder: Path) -> None:
    for kind in KINDS:
        (folder / f"{kind.names.PLURAL}.yaml").write_text(to_yaml(render(kind)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
