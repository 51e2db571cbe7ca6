"""Models that read one text and write another, from checkpoint to two graphs that write what torch writes."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import TensorProto, helper
from sentencepiece import sentencepiece_model_pb2
from typing_extensions import override

from checkpoints import ANSWER_LENGTH, ENCODER_DECODERS, change_json, tiny, tiny_encoder_decoder
from onnx_converter import calibration, cli, convert, generation, load, package, placement, samples, wire
from onnx_converter.contest import Candidate, Original
from onnx_converter.conversion import Conversion
from onnx_converter.digest import sha256_of
from onnx_converter.graph import digest_of
from onnx_converter.heads import outputs_of
from onnx_converter.samples import Sample
from onnx_converter.spec import ConversionSpec, Provider, Serving, Task
from unit.converter import matrix
from unit.converter.steps import Ended, Line
from unit.converter.test_decoders import forget, ignore_the_mask, instead
from unit.converter.test_gate import CPU

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


GRAPHS = ("encoder.onnx", "decoder.onnx")
#: These pass quantised, too.
QUANTISED = dict.fromkeys(("bart", "t5", "t5 of version 1.1"), ("int8-dynamic", "int8-weight-only"))
#: The gate below is asked about it: positions are relative, and words in and out have a weight each.
BELOW = "t5 of version 1.1"
#: test_speech.py asks more of it.
HEARS = "whisper"


def folder_of(line: Line) -> Path:
    return line.work / "graph" / CPU


@pytest.mark.parametrize(
    "name", [name for name in ENCODER_DECODERS if name != HEARS], ids=lambda name: name.replace(" ", "-")
)
def test_every_encoder_decoder_agrees_with_torch_and_writes_what_transformers_generates(
    name: str, tmp_path: Path, line: Line, bench: Bench
) -> None:
    folder = tiny_encoder_decoder(tmp_path / "model", name)
    digest = line.fetch(folder).details["digest"]
    converted = line.convert(digest, maxSequenceLength=ANSWER_LENGTH).details
    if digest == bench.digest:
        assert digest_of(folder_of(line)) == digest_of(bench.good), "the same bytes wherever it lies"
    assert converted["task"] == "text2text-generation"
    assert converted["knownArchitecture"] is True
    validated = line.validate(digest, maxSequenceLength=ANSWER_LENGTH).details
    assert float(validated["parity"]["maxRelative"]) < 1e-4
    assert float(validated["parity"]["minCosine"]) > 0.99999
    assert validated["parity"]["minLabelAgreement"] == "1"
    assert written(folder_of(line), folder) == generated(folder)
    answer = answered(folder, folder_of(line))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    ids, mask = (torch.from_numpy(answer.asked.tensors[one]) for one in ("input_ids", "attention_mask"))
    longest = {"max_length": ANSWER_LENGTH, "forced_eos_token_id": None}
    whole = model.generate(ids, attention_mask=mask, do_sample=False, num_beams=1, **longest)
    assert whole[0].tolist() == answer.tokens, "by the rules of the checkpoint, to its end"
    assert_no_weight_lies_twice(folder_of(line))
    cells = matrix.fill(name, line, digest, converted, validated, maxSequenceLength=ANSWER_LENGTH)
    for scheme in cells.keys() - {"none"}:
        assert_no_weight_lies_twice(matrix.graphs_of(line, scheme))
    assert all(cells[scheme]["reason"] == "Validated" for scheme in QUANTISED.get(name, ()))


def moved_by_noise(folder: Path) -> float:
    """How far an answer moves, as a share of it, where the answer of each layer moves by a hundredth."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]

    def add_noise(_layer: Any, _given: Any, answer: torch.Tensor) -> torch.Tensor:
        return answer + answer.std() * 0.01 * torch.randn_like(answer)

    torch.manual_seed(0)
    ids = torch.randint(2, 258, (8, 60))
    with torch.inference_mode():
        exact = model(input_ids=ids, decoder_input_ids=ids).logits
        for layer in layers:
            layer.register_forward_hook(add_noise)
        noisy = model(input_ids=ids, decoder_input_ids=ids).logits
    return float((noisy - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", ["t5", "t5 of version 1.1"], ids=lambda name: name.replace(" ", "-"))
def test_a_t5_of_the_tests_makes_as_little_of_noise_as_bart_and_with_weights_spread_alike_it_would_not(
    name: str, tmp_path: Path
) -> None:
    spread = {"bart": ("bart", None), "as it is": (name, None), "alike": (name, 0.3)}
    moved = {
        case: moved_by_noise(tiny_encoder_decoder(tmp_path / case, model, spread=how))
        for case, (model, how) in spread.items()
    }
    assert moved["as it is"] < 2 * moved["bart"]
    assert moved["alike"] > 3 * moved["as it is"], "the gate would stop it for what is no fault of the converter's"


@pytest.mark.parametrize("name", ["blenderbot", "m2m_100"])
def test_an_encoder_decoder_that_is_not_known_is_tried_and_told_so(name: str, tmp_path: Path, line: Line) -> None:
    folder = tiny_encoder_decoder(tmp_path / "model", name)
    digest = line.fetch(folder).details["digest"]
    converted = line.convert(digest)
    assert converted.details["knownArchitecture"] is False
    assert "no tested route" in converted.summary.message
    assert line.validate(digest).summary.reason == "Validated"
    assert written(folder_of(line), folder) == generated(folder)


def test_an_encoder_decoder_that_is_not_known_and_attends_otherwise_refuses(tmp_path: Path, line: Line) -> None:
    folder = tiny_encoder_decoder(tmp_path / "model", "prophetnet")
    line.refuses(folder, "ArchitectureUnsupported", "cannot be tried", maxSequenceLength=ANSWER_LENGTH)
    line.refuses(folder, "ArchitectureUnsupported", "cannot read and write 512 tokens")


class Filled(io.StringIO):
    """What a step says, and the most that its folder held whenever it said something."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.most = 0
        self._folder = folder

    @override
    def write(self, text: str) -> int:
        # What was given back in the middle of a file is no longer taken.
        self.most = max(self.most, sum(path.stat().st_blocks * 512 for path in self._folder.rglob("*")))
        return super().write(text)


def test_the_work_folder_holds_no_weight_of_two_graphs_twice(tmp_path: Path, line: Line) -> None:
    folder = tiny_encoder_decoder(tmp_path / "model", "marian", vocab_size=40_000)
    digest, output = line.fetch(folder).details["digest"], line.work / "graph"
    flags = ["--checkpoint", str(line.checkpoint(digest)), "--source-digest", digest, "--output", str(output)]
    said = Filled(output)
    assert cli.main(["convert", *flags, "--spec", '{"scheme": "int8-dynamic"}'], said) == 0
    # As exported, and then with the graphs in whole numbers beside what is left of that.
    assert said.most < 1.15 * (folder / "model.safetensors").stat().st_size


def test_each_graph_may_have_a_scheme_of_its_own(tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny_encoder_decoder(tmp_path / "model", "bart")).details["digest"]
    said = {"scheme": "int8-weight-only", "maxSequenceLength": ANSWER_LENGTH}
    spec: dict[str, Any] = {**said, "components": {"encoder": {"scheme": "int8-dynamic"}}}
    assert line.convert(digest, **spec).code == 0
    encoder, decoder = ({node.op_type for node in onnx.load(folder_of(line) / name).graph.node} for name in GRAPHS)
    assert "MatMulInteger" in encoder
    assert "MatMulNBits" not in encoder
    assert "MatMulNBits" in decoder
    assert "MatMulInteger" not in decoder
    validated = line.validate(digest, **spec).details
    # Of both the one that loses more.
    assert validated["tolerance"]["minCosine"] == "0.8"


@pytest.mark.parametrize("measured", ["encoder", "decoder"])
def test_one_graph_is_measured_on_what_it_is_given_by_the_other(measured: str, bench: Bench, tmp_path: Path) -> None:
    (other,) = {"encoder", "decoder"} - {measured}
    said = {"scheme": "int8-static", "exclude": [f"{measured}.block.0.*"]}
    spec = ConversionSpec.model_validate({**said, "components": {other: {"scheme": "int8-dynamic"}}})
    checkpoint = load.load(bench.line.checkpoint(bench.digest), Task.AUTO, ANSWER_LENGTH)
    exported = shutil.copytree(bench.good, tmp_path / "exported")
    sources = [exported / name for name in GRAPHS]
    # The last time: what the encoder holds is given back no sooner than the decoder was measured.
    convert.write_graphs(checkpoint, spec, TEXTS, sources, tmp_path / "written", is_last=True)
    graphs = {name: onnx.load(tmp_path / "written" / f"{name}.onnx").graph for name in (measured, other)}
    assert not any(node.op_type == "MatMulInteger" for node in graphs[measured].node)
    assert any(node.op_type == "MatMulInteger" for node in graphs[other].node)
    rounded = {node.output[0] for node in graphs[measured].node if node.op_type == "DequantizeLinear"}
    layers = {node.name for node in graphs[measured].node if node.op_type == "MatMul" and node.input[1] in rounded}
    assert any(name.startswith(f"{measured}.block.1.") for name in layers)
    assert not any(name.startswith(f"{measured}.block.0.") for name in layers)
    assert_no_weight_lies_twice(tmp_path / "written")
    Candidate.load([tmp_path / "written" / name for name in GRAPHS], Provider.CPU)


def test_a_decoder_is_measured_on_what_the_encoder_makes_of_a_text_and_the_same_each_time(bench: Bench) -> None:
    checkpoint = load.load(bench.line.checkpoint(bench.digest), Task.AUTO, ANSWER_LENGTH)
    sources = [bench.good / name for name in GRAPHS]
    found = calibration.requests(checkpoint, TEXTS, sources)
    first, again = list(found), list(found)
    assert len(first) == 2 * len(TEXTS), "of each text what the model answers, and the text itself"
    for one, other in zip(first, again, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    encoder = onnxruntime.InferenceSession(sources[0], providers=[CPU])
    for number, text in enumerate(TEXTS):
        asked = checkpoint.tokenizer(text, return_tensors="np")
        told = encoder.run(None, {name: asked[name] for name in ("input_ids", "attention_mask")})
        for request in first[2 * number : 2 * number + 2]:
            assert np.array_equal(request["cross_key_values.0.key"], told[0])
        own, people = (one["decoder_input_ids"][0] for one in first[2 * number : 2 * number + 2])
        assert len(own) > 1, "more than how an answer begins"
        assert people[1:].tolist() == checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert all(
        set(one) == {"input_ids", "attention_mask"} for one in calibration.requests(checkpoint, TEXTS, sources[:1])
    )


def test_each_text_is_encoded_once_to_measure_the_decoder_by_what_the_graphs_together_would_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load.load(bench.line.checkpoint(bench.digest), Task.AUTO, ANSWER_LENGTH)
    sources = [bench.good / name for name in GRAPHS]
    both, outputs = Candidate.load(sources, Provider.CPU), outputs_of(checkpoint)
    loaded, run = list[str](), list[str]()
    made = placement.session

    def counted(path: Path, *said: Any, **rest: Any) -> onnxruntime.InferenceSession:
        session = made(path, *said, **rest)
        loaded.append(path.name)
        answers = session.run

        def answered(*asked: Any) -> Any:
            run.append(path.name)
            return answers(*asked)

        session.run = answered
        return session

    monkeypatch.setattr(placement, "session", counted)
    found = calibration.requests(checkpoint, TEXTS, sources)
    next(iter(found))  # A pass that nobody ends keeps nothing.
    loaded.clear()
    run.clear()
    requests = list(found)
    assert sorted(loaded) == sorted(GRAPHS)
    assert run.count(GRAPHS[0]) == len(TEXTS)
    for text, own in zip(TEXTS, requests[::2], strict=True):
        asked = Sample(text, is_text=True, tensors=samples.encode(checkpoint, (text,), ANSWER_LENGTH, "right"))
        written, _ = generation.write(
            checkpoint,
            lambda sample: both.answer(outputs, sample),
            asked,
            16,
            writing=checkpoint.writing,
            end=checkpoint.tokenizer.eos_token_id,
        )
        assert np.array_equal(own["decoder_input_ids"], written.tensors["decoder_input_ids"])
    loaded.clear()
    list(found)
    assert loaded == [GRAPHS[0]], "what the model answers is known by then"


#: What a T5 of two layers is to keep in floats, and which layers of the encoder's and of the decoder's graph those are.
EXCLUDED: Final[dict[str, tuple[list[str], set[str], set[str]]]] = {
    "of either graph": (
        ["encoder.block.0.layer.1.*", "decoder.*.wo"],
        {"encoder.block.0.layer.1.DenseReluDense.wi", "encoder.block.0.layer.1.DenseReluDense.wo"},
        {f"decoder.block.{layer}.layer.2.DenseReluDense.wo" for layer in range(2)},
    ),
    # Keys and values of what is read are made by the encoder's graph, of all layers at once; the head has the words'
    # weights.
    "between the two, and a tied head": (
        ["*.EncDecAttention.*", "lm_head"],
        {"decoder.block.0+1.layer.1.EncDecAttention.k+v"},
        {f"decoder.block.{layer}.layer.1.EncDecAttention.{name}" for layer in range(2) for name in "qo"} | {"lm_head"},
    ),
}


@pytest.mark.parametrize("case", EXCLUDED)
def test_layers_are_excluded_by_the_names_that_they_have_in_the_checkpoint(
    case: str, tmp_path: Path, line: Line
) -> None:
    exclude, *expected = EXCLUDED[case]
    digest = line.fetch(tiny_encoder_decoder(tmp_path / "model", "t5")).details["digest"]
    spec: dict[str, Any] = {"scheme": "int8-dynamic", "exclude": exclude}
    assert line.convert(digest, **spec).code == 0
    for name, in_floats in zip(GRAPHS, expected, strict=True):
        graph = onnx.load(folder_of(line) / name).graph
        products = {node.name for node in graph.node if node.op_type in ("MatMul", "Gemm")}
        assert in_floats <= products
        assert not any(".block." in product for product in products - in_floats)
        assert any(node.op_type == "MatMulInteger" for node in graph.node)
    assert line.validate(digest, **spec).code == 0


def test_what_is_excluded_has_to_be_there_in_one_of_the_graphs(tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny_encoder_decoder(tmp_path / "model", "t5")).details["digest"]
    spec: dict[str, Any] = {"scheme": "int8-dynamic", "exclude": ["encoder.block.9.*"]}
    ended = line.convert(digest, **spec)
    assert ended.summary.reason == "SpecImpossible"
    assert "quantization.exclude: 'encoder.block.9.*' matches no layer; there is encoder." in ended.summary.message
    # Whose layers are meant is the scheme's to say.
    components = {"decoder": {"scheme": "int8-weight-only"}}
    ended = line.convert(digest, **(spec | {"exclude": ["decoder.*.wo"], "components": components}))
    assert "'decoder.*.wo' matches no layer" in ended.summary.message


def test_one_graph_may_run_on_the_cpu_of_a_pod_with_a_device(
    tmp_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = line.fetch(tiny_encoder_decoder(tmp_path / "model", "bart")).details["digest"]
    on_the_cpu = {"scheme": "int8-dynamic", "executionProvider": "CPUExecutionProvider"}
    spec: dict[str, Any] = {"providers": [str(Provider.CUDA)], "components": {"decoder": on_the_cpu}}
    # Eight bits have kernels where the decoder runs, and not on the device.
    refused = line.convert(digest, providers=[str(Provider.CUDA)], components={"decoder": {"scheme": "int8-dynamic"}})
    assert refused.summary.reason == "SpecImpossible"
    assert line.convert(digest, **spec).code == 0
    asked: dict[str, set[str]] = {}
    session = placement.session

    def noting(path: Path, provider: Provider, *rest: Any, **more: Any) -> Any:
        asked.setdefault(path.stem, set()).add(provider)
        return session(path, Provider.CPU, *rest, **more)

    # No device is here: it is seen which provider each graph asks for.
    monkeypatch.setattr(placement, "session", noting)
    line.validate(digest, **spec)
    assert asked == {"encoder": {Provider.CUDA}, "decoder": {Provider.CPU}}
    configs = package.configs_of(Conversion.read(line.work / "graph"), Serving(), Provider.CUDA)
    kinds = {name: config.partition("kind: ")[2][:8] for name, config in configs.items()}
    assert kinds == {"model": "", "model-encoder": "KIND_GPU", "model-decoder": "KIND_CPU"}


def test_one_graph_may_stay_as_it_is(tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny_encoder_decoder(tmp_path / "model", "bart")).details["digest"]
    spec: dict[str, Any] = {"scheme": "none", "components": {"decoder": {"scheme": "int8-weight-only"}}}
    assert line.convert(digest, **spec).code == 0
    encoder, decoder = ({node.op_type for node in onnx.load(folder_of(line) / name).graph.node} for name in GRAPHS)
    assert "MatMulNBits" in decoder
    assert "MatMulNBits" not in encoder
    assert line.validate(digest, **spec).code == 0


#: What keys and values are wherever they cross a border, by the graph that is in half precision.
CROSSING = {"encoder": TensorProto.FLOAT, "decoder": TensorProto.FLOAT16}


def assert_borders_are(folder: Path, kind: int) -> None:
    """Of all keys and values, so that what one graph says the other can be told; logits are floats always."""
    for name in GRAPHS:
        graph = onnx.load(folder / name).graph
        crossing = {item.name: item.type.tensor_type.elem_type for item in (*graph.input, *graph.output)}
        assert crossing.pop("logits", TensorProto.FLOAT) == TensorProto.FLOAT
        cached = {name: found for name, found in crossing.items() if "key" in name or "value" in name}
        assert cached
        assert set(cached.values()) == {kind}


@pytest.mark.parametrize(("name", "half"), [("t5", "encoder"), ("t5", "decoder"), (HEARS, "encoder")])
def test_one_graph_may_be_in_half_precision(name: str, half: str, tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny_encoder_decoder(tmp_path / "model", name)).details["digest"]
    schemes = {component: "float16" if component == half else "int8-weight-only" for component in CROSSING}
    components = {component: {"scheme": scheme} for component, scheme in schemes.items()}
    spec: dict[str, Any] = {"maxSequenceLength": ANSWER_LENGTH, "components": components}
    converted = line.convert(digest, **spec)
    assert "float16 is computed in float32" in converted.summary.message
    percents = [said["percent"] for said in converted.lines if "percent" in said]
    assert percents == sorted(percents)
    assert_borders_are(folder_of(line), CROSSING[half])
    for component, scheme in schemes.items():
        model = onnx.load(folder_of(line) / f"{component}.onnx").graph
        is_whole = any(node.op_type == "MatMulNBits" for node in model.node)
        halves = {tensor.name for tensor in model.initializer if tensor.data_type == TensorProto.FLOAT16}
        floats = {tensor.name for tensor in model.initializer if tensor.data_type == TensorProto.FLOAT}
        assert is_whole == (scheme != "float16")
        layers = {node.name: node.input[1] for node in model.node if node.op_type == "MatMul" and node.input[1]}
        assert any(weight in halves for weight in layers.values()) == (scheme == "float16")
        # What transformers itself keeps in floats, as it overflows in half of them.
        kept = [weight in floats for layer, weight in layers.items() if layer.endswith("DenseReluDense.wo")]
        assert kept == [True] * (2 if (name, scheme) == ("t5", "float16") else 0)
    assert_no_weight_lies_twice(folder_of(line))
    assert sorted(path.name for path in (line.work / "graph").iterdir()) == [CPU, "conversion.json", "tokenizer"]
    validated = line.validate(digest, **spec)
    assert validated.summary.reason == "Validated", validated.summary.message
    # Of both the one that loses more.
    assert validated.details["tolerance"]["minCosine"] == "0.95"


def test_a_graph_that_has_no_kernels_for_its_scheme_is_refused_by_its_field(tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny_encoder_decoder(tmp_path / "model", "bart")).details["digest"]
    components = {"encoder": {"scheme": "float16"}, "decoder": {"scheme": "int8-dynamic"}}
    ended = line.convert(digest, providers=[str(Provider.CUDA)], components=components)
    assert ended.summary.reason == "SpecImpossible"
    assert "quantization.components.decoder.scheme int8-dynamic has no kernels on CUDA" in ended.summary.message
    ended = line.convert(digest, providers=[str(Provider.QNN)], components=components)
    assert "quantization.components.encoder.scheme float16 is not known to QNN" in ended.summary.message


def test_a_model_of_one_graph_has_no_components(tmp_path: Path, line: Line) -> None:
    words = "quantization.components is for models of two graphs, and bert is one"
    asked = {"encoder": {"scheme": "int8-dynamic"}}
    line.refuses(tiny(tmp_path / "model"), "SpecImpossible", words, components=asked)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"scheme": "bfloat16", "components": {"encoder": {"scheme": "none"}}}, "no meaning with scheme bfloat16"),
        ({"components": {"encoder": {"scheme": "bfloat16"}}}, "bfloat16 is for a model as a whole"),
        ({"components": {"encoder": {"scheme": "auto"}}}, "auto is for a model as a whole"),
    ],
)
def test_what_is_settled_for_the_model_as_a_whole_is_none_of_a_graph(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ConversionSpec.model_validate(spec)


TEXTS = ["the cat", "water and the train: 12"]
#: How many tokens both write.
STEPS = 16


def given(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="np")


def generated(folder: Path) -> list[list[int]]:
    """By transformers itself, which loads the folder in its own way."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    encoded = given(folder)
    options: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False, "num_beams": 1, "eos_token_id": None}
    ids, mask = (torch.from_numpy(encoded[name]) for name in ("input_ids", "attention_mask"))
    tokens = model.generate(ids, attention_mask=mask, **options)
    found: list[list[int]] = tokens[:, 1:].tolist()
    return found


def written(graphs: Path, folder: Path) -> list[list[int]]:
    """By the graphs: the text is read once, then one token is written after the other."""
    encoder, decoder = (onnxruntime.InferenceSession(graphs / name, providers=[CPU]) for name in GRAPHS)
    encoded = given(folder)
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    inputs = {item.name: item.shape for item in decoder.get_inputs()}
    known = {"attention_mask": mask}
    for item, answer in zip(
        encoder.get_outputs(), encoder.run(None, {"input_ids": ids, "attention_mask": mask}), strict=True
    ):
        known[item.name] = answer
    for name, shape in inputs.items():
        if name.startswith("past_key_values"):
            known[name] = np.zeros((len(ids), shape[1], 0, shape[3]), np.float32)
    start = json.loads((folder / "config.json").read_text())["decoder_start_token_id"]
    known["decoder_input_ids"] = np.full((len(ids), 1), start)
    tokens = []
    for _ in range(STEPS):
        logits, *present = decoder.run(None, known)
        known["decoder_input_ids"] = logits[:, -1:].argmax(axis=-1)
        tokens.append(known["decoder_input_ids"])
        for item, answer in zip(decoder.get_outputs()[1:], present, strict=True):
            known[item.name.replace("present", "past_key_values")] = answer
    found: list[list[int]] = np.concatenate(tokens, axis=1).tolist()
    return found


@dataclass(frozen=True, slots=True)
class Answered:
    """A text or a sound, and all that is written of it with what it begins with."""

    asked: Sample
    tokens: list[int]


def answered(folder: Path, graphs: Path) -> Answered:
    """As the gate has it answered."""
    original = Original.load(folder, Task.AUTO, ANSWER_LENGTH)
    candidate = Candidate.load([graphs / name for name in GRAPHS], Provider.CPU)
    sample, logits = generation.write_whole(
        original.checkpoint, lambda asked: candidate.answer(original.outputs, asked)
    )
    return Answered(sample, [*sample.tensors["decoder_input_ids"][0].tolist(), int(logits[0, -1].argmax())])


def assert_no_weight_lies_twice(folder: Path) -> None:
    """Every weight of both graphs is in one file, each once."""
    sizes = {}
    for name in GRAPHS:
        assert len((folder / name).read_bytes()) < 60_000, "the weights lie beside it"
        for tensor in onnx.load(folder / name).graph.initializer:
            if len(tensor.raw_data) >= 1024:
                sizes[hashlib.sha256(tensor.raw_data).digest()] = len(tensor.raw_data)
    assert {path.name for path in folder.iterdir()} == {*GRAPHS, "weights.data"}
    assert 0 <= (folder / "weights.data").stat().st_size - sum(sizes.values()) < 64 * len(sizes)


# The gate ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bench:
    """A converted checkpoint whose graphs can be swapped for others, as a wrong converter would have written them."""

    line: Line
    digest: str
    good: Path
    spec: Mapping[str, Any] = field(default_factory=lambda: {"maxSequenceLength": ANSWER_LENGTH})

    def restore(self) -> Path:
        """The good graphs, to be changed."""
        folder = folder_of(self.line)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.good, folder)
        return folder

    def settle(self) -> None:
        """What lies there now is what was converted."""
        root, folder = self.line.work / "graph", folder_of(self.line)
        conversion = json.loads((root / "conversion.json").read_text())
        kept = {path: sha256 for path, sha256 in conversion["files"].items() if not path.startswith(CPU)}
        conversion["files"] = kept | {f"{CPU}/{path.name}": sha256_of(path) for path in folder.iterdir()}
        conversion["graphs"][CPU]["digest"] = digest_of(folder)
        (root / "conversion.json").write_text(json.dumps(conversion))

    def validate(self) -> Ended:
        return self.line.validate(self.digest, **self.spec)

    def put_changed(self, graph: str, change: Callable[[onnx.ModelProto], None]) -> None:
        path = self.restore() / graph
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)
        self.settle()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    line = Line(folder / "line")
    digest = line.fetch(tiny_encoder_decoder(folder / "model", BELOW)).details["digest"]
    assert line.convert(digest, maxSequenceLength=ANSWER_LENGTH).summary.reason == "Converted"
    return Bench(line, digest, shutil.copytree(folder_of(line), folder / "good"))


def read_nothing(model: onnx.ModelProto) -> None:
    instead(model, "input_ids", [helper.make_node("Sub", ["input_ids", "input_ids"], ["nothing"])])


def answer_another_text(model: onnx.ModelProto) -> None:
    """Of one layer: the others look right."""
    name = "cross_key_values.1.value"
    for node in model.graph.node:
        node.output[:] = ["computed" if found == name else found for found in node.output]
    model.graph.node.append(helper.make_node("Neg", ["computed"], [name]))


def keep_the_last_token(model: onnx.ModelProto) -> None:
    name = "present.1.value"
    for node in model.graph.node:
        node.output[:] = ["computed" if found == name else found for found in node.output]
        node.input[:] = ["computed" if found == name else found for found in node.input]
    for key, value in (("from", -1), ("to", 2**31), ("axis", 2)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), key))
    model.graph.node.append(helper.make_node("Slice", ["computed", "from", "to", "axis"], [name]))


def lose_the_bias(model: onnx.ModelProto) -> None:
    """Of attention by distance, as a fused operator does that has no place for it."""
    (table,) = (one for one in model.graph.initializer if one.name.endswith("relative_attention_bias.weight"))
    table.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tuple(table.dims), np.float32), table.name))


def freeze_inside(name: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 0, 4, 8], np.int64), "frozen"))
        instead(model, name, [helper.make_node("Reshape", [name, "frozen"], ["of_four"])])

    return change


BROKEN: dict[str, tuple[str, Callable[[onnx.ModelProto], None], str, str]] = {
    "the text has no effect": ("encoder.onnx", read_nothing, "InputIgnored", "input_ids has no effect"),
    "the mask has no effect on reading": ("encoder.onnx", ignore_the_mask, "ParityFailed", "tolerance"),
    "the mask has no effect on writing": (
        "decoder.onnx",
        ignore_the_mask,
        "InputIgnored",
        "attention_mask has no effect",
    ),
    "the past keys have no effect": (
        "decoder.onnx",
        forget("0.key", "1.key"),
        "InputIgnored",
        "every past_key_values key has no effect",
    ),
    "keys of the text are not those given": (
        "decoder.onnx",
        forget("0.key", "1.key", prefix="cross_key_values"),
        "InputIgnored",
        "every cross_key_values key has no effect",
    ),
    "values of the text are not those given": (
        "decoder.onnx",
        forget("0.value", "1.value", prefix="cross_key_values"),
        "InputIgnored",
        "input_ids has no effect",
    ),
    "one layer does not look at the text": (
        "decoder.onnx",
        forget("1.value", prefix="cross_key_values"),
        "ParityFailed",
        "tolerance",
    ),
    "one layer is told of another text": ("encoder.onnx", answer_another_text, "ParityFailed", "tolerance"),
    "attention to what is read lost its bias": (
        "encoder.onnx",
        lose_the_bias,
        "OrderLost",
        "the order of the tokens that are read has no effect",
    ),
    "attention to what is written lost its bias": (
        "decoder.onnx",
        lose_the_bias,
        "OrderLost",
        "the order of what was written before has no effect",
    ),
    "the cache does not grow": ("decoder.onnx", keep_the_last_token, "CacheDiffers", "keeps present.1.value in shape"),
    "the length of the past is frozen inside": (
        "decoder.onnx",
        freeze_inside("past_key_values.0.key"),
        "AxisFrozen",
        "answers with an error",
    ),
    "the length of the text is frozen inside": (
        "decoder.onnx",
        freeze_inside("cross_key_values.0.key"),
        "AxisFrozen",
        "answers with an error",
    ),
}


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.replace(" ", "-"))
def test_a_graph_that_writes_otherwise_is_stopped_and_named(case: str, bench: Bench) -> None:
    graph, change, reason, words = BROKEN[case]
    bench.put_changed(graph, change)
    ended = bench.validate()
    assert ended.summary.reason == reason, ended.summary.message
    assert words in ended.summary.message


def read_anew(model: onnx.ModelProto) -> None:
    """What the encoder makes goes in, so that keys and values of the text are computed at each step."""
    wanted = helper.make_tensor_value_info("encoder_hidden_states", TensorProto.FLOAT, ["batch", "sequence", 32])
    for name in ("cross_key_values.0.key", "cross_key_values.0.value"):
        (found,) = (item for item in model.graph.input if item.name == name)
        model.graph.input.remove(found)
        weights = f"weights.{name}"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((32, 32), np.float32), weights))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 0, 4, 8]), f"shape.{name}"))
        model.graph.node.insert(0, helper.make_node("Transpose", [f"split.{name}"], [name], perm=[0, 2, 1, 3]))
        model.graph.node.insert(0, helper.make_node("Reshape", [f"all.{name}", f"shape.{name}"], [f"split.{name}"]))
        model.graph.node.insert(0, helper.make_node("MatMul", ["encoder_hidden_states", weights], [f"all.{name}"]))
    model.graph.input.append(wanted)


def freeze(name: str, axis: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        (found,) = (item for item in model.graph.input if item.name == name)
        found.type.tensor_type.shape.dim[axis].dim_value = 4

    return change


MALFORMED: dict[str, tuple[str, Callable[[onnx.ModelProto], None], str, str]] = {
    "the text is read anew at each step": (
        "decoder.onnx",
        read_anew,
        "CrossComputedAnew",
        "takes encoder_hidden_states and not cross_key_values.0.key (2 inputs)",
    ),
    "the length of what is read is frozen": (
        "encoder.onnx",
        freeze("input_ids", 1),
        "AxisFrozen",
        "froze an axis of input input_ids",
    ),
    "the length of the past is frozen": (
        "decoder.onnx",
        freeze("past_key_values.1.key", 2),
        "AxisFrozen",
        "froze an axis",
    ),
    "the length of the text is frozen": (
        "decoder.onnx",
        freeze("cross_key_values.1.value", 2),
        "AxisFrozen",
        "froze an axis",
    ),
    "the batch is frozen": ("decoder.onnx", freeze("decoder_input_ids", 0), "AxisFrozen", "froze an axis"),
}


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case.replace(" ", "-"))
def test_a_graph_that_is_another_one_is_refused_before_it_is_run(case: str, bench: Bench) -> None:
    graph, change, reason, words = MALFORMED[case]
    bench.put_changed(graph, change)
    ended = bench.validate()
    assert ended.summary.reason == reason, ended.summary.message
    assert words in ended.summary.message
    assert graph in ended.summary.message


@pytest.mark.parametrize("missing", [*GRAPHS, "weights.data"])
def test_a_component_that_is_missing_is_named(missing: str, bench: Bench) -> None:
    (bench.restore() / missing).unlink()
    bench.settle()
    ended = bench.validate()
    assert (ended.summary.reason, ended.code) == ("ComponentMissing", 58), ended.summary.message
    assert missing in ended.summary.message


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_weight_of_both_graphs_is_stored_twice_unless_they_share_its_bytes(bench: Bench, *, is_shared: bool) -> None:
    folder, values = bench.restore(), np.random.default_rng(3).normal(size=(128, 256)).astype(np.float32)
    end = (folder / "weights.data").stat().st_size
    if is_shared:
        with (folder / "weights.data").open("ab") as stream:
            stream.write(values.tobytes())
    for name in GRAPHS:
        model = onnx.load(folder / name, load_external_data=False)
        tensor = onnx.numpy_helper.from_array(values, "table")
        if is_shared:
            wire.refer(tensor, "weights.data", end, values.nbytes)
        model.graph.initializer.append(tensor)
        (folder / name).write_bytes(model.SerializeToString())
    bench.settle()
    ended = bench.validate()
    assert ended.summary.reason == ("Validated" if is_shared else "WeightsStoredTwice"), ended.summary.message
    if not is_shared:
        assert "decoder.onnx holds 131072 bytes of weights as table and encoder.onnx as table" in ended.summary.message


@pytest.fixture
def validated(bench: Bench) -> Path:
    bench.restore()
    bench.settle()
    assert bench.validate().summary.reason == "Validated"
    return bench.line.work / f"validation-{CPU}"


def test_the_report_speaks_of_both_graphs_as_one(validated: Path, bench: Bench) -> None:
    report = json.loads((validated / "report.json").read_text())
    row = report["rows"][-1]
    assert (row["sample"], row["labelAgreement"], row["vectors"]) == ("64 greedy tokens, batch 4", "1", 4 * 64)
    assert report["rows"][-2]["sample"] == f"a text, answered to the bound in {ANSWER_LENGTH - 1} tokens"
    assert report["graphDigest"] == digest_of(folder_of(bench.line))
    assert [item["name"] for item in report["conversion"]["inputs"][:4]] == [
        "input_ids",
        "attention_mask",
        "decoder_input_ids",
        "past_key_values.0.key",
    ]
    assert {item["name"].split(".")[0] for item in report["conversion"]["outputs"]} == {"logits", "present"}
    nodes = sum(len(onnx.load(bench.good / name).graph.node) for name in GRAPHS)
    assert report["conversion"]["graphs"][CPU]["nodes"] == nodes
    assert report["conversion"]["graphs"][CPU]["bytes"] == sum(file.stat().st_size for file in bench.good.iterdir())


def test_golden_requests_are_a_text_and_the_beginning_of_its_answer(validated: Path) -> None:
    assert (validated / "golden.json").stat().st_size < 50_000
    for request in json.loads((validated / "golden.json").read_text()):
        assert request["inputs"]["past_key_values.0.key"] == {"datatype": "FP32", "shape": [1, 4, 0, 8], "data": []}
        begun, largest = request["inputs"]["decoder_input_ids"]["data"], request["outputs"]["logits"]["largest"]
        assert begun == [0, *largest[:-1]], "the graph's own, each token chosen by the one before"
        assert request["compared"]["data"][0] == 1
        assert request["outputs"].keys() == {"logits"}


def test_the_bytes_name_no_place(bench: Bench) -> None:
    assert all(b"site-packages" not in (bench.good / name).read_bytes() for name in GRAPHS)


def test_axes_are_named_and_those_of_the_two_texts_apart(bench: Bench) -> None:
    axes = {
        item.name: [dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for name in GRAPHS
        for graph in (onnx.load(bench.good / name, load_external_data=False).graph,)
        for item in (*graph.input, *graph.output)
    }
    assert axes["input_ids"] == axes["attention_mask"] == ["batch", "sequence"]
    assert axes["cross_key_values.1.value"] == ["batch", 4, "sequence", 8]
    assert axes["decoder_input_ids"] == ["batch", "decoder_sequence"]
    assert axes["past_key_values.1.value"] == ["batch", 4, "past_sequence", 8]
    assert axes["logits"] == ["batch", "decoder_sequence", 258]
    assert axes["present.1.value"] == ["batch", 4, "past_sequence + decoder_sequence", 8]


@pytest.mark.parametrize(("read", "mask", "past"), [(3, 1, 0), (3, 2, 0), (3, 4, 0), (3, 3, ANSWER_LENGTH)])
def test_a_mask_of_another_text_and_an_answer_without_end_are_errors(
    read: int, mask: int, past: int, bench: Bench
) -> None:
    session = onnxruntime.InferenceSession(bench.good / "decoder.onnx", providers=[CPU])

    def ask(mask: int, past: int) -> None:
        lengths = {"past_key_values": past, "cross_key_values": read}
        cached = {
            item.name: np.ones((1, 4, lengths[item.name.split(".")[0]], 8), np.float32)
            for item in session.get_inputs()[2:]
        }
        new = {"decoder_input_ids": np.array([[5]]), "attention_mask": np.ones((1, mask), np.int64)}
        session.run(["logits"], new | cached)

    ask(read, 0)
    with pytest.raises(Exception, match="Non-zero status code"):
        ask(mask, past)


# The checkpoint ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t5", "pegasus"])
def test_a_vocabulary_of_sentencepiece_alone_is_a_tokenizer(name: str, tmp_path: Path) -> None:
    folder, vocabulary = tiny_encoder_decoder(tmp_path / "model", name), sentencepiece_model_pb2.ModelProto()
    for path in folder.glob("tokenizer*"):
        path.unlink()
    for piece, score, kind in (("<pad>", 0, 3), ("</s>", 0, 3), ("<unk>", 0, 2), ("▁the", -1, 1)):
        vocabulary.pieces.add(piece=piece, score=score, type=kind)
    for letter in "▁abcdefghijklmnopqrstuvwxyz":
        vocabulary.pieces.add(piece=letter, score=-5, type=1)
    (folder / "spiece.model").write_bytes(vocabulary.SerializeToString())
    assert load.load(folder, Task.AUTO, None).tokenizer.tokenize("the cat") == ["▁the", "▁", "c", "a", "t"]


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, str]] = {
    "a classifier": (
        "bart",
        {"architectures": ["BartForSequenceClassification"]},
        {},
        "ArchitectureUnsupported",
        "BartForSequenceClassification",
    ),
    "embeddings": ("t5", {}, {"task": "feature-extraction"}, "SpecImpossible", "use auto"),
    "a decoder": ("t5", {}, {"task": "text-generation"}, "SpecImpossible", "text2text-generation"),
    "more positions than there are": (
        "bart",
        {},
        {"maxSequenceLength": ANSWER_LENGTH + 1},
        "SpecImpossible",
        "use at most 96",
    ),
    "no room for an answer": ("t5", {}, {"maxSequenceLength": 3}, "SpecImpossible", "use 8 or more"),
    "no positions": ("bart", {"max_position_embeddings": 0}, {}, "ConfigInvalid", "0 positions"),
    "a beginning that is no word": (
        "t5",
        {"decoder_start_token_id": 10**9},
        {},
        "ConfigInvalid",
        "decoder_start_token_id",
    ),
    "a million layers": ("bart", {"decoder_layers": 1_000_000}, {}, "WeightsMismatch", "1000000 layers"),
    "an activation that there is not": ("t5", {"feed_forward_proj": "gated"}, {}, "ConfigInvalid", "config.json"),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.replace(" ", "-"))
def test_what_is_no_supported_encoder_decoder_is_refused_by_name(case: str, tmp_path: Path, line: Line) -> None:
    name, config, spec, reason, words = REFUSED[case]
    folder = tiny_encoder_decoder(tmp_path / "model", name)
    change_json(folder / "config.json", **config)
    line.refuses(folder, reason, words, **spec)


#: Longer than what is written at once.
LONG: Final = 300


def lose_the_middle(model: onnx.ModelProto) -> None:
    """Positions that are looked up in the long text alone: one token or three after a past come after."""
    (place,) = (one for one in model.graph.initializer if "decoder.embed_positions" in one.name)
    table = onnx.numpy_helper.to_array(place).copy()
    table[260:290] = 0
    place.CopyFrom(onnx.numpy_helper.from_array(table, place.name))


def test_the_longest_text_is_written_in_pieces_by_both_and_a_fault_in_its_middle_is_named(tmp_path: Path) -> None:
    line = Line(tmp_path / "line")
    folder = tiny_encoder_decoder(tmp_path / "model", "bart", max_position_embeddings=LONG)
    digest = line.fetch(folder).details["digest"]
    assert line.convert(digest).details["maxSequenceLength"] == LONG
    bench = Bench(line, digest, shutil.copytree(folder_of(line), tmp_path / "good"))
    good = line.validate(digest)
    assert good.summary.reason == "Validated", good.summary.message
    assert any(f"tokens 257 to {LONG} of {LONG} in pieces" in told.get("sample", "") for told in good.lines)
    bench.put_changed("decoder.onnx", lose_the_middle)
    ended = line.validate(digest).summary
    assert ended.reason == "LongTextsDiffer", ended.message
    assert f"texts shorter than {LONG} tokens agree" in ended.message
