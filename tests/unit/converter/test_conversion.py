"""Every supported architecture and task, from checkpoint to a graph that agrees with torch; the same bytes twice."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers

from checkpoints import SHAPES, TINY_LENGTH, change_json, tiny, tiny_clip, tiny_sentence
from onnx_converter import calibration, load, quantize, texts
from onnx_converter.spec import AS_EXPORTED, ConversionSpec, Scheme, Task
from unit.converter import matrix

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from unit.converter.steps import Line

CPU = "CPUExecutionProvider"
OUTPUTS = {"encoder": "last_hidden_state", "embedder": "text_embeds", "sequence": "logits", "token": "logits"}
TASKS = {
    "encoder": "feature-extraction",
    "embedder": "sentence-embedding",
    "sequence": "text-classification",
    "token": "token-classification",
}


def graph_of(line: Line) -> Path:
    return line.work / "graph" / CPU / "model.onnx"


def answer(line: Line, output: str, inputs: dict[str, Any]) -> Any:
    session = onnxruntime.InferenceSession(graph_of(line), providers=[CPU])
    return session.run([output], inputs)[0]


@pytest.mark.parametrize(("architecture", "head"), [(name, head) for name in SHAPES for head in SHAPES[name].heads])
def test_the_graph_of_every_architecture_and_task_agrees_with_torch(
    architecture: str, head: str, tmp_path: Path, line: Line
) -> None:
    digest = line.fetch(tiny(tmp_path / "model", architecture, head)).details["digest"]
    converted = line.convert(digest).details
    assert converted["architecture"] == architecture
    assert converted["task"] == TASKS[head]
    assert converted["maxSequenceLength"] == TINY_LENGTH
    assert [item["name"] for item in converted["outputs"]] == [OUTPUTS[head]]
    assert all(item["shape"] == [-1, -1] for item in converted["inputs"])
    validated = line.validate(digest).details
    assert float(validated["parity"]["maxAbsolute"]) < 1e-4
    assert float(validated["parity"]["minCosine"]) > 0.99999
    assert (validated["parity"]["minLabelAgreement"] is None) == (head in ("encoder", "embedder"))
    assert set(validated["placement"]) == {CPU}
    matrix.fill(architecture, line, digest, converted, validated, is_first=head == SHAPES[architecture].heads[0])


def test_the_encoder_for_texts_of_a_whole_clip_gives_the_vectors_that_are_compared_with_images(
    tmp_path: Path, line: Line
) -> None:
    folder = tiny_clip(tmp_path / "model")
    digest = line.fetch(folder).details["digest"]
    converted = line.convert(digest).details
    assert (converted["architecture"], converted["task"]) == ("clip", "sentence-embedding")
    assert line.validate(digest).summary.reason == "Validated"
    encoded = transformers.AutoTokenizer.from_pretrained(folder)(["the cat", "a mat on the train"], padding=True)
    inputs = {name: np.asarray(encoded[name], np.int64) for name in ("input_ids", "attention_mask")}
    model = transformers.CLIPModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        truth = model.get_text_features(**{name: torch.from_numpy(ids) for name, ids in inputs.items()})
    np.testing.assert_allclose(answer(line, "text_embeds", inputs), truth.pooler_output.numpy(), atol=1e-5)


def test_an_architecture_that_is_not_known_is_tried_and_told_so(tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny(tmp_path / "model", "camembert")).details["digest"]
    converted = line.convert(digest)
    assert converted.details["knownArchitecture"] is False
    assert converted.details["maxSequenceLength"] == TINY_LENGTH, "found by asking: its positions begin after padding"
    assert "no tested route" in converted.summary.message
    assert line.validate(digest).summary.reason == "Validated"


SENTENCES: dict[str, dict[str, Any]] = {
    "mean": {},
    "cls without normalisation": {"mode": "cls", "normalize": False},
    "max of a RoBERTa": {"mode": "max", "architecture": "roberta"},
    "all modes at once on an MPNet": {"mode": "cls+max+mean+sqrt", "architecture": "mpnet", "normalize": False},
    "a dense layer": {"mode": "mean", "dense": True},
}


@pytest.mark.parametrize("case", SENTENCES, ids=lambda case: case.replace(" ", "-"))
def test_a_sentence_embedding_is_what_sentence_transformers_computes(case: str, tmp_path: Path, line: Line) -> None:
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415  an independent second opinion

    folder = tiny_sentence(tmp_path / "model", **SENTENCES[case])
    if SENTENCES[case].get("dense"):
        # The library of today reads the module under its full name only.
        change = json.loads((folder / "modules.json").read_text())
        change[2]["type"] = "sentence_transformers.models.Dense"
        (folder / "modules.json").write_text(json.dumps(change))
    digest = line.fetch(folder).details["digest"]
    assert line.convert(digest).details["task"] == "sentence-embedding"
    assert line.validate(digest).summary.reason == "Validated"
    texts = ["the cat sat on the mat", "error", "a train, the water and that mat."]
    theirs = SentenceTransformer(str(folder), device="cpu")
    names = [item.name for item in onnxruntime.InferenceSession(graph_of(line), providers=[CPU]).get_inputs()]
    encoded = theirs.tokenizer(texts, padding=True, return_tensors="np")
    ours = answer(line, "sentence_embedding", {name: encoded[name].astype(np.int64) for name in names})
    np.testing.assert_allclose(ours, theirs.encode(texts), rtol=1e-4, atol=1e-5)


def test_the_same_checkpoint_gives_the_same_bytes_wherever_it_lies(
    tmp_path: Path, new_line: Callable[[str], Line]
) -> None:
    artifacts, quantised = [], []
    schemes = set(Scheme) - AS_EXPORTED - {Scheme.AUTO}
    for name in ("here", "a/folder/with a longer/name"):
        line = new_line("line")
        source = tiny_sentence(tmp_path / name / "model")
        digest = line.fetch(source).details["digest"]
        line.convert(digest)
        line.validate(digest)
        artifacts.append(line.publish().details)
        requests = list(calibration.requests(load.load(source, Task.AUTO, None), texts.ALL[:4]))
        for scheme in schemes:
            quantize.quantise(ConversionSpec(scheme=scheme), graph_of(line), line.root / f"{scheme}.onnx", requests)
        quantised.append({path.stem: path.read_bytes() for path in line.root.glob("*.onnx")})
        folder = line.artifact(artifacts[-1]["digest"])
        everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        assert str(tmp_path).encode() not in everything
        assert str(line.root).encode() not in everything
        assert b"site-packages" not in everything
    assert artifacts[0] == artifacts[1]
    assert quantised[0] == quantised[1]
    assert len(set(quantised[0].values())) == len(schemes)


def test_a_graph_is_named_by_its_task_and_carries_no_trace_of_the_machine(tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny(tmp_path / "model")).details["digest"]
    facts = line.convert(digest).details["graphs"][CPU]
    model = onnx.load(graph_of(line))
    assert [[dim.dim_param for dim in item.type.tensor_type.shape.dim] for item in model.graph.input] == [
        ["batch", "sequence"]
    ] * 3
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert facts["opset"] == 18
    assert facts["nodes"] == len(model.graph.node)


def test_the_opset_is_the_one_asked_for(tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny(tmp_path / "model")).details["digest"]
    assert line.convert(digest, opset=23).details["graphs"][CPU]["opset"] == 23
    assert line.validate(digest, opset=23).summary.reason == "Validated"


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta-v2", "modernbert"])
def test_a_shorter_maximum_makes_a_longer_text_an_error_and_changes_no_answer(
    architecture: str, tmp_path: Path, line: Line
) -> None:
    digest = line.fetch(tiny(tmp_path / "model", architecture)).details["digest"]
    spec: dict[str, Any] = {"maxSequenceLength": 12}
    assert line.convert(digest, **spec).details["maxSequenceLength"] == 12
    assert line.validate(digest, **spec).summary.reason == "Validated"
    model = transformers.AutoModel.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    names = [item.name for item in onnxruntime.InferenceSession(graph_of(line), providers=[CPU]).get_inputs()]
    for length, fits in ((12, True), (13, False), (TINY_LENGTH, False)):
        ids = np.full((2, length), 9, np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        given = {name: inputs[name] for name in names}
        if not fits:
            with pytest.raises(Exception, match="Non-zero status code"):
                answer(line, "last_hidden_state", given)
            continue
        with torch.no_grad():
            truth = model(
                **{name: torch.from_numpy(tensor) for name, tensor in given.items()}
            ).last_hidden_state.numpy()
        np.testing.assert_allclose(answer(line, "last_hidden_state", given), truth, atol=1e-5)


IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "a longer maximum than the checkpoint has": ({"maxSequenceLength": TINY_LENGTH + 1}, "maxSequenceLength"),
    "a maximum without room": ({"maxSequenceLength": 3}, "maxSequenceLength"),
    "a sentence without modules": ({"task": "sentence-embedding"}, "modules.json"),
    "labels of a model without any": ({"task": "text-classification"}, "text-classification"),
    "static int8 on CUDA": ({"scheme": "int8-static", "providers": ["CUDAExecutionProvider"]}, "int8-static"),
    "weights in blocks on TensorRT": (
        {"scheme": "int4-weight-only", "providers": ["TensorrtExecutionProvider"]},
        "int4",
    ),
    "wide activations on TensorRT": (
        {"scheme": "int8-static", "activations": "uint16", "providers": ["TensorrtExecutionProvider"]},
        "activations uint16",
    ),
    "int8 on CUDA": ({"scheme": "int8-dynamic", "providers": ["CUDAExecutionProvider"]}, "int8-dynamic"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE, ids=lambda case: case.replace(" ", "-"))
def test_a_legal_spec_that_cannot_be_met_names_the_field_and_the_way_out(case: str, tmp_path: Path, line: Line) -> None:
    spec, names = IMPOSSIBLE[case]
    digest = line.fetch(tiny(tmp_path / "model")).details["digest"]
    ended = line.convert(digest, **spec)
    assert (ended.summary.reason, ended.code) == ("SpecImpossible", 24)
    assert names in ended.summary.message
    assert "use " in ended.summary.message


def test_an_encoder_with_no_room_for_a_text_is_refused(tmp_path: Path, line: Line) -> None:
    line.refuses(tiny(tmp_path / "model", max_position_embeddings=7), "ConfigInvalid", "7 positions, fewer than the 8")


def test_what_a_scheme_takes_for_granted_is_written_down(tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny(tmp_path / "model")).details["digest"]
    assert line.convert(digest, scheme="int4-weight-only", blockSize=64).summary.reason == "Converted"
    written = json.loads((line.work / "graph" / "conversion.json").read_text())["spec"]
    assert (written["blockSize"], written["symmetric"], written["keepOutputHead"]) == (64, False, False)
    blocks = [node for node in onnx.load(graph_of(line)).graph.node if node.op_type == "MatMulNBits"]
    assert {item.i for node in blocks for item in node.attribute if item.name == "block_size"} == {64}


def test_an_earlier_result_of_the_same_inputs_is_reused_and_a_damaged_one_is_not(tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny(tmp_path / "model")).details["digest"]
    first = line.convert(digest)
    again = line.convert(digest)
    assert again.details == first.details
    assert [found["event"] for found in again.lines][-1] == "EarlierResultReused"
    graph_of(line).write_bytes(b"damaged")
    repaired = line.convert(digest)
    assert repaired.details == first.details
    assert "GraphExported" in [found["event"] for found in repaired.lines]
    assert "GraphExported" in [found["event"] for found in line.convert(digest, opset=20).lines]


@pytest.mark.parametrize(
    "change", [{"hidden_act": "relu"}, {"hidden_size": 48}], ids=["it converts", "it does not load"]
)
def test_a_checkpoint_that_was_changed_after_it_was_fetched_is_refused(
    tmp_path: Path, line: Line, change: dict[str, Any]
) -> None:
    digest = line.fetch(tiny(tmp_path / "model")).details["digest"]
    change_json(line.checkpoint(digest) / "config.json", **change)
    ended = line.convert(digest)
    assert (ended.summary.reason, ended.code) == ("DigestMismatch", 16)
    assert not list((line.work / "graph").iterdir()), "nothing is kept"


def test_tokenizer_files_go_along_as_they_are(tmp_path: Path, line: Line) -> None:
    folder = tiny(tmp_path / "model")
    digest = line.fetch(folder).details["digest"]
    line.convert(digest)
    packed = line.work / "graph" / "tokenizer"
    assert (packed / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    loaded = transformers.AutoTokenizer.from_pretrained(packed)
    assert loaded("the cat")["input_ids"] == transformers.AutoTokenizer.from_pretrained(folder)("the cat")["input_ids"]
