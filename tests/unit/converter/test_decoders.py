"""Language models with past keys and values, from checkpoint to a graph that writes what torch writes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models

from checkpoints import DECODER_LENGTH, DECODERS, change_json, tiny, tiny_decoder
from onnx_converter import load, quantize
from onnx_converter.spec import ConversionSpec, Scheme, Task
from unit.converter import matrix
from unit.converter.steps import Line
from unit.converter.test_gate import CPU, Bench

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: These pass quantised, too. A Llama this small, of random weights, does not survive four bits.
QUANTISED = {
    "gpt2": ("int8-dynamic", "int8-static", "int8-weight-only", "int4-weight-only"),
    "llama": ("int8-dynamic",),
}
#: The exporter's time is the layers', so only where they differ, or lie in one cache, are there two.
TWO_LAYERS = ("gemma3_text", "llama")
#: test_routes.py says why.
TRACED = ("falcon", "falcon of the new architecture", "falcon with ALiBi", "gemma2")


def graph_of(line: Line) -> Path:
    return line.work / "graph" / CPU / "model.onnx"


def readers_of_the_past(path: Path) -> set[str]:
    nodes = onnx.load(path).graph.node
    return {node.op_type for node in nodes if any(name.startswith("past_key_values") for name in node.input)}


@pytest.mark.parametrize("name", DECODERS, ids=lambda name: name.replace(" ", "-"))
def test_every_decoder_agrees_with_torch_and_writes_what_transformers_generates(
    name: str, tmp_path: Path, line: Line, bench: Bench
) -> None:
    layers = "n_layer" if name == "gpt2" else "num_hidden_layers"
    folder = tiny_decoder(tmp_path / "model", name, **({} if name in TWO_LAYERS else {layers: 1}))
    digest = line.fetch(folder).details["digest"]
    converted = line.convert(digest).details
    if digest == bench.digest:
        assert graph_of(line).read_bytes() == bench.good, "the same bytes wherever it lies"
    assert converted["task"] == "text-generation"
    assert converted["maxSequenceLength"] == DECODER_LENGTH
    assert [item["name"] for item in converted["inputs"]] == ["input_ids", "attention_mask"]
    assert [item["shape"] for item in converted["outputs"]] == [[-1, -1, 258]]
    assert converted["graphs"][CPU]["route"] == ("trace" if name in TRACED else "fused-attention")
    assert ("Concat" in readers_of_the_past(graph_of(line))) == (name in TRACED), "the operator keeps it"
    validated = line.validate(digest).details
    assert float(validated["parity"]["maxAbsolute"]) < 1e-4
    assert float(validated["parity"]["minCosine"]) > 0.99999
    assert validated["parity"]["minLabelAgreement"] == "1"
    assert written(graph_of(line), folder) == generated(folder)
    cells = matrix.fill(name, line, digest, converted, validated)
    assert all(cells[scheme]["reason"] == "Validated" for scheme in QUANTISED.get(name, ()))
    static, dynamic = (matrix.graphs_of(line, scheme) / "model.onnx" for scheme in ("int8-static", "int8-dynamic"))
    assert static.stat().st_size < 1.02 * dynamic.stat().st_size, "a head that is the table as well is in 8 bits, too"
    # What is rounded by what is asked together differs by up to twice as much; a processor may round a value in the
    # middle of two steps either way.
    assert max(differences_of_steps(static)) < 0.02


def differences_of_steps(path: Path) -> Iterator[float]:
    """As a share of the largest logit: how far those of a token after a past are from those in a text read at once."""
    session = onnxruntime.InferenceSession(path, providers=[CPU])
    past = list(nothing_past(session).values())
    ids = np.random.default_rng(0).integers(3, 258, (1, 18))
    whole, *kept = answers_of(session, ids, past)
    for length in (0, 1, 17):
        token = ids[:, length : length + 1]
        step, *_ = answers_of(session, token, [tensor[:, :, :length] for tensor in kept])
        yield float(np.abs(step[0, 0] - whole[0, length]).max() / np.abs(whole[0, length]).max())


def nothing_past(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """Keys and values of no tokens, by input."""
    return {item.name: np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32) for item in session.get_inputs()[2:]}


def answers_of(session: onnxruntime.InferenceSession, ids: Any, past: list[Any]) -> list[Any]:
    mask = np.ones((1, past[0].shape[2] + ids.shape[1]), np.int64)
    names = [item.name for item in session.get_inputs()]
    found: list[Any] = session.run(None, dict(zip(names, [ids, mask, *past], strict=True)))
    return found


#: How positions are stretched beyond the length of the training, 32 here; dynamic does so beyond all that is asked.
STRETCHED: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "linear": {},
    "yarn": {"original_max_position_embeddings": 32},
    "llama3": {"original_max_position_embeddings": 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}


@pytest.mark.parametrize("kind", STRETCHED)
def test_a_rotation_that_stretches_positions_answers_as_torch_beyond_the_length_of_the_training(
    kind: str, tmp_path: Path, line: Line
) -> None:
    settings = {"rope_type": kind, "rope_theta": 500.0, "factor": 4.0, **STRETCHED[kind]}
    folder = tiny_decoder(tmp_path / "model", num_hidden_layers=1, rope_parameters=settings)
    assert line.convert(line.fetch(folder).details["digest"]).code == 0
    session = onnxruntime.InferenceSession(graph_of(line), providers=[CPU])
    ids = torch.arange(DECODER_LENGTH).reshape(1, DECODER_LENGTH) + 5
    past = {item.name: np.zeros((1, 2, 0, 8), np.float32) for item in session.get_inputs()[2:]}
    (found,) = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": np.ones_like(ids), **past})
    with torch.inference_mode():
        wanted = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits.numpy()
        change_json(folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 500.0})
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits.numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert np.allclose(found, plain, atol=0.1) == (kind == "dynamic")


@pytest.mark.parametrize(("name", "longest"), [("granite", DECODER_LENGTH), ("bloom", 80)])
def test_a_decoder_that_is_not_known_is_tried_and_told_so(name: str, longest: int, tmp_path: Path, line: Line) -> None:
    folder = tiny_decoder(tmp_path / "model", name, num_hidden_layers=1)
    digest = line.fetch(folder).details["digest"]
    spec: dict[str, Any] = {"maxSequenceLength": longest}
    converted = line.convert(digest, **spec)
    assert converted.details["maxSequenceLength"] == longest
    assert converted.details["knownArchitecture"] is False
    assert "no tested route" in converted.summary.message
    assert line.validate(digest, **spec).summary.reason == "Validated"
    assert written(graph_of(line), folder) == generated(folder), "its own field is read: another model writes otherwise"
    session = onnxruntime.InferenceSession(graph_of(line), providers=[CPU])
    asked = {name: np.ones((1, longest + 1), np.int64) for name in ("input_ids", "attention_mask")}
    with pytest.raises(Exception, match=f"INVALID_ARGUMENT.* index = {longest}$"):
        session.run(None, asked | nothing_past(session))


def test_the_exporter_gives_up_with_what_it_stumbled_over(tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny_decoder(tmp_path / "model", "mpt")).details["digest"]
    ended = line.convert(digest)
    assert ended.summary.reason == "ExportFailed"
    assert re.search(r"gives up on mpt at opset 18: .*: Eq\(.* is inconsistent", ended.summary.message)


def test_a_decoder_that_is_not_known_and_keeps_no_keys_refuses(tmp_path: Path, line: Line) -> None:
    line.refuses(tiny_decoder(tmp_path / "model", "mamba"), "ArchitectureUnsupported", "takes no")


PROMPTS = ["the cat", "water and the train: 12"]
#: How many tokens both write.
STEPS = 16


def prompts(folder: Path) -> tuple[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left", pad_token="</s>")  # noqa: S106
    encoded = tokenizer(PROMPTS, padding=True, return_tensors="np")
    return encoded["input_ids"], encoded["attention_mask"]


def generated(folder: Path) -> list[list[int]]:
    """By transformers itself, which loads the folder in its own way and counts positions in its own way."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids, mask = prompts(folder)
    options: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    tokens = model.generate(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), **options)
    found: list[list[int]] = tokens[:, ids.shape[1] :].tolist()
    return found


def written(path: Path, folder: Path) -> list[list[int]]:
    """By the graph, one token after the other."""
    session = onnxruntime.InferenceSession(path, providers=[CPU])
    ids, mask = prompts(folder)
    names = [item.name for item in session.get_inputs()[2:]]
    past = [np.zeros((2, item.shape[1], 0, item.shape[3]), np.float32) for item in session.get_inputs()[2:]]
    tokens = []
    for _ in range(STEPS):
        inputs = {"input_ids": ids, "attention_mask": mask, **dict(zip(names, past, strict=True))}
        logits, *past = session.run(None, inputs)
        ids = logits[:, -1:].argmax(axis=-1)
        tokens.append(ids)
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
    found: list[list[int]] = np.concatenate(tokens, axis=1).tolist()
    return found


# The gate ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    return Bench.of(Line(folder / "line"), tiny_decoder(folder / "model"))


def instead(model: onnx.ModelProto, old: str, nodes: list[onnx.NodeProto]) -> None:
    """Every reader of an input reads what the last of the given nodes makes."""
    for node in model.graph.node:
        node.input[:] = [nodes[-1].output[0] if name == old else name for name in node.input]
    made = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(made)


def ignore_the_mask(model: onnx.ModelProto) -> None:
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    shape = helper.make_node("Shape", ["attention_mask"], ["shape_of_mask"])
    instead(
        model, "attention_mask", [shape, helper.make_node("ConstantOfShape", ["shape_of_mask"], ["ones"], value=one)]
    )


def forget(*names: str, prefix: str = "past_key_values") -> Callable[[onnx.ModelProto], None]:
    """The past is there and is nothing."""

    def change(model: onnx.ModelProto) -> None:
        for name in names:
            past = f"{prefix}.{name}"
            instead(model, past, [helper.make_node("Sub", [past, past], [f"nothing.{name}"])])

    return change


def answer_another_past(model: onnx.ModelProto) -> None:
    """Right at every first call, and wrong for whoever goes on from it."""
    for node in model.graph.node:
        node.output[:] = ["computed" if name == "present.1.value" else name for name in node.output]
        node.input[:] = ["computed" if name == "present.1.value" else name for name in node.input]
    model.graph.node.append(helper.make_node("Neg", ["computed"], ["present.1.value"]))


def freeze_the_past_inside(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 0, 3, 8], np.int64), "frozen"))
    past = "past_key_values.0.key"
    instead(model, past, [helper.make_node("Reshape", [past, "frozen"], ["of_three"])])


BROKEN: dict[str, tuple[Callable[[onnx.ModelProto], None], str, str]] = {
    "the mask has no effect": (ignore_the_mask, "InputIgnored", "attention_mask has no effect"),
    "the past keys have no effect": (forget("0.key", "1.key"), "InputIgnored", "every past_key_values key has no"),
    "the past values have no effect": (forget("0.value", "1.value"), "InputIgnored", "every past_key_values value"),
    "one layer forgets its past": (forget("1.value"), "CacheDiffers", "the first call is right"),
    "the cache that it answers is another": (answer_another_past, "CacheDiffers", "its words are right"),
    "the length of the past is frozen inside": (
        freeze_the_past_inside,
        "AxisFrozen",
        "inside of it an axis is a number",
    ),
}


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.replace(" ", "-"))
def test_a_graph_that_goes_on_otherwise_is_stopped_and_named(case: str, bench: Bench) -> None:
    change, reason, words = BROKEN[case]
    bench.put_changed(change)
    ended = bench.line.validate(bench.digest)
    assert ended.summary.reason == reason, ended.summary.message
    assert words in ended.summary.message


def test_a_graph_that_lost_its_sliding_window_is_stopped_and_told_from_which_length_on(tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "model", "mistral", sliding_window=12)
    bench = Bench.of(Line(tmp_path / "line"), folder)
    assert bench.line.validate(bench.digest).summary.reason == "Validated"
    wide = tiny_decoder(tmp_path / "wide", "mistral", sliding_window=None)
    bench.put(Bench.of(Line(tmp_path / "other"), wide).good)
    ended = bench.line.validate(bench.digest)
    assert ended.summary.reason == "LongTextsDiffer", ended.summary.message
    assert "texts shorter than" in ended.summary.message


#: Longer than what is read at once.
LONG = 600
#: Positions that are looked up in the long text alone: what is read at once ends before, and one token or three after
#: a past come after.
MIDDLE = slice(520, 590)


def stand_still(model: onnx.ModelProto) -> None:
    """Tokens in the middle of a long text are all in one place."""
    (table,) = (one for one in model.graph.initializer if list(one.dims) == [LONG])
    positions = onnx.numpy_helper.to_array(table).copy()
    assert positions.tolist() == list(range(LONG))
    positions[MIDDLE] = MIDDLE.start
    table.CopyFrom(onnx.numpy_helper.from_array(positions, table.name))


def test_the_longest_text_is_read_in_pieces_by_both_and_a_fault_in_its_middle_is_named(tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "model", "mistral", max_position_embeddings=LONG, sliding_window=300)
    bench = Bench.of(Line(tmp_path / "line"), folder)
    assert bench.line.validate(bench.digest).summary.reason == "Validated"
    report = json.loads((bench.line.work / f"validation-{CPU}" / "report.json").read_text())
    vectors = [row["vectors"] for row in report["rows"] if f"of {LONG} in pieces" in row["sample"]]
    # Of each the last token's logits, and from both layers a key and a value of every token.
    assert vectors == [1 + 4 * tokens for tokens in (256, 256, 88)]
    bench.put_changed(stand_still)
    ended = bench.line.validate(bench.digest).summary
    assert ended.reason == "LongTextsDiffer", ended.message
    assert f"texts shorter than {LONG} tokens agree" in ended.message
    bench.put_changed(answer_another_past)
    ended = bench.line.validate(bench.digest).summary
    assert (ended.reason, "its words are right" in ended.message) == ("CacheDiffers", True), ended.message


def test_a_model_of_two_rotations_is_read_up_to_where_the_first_ends(tmp_path: Path, line: Line) -> None:
    sizes = {"max_position_embeddings": 4 * LONG, "original_max_position_embeddings": LONG, "num_hidden_layers": 1}
    digest = line.fetch(tiny_decoder(tmp_path / "model", "phi3 for long texts", **sizes)).details["digest"]
    assert line.convert(digest).details["maxSequenceLength"] == LONG
    ended = line.validate(digest)
    assert ended.summary.reason == "Validated", ended.summary.message
    assert any(f"tokens 513 to {LONG} of {LONG} in pieces" in told.get("sample", "") for told in ended.lines)


@pytest.mark.parametrize(("name", "axis"), [("past_key_values.1.key", 2), ("attention_mask", 1), ("input_ids", 0)])
def test_a_frozen_axis_is_refused_before_the_graph_is_run(name: str, axis: int, bench: Bench) -> None:
    def freeze(model: onnx.ModelProto) -> None:
        (found,) = (item for item in model.graph.input if item.name == name)
        found.type.tensor_type.shape.dim[axis].dim_value = 4

    bench.put_changed(freeze)
    ended = bench.line.validate(bench.digest)
    assert ended.summary.reason == "AxisFrozen", ended.summary.message
    assert f"froze an axis of input {name}" in ended.summary.message


def test_greedy_tokens_are_a_row_of_the_report(bench: Bench) -> None:
    bench.put(bench.good)
    assert bench.line.validate(bench.digest).summary.reason == "Validated"
    report = json.loads((bench.line.work / f"validation-{CPU}" / "report.json").read_text())
    row = report["rows"][-1]
    assert (row["sample"], row["labelAgreement"], row["vectors"]) == ("64 greedy tokens, batch 4", "1", 4 * 64)


def test_golden_requests_of_a_decoder_stay_small_and_compare_the_next_token(bench: Bench) -> None:
    bench.put(bench.good)
    bench.line.validate(bench.digest)
    path = bench.line.work / f"validation-{CPU}" / "golden.json"
    assert path.stat().st_size < 50_000
    for request in json.loads(path.read_text()):
        assert request["inputs"]["past_key_values.0.key"] == {"datatype": "FP32", "shape": [1, 2, 0, 8], "data": []}
        assert request["outputs"]["logits"].keys() == {"datatype", "shape", "largest"}
        assert request["compared"]["data"] == [0] * 7 + [1]


def test_the_bytes_of_a_decoder_name_no_place_and_are_quantised_to_the_same(bench: Bench, tmp_path: Path) -> None:
    assert b"site-packages" not in bench.good
    (tmp_path / "model.onnx").write_bytes(bench.good)
    quantised = []
    for name in ("one", "other"):
        quantize.quantise(ConversionSpec(scheme=Scheme.INT8_DYNAMIC), tmp_path / "model.onnx", tmp_path / name)
        quantised.append((tmp_path / name).read_bytes())
    assert quantised[0] == quantised[1]


def test_axes_are_named_as_everybody_names_them(bench: Bench) -> None:
    model = onnx.load_from_string(bench.good)
    axes = {
        item.name: [dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for item in (*model.graph.input, *model.graph.output)
    }
    assert axes["input_ids"] == ["batch", "sequence"]
    assert axes["attention_mask"] == ["batch", "total_sequence"]
    assert axes["past_key_values.1.value"] == ["batch", 2, "past_sequence", 8]
    assert axes["logits"] == ["batch", "sequence", 258]
    assert axes["present.1.value"] == ["batch", 2, "past_sequence + sequence", 8]


@pytest.mark.parametrize("length", [1, 2, 4, 6, 9])
def test_a_mask_that_does_not_cover_past_and_tokens_is_an_error_and_no_other_answer(length: int, bench: Bench) -> None:
    session = onnxruntime.InferenceSession(bench.good, providers=[CPU])
    past = {item.name: np.ones((1, 2, 3, 8), np.float32) for item in session.get_inputs()[2:]}
    ids = np.array([[5, 6]])
    assert session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones((1, 5), np.int64), **past})
    with pytest.raises(Exception, match="Non-zero status code"):
        session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones((1, length), np.int64), **past})


# The checkpoint ---------------------------------------------------------------------------------------------------

OLDER: dict[str, dict[str, Any]] = {
    "llama": {
        "rope_parameters": None,
        "rope_theta": 500.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "gpt_neox": {"rope_parameters": None, "rotary_emb_base": 500, "rotary_pct": 0.5},
    "gemma3_text": {
        "rope_parameters": None,
        "rope_theta": 5000.0,
        "rope_local_base_freq": 100.0,
        "layer_types": None,
        "sliding_window_pattern": 2,
    },
}


@pytest.mark.parametrize("name", OLDER)
def test_a_checkpoint_with_fields_of_an_older_version_is_the_model_that_transformers_makes_of_it(
    name: str, tmp_path: Path
) -> None:
    folder = tiny_decoder(tmp_path / "model", name)
    ids = torch.arange(40).reshape(1, 40) + 5
    with torch.inference_mode():
        today = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
        change_json(folder / "config.json", **OLDER[name])
        wanted = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
        found = load.load(folder, Task.AUTO, None).model(ids).logits
    assert not torch.allclose(wanted, today, atol=0.1)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_width_of_heads_that_the_configuration_reads_but_does_not_declare_is_kept(tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "model", "qwen2", head_dim=12)
    assert {width for _, width in load.load(folder, Task.AUTO, None).cache} == {12}


def test_a_special_token_that_the_model_has_no_row_for_is_none_of_its_business(tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    found = load.load(folder, Task.AUTO, None).tokenizer
    assert found.convert_tokens_to_ids("<image>") >= 258
    assert found.pad_token == "</s>"  # noqa: S105  no password


def test_a_tokenizer_that_neither_ends_nor_pads_nor_begins_at_0_pads_with_its_first_word(tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "model")
    words = Tokenizer(models.WordLevel({"one": 5, "two": 6}, unk_token="one"))  # noqa: S106  no password
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    assert load.load(folder, Task.AUTO, None).tokenizer.pad_token == "one"  # noqa: S105  no password


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, str]] = {
    "alibi": ("llama", {"alibi": True}, {}, "ArchitectureUnsupported", "alibi is nothing that llama has"),
    "alibi, not known": (
        "granite",
        {"alibi": True},
        {},
        "ArchitectureUnsupported",
        "alibi is nothing that granite has",
    ),
    "a classifier": (
        "llama",
        {"architectures": ["LlamaForSequenceClassification"]},
        {},
        "ArchitectureUnsupported",
        "LlamaForSequenceClassification",
    ),
    "an encoder made of a decoder": (
        "gemma",
        {"use_bidirectional_attention": True},
        {},
        "ArchitectureUnsupported",
        "use_bidirectional_attention",
    ),
    "embeddings of a decoder": ("llama", {}, {"task": "feature-extraction"}, "SpecImpossible", "use auto"),
    "more positions than there are": (
        "llama",
        {},
        {"maxSequenceLength": DECODER_LENGTH + 1},
        "SpecImpossible",
        "use at",
    ),
    "positions of the other rotation": (
        "phi3 for long texts",
        {},
        {"maxSequenceLength": DECODER_LENGTH + 1},
        "SpecImpossible",
        f"use at most {DECODER_LENGTH}",
    ),
    "positions that stretch as a text grows": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 32}},
        {"maxSequenceLength": DECODER_LENGTH},
        "SpecImpossible",
        "use at most 32",
    ),
    "no positions": ("llama", {"max_position_embeddings": 0}, {}, "ConfigInvalid", "0 positions"),
    "a window of nothing": ("mistral", {"sliding_window": 0}, {}, "ConfigInvalid", "cannot read one token"),
    "a million layers": ("llama", {"num_hidden_layers": 1_000_000}, {}, "WeightsMismatch", "1000000 layers"),
    "a class that is no name": ("llama", {"architectures": 5}, {}, "ConfigInvalid", "no list of names"),
    "no room for an answer": ("llama", {}, {"maxSequenceLength": 3}, "SpecImpossible", "use 8 or more"),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.replace(" ", "-"))
def test_what_is_no_supported_language_model_is_refused_by_name(case: str, tmp_path: Path, line: Line) -> None:
    name, config, spec, reason, words = REFUSED[case]
    folder = tiny_decoder(tmp_path / "model", name)
    change_json(folder / "config.json", **config)
    line.refuses(folder, reason, words, **spec)


def test_an_encoder_generates_no_text(tmp_path: Path, line: Line) -> None:
    line.refuses(tiny(tmp_path / "model"), "SpecImpossible", "text-generation", task="text-generation")
