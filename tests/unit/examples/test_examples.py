"""Examples, README and CRDs speak of the same fields. What the real API server says to them is tests/integration's."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from onnx_operator.api.common import API_VERSION
from onnx_operator.api.model import OnnxModelSpec
from onnx_operator.api.model_class import OnnxModelClassSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODELS: dict[str, type[BaseModel]] = {"OnnxModel": OnnxModelSpec, "OnnxModelClass": OnnxModelClassSpec}
VERSIONS = ("minilm-v2", "minilm-v3a-slow", "minilm-v3b-short", "minilm-v3c-moved", "minilm-v4-invalid")

Manifest = dict[str, Any]


def documents(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


def ours(manifests: list[Manifest]) -> list[Manifest]:
    return [manifest for manifest in manifests if str(manifest.get("apiVersion", "")).startswith("onnx-operator.io/")]


def yaml_blocks(page: Path) -> Iterator[Manifest]:
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        yield from ours(documents(block))


def schema_of(kind: str) -> Manifest:
    for path in (ROOT / "crds").glob("*.yaml"):
        definition = yaml.safe_load(path.read_text())
        if definition["spec"]["names"]["kind"] == kind:
            schema: Manifest = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            return schema
    raise LookupError(kind)


def unknown_fields(value: Any, schema: Manifest, path: str = "") -> list[str]:
    """Paths that the schema does not know."""
    if isinstance(value, list):
        return [found for item in value for found in unknown_fields(item, schema["items"], f"{path}[]")]
    if not isinstance(value, dict) or "properties" not in schema:
        return []
    known = schema["properties"]
    return [f"{path}.{name}" for name in value if name not in known] + [
        found
        for name, item in value.items()
        if name in known
        for found in unknown_fields(item, known[name], f"{path}.{name}")
    ]


def check(manifest: Manifest) -> None:
    assert manifest["apiVersion"] == API_VERSION
    assert unknown_fields(manifest, schema_of(manifest["kind"])) == []
    MODELS[manifest["kind"]].model_validate(manifest["spec"])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_holds_only_fields_that_exist(path: Path) -> None:
    for manifest in ours(documents(path.read_text())):
        check(manifest)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_begins_with_what_it_shows(path: Path) -> None:
    head = path.read_text().split("apiVersion:")[0]
    assert len(head) > 60
    assert all(line.startswith("#") for line in head.splitlines())


@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if "kind: OnnxModel\n" in path.read_text()], ids=lambda path: path.name
)
def test_an_example_of_a_model_says_what_you_should_see(path: Path) -> None:
    assert "What you should see:" in path.read_text()


def test_no_example_names_a_namespace_so_that_each_goes_wherever_you_are() -> None:
    manifests = [manifest for path in EXAMPLES for manifest in documents(path.read_text())]
    assert [manifest["kind"] for manifest in manifests if "namespace" in manifest["metadata"]] == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.exists() and list(yaml_blocks(page))], ids=lambda page: page.name
)
def test_what_a_page_shows_is_valid(page: Path) -> None:
    for manifest in yaml_blocks(page):
        check(manifest)


def test_the_data_of_an_evaluation_has_the_digest_that_is_declared() -> None:
    pairs, model = documents((ROOT / "examples" / "evaluations.yaml").read_text())
    (declared,) = (one["dataset"] for one in model["spec"]["validation"]["evaluations"])
    data = pairs["data"][declared["configMap"]["key"]].encode()
    assert declared["configMap"]["name"] == pairs["metadata"]["name"]
    assert declared["digest"] == "sha256:" + hashlib.sha256(data).hexdigest()


def test_the_smallest_spec_of_the_readme_is_the_smallest_example() -> None:
    (shown, *_) = [block for block in yaml_blocks(ROOT / "README.md") if block["kind"] == "OnnxModel"]
    (example,) = documents((ROOT / "examples" / "smallest.yaml").read_text())
    assert shown == example


def changes(old: Any, new: Any, path: str = "spec") -> set[str]:
    if old == new:
        return set()
    if isinstance(old, dict) and isinstance(new, dict):
        return {
            change
            for name in old.keys() | new.keys()
            for change in changes(old.get(name), new.get(name), f"{path}.{name}")
        }
    return {path}


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("minilm-v3a-slow", {"spec.serving.resources.limits.cpu", "spec.serving.resources.requests.cpu"}),
        ("minilm-v3b-short", {"spec.maxSequenceLength"}),
        ("minilm-v3c-moved", {"spec.source.persistentVolumeClaim.path"}),
        ("minilm-v4-invalid", {"spec.validation"}),
    ],
)
def test_a_bad_version_differs_from_the_good_one_in_what_makes_it_bad_and_in_nothing_else(
    name: str, changed: set[str]
) -> None:
    good, bad = (documents((ROOT / "examples" / f"{one}.yaml").read_text())[0] for one in ("minilm-v2", name))
    assert changes(good["spec"], bad["spec"]) == changed


def test_the_second_version_differs_from_the_first_in_its_precision_alone() -> None:
    first, second = (
        documents((ROOT / "examples" / f"{one}.yaml").read_text())[0] for one in ("minilm-v1", "minilm-v2")
    )
    assert changes(first["spec"], second["spec"]) == {"spec.quantization.scheme"}


@pytest.mark.parametrize("name", VERSIONS)
def test_all_versions_are_one_model(name: str) -> None:
    (manifest,) = documents((ROOT / "examples" / f"{name}.yaml").read_text())
    assert manifest["metadata"] == {"name": "minilm"}


def test_the_list_of_examples_names_every_file() -> None:
    page = (ROOT / "examples" / "README.md").read_text()
    assert [path.name for path in EXAMPLES if f"`{path.name}`" not in page] == []
