"""How well a graph does its task on data of the user's, beside the original: the second half of the gate.

The definitions of lm-evaluation-harness for language models (loglikelihood_rolling over disjoint windows; acc and
acc_norm with a space before each choice), of STS and BEIR for embeddings, of jiwer and sacrebleu for texts that are
written: greedily, each side on its own keys and values, and both as transformers' `generate` begins and leaves out. Of
HumanEval for programs: written until they go on to something else, and run where coding.py confines them.
Only declared files are read, and nothing is fetched. Fails closed: an example that cannot be read, too few of them, an
answer that is not finite, an original that is no better than chance, so that there would be nothing to lose.
"""

from __future__ import annotations

import ast
import binascii
import io
import re
import wave
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from onnx_converter import coding, decoders, generation, held, quality, samples, speech, wording
from onnx_converter.encoder_decoders import WRITTEN
from onnx_converter.reasons import DATASET_INVALID, QUALITY_LOST, SPEC_IMPOSSIBLE, Reason, StepFailedError, gist
from onnx_converter.samples import Sample
from onnx_converter.spec import TASKS_OF, JudgedBy, Metric, Task

if TYPE_CHECKING:
    from pathlib import Path

    from onnx_converter.contest import Candidate, Original
    from onnx_converter.load import Checkpoint
    from onnx_converter.progress import Progress
    from onnx_converter.quality import Rows
    from onnx_converter.spec import Evaluation

#: With fewer an interval is a guess.
LEAST: Final = 20
MOST: Final = 10_000
#: Tokens that are read at once, as every token has a logit for each word.
_LONGEST: Final = 512
#: Tokens that are written: those of half a minute of speech, or of a paragraph.
_LONGEST_ANSWER: Final = 256
_BYTES_OF_SAMPLE: Final = 2
#: Tokens of a program, and how many there must be room for.
_LONGEST_PROGRAM: Final = 512
_SHORTEST_PROGRAM: Final = 32
#: In the last tokens a stop is seen when it is whole, even with a token for each byte.
_TOKENS_OF_STOP: Final = 8

#: What a side answers to a sample, by name: of a model that writes everything, of others the answer of the task.
Ask = Callable[[Sample], dict[str, NDArray[np.float32]]]
_Said = Annotated[str, Field(min_length=1)]
#: A part of a program.
_Source = Annotated[str, Field(min_length=1, max_length=100_000)]


class _Line(BaseModel):
    """One example; fields that are not named are somebody else's."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Text(_Line):
    text: _Said


class _Choice(_Line):
    context: _Said
    choices: Annotated[tuple[_Said, ...], Field(min_length=2)]
    answer: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.answer >= len(self.choices):
            raise ValueError(f"answer {self.answer} is none of {len(self.choices)} choices, which count from 0")
        return self


class _Pair(_Line):
    sentence1: _Said
    sentence2: _Said
    score: Annotated[float, Field(allow_inf_nan=False)]


class _Document(_Line):
    id: _Said
    text: _Said


class _Query(_Line):
    query: _Said
    relevant: Annotated[frozenset[str], Field(min_length=1)]


class _Labelled(_Line):
    text: _Said
    label: str | int


class _Tagged(_Line):
    words: Annotated[tuple[_Said, ...], Field(min_length=1)]
    labels: tuple[_Said, ...]

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if len(self.labels) != len(self.words):
            raise ValueError(f"there are {len(self.words)} words and {len(self.labels)} labels")
        return self


class _Spoken(_Line):
    audio: _Said
    text: _Said
    language: _Said | None = None


class _Answered(_Line):
    source: _Said
    reference: _Said


class _Problem(_Line):
    prompt: _Source
    test: _Source
    entry_point: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if f"def {self.entry_point}(" not in self.prompt:
            raise ValueError(f"prompt does not begin a function {self.entry_point}")
        try:
            defined = [one.name for one in ast.parse(self.test).body if isinstance(one, ast.FunctionDef)]
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"test is no Python: {gist(error)}") from error
        if "check" not in defined:
            raise ValueError("test defines no function check, which is called with the function that was written")
        return self

    @property
    def problem(self) -> coding.Problem:
        return coding.Problem(self.prompt, self.test, self.entry_point)


@dataclass(frozen=True, slots=True)
class Kind:
    """How a metric's examples are written, and how a side's rows are made of them."""

    line: TypeAdapter[Any]
    rows: Callable[[Examples, Ask], Rows]
    #: What comes of answers that know nothing.
    chance: Callable[[Examples], float]


@dataclass(frozen=True, slots=True)
class Examples:
    """What was read for one evaluation, checked against the checkpoint as far as that goes without asking it."""

    evaluation: Evaluation
    checkpoint: Checkpoint
    lines: tuple[tuple[int, Any], ...]
    #: What comes of answers that know nothing.
    chance: float = 0.0

    @classmethod
    def read(cls, evaluation: Evaluation, root: Path, checkpoint: Checkpoint) -> Self:
        kind, field = KINDS[evaluation.metric], evaluation.field
        if checkpoint.task not in (tasks := TASKS_OF[evaluation.metric]):
            raise StepFailedError(
                SPEC_IMPOSSIBLE,
                f"{field}: {evaluation.metric} is for {' and '.join(tasks)}, and this checkpoint is one for "
                f"{checkpoint.task}: take another metric",
            )
        found = []
        for number, text in held.examples(evaluation.dataset, root, field, held.most_bytes_of(evaluation.metric)):
            try:
                found.append((number, kind.line.validate_json(text)))
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                place = ".".join(str(part) for part in first["loc"]) or "the line"
                raise StepFailedError(
                    DATASET_INVALID, f"{field}: {evaluation.dataset.file}, line {number}: {place}: {first['msg']}"
                ) from error
        examples = cls(evaluation, checkpoint, tuple(found))
        if not LEAST <= len(examples) <= MOST or len(found) > MOST:
            raise StepFailedError(
                DATASET_INVALID,
                f"{field}: {evaluation.dataset.file} holds {len(examples)} examples, it must be {LEAST} to {MOST}",
            )
        # What a line says of others, or of the checkpoint.
        return replace(examples, chance=kind.chance(examples))

    def __len__(self) -> int:
        return sum(not isinstance(line, _Document) for _, line in self.lines)

    @property
    def pooling(self) -> str:
        """How one vector is made of those of tokens, where the model does not; a text asked alone has no padding."""
        return "mean" if self.checkpoint.task is Task.FEATURE_EXTRACTION else ""

    def wrong(self, number: int, words: str) -> StepFailedError:
        return StepFailedError(
            DATASET_INVALID,
            f"{self.evaluation.field}: {self.evaluation.dataset.file}, line {number}: {words}",
        )

    def tokens(self, text: str) -> list[int]:
        return list(self.checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def first_token(self) -> int:
        """What stands before a text, as in lm-evaluation-harness."""
        tokenizer = self.checkpoint.tokenizer
        found = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if found is None:
            raise StepFailedError(
                SPEC_IMPOSSIBLE,
                f"{self.evaluation.field}: the tokenizer has a token for neither the begin nor "
                "the end of a text, so that nothing stands before the first word",
            )
        return int(found)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One evaluation and what was measured."""

    evaluation: Evaluation
    samples: int
    compared: quality.Comparison
    #: How vectors of texts were made of those of tokens, where that is none of the model's.
    pooling: str = ""

    @property
    def is_lost(self) -> bool:
        # Written so that NaN, which compares false with everything, is a loss.
        is_kept = self.compared.loss.value <= self.evaluation.max_loss
        return not (is_kept and (self.is_shown or self.evaluation.judged_by is JudgedBy.VALUE))

    @property
    def is_shown(self) -> bool:
        """Whether all of the interval keeps the bound, so that it is not by luck."""
        return self.compared.loss.high <= self.evaluation.max_loss


@dataclass(frozen=True, slots=True)
class Verdict:
    """All that were measured, and how it ends where it ends here."""

    evaluated: tuple[Evaluated, ...] = ()
    reason: Reason | None = None
    message: str = ""


def asks(original: Original, candidate: Candidate, asked: Sequence[Examples]) -> tuple[Ask, Ask]:
    """Both sides; whoever writes goes on from all that was answered."""
    writes = original.checkpoint.cross or any(one.evaluation.metric is Metric.PASS_AT_K for one in asked)
    outputs = original.outputs if writes else original.outputs[:1]
    return (
        lambda sample: _finite("original", sample, original.answer(sample)),
        lambda sample: _finite("graph", sample, candidate.answer(outputs, sample)),
    )


def judge(
    asked: Sequence[Examples], sides: tuple[Ask, Ask], progress: Progress, known: dict[str, Rows] | None = None
) -> Verdict:
    """Asks both sides all examples; an original that knows nothing ends it, a loss only after all were measured.

    An original that has been asked an evaluation before is not asked it again.
    """
    known = {} if known is None else known
    done: list[Evaluated] = []
    try:
        for examples in asked:
            said, kind = examples.evaluation, KINDS[examples.evaluation.metric]
            if said.name not in known:
                known[said.name] = kind.rows(examples, sides[0])
            compared = quality.compare(said.metric, known[said.name], kind.rows(examples, sides[1]))
            done.append(Evaluated(said, len(examples), compared, examples.pooling))
            _refuse_chance(examples, done[-1].compared.original)
            progress.tell("Evaluated", percent=97, evaluation=examples.evaluation.name)
    except StepFailedError as error:
        return Verdict(tuple(done), error.reason, error.message)
    if lost := [_words(one) for one in done if one.is_lost]:
        advice = "choose another scheme or another bound"
        if any(one.evaluation.judged_by is JudgedBy.INTERVAL for one in done if one.is_lost):
            advice += ", or give more examples to what is judged by the interval"
        message = f"{'; '.join(lost)}: {advice}"
        return Verdict(tuple(done), QUALITY_LOST, message)
    return Verdict(tuple(done))


def _words(one: Evaluated) -> str:
    compared, said = one.compared, one.evaluation
    whose = "" if said.judged_by is JudgedBy.VALUE else "with its end "
    return (
        f"evaluation {said.name}: {said.metric} is {compared.graph.value:.5g} on the graph and "
        f"{compared.original.value:.5g} on the original, a loss of {compared.loss.value:.3g} (95 % interval "
        f"{compared.loss.low:.3g} to {compared.loss.high:.3g}), {whose}above maxLoss {said.max_loss:g}"
    )


def _finite(whose: str, sample: Sample, answer: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    # Keys and values come to an answer, of which they are the past.
    if not np.isfinite(_first(answer)).all():
        raise StepFailedError(QUALITY_LOST, f"on {sample.name} the {whose} answers with NaN or infinity")
    return answer


def _first(answer: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """The answer of the task: (batch, …) as the task has it."""
    return next(iter(answer.values()))


def _refuse_chance(examples: Examples, original: quality.Estimate) -> None:
    metric, chance = examples.evaluation.metric, examples.chance
    is_better = original.high < chance if metric in quality.SMALLER_IS_BETTER else original.low > chance
    if not is_better:
        raise StepFailedError(
            DATASET_INVALID,
            f"{examples.evaluation.field}: with {metric} {original.value:.5g} (95 % interval "
            f"{original.low:.5g} to {original.high:.5g}) the original is no better than chance, {chance:.5g}, so "
            "that a graph of it has nothing to lose: take data that it knows, or more of it",
        )


# ---- language models


def _sample(examples: Examples, number: int, ids: Sequence[int]) -> Sample:
    tensors = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
    empty = decoders.empty(examples.checkpoint, 1)
    return Sample(_name(examples, number), is_text=True, tensors=tensors | empty)


def _name(examples: Examples, number: int) -> str:
    return f"line {number} of evaluation {examples.evaluation.name}"


def windows(first: int, tokens: Sequence[int], longest: int) -> Iterator[tuple[list[int], list[int]]]:
    """What is read and which tokens are to follow its last ones; each token follows once, after as many as fit."""
    whole = [first, *tokens]
    for start in range(1, len(whole), longest):
        end = min(start + longest, len(whole))
        yield whole[max(end - 1 - longest, 0) : end - 1], whole[start:end]


def _likelihood(examples: Examples, ask: Ask, number: int, given: Sequence[int], targets: Sequence[int]) -> float:
    logits = _first(ask(_sample(examples, number, given)))[0, -len(targets) :]
    return quality.log_likelihood(logits, np.array(targets, np.int64))


def _perplexity_rows(examples: Examples, ask: Ask) -> Rows:
    longest = min(_LONGEST, examples.checkpoint.max_sequence_length)
    return np.array(
        [
            (
                sum(
                    _likelihood(examples, ask, number, given, targets)
                    for given, targets in windows(examples.first_token, examples.tokens(line.text), longest)
                ),
                _units(examples, line.text),
            )
            for number, line in examples.lines
        ]
    )


def _units(examples: Examples, text: str) -> int:
    words = examples.evaluation.metric is Metric.WORD_PERPLEXITY
    return len(re.split(r"\s+", text)) if words else len(text.encode())


def _perplexity_by_chance(examples: Examples) -> float:
    """Every token as likely as any other."""
    each = -np.log(examples.checkpoint.model.config.vocab_size)
    rows = [(each * len(examples.tokens(line.text)), _units(examples, line.text)) for _, line in examples.lines]
    return quality.VALUES[examples.evaluation.metric](np.array(rows))


def _choice_rows(examples: Examples, ask: Ask) -> Rows:
    found = []
    for number, line in examples.lines:
        scores = np.array([_likelihood(examples, ask, number, *one) for one in _continuations(examples, number, line)])
        if examples.evaluation.metric is Metric.MULTIPLE_CHOICE_NORMALIZED:
            scores /= [len(choice) for choice in line.choices]
        found.append([float(scores.argmax() == line.answer)])
    return np.array(found)


def _continuations(examples: Examples, number: int, line: _Choice) -> Iterator[tuple[list[int], list[int]]]:
    """For each choice what is read, and the tokens that are to follow its last ones."""
    # Blanks at the end of the context belong to what follows: a word with its blank is one token for most tokenizers.
    context = line.context.rstrip()
    before = examples.tokens(context)
    for choice in line.choices:
        whole = examples.tokens(f"{context}{line.context[len(context) :]} {choice}")
        targets = whole[len(before) :]
        given = [*(before or [examples.first_token]), *targets[:-1]]
        if not targets or len(given) > min(_LONGEST, examples.checkpoint.max_sequence_length):
            raise examples.wrong(number, f"choice {choice[:40]!r} has no token, or more than the model reads at once")
        yield given, targets


def _choices_by_chance(examples: Examples) -> float:
    for number, line in examples.lines:
        for _ in _continuations(examples, number, line):
            pass
    return float(np.mean([1 / len(line.choices) for _, line in examples.lines]))


# ---- embeddings


def _embed(examples: Examples, ask: Ask, number: int, text: str) -> NDArray[np.float64]:
    """The direction of a text, cut to what the model reads as everywhere where embeddings are measured.

    Of a bare encoder the mean of its tokens' vectors: sentence-transformers' own choice where a checkpoint says none.
    """
    vector = _ask_text(examples, ask, number, text).astype(np.float64)
    if examples.pooling:
        vector = vector.mean(axis=0)
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


def _ask_text(examples: Examples, ask: Ask, number: int, text: str) -> NDArray[np.float32]:
    checkpoint = examples.checkpoint
    tensors = samples.encode(checkpoint, (text,), checkpoint.max_sequence_length, "right")
    answer: NDArray[np.float32] = _first(ask(Sample(_name(examples, number), is_text=True, tensors=tensors)))[0]
    return answer


def _sts_rows(examples: Examples, ask: Ask) -> Rows:
    return np.array(
        [
            (
                _embed(examples, ask, number, pair.sentence1) @ _embed(examples, ask, number, pair.sentence2),
                pair.score,
            )
            for number, pair in examples.lines
        ]
    )


def _documents(examples: Examples) -> dict[str, tuple[int, str]]:
    found: dict[str, tuple[int, str]] = {}
    for number, line in examples.lines:
        if isinstance(line, _Document) and found.setdefault(line.id, (number, line.text))[0] != number:
            raise examples.wrong(number, f"id: {line.id[:40]!r} is that of line {found[line.id][0]} as well")
    return found


def _queries(examples: Examples) -> Iterator[tuple[int, _Query]]:
    return ((number, line) for number, line in examples.lines if isinstance(line, _Query))


def _retrieval_rows(examples: Examples, ask: Ask) -> Rows:
    documents = _documents(examples)
    names = np.array(list(documents))
    vectors = np.array([_embed(examples, ask, *one) for one in documents.values()])
    found = []
    for number, query in _queries(examples):
        order = np.argsort(-(vectors @ _embed(examples, ask, number, query.query)), kind="stable")
        found.append([quality.ndcg(np.isin(names[order], list(query.relevant)))])
    return np.array(found)


def _retrieval_by_chance(examples: Examples) -> float:
    documents = _documents(examples)
    for number, query in _queries(examples):
        if missing := sorted(query.relevant - documents.keys()):
            raise examples.wrong(number, f"relevant: no document has the id {missing[0][:40]!r}")
    found = [quality.ndcg_by_chance(len(query.relevant), len(documents)) for _, query in _queries(examples)]
    return float(np.mean(found))


# ---- classifiers


def _labels(examples: Examples) -> list[int]:
    names = {str(name): int(number) for number, name in examples.checkpoint.model.config.id2label.items()}
    # In CSV a number is its digits.
    known = {str(number): number for number in names.values()} | names | {number: number for number in names.values()}
    for number, line in examples.lines:
        if line.label not in known:
            raise examples.wrong(number, f"label: {line.label!r} is none of {', '.join(list(names)[:20])}")
    return [known[line.label] for _, line in examples.lines]


def _label_rows(examples: Examples, ask: Ask) -> Rows:
    true = _labels(examples)
    answered = [int(_ask_text(examples, ask, number, line.text).argmax()) for number, line in examples.lines]
    return np.array([answered, true], np.float64).T


def _labels_by_chance(examples: Examples) -> float:
    """Always the most frequent one."""
    true = _labels(examples)
    ((commonest, _),) = Counter(true).most_common(1)
    return quality.VALUES[examples.evaluation.metric](np.array([[commonest] * len(true), true], np.float64).T)


# ---- classifiers of tokens


def _names_of(examples: Examples) -> dict[int, str]:
    return {int(number): str(name) for number, name in examples.checkpoint.model.config.id2label.items()}


def _tagged(examples: Examples, ask: Ask, number: int, line: _Tagged) -> list[str]:
    """A label for each word, that of its first token, as everybody trains them."""
    places, tensors = _placed(examples, number, line)
    answer = _first(ask(Sample(_name(examples, number), is_text=True, tensors=tensors)))[0]
    names = _names_of(examples)
    return [names[int(answer[place].argmax())] for place in places]


def _placed(examples: Examples, number: int, line: _Tagged) -> tuple[list[int], dict[str, NDArray[Any]]]:
    """Where in a request the words begin; by the places of letters, since not every tokenizer takes single words."""
    checkpoint = examples.checkpoint
    starts = np.cumsum([0, *(len(word) + 1 for word in line.words)])[:-1]
    encoded: Any = checkpoint.tokenizer(" ".join(line.words), return_offsets_mapping=True, return_attention_mask=True)
    if len(encoded["input_ids"]) > checkpoint.max_sequence_length:
        raise examples.wrong(number, f"words: they are more tokens than the {checkpoint.max_sequence_length} of a text")
    spans = encoded["offset_mapping"]
    places = []
    for word, start in zip(line.words, starts, strict=True):
        place = next((place for place, (begin, end) in enumerate(spans) if begin <= start < end), None)
        if place is None:
            raise examples.wrong(number, f"words: {word[:40]!r} has no token")
        places.append(place)
    return places, {name: np.array([encoded[name]], np.int64) for name in checkpoint.inputs if name in encoded}


def _entity_rows(examples: Examples, ask: Ask) -> Rows:
    return np.array([_agreeing(_tagged(examples, ask, *one), one[1].labels) for one in examples.lines], np.float64)


def _agreeing(answered: Sequence[str], true: Sequence[str]) -> tuple[int, int, int]:
    found, wanted = quality.entities(answered), quality.entities(true)
    return len(found & wanted), len(found), len(wanted)


def _tag_rows(examples: Examples, ask: Ask) -> Rows:
    return np.array([_equal(_tagged(examples, ask, *one), one[1].labels) for one in examples.lines], np.float64)


def _equal(answered: Sequence[str], true: Sequence[str]) -> tuple[int, int]:
    return sum(one == other for one, other in zip(answered, true, strict=True)), len(true)


def _tags_by_chance(examples: Examples) -> float:
    """Always the most frequent one, once every line is known to be of this model."""
    names = set(_names_of(examples).values())
    for number, line in examples.lines:
        _placed(examples, number, line)
        if unknown := sorted(set(line.labels) - names):
            raise examples.wrong(number, f"labels: {unknown[0]!r} is none of {', '.join(sorted(names)[:20])}")
    ((commonest, _),) = Counter(label for _, line in examples.lines for label in line.labels).most_common(1)
    counted = _agreeing if examples.evaluation.metric is Metric.ENTITY_F1 else _equal
    rows = [counted([commonest] * len(line.labels), line.labels) for _, line in examples.lines]
    return quality.VALUES[examples.evaluation.metric](np.array(rows, np.float64))


# ---- texts that are written


def _write(examples: Examples, ask: Ask, number: int, tensors: dict[str, NDArray[Any]]) -> str:
    checkpoint = examples.checkpoint
    begun = Sample(_name(examples, number), is_text=True, tensors=tensors)
    end = checkpoint.tokenizer.eos_token_id
    _, logits = generation.write(checkpoint, ask, begun, _LONGEST_ANSWER, writing=checkpoint.writing, end=end)
    return str(checkpoint.tokenizer.decode(logits.argmax(axis=-1)[0], skip_special_tokens=True))


def _answer_rows(examples: Examples, ask: Ask) -> Rows:
    counts, found = _COUNTS[examples.evaluation.metric], []
    for number, line in examples.lines:
        checkpoint = examples.checkpoint
        tensors = samples.encode(checkpoint, (line.source,), checkpoint.max_sequence_length, "right")
        found.append(counts(_write(examples, ask, number, tensors), line.reference))
    return np.array(found, np.float64)


def _answers_by_chance(examples: Examples) -> float:
    """To each source what is right for the next one."""
    right = [line.reference for _, line in examples.lines]
    counts = map(_COUNTS[examples.evaluation.metric], [*right[1:], *right[:1]], right)
    return quality.VALUES[examples.evaluation.metric](np.array(list(counts), np.float64))


def _sound_of(examples: Examples, number: int, line: _Spoken) -> NDArray[np.float32]:
    heard = examples.checkpoint.speech
    assert heard is not None  # noqa: S101  the task of the metric is that of the checkpoint
    try:
        with wave.open(io.BytesIO(b64decode(line.audio, validate=True))) as file:
            form = (file.getframerate(), file.getnchannels(), file.getsampwidth())
            frames, size = file.readframes(heard.most_samples + 1), file.getnframes()
    except (binascii.Error, wave.Error, EOFError) as error:
        raise examples.wrong(number, f"audio: it is no WAV in base64: {error}") from error
    if form != (speech.RATE, 1, _BYTES_OF_SAMPLE):
        raise examples.wrong(number, f"audio: it must be {speech.RATE} Hz, one channel, 16 bits, PCM")
    if not 0 < len(frames) // _BYTES_OF_SAMPLE == size <= heard.most_samples:
        raise examples.wrong(
            number, f"audio: it must be 1 to {heard.most_samples} samples, all that the model hears at once"
        )
    return np.frombuffer(frames, "<i2").astype(np.float32) / np.float32(1 << 15)


def _begin_in(examples: Examples, number: int, language: str | None) -> NDArray[np.int64]:
    """The beginning of a text in a language, which stands after the first token where the model hears several."""
    heard, begin = examples.checkpoint.speech, list(examples.checkpoint.writing.begin)
    if known := heard.languages if heard else {}:
        if language is None or language not in known:
            raise examples.wrong(number, f"language: {language!r} is none of {', '.join(list(known)[:20])}: name one")
        begin[1] = known[language]
    return np.array([begin])


def _speech_rows(examples: Examples, ask: Ask) -> Rows:
    found = []
    for number, line in examples.lines:
        tensors = samples.hear(examples.checkpoint, [_sound_of(examples, number, line)])
        tensors[WRITTEN] = _begin_in(examples, number, line.language)
        text = _write(examples, ask, number, tensors)
        found.append(wording.word_errors(wording.normalized(text), wording.normalized(line.text)))
    return np.array(found, np.float64)


def _speech_by_chance(examples: Examples) -> float:
    """Nothing is written, and all words are missing."""
    for number, line in examples.lines:
        _sound_of(examples, number, line)
        _begin_in(examples, number, line.language)
        if not wording.normalized(line.text):
            raise examples.wrong(number, f"text: {line.text[:40]!r} has no word")
    return 1.0


# ---- programs


def _program(examples: Examples, ask: Ask, number: int, line: _Problem, luck: np.random.Generator | None) -> str:
    """What is written after the prompt: the likeliest, or as luck has it at a temperature."""
    checkpoint, temperature = examples.checkpoint, examples.evaluation.sampling.temperature
    tokenizer: Any = checkpoint.tokenizer

    def drawn(logits: NDArray[np.float32]) -> NDArray[np.int64]:
        if luck is None:
            return generation.likeliest(logits)
        scaled = logits[0, 0].astype(np.float64) / temperature
        heights = np.exp(scaled - scaled.max()).cumsum()
        # The same luck for both sides, so that it does not blur their difference.
        return np.array([[min(int(heights.searchsorted(luck.random() * heights[-1], "right")), len(heights) - 1)]])

    begun = Sample(_name(examples, number), is_text=True, tensors=_prompt(examples, line))
    before = begun.tensors["input_ids"][0].tolist()
    tokens: list[int] = []
    for _, chosen in generation.spell(
        checkpoint, ask, begun, _LONGEST_PROGRAM, writing=checkpoint.writing, choose=drawn
    ):
        if (token := int(chosen[0, 0])) == tokenizer.eos_token_id:
            break
        tokens.append(token)
        if any(stop in tokenizer.decode(tokens[-_TOKENS_OF_STOP:]) for stop in coding.STOPS):
            break
    # A tokenizer may write the same tokens without their blank where a text begins with them.
    start, whole = (tokenizer.decode(one, skip_special_tokens=True) for one in (before, before + tokens))
    return coding.ended(whole[len(start) :])


def _prompt(examples: Examples, line: _Problem) -> dict[str, NDArray[Any]]:
    return samples.encode(examples.checkpoint, (line.prompt,), examples.checkpoint.max_sequence_length, "right")


def _program_rows(examples: Examples, ask: Ask) -> Rows:
    sampling, found = examples.evaluation.sampling, []
    with coding.Runner.started() as runner:
        for number, line in examples.lines:
            lucks: Sequence[np.random.Generator | None] = [None]
            if sampling.completions > 1:
                lucks = [np.random.default_rng((number, each)) for each in range(sampling.completions)]
            written = Counter(_program(examples, ask, number, line, luck) for luck in lucks)
            right = sum(times for text, times in written.items() if runner.passes(line.problem, text))
            found.append([coding.pass_at_k(sampling.completions, right, sampling.k)])
    return np.array(found)


def _programs_by_chance(examples: Examples) -> float:
    """A function that does nothing."""
    longest = examples.checkpoint.max_sequence_length - _SHORTEST_PROGRAM
    for number, line in examples.lines:
        if _prompt(examples, line)["input_ids"].shape[1] > longest:
            raise examples.wrong(number, f"prompt: it is more than {longest} tokens, so that none are left to write")
    with coding.Runner.started() as runner:
        return float(np.mean([runner.passes(line.problem, "\n    pass\n") for _, line in examples.lines]))


_COUNTS: Final[dict[Metric, Callable[[str, str], tuple[int, ...]]]] = {
    Metric.BLEU: wording.bleu_counts,
    Metric.CHRF: wording.chrf_counts,
}
_ANSWERS: Final = Kind(TypeAdapter(_Answered), _answer_rows, _answers_by_chance)
_PERPLEXITY: Final = Kind(TypeAdapter(_Text), _perplexity_rows, _perplexity_by_chance)
_CHOICES: Final = Kind(TypeAdapter(_Choice), _choice_rows, _choices_by_chance)
_LABELS: Final = Kind(TypeAdapter(_Labelled), _label_rows, _labels_by_chance)
KINDS: Final[dict[Metric, Kind]] = {
    Metric.WORD_PERPLEXITY: _PERPLEXITY,
    Metric.BYTE_PERPLEXITY: _PERPLEXITY,
    Metric.BITS_PER_BYTE: _PERPLEXITY,
    Metric.MULTIPLE_CHOICE: _CHOICES,
    Metric.MULTIPLE_CHOICE_NORMALIZED: _CHOICES,
    Metric.STS_SPEARMAN: Kind(TypeAdapter(_Pair), _sts_rows, lambda _: 0.0),
    Metric.RETRIEVAL_NDCG10: Kind(TypeAdapter(_Query | _Document), _retrieval_rows, _retrieval_by_chance),
    Metric.ACCURACY: _LABELS,
    Metric.F1_MACRO: _LABELS,
    Metric.ENTITY_F1: Kind(TypeAdapter(_Tagged), _entity_rows, _tags_by_chance),
    Metric.TOKEN_ACCURACY: Kind(TypeAdapter(_Tagged), _tag_rows, _tags_by_chance),
    Metric.WORD_ERROR_RATE: Kind(TypeAdapter(_Spoken), _speech_rows, _speech_by_chance),
    Metric.BLEU: _ANSWERS,
    Metric.CHRF: _ANSWERS,
    Metric.PASS_AT_K: Kind(TypeAdapter(_Problem), _program_rows, _programs_by_chance),
}
