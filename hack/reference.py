"""Writes docs/reference/api.md from the files in crds/: `python hack/reference.py`.

Reads CRDs only, so it tells what a user's cluster will enforce. What `kubectl explain` says stands here, too, with the
defaults and bounds that it leaves out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
CRDS = ROOT / "crds"
TARGET = ROOT / "docs" / "reference" / "api.md"
ORDER = ("OnnxModel", "OnnxModelClass", "OnnxModelRevision")

Schema = dict[str, Any]

_BOUNDS = {"minimum": "at least {}", "maximum": "at most {}", "minItems": "{} or more", "maxItems": "up to {}"}


def reference(folder: Path = CRDS) -> str:
    """The page."""
    definitions = (yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml"))
    kinds = {definition["spec"]["names"]["kind"]: definition["spec"] for definition in definitions}
    head = """# API reference

Rendered from `crds/` by `make crds`; edit the models in `operator/onnx_operator/api`. The same text is in your cluster:
`kubectl explain onnxmodel.spec --recursive`. Sentences in italics are what the API server says when it refuses."""
    return "\n\n".join([head, *(_kind(kinds[name]) for name in ORDER)]) + "\n"


def _kind(spec: Schema) -> str:
    (version,) = spec["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    names = spec["names"]
    where = f"`{spec['group']}/{version['name']}`, {spec['scope'].lower()}, short name `{names['shortNames'][0]}`."
    parts = (part for part in ("spec", "status") if part in schema["properties"])
    tables = (_table(part, schema["properties"][part]) for part in parts)
    return "\n\n".join([f"## {names['kind']}", f"{where} {schema['description']}", *_rules_of_kind(schema), *tables])


def _rules_of_kind(schema: Schema) -> list[str]:
    messages = [f"- *{rule['message']}*" for rule in schema.get("x-kubernetes-validations", [])]
    return ["\n".join(messages)] if messages else []


def _table(part: str, schema: Schema) -> str:
    rows = [
        f"| `{path}` | {_type(field)} | {_said(field, required=needed)} |" for path, field, needed in _fields(schema)
    ]
    head = f"### {part}\n{schema['description']}\n\n| field | type | meaning |\n|---|---|---|"
    return "\n".join([head, *rows])


def _fields(schema: Schema, prefix: str = "") -> Iterator[tuple[str, Schema, bool]]:
    for name, field in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        yield path, field, name in schema.get("required", ())
        yield from _fields(field, f"{path}.")
        yield from _fields(field.get("items", {}), f"{path}[].")


def _type(field: Schema) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "amount"
    kind = str(field["type"])
    if kind == "array":
        return f"list of {_type(field['items'])}"
    if "additionalProperties" in field:
        return f"map of {_type(field['additionalProperties'])}"
    return kind


def _said(field: Schema, *, required: bool) -> str:
    facts = ["**Required.**"] if required else []
    facts.append(field.get("description", ""))
    if "enum" in field:
        facts.append("One of " + ", ".join(f"`{value}`" for value in field["enum"]) + ".")
    bounds = ", ".join(text.format(f"{field[key]:,}") for key, text in _BOUNDS.items() if key in field)
    if bounds:
        facts.append(f"{bounds[0].upper()}{bounds[1:]}.")
    # Messages as the API server gives them, so that who searches for one finds it; several fields share one rule.
    facts += [f"*{message}*" for message in dict.fromkeys(rule["message"] for rule in _rules(field))]
    if field.get("default") not in (None, {}, [], ""):
        facts.append(f"Default `{json.dumps(field['default'])}`.")
    return " ".join(fact for fact in facts if fact).replace("|", "\\|").replace("<", "&lt;")


def _rules(field: Schema) -> list[Schema]:
    """The rules on the field itself and, for lists and maps, on what they hold."""
    inner = field.get("items") or field.get("additionalProperties") or {}
    rules: list[Schema] = [*field.get("x-kubernetes-validations", []), *inner.get("x-kubernetes-validations", [])]
    return rules


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
