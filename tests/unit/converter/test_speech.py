"""Models that hear, from checkpoint to two graphs that write what transformers writes of the same sound."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import helper

from checkpoints import ANSWER_LENGTH, change_json, tiny_encoder_decoder
from onnx_converter import benchmark, convert, parity, samples, speech, validate
from onnx_converter.contest import Candidate, Original
from onnx_converter.progress import Progress
from onnx_converter.spec import ConversionSpec, Parity, Provider, Scheme, Task
from onnx_operator.prober.golden import GoldenError, read_golden
from unit.converter import matrix
from unit.converter.test_decoders import forget, instead
from unit.converter.test_encoder_decoders import (
    GRAPHS,
    Bench,
    answer_another_text,
    answered,
    assert_no_weight_lies_twice,
    folder_of,
    freeze,
    freeze_inside,
    keep_the_last_token,
)
from unit.converter.test_gate import CPU

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from unit.converter.steps import Line

#: How many tokens both write.
STEPS = 64


@dataclass(frozen=True, slots=True)
class Heard:
    """A checkpoint whose graphs the gate has let through."""

    folder: Path
    bench: Bench
    validation: Path
    told: dict[str, Any]


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory, new_line: Callable[[str], Line]) -> Heard:
    folder = tiny_encoder_decoder(tmp_path_factory.mktemp("heard") / "model", "whisper")
    line = new_line("heard")
    digest = line.fetch(folder).details["digest"]
    converted = line.convert(digest, maxSequenceLength=ANSWER_LENGTH).details
    validated = line.validate(digest, maxSequenceLength=ANSWER_LENGTH)
    assert validated.summary.reason == "Validated", validated.summary.message
    good = shutil.copytree(folder_of(line), line.root / "good")
    validation = shutil.copytree(line.work / f"validation-{CPU}", line.root / "validation")
    return Heard(folder, Bench(line, digest, good), validation, converted | {"validated": validated.details})


def test_the_graphs_agree_with_torch_over_every_sound_and_length(heard: Heard) -> None:
    assert heard.told["task"] == "automatic-speech-recognition"
    assert heard.told["knownArchitecture"] is True
    assert heard.told["maxSequenceLength"] == ANSWER_LENGTH
    measured = heard.told["validated"]["parity"]
    assert float(measured["maxRelative"]) < 1e-4
    assert float(measured["minCosine"]) > 0.99999
    assert measured["minLabelAgreement"] == "1"
    report = json.loads((heard.validation / "report.json").read_text())
    asked = [row["sample"] for row in report["rows"]]
    assert {"a tone", "noise", "silence", "a chirp", "64 greedy tokens, batch 4"} <= set(asked)
    for batch in (1, 2, 3, 4):
        assert [name for name in asked if f"batch {batch}, read 50, past" in name]
    for past in (0, 1, 2, 17, ANSWER_LENGTH - 1):
        assert [name for name in asked if f"past {past}," in name]
    assert_no_weight_lies_twice(heard.bench.good)


def test_every_scheme_of_it_is_judged(heard: Heard) -> None:
    told, bench = heard.told, heard.bench
    bench.restore()
    matrix.fill("whisper", bench.line, bench.digest, told, told["validated"], maxSequenceLength=ANSWER_LENGTH)


def test_the_artifact_brings_what_hears_and_what_writes(heard: Heard) -> None:
    packed = {path.name for path in (heard.bench.line.work / "graph" / "tokenizer").iterdir()}
    assert {"preprocessor_config.json", "tokenizer.json", "generation_config.json", "config.json"} <= packed


def test_the_graphs_write_what_transformers_generates_of_the_same_sounds(heard: Heard) -> None:
    model = transformers.WhisperForConditionalGeneration.from_pretrained(heard.folder).eval()
    extractor: Any = transformers.AutoFeatureExtractor.from_pretrained(heard.folder)
    sounds = list(speech.generated(extractor.n_samples).values())
    features = extractor(sounds, sampling_rate=speech.RATE, return_tensors="pt")["input_features"]
    start = model.config.decoder_start_token_id
    # Its `generate` of speech leaves words out; this is the same search without that.
    plain = super(transformers.models.whisper.generation_whisper.WhisperGenerationMixin, model).generate
    settings = transformers.GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=STEPS, decoder_start_token_id=start, pad_token_id=0
    )
    with torch.inference_mode():
        wanted = plain(features, generation_config=settings).tolist()
    found = written(heard.bench.good, features.numpy(), start)
    assert [tokens[1:] for tokens in wanted] == found


def test_a_whole_transcription_is_what_transformers_writes_by_the_rules_of_the_checkpoint(heard: Heard) -> None:
    answer = answered(heard.folder, heard.bench.good)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(heard.folder).eval()
    settings, begin = model.generation_config, answer.tokens[:4]
    assert settings.suppress_tokens
    assert settings.begin_suppress_tokens
    plain = super(transformers.models.whisper.generation_whisper.WhisperGenerationMixin, model).generate
    features = torch.from_numpy(answer.asked.tensors["input_features"])
    with torch.inference_mode():
        wanted = plain(features, generation_config=settings, decoder_input_ids=torch.tensor([begin])).tolist()
    assert wanted == [answer.tokens]


def written(graphs: Path, features: Any, start: int) -> list[list[int]]:
    """By the graphs: the sounds are read once, then one token is written after the other."""
    encoder, decoder = (onnxruntime.InferenceSession(graphs / name, providers=[CPU]) for name in GRAPHS)
    names = [item.name for item in encoder.get_outputs()]
    known = dict(zip(names, encoder.run(None, {"input_features": features}), strict=True))
    for item in decoder.get_inputs():
        if item.name.startswith("past_key_values"):
            known[item.name] = np.zeros((len(features), item.shape[1], 0, item.shape[3]), np.float32)
    known["decoder_input_ids"] = np.full((len(features), 1), start)
    tokens = []
    for _ in range(STEPS):
        logits, *present = decoder.run(None, known)
        known["decoder_input_ids"] = logits[:, -1:].argmax(axis=-1)
        tokens.append(known["decoder_input_ids"])
        for item, answer in zip(decoder.get_outputs()[1:], present, strict=True):
            known[item.name.replace("present", "past_key_values")] = answer
    return [row.tolist() for row in np.concatenate(tokens, axis=1)]


@pytest.mark.parametrize("scheme", [Scheme.INT8_DYNAMIC, Scheme.INT8_WEIGHT_ONLY, Scheme.INT4_WEIGHT_ONLY])
def test_quantised_graphs_of_speech_pass_the_same_gate(scheme: Scheme, heard: Heard, tmp_path: Path) -> None:
    original, target = Original.load(heard.folder, Task.AUTO, ANSWER_LENGTH), tmp_path / scheme
    sources = [heard.bench.good / name for name in GRAPHS]
    convert.write_graphs(original.checkpoint, ConversionSpec(scheme=scheme), [], sources, target)
    assert_no_weight_lies_twice(target)
    tolerance = parity.tolerance_of(Parity(), scheme, Task.AUTOMATIC_SPEECH_RECOGNITION)
    candidate = Candidate.load([target / graph for graph in GRAPHS], Provider.CPU, is_proved=True)
    judged = validate.judge(original, candidate, tolerance, Progress("validate", io.StringIO()))
    assert judged.reason.name == "Validated", judged.message
    assert judged.total is not None
    assert judged.total.min_cosine < 0.99999, "it was quantised"


def hear_nothing(model: onnx.ModelProto) -> None:
    instead(model, "input_features", [helper.make_node("Sub", ["input_features", "input_features"], ["nothing"])])


BROKEN: dict[str, tuple[str, Callable[[onnx.ModelProto], None], str, str]] = {
    "the sound has no effect": ("encoder.onnx", hear_nothing, "InputIgnored", "input_features has no effect"),
    "keys of the sound are not those given": (
        "decoder.onnx",
        forget("0.key", "1.key", prefix="cross_key_values"),
        "InputIgnored",
        "every cross_key_values key has no effect",
    ),
    "one layer is told of another sound": ("encoder.onnx", answer_another_text, "ParityFailed", "tolerance"),
    "the cache does not grow": ("decoder.onnx", keep_the_last_token, "CacheDiffers", "keeps present.1.value in shape"),
    "the length of the past is frozen inside": (
        "decoder.onnx",
        freeze_inside("past_key_values.0.key"),
        "AxisFrozen",
        "answers with an error",
    ),
    "the batch is frozen": ("encoder.onnx", freeze("input_features", 0), "AxisFrozen", "froze an axis of input"),
    "the length of the past is frozen": (
        "decoder.onnx",
        freeze("past_key_values.1.key", 2),
        "AxisFrozen",
        "froze an axis",
    ),
}


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.replace(" ", "-"))
def test_a_graph_that_hears_or_writes_otherwise_is_stopped_and_named(case: str, heard: Heard) -> None:
    graph, change, reason, words = BROKEN[case]
    heard.bench.put_changed(graph, change)
    ended = heard.bench.validate()
    assert ended.summary.reason == reason, ended.summary.message
    assert words in ended.summary.message


def test_axes_are_named_and_a_sound_is_of_one_length(heard: Heard) -> None:
    axes = {
        item.name: [dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for name in GRAPHS
        for graph in (onnx.load(heard.bench.good / name, load_external_data=False).graph,)
        for item in (*graph.input, *graph.output)
    }
    assert axes["input_features"] == ["batch", 16, 100]
    assert axes["cross_key_values.1.value"] == ["batch", 4, 50, 8]
    assert axes["decoder_input_ids"] == ["batch", "decoder_sequence"]
    assert axes["past_key_values.1.value"] == ["batch", 4, "past_sequence", 8]
    assert axes["present.1.value"] == ["batch", 4, "past_sequence + decoder_sequence", 8]


def test_golden_requests_are_sounds_and_the_beginnings_of_their_texts(heard: Heard) -> None:
    asked = json.loads((heard.validation / "golden.json").read_text())
    begin = Original.load(heard.folder, Task.AUTO, ANSWER_LENGTH).checkpoint.writing.begin
    assert len(begin) == 4, "the start, the language, the task, and that no times are written"
    for request in asked:
        given = request["inputs"]["decoder_input_ids"]["data"]
        assert given[:4] == list(begin)
        assert given[4:] == request["outputs"]["logits"]["largest"][3:-1], "the graph's own"


def test_what_a_benchmark_asks_is_answered_by_both(heard: Heard) -> None:
    original = Original.load(heard.folder, Task.AUTO, ANSWER_LENGTH)
    candidate = Candidate.load([heard.bench.good / graph for graph in GRAPHS], Provider.CPU)
    for cell in benchmark.cells_of(original.checkpoint, 8):
        asked = samples.plain(original.checkpoint, cell.batch, cell.past, cell.length)
        answers = original.answer(asked), candidate.answer(original.outputs, asked)
        assert answers[0]["logits"].shape == (cell.batch, cell.length, 265), cell
        assert np.allclose(answers[0]["logits"], answers[1]["logits"], atol=1e-4), cell


# The checkpoint ---------------------------------------------------------------------------------------------------


def other_extractor(**values: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "preprocessor_config.json", **values)


REFUSED: dict[str, tuple[Callable[[Path], object], dict[str, Any], str, str]] = {
    "no extractor": (lambda at: (at / "preprocessor_config.json").unlink(), {}, "TokenizerMissing", "preprocessor"),
    "features of another model": (other_extractor(feature_size=80), {}, "PreprocessorMismatch", "feature_size is 80"),
    "another rate": (other_extractor(sampling_rate=8000), {}, "PreprocessorMismatch", "sampling_rate is 8000"),
    "noise of its own": (other_extractor(dither=0.1), {}, "PreprocessorMismatch", "dither is 0.1"),
    "longer sounds": (other_extractor(chunk_length=30), {}, "PreprocessorMismatch", "3000 frames"),
    "a table without end": (other_extractor(n_fft=10**9), {}, "PreprocessorMismatch", "n_fft 1000000000 is none of 16"),
    "another extractor": (
        other_extractor(feature_extractor_type="Wav2Vec2FeatureExtractor"),
        {},
        "ArchitectureUnsupported",
        "Wav2Vec2FeatureExtractor",
    ),
    "a task of texts": (lambda _: None, {"task": "text2text-generation"}, "SpecImpossible", "reads a sound and writes"),
    "a text longer than there are positions": (
        lambda _: None,
        {"maxSequenceLength": ANSWER_LENGTH + 1},
        "SpecImpossible",
        "use at most 96",
    ),
    "a word that is none": (
        lambda at: change_json(at / "generation_config.json", suppress_tokens=[10**9]),
        {},
        "ConfigInvalid",
        "suppress_tokens 1000000000",
    ),
    "a language that is no word": (
        lambda at: change_json(at / "generation_config.json", lang_to_id={"<|en|>": 258, "<|xx|>": -1}),
        {},
        "ConfigInvalid",
        "lang_to_id -1",
    ),
    "languages that are none": (
        lambda at: change_json(at / "generation_config.json", lang_to_id=["en"]),
        {},
        "ConfigInvalid",
        "lang_to_id",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.replace(" ", "-"))
def test_what_is_no_supported_model_of_speech_is_refused_by_name(
    case: str, heard: Heard, tmp_path: Path, line: Line
) -> None:
    spoil, spec, reason, words = REFUSED[case]
    folder = shutil.copytree(heard.folder, tmp_path / "model")
    spoil(folder)
    line.refuses(folder, reason, words, **spec)


def test_an_extractor_that_is_told_with_its_processor_is_found(heard: Heard, tmp_path: Path) -> None:
    folder = shutil.copytree(heard.folder, tmp_path / "model")
    said = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": said}))
    found = Original.load(folder, Task.AUTO, None).checkpoint.speech
    assert found is not None
    assert found.shape == (16, 100)


def test_a_model_of_one_language_is_told_of_none(heard: Heard, tmp_path: Path) -> None:
    folder = shutil.copytree(heard.folder, tmp_path / "model")
    change_json(folder / "generation_config.json", is_multilingual=False, bad_words_ids=[[7], [8, 9]])
    found = Original.load(folder, Task.AUTO, None).checkpoint
    assert found.speech is not None
    assert not found.speech.languages
    tokenizer = found.tokenizer
    assert tokenizer.convert_ids_to_tokens(found.writing.begin) == ["<|startoftranscript|>", "<|notimestamps|>"]
    assert 7 in found.writing.never
    assert not {8, 9} & set(found.writing.never)


# What the prober reads --------------------------------------------------------------------------------------------


def test_many_numbers_are_packed_and_read_back_by_the_prober(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((1, 80, 300), dtype=np.float32)
    request = {"inputs": {"input_features": validate._tensor(features)}, "outputs": {"logits": {}}}
    path = tmp_path / "golden.json"
    path.write_text(json.dumps([request]))
    (read,) = read_golden(path)
    assert np.array_equal(read.inputs["input_features"].values, features)
    assert read.inputs["input_features"].values.dtype == np.float32


@pytest.mark.parametrize(
    "change", [{"shape": [1, 80, 2]}, {"shape": [1, 80, 301]}, {"deflated": "?"}, {"deflated": "AA=="}]
)
def test_what_is_packed_and_no_tensor_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    packed = validate._tensor(np.zeros((1, 80, 300), np.float32)) | change
    path = tmp_path / "golden.json"
    path.write_text(json.dumps([{"inputs": {"input_features": packed}, "outputs": {"logits": {}}}]))
    with pytest.raises(GoldenError, match="input input_features"):
        read_golden(path)
