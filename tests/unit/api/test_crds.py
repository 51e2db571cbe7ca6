"""The files in crds/ and the pydantic models say the same."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from onnx_converter import spec
from onnx_operator.api import model, schema
from onnx_operator.api.common import parse_duration
from onnx_operator.api.model import OnnxModelSpec
from onnx_operator.api.model_class import OnnxModelClassSpec

CRDS = Path(__file__).parents[3] / "crds"
SMALLEST = {"source": {"persistentVolumeClaim": {"claimName": "checkpoints"}}}


@pytest.mark.parametrize("kind", schema.KINDS, ids=lambda kind: kind.names.PLURAL)
def test_the_file_is_what_the_models_render(kind: schema.Kind) -> None:
    file = CRDS / f"{kind.names.PLURAL}.yaml"
    assert file.read_text() == schema.to_yaml(schema.render(kind)), "run `make crds`"


def test_there_is_no_other_file() -> None:
    assert {file.name for file in CRDS.iterdir()} == {f"{kind.names.PLURAL}.yaml" for kind in schema.KINDS}


@pytest.mark.parametrize("kind", schema.KINDS, ids=lambda kind: kind.names.PLURAL)
def test_it_is_small_enough_for_client_side_apply(kind: schema.Kind) -> None:
    # kubectl keeps the object in an annotation, and annotations end at 262,144 bytes.
    assert (CRDS / f"{kind.names.PLURAL}.yaml").stat().st_size < 200_000


def walk(path: str, node: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = [(path, node)]
    for name, field in node.get("properties", {}).items():
        found += walk(f"{path}.{name}", field)
    if "items" in node:
        found += walk(f"{path}[]", node["items"])
    return found


@pytest.mark.parametrize("kind", schema.KINDS, ids=lambda kind: kind.names.PLURAL)
def test_every_field_says_what_it_is_for(kind: schema.Kind) -> None:
    definition = yaml.safe_load((CRDS / f"{kind.names.PLURAL}.yaml").read_text())
    spec = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    silent = [
        path for path, node in walk("spec", spec) if not path.endswith("[]") and len(node.get("description", "")) < 10
    ]
    assert silent == []


@pytest.mark.parametrize("kind", schema.KINDS, ids=lambda kind: kind.names.PLURAL)
def test_no_field_takes_a_float_because_they_change_on_their_way_through_tools(kind: schema.Kind) -> None:
    definition = yaml.safe_load((CRDS / f"{kind.names.PLURAL}.yaml").read_text())
    root = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert [path for path, node in walk("", root) if node.get("type") == "number"] == []


def fill(node: dict[str, Any], value: Any) -> Any:
    """What the API server's defaulting makes of a value."""
    if "properties" in node and isinstance(value, dict):
        filled = dict(value)
        for name, field in node["properties"].items():
            if name not in filled and "default" in field:
                filled[name] = field["default"]
            if name in filled:
                filled[name] = fill(field, filled[name])
        return filled
    if "items" in node and isinstance(value, list):
        return [fill(node["items"], item) for item in value]
    return value


@pytest.mark.parametrize(
    ("plural", "model", "smallest"),
    [
        ("onnxmodels", OnnxModelSpec, SMALLEST),
        (
            "onnxmodelclasses",
            OnnxModelClassSpec,
            {
                "artifactStore": {"claimName": "store"},
                "traffic": {"domain": "models.example", "gateway": {"name": "edge", "namespace": "gateways"}},
            },
        ),
    ],
)
def test_defaulting_by_the_schema_gives_what_the_models_default_to(
    plural: str, model: type[OnnxModelSpec | OnnxModelClassSpec], smallest: dict[str, Any]
) -> None:
    definition = yaml.safe_load((CRDS / f"{plural}.yaml").read_text())
    spec = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    defaulted = fill(spec, smallest)
    assert defaulted == model.model_validate(smallest).model_dump(mode="json", exclude_none=True)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500us", 0.0005), ("30s", 30), ("1h30m", 5400), ("2ms", 0.002), ("1h1m1s1ms", 3661.001)]
)
def test_durations_are_read_as_written(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "-5s", "5 s", "1d", "1.5s", "s", "1s1m", "99999999999999999999h"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write for example"):
        parse_duration(text)


def test_what_may_be_said_of_the_graph_is_what_the_converter_takes() -> None:
    assert [*model.Scheme] == [*spec.Scheme]
    assert [*model.Task] == [*spec.Task]
    assert model.Quantization.model_fields.keys() <= spec.ConversionSpec.model_fields.keys()
