"""Reading golden.json."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from onnx_operator.prober.golden import GoldenError, read_golden

if TYPE_CHECKING:
    from pathlib import Path

IDS = {"datatype": "INT64", "shape": [1, 3], "data": [101, 7, 102]}
VECTOR = {"datatype": "FP32", "shape": [1, 2], "data": [[0.5, -0.5]]}


def test_requests_are_read_with_types_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    nothing = {"datatype": "FP16", "shape": [1, 4, 0, 8], "data": []}
    inputs = {"input_ids": IDS, "past_key_values.0.key": nothing}
    path.write_text(json.dumps([{"name": "a", "inputs": inputs, "outputs": {"embedding": VECTOR}}]))
    [golden] = read_golden(path)
    assert golden.name == "a"
    assert golden.inputs["input_ids"].values.dtype == np.int64
    assert golden.inputs["input_ids"].values.tolist() == [[101, 7, 102]]
    past = golden.inputs["past_key_values.0.key"]
    assert (past.datatype, past.values.dtype.name, past.values.shape) == ("FP16", "float16", (1, 4, 0, 8))
    embedding = golden.outputs["embedding"]
    assert embedding is not None
    assert embedding.shape == (1, 2)
    assert golden.mask is None


def test_answers_may_be_named_only_and_compared_in_part(tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    mask = {"datatype": "INT64", "shape": [1, 3], "data": [1, 1, 1]}
    entry = {
        "inputs": {"input_ids": IDS, "attention_mask": mask},
        "outputs": {"logits": {"datatype": "FP32", "shape": [1, 3, 9]}},
    }
    path.write_text(json.dumps([entry, entry | {"compared": mask | {"data": [0, 0, 1]}}]))
    padded, last = read_golden(path)
    assert (padded.outputs, last.outputs) == ({"logits": None}, {"logits": None})
    assert padded.mask is not None
    assert last.mask is not None
    assert (padded.mask.tolist(), last.mask.tolist()) == ([[1, 1, 1]], [[0, 0, 1]])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param("{", "is not JSON", id="half a file"),
        pytest.param("{}", "holds no list of requests", id="not a list"),
        pytest.param("[]", "holds no list of requests", id="an empty list"),
        pytest.param("[3]", "request 0: has no inputs or no outputs", id="a number"),
        pytest.param(
            [{"inputs": {"x": IDS}, "outputs": {}}], "request 0: has no inputs or no outputs", id="no outputs"
        ),
        pytest.param(
            [{"inputs": {"x": IDS | {"shape": [2, 2]}}, "outputs": {"y": VECTOR}}],
            "request 0, input x: .*cannot reshape",
            id="less data than the shape says",
        ),
        pytest.param(
            [{"inputs": {"x": IDS | {"datatype": "INT65"}}, "outputs": {"y": VECTOR}}],
            "request 0, input x: 'INT65' is no datatype",
            id="an unknown datatype",
        ),
        pytest.param(
            [{"inputs": {"x": {"shape": [1]}}, "outputs": {"y": VECTOR}}],
            "input x: KeyError.'datatype'.; it needs datatype, shape",
            id="a missing field",
        ),
    ],
)
def test_a_file_without_requests_is_refused_in_words(tmp_path: Path, content: Any, complaint: str) -> None:
    path = tmp_path / "golden.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(GoldenError, match=complaint):
        read_golden(path)


def test_a_missing_file_says_what_to_mount(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match=r"cannot be read: No such file or .*; it lies beside stable's artifact"):
        read_golden(tmp_path / "golden.json")


ASKED = json.dumps([{"name": "a", "inputs": {"input_ids": IDS}, "outputs": {"embedding": VECTOR}}])


def test_requests_that_were_changed_since_they_were_published_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "abc.golden.json"
    path.write_text(ASKED)
    digest = f"sha256:{hashlib.sha256(ASKED.encode()).hexdigest()}"
    assert len(read_golden(path, digest)) == 1
    path.write_text(ASKED + " ")
    with pytest.raises(GoldenError, match=rf"not {digest}: it was changed .* rollout.analysis.goldenRequests"):
        read_golden(path, digest)


def test_where_nobody_knows_which_version_published_them_they_are_found_inside_or_beside(tmp_path: Path) -> None:
    folder = tmp_path / "abc"
    folder.mkdir()
    (tmp_path / "abc.golden.json").write_text(ASKED)
    assert [one.name for one in read_golden(folder / "golden.json")] == ["a"]
    (folder / "golden.json").write_text(ASKED.replace('"a"', '"b"'))
    assert [one.name for one in read_golden(folder / "golden.json")] == ["b"]
