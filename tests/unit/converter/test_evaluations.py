"""Evaluations: which data is refused, how it is asked, and that a loss of quality stops what parity lets through."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import wave
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import transformers
from transformers import AutoTokenizer

from checkpoints import (
    prose,
    tiny,
    tiny_decoder,
    tiny_encoder_decoder,
    tiny_sentence,
    trained_decoder,
    with_outliers,
)
from onnx_converter import evaluate, quality, wording
from onnx_converter.contest import Original
from onnx_converter.evaluate import Examples
from onnx_converter.progress import Progress
from onnx_converter.quality import Comparison, Estimate
from onnx_converter.reasons import StepFailedError
from onnx_converter.spec import TASKS_OF, Evaluation, Metric, Task
from onnx_converter.speech import RATE, generated
from unit.converter.steps import Ended, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from onnx_converter.samples import Sample
    from unit.converter.steps import Line

CPU = "CPUExecutionProvider"
TEXTS = [{"text": f"line {number} of a text"} for number in range(20)]
CHOICES = [{"context": "the cat", "choices": ["sat", "on the mat"], "answer": number % 2} for number in range(20)]
PAIRS = [{"sentence1": f"a cat {number}", "sentence2": "the mat", "score": number / 4} for number in range(20)]
DOCUMENTS = [{"id": f"d{number}", "text": f"a mat {number}"} for number in range(30)]
QUERIES = [{"query": f"which mat is {number}", "relevant": [f"d{number}"]} for number in range(20)]
ANSWERS = [{"source": f"the cat {number}", "reference": f"a cat sat on mat {number}"} for number in range(20)]


def wav(sound: NDArray[np.float32], rate: int = RATE) -> str:
    """As a line of a dataset holds a sound."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((1, 2, rate, len(sound), "NONE", "not compressed"))
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return base64.b64encode(stream.getvalue()).decode()


SOUNDS = list(generated(RATE // 2).values())
SPOKEN = [
    {"audio": wav(SOUNDS[number % len(SOUNDS)]), "text": f"word {number}", "language": ("en", "de")[number % 2]}
    for number in range(20)
]
LABELS = [{"text": f"the cat {number}", "label": f"LABEL_{number % 3}"} for number in range(20)]
TAGGED = [
    {"words": ["the", "cat", f"{number}", "sat"], "labels": ["LABEL_0", "LABEL_1", "LABEL_1", "LABEL_0"]}
    for number in range(20)
]
PROBLEMS = [
    {"prompt": "def f(x):\n", "entry_point": "f", "test": f"def check(candidate):\n    assert candidate({number})\n"}
    for number in range(20)
]
GOOD: dict[Metric, Sequence[Mapping[str, Any]]] = {
    Metric.WORD_PERPLEXITY: TEXTS,
    Metric.BYTE_PERPLEXITY: TEXTS,
    Metric.BITS_PER_BYTE: TEXTS,
    Metric.MULTIPLE_CHOICE: CHOICES,
    Metric.MULTIPLE_CHOICE_NORMALIZED: CHOICES,
    Metric.STS_SPEARMAN: PAIRS,
    Metric.RETRIEVAL_NDCG10: [*DOCUMENTS, *QUERIES],
    Metric.ACCURACY: LABELS,
    Metric.F1_MACRO: LABELS,
    Metric.ENTITY_F1: TAGGED,
    Metric.TOKEN_ACCURACY: TAGGED,
    Metric.WORD_ERROR_RATE: SPOKEN,
    Metric.BLEU: ANSWERS,
    Metric.CHRF: ANSWERS,
    Metric.PASS_AT_K: PROBLEMS,
}


@dataclass(frozen=True, slots=True)
class Originals:
    """A small original for each task."""

    folder: Path
    by_task: Mapping[Task, Original]

    def of(self, metric: Metric) -> Original:
        return self.by_task[TASKS_OF[metric][0]]


def writer(folder: Path, metric: Metric, seed: int = 0) -> Path:
    """A model with random weights finds no end, and writes on to its last position."""
    if metric is Metric.WORD_ERROR_RATE:
        return tiny_encoder_decoder(folder, "whisper", seed, max_target_positions=24)
    return tiny_encoder_decoder(folder, "bart", seed, max_position_embeddings=24)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    folder = tmp_path_factory.mktemp("originals")
    made = {
        Task.TEXT_GENERATION: tiny_decoder(folder / "decoder"),
        Task.SENTENCE_EMBEDDING: tiny_sentence(folder / "sentence"),
        Task.TEXT_CLASSIFICATION: tiny(folder / "classifier", head="sequence"),
        Task.TOKEN_CLASSIFICATION: tiny(folder / "tagger", head="token"),
        Task.TEXT2TEXT_GENERATION: writer(folder / "answering", Metric.CHRF),
        Task.AUTOMATIC_SPEECH_RECOGNITION: writer(folder / "hearing", Metric.WORD_ERROR_RATE),
    }
    return Originals(folder, {task: Original.load(path, task, None) for task, path in made.items()})


def data_of(lines: Sequence[object]) -> bytes:
    return "\n".join(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in lines).encode()


def put(root: Path, metric: Metric, lines: Sequence[object], max_loss: str = "0.01") -> dict[str, Any]:
    """The evaluation as declared, with its file as it is mounted."""
    root.mkdir(parents=True, exist_ok=True)
    data = data_of(lines)
    (root / "held-out.jsonl").write_bytes(data)
    return {
        "name": root.name,
        "metric": metric,
        "dataset": {
            "configMap": {"name": "data", "key": "held-out.jsonl"},
            "digest": "sha256:" + hashlib.sha256(data).hexdigest(),
        },
        "maxLoss": max_loss,
    }


def read(root: Path, metric: Metric, lines: Sequence[object], original: Original) -> Examples:
    declared = Evaluation.model_validate(put(root, metric, lines))
    return Examples.read(declared, root, original.checkpoint)


@pytest.mark.parametrize("metric", Metric)
def test_every_metric_measures_an_original_against_itself_without_a_loss(
    metric: Metric, originals: Originals, tmp_path: Path
) -> None:
    original = originals.of(metric)
    examples = read(tmp_path / "own", metric, GOOD[metric], original)
    kind = evaluate.KINDS[metric]
    rows = kind.rows(examples, original.answer)
    assert len(rows) == len(examples) == 20
    compared = quality.compare(metric, rows, rows)
    assert compared.loss == quality.Estimate(0, 0, 0)
    assert np.isfinite(compared.original.value)
    assert kind.chance(examples) >= 0


FAULTS: dict[str, tuple[Metric, Callable[[list[Any]], Any], str]] = {
    "nothing": (Metric.BYTE_PERPLEXITY, list.clear, "holds 0 examples, it must be 20 to 10000"),
    "too few": (Metric.BYTE_PERPLEXITY, list.pop, "holds 19 examples"),
    "too many": (Metric.BYTE_PERPLEXITY, lambda lines: lines.extend(lines * 500), "holds 10020 examples"),
    "no JSON": (
        Metric.BYTE_PERPLEXITY,
        lambda lines: lines.insert(2, "text"),
        "key 'held-out.jsonl' of ConfigMap data, line 3",
    ),
    "no object": (Metric.BYTE_PERPLEXITY, lambda lines: lines.insert(0, "[]"), "line 1: the line: Input should be"),
    "another field": (Metric.STS_SPEARMAN, lambda lines: lines[4].pop("score"), "line 5: score: Field required"),
    "a score that is none": (Metric.STS_SPEARMAN, lambda lines: lines[4].update(score=float("nan")), "line 5: score"),
    "an empty text": (Metric.BYTE_PERPLEXITY, lambda lines: lines[1].update(text=""), "line 2: text"),
    "an answer that is no choice": (
        Metric.MULTIPLE_CHOICE,
        lambda lines: lines[0].update(answer=2),
        "answer 2 is none of 2",
    ),
    "one choice": (Metric.MULTIPLE_CHOICE, lambda lines: lines[0].update(choices=["a"]), "line 1: choices"),
    "a context without end": (
        Metric.MULTIPLE_CHOICE,
        lambda lines: lines[6].update(context="a " * 300),
        "line 7: choice 'sat' has no token, or more than the model reads",
    ),
    "a label of another model": (
        Metric.F1_MACRO,
        lambda lines: lines[9].update(label="LABEL_9"),
        "line 10: label: 'LABEL_9'",
    ),
    "more labels than words": (
        Metric.ENTITY_F1,
        lambda lines: lines[3].update(labels=["LABEL_0"]),
        "line 4: the line: Value error, there are 4 words and 1 labels",
    ),
    "a word without a token": (
        Metric.ENTITY_F1,
        lambda lines: lines[3].update(words=["the", "\u200b", "cat", "sat"]),
        r"line 4: words: '\u200b' has no token",
    ),
    "words without end": (
        Metric.TOKEN_ACCURACY,
        lambda lines: lines[3].update(words=["cat"] * 99, labels=["LABEL_0"] * 99),
        "line 4: words: they are more tokens than the 40 of a text",
    ),
    "labels of another model": (
        Metric.TOKEN_ACCURACY,
        lambda lines: lines[3].update(labels=["B-PER", "O", "O", "O"]),
        "line 4: labels: 'B-PER' is none of LABEL_0",
    ),
    "a document that is not there": (
        Metric.RETRIEVAL_NDCG10,
        lambda lines: lines[-1].update(relevant=["d99"]),
        "line 50: relevant: no document has the id 'd99'",
    ),
    "a document twice": (
        Metric.RETRIEVAL_NDCG10,
        lambda lines: lines.insert(1, lines[0]),
        "line 2: id: 'd0' is that of line 1",
    ),
    "a sound that is none": (
        Metric.WORD_ERROR_RATE,
        lambda lines: lines[2].update(audio="UklGRg=="),
        "line 3: audio: it",
    ),
    "a sound that is no base64": (
        Metric.WORD_ERROR_RATE,
        lambda lines: lines[2].update(audio="?"),
        "line 3: audio: it",
    ),
    "a sound of another rate": (
        Metric.WORD_ERROR_RATE,
        lambda lines: lines[5].update(audio=wav(SOUNDS[0], 8000)),
        "line 6: audio: it must be 16000 Hz",
    ),
    "a sound without end": (
        Metric.WORD_ERROR_RATE,
        lambda lines: lines[5].update(audio=wav(np.zeros(RATE + 1, np.float32))),
        "line 6: audio: it must be 1 to 16000 samples",
    ),
    "a language that the model does not know": (
        Metric.WORD_ERROR_RATE,
        lambda lines: lines[0].update(language="fr"),
        "line 1: language: 'fr' is none of de, en: name one",
    ),
    "no language of several": (
        Metric.WORD_ERROR_RATE,
        lambda lines: lines[7].pop("language"),
        "line 8: language: None",
    ),
    "a text without a word": (
        Metric.WORD_ERROR_RATE,
        lambda lines: lines[7].update(text="(…)"),
        "line 8: text: '(…)' has no word",
    ),
    "a function of another name": (
        Metric.PASS_AT_K,
        lambda lines: lines[2].update(entry_point="g"),
        "line 3: the line: Value error, prompt does not begin a function g",
    ),
    "a test that is no Python": (Metric.PASS_AT_K, lambda lines: lines[2].update(test="def"), "test is no Python"),
    "a test that checks nothing": (
        Metric.PASS_AT_K,
        lambda lines: lines[2].update(test="def checks(f):\n    pass"),
        "line 3: the line: Value error, test defines no function check",
    ),
    "a prompt without end": (
        Metric.PASS_AT_K,
        lambda lines: lines[2].update(prompt="# " + "x" * 99 + "\ndef f(x):\n"),
        "line 3: prompt: it is more than",
    ),
    "documents alone": (Metric.RETRIEVAL_NDCG10, lambda lines: lines.__delitem__(slice(30, None)), "holds 0 examples"),
}


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.replace(" ", "-"))
def test_data_that_cannot_be_read_is_refused_by_its_line(case: str, originals: Originals, tmp_path: Path) -> None:
    metric, spoil, words = FAULTS[case]
    lines = [dict(line) for line in GOOD[metric]]
    spoil(lines)
    with pytest.raises(StepFailedError) as raised:
        read(tmp_path / "own", metric, lines, originals.of(metric))
    assert raised.value.reason.name == "DatasetInvalid"
    assert raised.value.message.startswith("validation.evaluations[own]: ")
    assert words in raised.value.message


def test_a_bare_encoder_is_measured_as_sentence_transformers_would_read_it(tmp_path: Path, line: Line) -> None:
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415  an independent second opinion

    folder = tiny(tmp_path / "model")
    theirs = SentenceTransformer(str(folder), device="cpu")
    first, second = (
        theirs.encode([pair[side] for pair in PAIRS], normalize_embeddings=True) for side in ("sentence1", "sentence2")
    )
    # What it finds alike is the truth here, so that whoever pools in another way has another order.
    scored = [{**pair, "score": float(one @ other)} for pair, one, other in zip(PAIRS, first, second, strict=True)]
    asked = [put(line.root / "datasets" / "sts", Metric.STS_SPEARMAN, scored, "0.2")]
    ended = judged(line, folder, asked, scheme="int8-dynamic")
    assert ended.summary.reason == "Validated", ended.summary.message
    assert float(ended.details["evaluations"][0]["original"]) > 0.999
    report = json.loads((line.work / f"validation-{CPU}" / "report.json").read_text())
    assert report["evaluations"][0]["pooling"] == "mean"
    assert "stsSpearman, mean of tokens" in (line.work / f"validation-{CPU}" / "report.html").read_text()


def test_other_data_than_was_declared_is_refused(originals: Originals, tmp_path: Path) -> None:
    declared = Evaluation.model_validate(put(tmp_path / "own", Metric.BYTE_PERPLEXITY, TEXTS))
    (tmp_path / "own" / "held-out.jsonl").write_bytes(data_of(TEXTS[::-1]))
    with pytest.raises(StepFailedError, match="has digest sha256:") as raised:
        Examples.read(declared, tmp_path / "own", originals.of(Metric.BYTE_PERPLEXITY).checkpoint)
    assert raised.value.reason.name == "DigestMismatch"


def test_a_metric_of_another_task_is_refused(originals: Originals, tmp_path: Path) -> None:
    with pytest.raises(StepFailedError, match="accuracy is for text-classification, and this checkpoint is one for"):
        read(tmp_path / "own", Metric.ACCURACY, LABELS, originals.of(Metric.STS_SPEARMAN))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 30])
def test_each_token_of_a_text_follows_once_and_after_as_many_as_fit(length: int) -> None:
    tokens = list(range(1, length + 1))
    found = list(evaluate.windows(0, tokens, 8))
    assert [token for _, targets in found for token in targets] == tokens
    for given, targets in found:
        assert len(given) == min(8, targets[-1]), "all that fit before the last one"
        assert given == list(range(targets[-1] - len(given), targets[-1]))


def test_a_choice_is_scored_by_its_own_tokens_and_its_blank_belongs_to_it(originals: Originals, tmp_path: Path) -> None:
    lines = [{"context": "the cat ", "choices": ["sat", "on"], "answer": 0}] * 20
    original = originals.of(Metric.MULTIPLE_CHOICE)
    examples = read(tmp_path / "own", Metric.MULTIPLE_CHOICE, lines, original)
    asked: list[list[int]] = []

    def prefers(sample: Sample) -> dict[str, NDArray[np.float32]]:
        """Two letters rather than three: each letter is as likely as any other."""
        ids = sample.tensors["input_ids"]
        asked.append(ids[0].tolist())
        return {"logits": np.zeros((*ids.shape, original.checkpoint.model.config.vocab_size), np.float32)}

    kind = evaluate.KINDS[Metric.MULTIPLE_CHOICE]
    assert kind.rows(examples, prefers).tolist() == [[0.0]] * 20
    tokenizer = original.checkpoint.tokenizer
    assert tokenizer.decode(asked[0]) == "the cat  sa"
    per_character = read(tmp_path / "own", Metric.MULTIPLE_CHOICE_NORMALIZED, lines, original)
    # Two blanks and three letters by three, two blanks and two letters by two.
    assert kind.rows(per_character, prefers).tolist() == [[1.0]] * 20


def test_an_original_that_knows_nothing_has_nothing_to_lose(originals: Originals, tmp_path: Path) -> None:
    lines = [{"context": "the cat", "choices": ["sat", "ran"], "answer": number % 2} for number in range(20)]
    original = originals.of(Metric.MULTIPLE_CHOICE)
    examples = read(tmp_path / "own", Metric.MULTIPLE_CHOICE, lines, original)

    verdict = evaluate.judge([examples], (original.answer, original.answer), Progress("validate", io.StringIO()))
    assert verdict.reason is not None
    assert verdict.reason.name == "DatasetInvalid"
    assert "the original is no better than chance, 0.5" in verdict.message
    assert len(verdict.evaluated) == 1, "what was measured is told"


# Texts that are written --------------------------------------------------------------------------------------------


def transcribed(folder: Path, sound: NDArray[np.float32], language: str) -> str:
    """By transformers itself, from the folder."""
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    heard: Any = extractor(sound, sampling_rate=RATE, return_tensors="pt")
    tokens = model.generate(heard["input_features"], language=language, task="transcribe", do_sample=False)
    return str(AutoTokenizer.from_pretrained(folder).decode(tokens[0], skip_special_tokens=True))


def answered(folder: Path, text: str) -> str:
    model = transformers.BartForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    read = tokenizer(text, truncation=True, max_length=24, return_tensors="pt")
    tokens: Any = model.generate(**read, do_sample=False, num_beams=1, max_length=24)
    return str(tokenizer.decode(tokens[0], skip_special_tokens=True))


@pytest.mark.parametrize("metric", [Metric.WORD_ERROR_RATE, Metric.CHRF])
def test_what_transformers_writes_is_right_to_the_word_and_what_another_model_writes_is_a_loss(
    metric: Metric, originals: Originals, tmp_path: Path
) -> None:
    hears, original = metric is Metric.WORD_ERROR_RATE, originals.of(metric)
    kept = originals.folder / ("hearing" if hears else "answering")
    if hears:
        # As the file holds them.
        heard = [(sound * 32767).astype(np.int16).astype(np.float32) / np.float32(32768) for sound in SOUNDS]
        said = [transcribed(kept, sound, ("en", "de")[number % 2]) for number, sound in enumerate(heard)]
        lines = [{**line, "text": said[number % len(said)]} for number, line in enumerate(SPOKEN)]
        # A model with random weights may write no word of one.
        lines = [line for line in lines if wording.normalized(line["text"])]
        lines = [*lines, *lines][:20]
    else:
        lines = [{**line, "reference": answered(kept, line["source"])} for line in ANSWERS]
    other = Original.load(writer(tmp_path / "other", metric, seed=1), Task.AUTO, None)
    examples = read(tmp_path / "own", metric, lines, original)
    verdict = evaluate.judge([examples], (original.answer, other.answer), Progress("validate", io.StringIO()))
    assert verdict.evaluated[0].compared.original == quality.Estimate(*[0.0 if hears else 1.0] * 3)
    assert verdict.reason is not None
    assert verdict.reason.name == "QualityLost"
    assert verdict.evaluated[0].compared.loss.low > 0.2


# A language model that has learned something ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_decoder(tmp_path_factory.mktemp("trained") / "model")


def questions(held_out: list[str]) -> list[dict[str, Any]]:
    """Which way round does the line go on?"""
    halves = [(line[: len(line) // 2], line[len(line) // 2 :].strip()) for line in held_out]
    return [
        {"context": begin, "choices": [end, end[::-1]] if number % 2 else [end[::-1], end], "answer": 1 - number % 2}
        for number, (begin, end) in enumerate(halves)
    ]


def judged(line: Line, checkpoint: Path, evaluations: list[dict[str, Any]], **spec: Any) -> Ended:
    digest = line.fetch(checkpoint).details["digest"]
    assert line.convert(digest, **spec).summary.reason == "Converted"
    return run(
        "validate",
        ("--checkpoint", line.checkpoint(digest), "--graph", line.work / "graph", "--provider", CPU),
        ("--spec", json.dumps(spec), "--evaluations", json.dumps(evaluations), "--datasets", line.root / "datasets"),
        ("--output", line.work / f"validation-{CPU}"),
    )


def test_a_model_in_four_bits_keeps_what_it_has_learned_and_its_artifact_tells(trained: Path, line: Line) -> None:
    _, held_out = prose()
    data = line.root / "datasets"
    asked = [
        put(data / "prose", Metric.BYTE_PERPLEXITY, [{"text": text} for text in held_out], "0.01"),
        put(data / "ends", Metric.MULTIPLE_CHOICE, questions(held_out), "0.2"),
    ]
    ended = judged(line, trained, asked, scheme="int4-weight-only")
    assert ended.summary.reason == "Validated", ended.summary.message
    perplexity, choices = ended.details["evaluations"]
    assert 4 < float(perplexity["original"]) < 12, "of 256"
    assert float(perplexity["lossHigh"]) > 0
    assert perplexity["original"] != perplexity["graph"]
    assert float(choices["original"]) > 0.9
    assert perplexity["samples"] == len(held_out)
    published = line.publish(scheme="int4-weight-only")
    report = json.loads(line.beside(published.details["digest"], "report.json").read_text())
    told = report["reports"][CPU]["evaluations"]
    assert [(one["name"], one["loss"]["value"]) for one in told] == [
        ("prose", perplexity["loss"]),
        ("ends", choices["loss"]),
    ]
    assert [told[0][key] for key in ("dataset", "maxLoss")] == [asked[0]["dataset"]["digest"], "0.01"]


def test_four_bits_that_were_calibrated_lose_less_than_four_bits_that_were_not(
    trained: Path, new_line: Callable[[str], Line]
) -> None:
    _, held_out = prose()
    lost = {}
    for algorithm in ("rtn", "gptq"):
        line = new_line(algorithm)
        asked = [
            put(line.root / "datasets" / "prose", Metric.BYTE_PERPLEXITY, [{"text": text} for text in held_out], "0.1")
        ]
        ended = judged(line, trained, asked, scheme="int4-weight-only", algorithm=algorithm, blockSize=128)
        assert ended.summary.reason == "Validated", ended.summary.message
        lost[algorithm] = float(ended.details["evaluations"][0]["loss"])
    assert lost["gptq"] < lost["rtn"]


def test_a_model_with_outliers_in_one_coarse_block_is_stopped_by_what_it_has_lost(
    trained: Path, line: Line, tmp_path: Path
) -> None:
    texts = [{"text": text} for text in prose()[1]]
    asked = [put(line.root / "datasets" / "prose", Metric.BYTE_PERPLEXITY, texts, "0.01")]
    spec = {"scheme": "int4-weight-only", "blockSize": 256, "symmetric": True}
    ended = judged(line, with_outliers(trained, tmp_path / "outliers"), asked, **spec)
    assert (ended.summary.reason, ended.code) == ("QualityLost", 41), ended.summary.message
    assert "evaluation prose: bytePerplexity is" in ended.summary.message
    assert "above maxLoss 0.01" in ended.summary.message
    report = json.loads((line.work / f"validation-{CPU}" / "report.json").read_text())
    assert (report["verdict"], report["reason"]) == ("Failed", "QualityLost")
    assert float(report["evaluations"][0]["loss"]["low"]) > 0.01, "and not by luck"
    assert line.publish(**spec).summary.reason == "ParityFailed"


@pytest.mark.parametrize(
    ("loss", "is_lost_by"),
    [
        pytest.param((0.01, 0.005, 0.02), set(), id="all of it keeps the bound"),
        pytest.param((0.015, 0.005, 0.021), {"Interval"}, id="too little data"),
        pytest.param((0.03, 0.005, 0.05), {"Value", "Interval"}, id="none of it"),
        pytest.param((0.01, 0.005, math.nan), {"Interval"}, id="no interval"),
        pytest.param((math.nan, 0.005, 0.01), {"Value", "Interval"}, id="no loss"),
    ],
)
def test_a_loss_is_judged_by_its_value_or_by_the_end_of_its_interval(
    loss: tuple[float, float, float], is_lost_by: set[str], tmp_path: Path
) -> None:
    declared = put(tmp_path, Metric.ACCURACY, [], max_loss="0.02")
    assert Evaluation.model_validate(declared) == Evaluation.model_validate(declared | {"judgedBy": "Value"})
    compared = Comparison(Estimate(0.9, 0.85, 0.95), Estimate(0.89, 0.84, 0.94), Estimate(*loss))
    found = (Evaluation.model_validate(declared | {"judgedBy": judge}) for judge in ("Value", "Interval"))
    assert {str(one.judged_by) for one in found if evaluate.Evaluated(one, 30, compared).is_lost} == is_lost_by


def test_too_few_examples_pass_nothing_by_luck_where_the_interval_counts(trained: Path, line: Line) -> None:
    """The same graph and data pass by the measured loss, as `test_a_model_in_four_bits` does."""
    texts = [{"text": text} for text in prose()[1]]
    asked = put(line.root / "datasets" / "prose", Metric.BYTE_PERPLEXITY, texts, "0.01")
    wide = judged(line, trained, [asked], scheme="int4-weight-only").details["evaluations"][0]
    between = f"{(float(wide['loss']) + float(wide['lossHigh'])) / 2:.6g}"
    asked |= {"maxLoss": between, "judgedBy": "Interval"}
    ended = judged(line, trained, [asked], scheme="int4-weight-only")
    assert (ended.summary.reason, ended.code) == ("QualityLost", 41), ended.summary.message
    assert f"with its end above maxLoss {float(between):g}: " in ended.summary.message
    assert "give more examples to what is judged by the interval" in ended.summary.message
    report = json.loads((line.work / f"validation-{CPU}" / "report.json").read_text())
    assert report["evaluations"][0]["judgedBy"] == "Interval"


def test_the_held_out_lines_are_not_in_what_was_read(trained: Path) -> None:
    text, held_out = prose()
    assert len(held_out) >= evaluate.LEAST
    assert not [line for line in held_out if line in text]
    assert AutoTokenizer.from_pretrained(trained)("é", add_special_tokens=False)["input_ids"][1:], (
        "a token for each byte"
    )
