"""The metrics beside the libraries that the field measures with, and the interval beside what is known of it."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import jiwer
import numpy as np
import pytest
import sacrebleu
from scipy import stats
from sklearn import metrics

from onnx_converter import quality, wording
from onnx_converter.spec import Metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

RANDOM = np.random.default_rng(7)


def columns(*each: NDArray[Any]) -> NDArray[np.float64]:
    return np.array(each, np.float64).T


@pytest.mark.parametrize("digits", [0, 1, 9], ids=["many-equal", "some-equal", "none-equal"])
def test_spearman_is_that_of_scipy(digits: int) -> None:
    first = RANDOM.normal(size=200).round(digits)
    second = (first + RANDOM.normal(size=200)).round(digits)
    found = quality.VALUES[Metric.STS_SPEARMAN](columns(first, second))
    assert found == pytest.approx(stats.spearmanr(first, second).statistic)


def test_what_never_changes_tells_nothing() -> None:
    assert quality.VALUES[Metric.STS_SPEARMAN](columns(np.ones(9), np.arange(9.0))) == 0


def test_macro_f1_and_accuracy_are_those_of_scikit_learn() -> None:
    true, answered = RANDOM.integers(5, size=300), RANDOM.integers(6, size=300)
    rows = columns(answered, true)
    f1 = metrics.f1_score(true, answered, average="macro", zero_division=0.0)
    assert quality.VALUES[Metric.F1_MACRO](rows) == pytest.approx(f1)
    assert quality.VALUES[Metric.ACCURACY](rows) == metrics.accuracy_score(true, answered)


ENTITIES: dict[str, tuple[str, set[tuple[str, int, int]]]] = {
    "none": ("O O O", set()),
    "one word": ("O B-PER O", {("PER", 1, 2)}),
    "several words": ("B-ORG I-ORG I-ORG O", {("ORG", 0, 3)}),
    "two side by side": ("B-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}),
    "another kind begins by itself": ("B-PER I-ORG I-ORG", {("PER", 0, 1), ("ORG", 1, 3)}),
    "begun without a beginning": ("O I-LOC I-LOC O I-LOC", {("LOC", 1, 3), ("LOC", 4, 5)}),
    "at the end": ("O O B-MISC I-MISC", {("MISC", 2, 4)}),
    "without prefixes": ("noun noun verb O noun", {("noun", 0, 2), ("verb", 2, 3), ("noun", 4, 5)}),
    "a kind with a dash": ("B-per-son I-per-son", {("per-son", 0, 2)}),
}


@pytest.mark.parametrize("case", ENTITIES, ids=lambda case: case.replace(" ", "-"))
def test_entities_are_those_of_conll(case: str) -> None:
    labels, found = ENTITIES[case]
    assert quality.entities(labels.split()) == found


def test_f1_of_entities_is_over_all_of_them_and_nothing_to_find_is_nothing() -> None:
    rows = np.array([[2, 3, 2], [0, 1, 4], [1, 1, 1]], np.float64)
    assert quality.VALUES[Metric.ENTITY_F1](rows) == pytest.approx(2 * 3 / (5 + 7))
    assert quality.VALUES[Metric.ENTITY_F1](np.zeros((4, 3))) == 0.0
    assert quality.VALUES[Metric.TOKEN_ACCURACY](np.array([[3, 4], [2, 6]], np.float64)) == 0.5


@pytest.mark.parametrize("documents", [3, 10, 60])
def test_ndcg_is_that_of_scikit_learn_and_by_chance_the_mean_over_all_orders(documents: int) -> None:
    relevant = np.arange(documents) < min(12, documents - 1)
    found = []
    for _ in range(2000):
        scores = RANDOM.permutation(documents)
        found.append(quality.ndcg(relevant[np.argsort(-scores)]))
        if len(found) < 20:
            assert found[-1] == pytest.approx(metrics.ndcg_score([relevant], [scores], k=10))
    error = 4 * float(np.std(found)) / math.sqrt(len(found))
    assert quality.ndcg_by_chance(int(relevant.sum()), documents) == pytest.approx(np.mean(found), abs=error)


TEXTS = random.Random(7)  # noqa: S311  no secret
PIECES = ["the", "cat", "sat,", "on", "a", "mat.", "it's", "3.5", "x-1", "&amp;", "(so)", "naïve", "東京", "a-\\nb"]


def sentence(most: int) -> str:
    return " ".join(TEXTS.choice(PIECES) for _ in range(TEXTS.randrange(1, most)))


#: What is right, and what was written: with words left out, or altogether other ones.
RIGHT = [sentence(20) for _ in range(120)]
WRITTEN = [
    " ".join(word for word in text.split() if TEXTS.random() < 0.8) if TEXTS.random() < 0.7 else sentence(20)
    for text in RIGHT
]


@pytest.mark.parametrize("lines", [1, 2, 3, 120])
def test_bleu_and_chrf_are_those_of_sacrebleu(lines: int) -> None:
    for begin in range(0, len(RIGHT), lines):
        right, found = RIGHT[begin : begin + lines], WRITTEN[begin : begin + lines]
        rows = {
            Metric.BLEU: [wording.bleu_counts(*each) for each in zip(found, right, strict=True)],
            Metric.CHRF: [wording.chrf_counts(*each) for each in zip(found, right, strict=True)],
        }
        bleu, chrf = (quality.VALUES[metric](np.array(counts, np.float64)) for metric, counts in rows.items())
        assert bleu == pytest.approx(sacrebleu.corpus_bleu(found, [right]).score / 100), (found, right)
        assert chrf == pytest.approx(sacrebleu.corpus_chrf(found, [right]).score / 100), (found, right)


def test_word_errors_are_those_of_jiwer() -> None:
    rows = [wording.word_errors(found, right) for found, right in zip(WRITTEN, RIGHT, strict=True)]
    assert [errors / words for errors, words in rows] == pytest.approx(
        [jiwer.wer(right, found) for found, right in zip(WRITTEN, RIGHT, strict=True)]
    )
    wanted = jiwer.wer(RIGHT, WRITTEN)
    assert quality.VALUES[Metric.WORD_ERROR_RATE](np.array(rows, np.float64)) == pytest.approx(wanted)
    assert wording.word_errors("", "a b") == (2, 2)


def test_an_error_rate_loses_what_it_grows_by_also_where_nothing_was_wrong() -> None:
    right, wrong = (columns(np.full(30, errors), np.full(30, 10.0)) for errors in (0.0, 1.0))
    assert quality.compare(Metric.WORD_ERROR_RATE, right, right).loss == quality.Estimate(0, 0, 0)
    assert quality.compare(Metric.WORD_ERROR_RATE, right, wrong).loss.value == pytest.approx(0.1)


def test_words_of_speech_are_compared_without_case_marks_and_brackets() -> None:
    assert wording.normalized(" Well,  [noise] it's 3.5 — Ärger! (laughs)") == "well it s 3 5 ärger"


def test_perplexities_and_bits_are_those_of_the_harness() -> None:
    # weighted_perplexity and bits_per_byte of lm_eval.api.metrics, of two texts with 10 and 30 bytes.
    rows = columns(np.array([-8.0, -12.0]), np.array([10.0, 30.0]))
    assert quality.VALUES[Metric.BYTE_PERPLEXITY](rows) == pytest.approx(math.exp(20 / 40))
    assert quality.VALUES[Metric.BITS_PER_BYTE](rows) == pytest.approx(20 / 40 / math.log(2))


def test_the_interval_of_a_mean_is_that_of_statistics() -> None:
    rows = columns(RANDOM.normal(size=400))
    found = quality.compare(Metric.MULTIPLE_CHOICE, rows, rows).original
    error = stats.sem(rows[:, 0])
    assert (found.low, found.high) == pytest.approx(
        (found.value - 1.96 * error, found.value + 1.96 * error), abs=0.2 * error
    )


def test_the_interval_of_the_loss_holds_the_true_one_about_as_often_as_it_says() -> None:
    held = 0
    for _ in range(60):
        before = RANDOM.random(60) < 0.7
        after = before & (RANDOM.random(60) < 0.9)
        loss = quality.compare(Metric.MULTIPLE_CHOICE, columns(before), columns(after)).loss
        held += loss.low <= 0.07 <= loss.high
    assert held > 0.85 * 60


def test_a_side_that_answers_the_same_loses_nothing_with_certainty_and_the_same_rows_give_the_same_numbers() -> None:
    rows, other = (columns(-10 * RANDOM.random(50), np.full(50, 9.0)) for _ in range(2))
    assert quality.compare(Metric.BYTE_PERPLEXITY, rows, rows).loss == quality.Estimate(0, 0, 0)
    assert quality.compare(Metric.BYTE_PERPLEXITY, rows, other) == quality.compare(Metric.BYTE_PERPLEXITY, rows, other)


def test_a_perplexity_loses_what_it_grows_by_and_all_of_it_where_it_is_infinite() -> None:
    rows = columns(np.full(30, -10.0), np.full(30, 10.0))
    worse = columns(np.full(30, -11.0), np.full(30, 10.0))
    lost = columns(np.full(30, -1e5), np.full(30, 10.0))
    assert quality.compare(Metric.BYTE_PERPLEXITY, rows, worse).loss.value == pytest.approx(math.exp(0.1) - 1)
    assert quality.compare(Metric.BITS_PER_BYTE, rows, worse).loss.value == pytest.approx(0.1)
    assert quality.compare(Metric.BYTE_PERPLEXITY, rows, lost).loss.value == math.inf


def test_a_likelihood_is_that_of_the_softmax_and_survives_large_logits() -> None:
    logits = RANDOM.normal(size=(5, 40)).astype(np.float32) + 1e4
    targets = RANDOM.integers(40, size=5)
    wanted = sum(
        logits[at, target].astype(np.float64) - np.logaddexp.reduce(logits[at].astype(np.float64))
        for at, target in enumerate(targets)
    )
    assert quality.log_likelihood(logits, targets) == pytest.approx(wanted)
