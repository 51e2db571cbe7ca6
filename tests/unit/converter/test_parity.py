"""The arithmetic of the gate, on numbers written out: it fails closed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnx_converter import parity
from onnx_converter.reasons import StepFailedError
from onnx_converter.samples import Sample
from onnx_converter.spec import Parity, Scheme, Task

SENTENCE, TOKENS, LABELS = Task.SENTENCE_EMBEDDING, Task.FEATURE_EXTRACTION, Task.TEXT_CLASSIFICATION
STRICT = parity.Tolerance(min_cosine=0.9, max_absolute=0.1, max_relative=0.1, min_label_agreement=1.0)


def sample(mask: Any) -> Sample:
    return Sample("s", is_text=True, tensors={"attention_mask": np.asarray(mask, np.int64)})


def measure(task: Task, mask: Any, truth: Any, answer: Any) -> parity.Measurement:
    return parity.measure(task, sample(mask), np.asarray(truth, np.float32), np.asarray(answer, np.float32))


def measured(**changes: float | None) -> parity.Total:
    total = parity.Total(
        samples=1,
        vectors=1,
        ignored=0,
        min_cosine=0.99,
        max_absolute=0.01,
        max_relative=0.01,
        label_agreement=1.0,
        quality_loss=0.0,
    )
    return replace(total, **changes)  # type: ignore[arg-type]


def generation(**changes: Any) -> parity.Measurement:
    """Two texts of which the second has padding at its first token; one token before, two new ones, two heads."""
    mask = np.array([[1, 1, 1], [0, 1, 1]])
    truth = {"logits": np.tile([[[1.0, 2.0]]], (2, 2, 1)), "present.0.key": np.ones((2, 2, 3, 1))}
    answer = truth | changes
    return parity.measure_generation(
        sample(mask), *({k: v.astype(np.float32) for k, v in a.items()} for a in (truth, answer))
    )


def test_logits_are_compared_at_new_tokens_and_the_cache_at_all_of_them() -> None:
    found = generation()
    assert (found.vectors, found.ignored, found.labels, found.labels_agreeing) == (4 + 5, 1, 4, 4)
    assert found.min_cosine == pytest.approx(1)
    assert found.max_absolute == 0


def test_a_cache_that_is_wrong_counts_except_on_padding() -> None:
    cache = np.ones((2, 2, 3, 1))
    cache[1, 1, 0] = 9
    assert generation(**{"present.0.key": cache}).max_absolute == 0
    cache[0, 1, 0] = 3
    assert generation(**{"present.0.key": cache}).max_absolute == 2
    with pytest.raises(StepFailedError, match="shape"):
        generation(**{"present.0.key": cache[:, :, 1:]})


def test_of_a_long_text_the_last_token_is_compared_and_the_cache_of_all() -> None:
    asked = replace(sample(np.ones((1, 3))), is_last_only=True)
    truth = {"logits": np.zeros((1, 3, 2), np.float32), "present.0.key": np.ones((1, 2, 3, 1), np.float32)}
    for name, place, expected in (("logits", 1, 0), ("logits", 2, 5), ("present.0.key", 0, 4)):
        answer = {one: values.copy() for one, values in truth.items()}
        answer[name][0, place] = 5
        found = parity.measure_generation(asked, truth, answer)
        assert (found.max_absolute, found.labels, found.ignored) == (expected, 1, 2), (name, place)
    assert asked.mask.all(), "what is asked stays as it is"


def test_equal_answers_have_cosine_1_and_no_difference() -> None:
    found = measure(SENTENCE, [[1, 1]], [[3, 4]], [[3, 4]])
    assert (found.min_cosine, found.max_absolute, found.max_relative, found.vectors) == (1.0, 0.0, 0.0, 1)


def test_a_relative_difference_is_that_to_the_largest_number_of_its_vector() -> None:
    found = measure(SENTENCE, [[1], [1]], [[10, 0.001], [1, 1]], [[10, 0.101], [1, 1.5]])
    assert found.max_absolute == pytest.approx(0.5)
    assert found.max_relative == pytest.approx(0.5)


def test_the_worst_vector_counts_and_not_the_mean() -> None:
    rows = [[1, 0]] * 99 + [[0, 1]]
    found = measure(SENTENCE, [[1]] * 100, rows, [[1, 0]] * 100)
    assert found.min_cosine == 0


def test_a_token_of_padding_is_ignored_and_counted() -> None:
    found = measure(TOKENS, [[1, 0]], [[[1, 0], [5, 5]]], [[[1, 0], [-5, 9]]])
    assert (found.vectors, found.ignored, found.min_cosine, found.max_absolute) == (1, 1, 1.0, 0.0)


def test_a_text_of_nothing_but_padding_is_ignored_and_counted() -> None:
    found = measure(SENTENCE, [[1, 1], [0, 0]], [[1, 0], [0, 0]], [[1, 0], [3, 3]])
    assert (found.vectors, found.ignored, found.max_absolute) == (1, 1, 0.0)


def test_a_classifier_is_compared_by_its_largest_logit() -> None:
    found = measure(LABELS, [[1], [1], [1]], [[1, 2], [3, 1], [5, 6]], [[1, 3], [1, 3], [6, 5]])
    assert (found.labels, found.labels_agreeing) == (3, 1)


def test_an_answer_of_zeros_where_the_original_has_a_direction_has_cosine_0() -> None:
    assert measure(SENTENCE, [[1]], [[1, 0]], [[0, 0]]).min_cosine == 0


def test_two_answers_without_direction_agree() -> None:
    assert measure(SENTENCE, [[1]], [[0, 0]], [[0, 0]]).min_cosine == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("whose", ["original", "graph"])
def test_a_number_that_is_none_stops_everything_on_either_side(value: float, whose: str) -> None:
    answers = {"original": [[1.0, 0.0]], "graph": [[1.0, 0.0]]}
    answers[whose][0][1] = value
    with pytest.raises(StepFailedError, match=f"the {whose} answers with NaN"):
        measure(SENTENCE, [[1]], answers["original"], answers["graph"])


def test_a_number_that_is_none_counts_even_on_padding() -> None:
    with pytest.raises(StepFailedError, match="NaN"):
        measure(TOKENS, [[1, 0]], [[[1, 0], [5, 5]]], [[[1, 0], [math.nan, 9]]])


def test_another_shape_is_no_answer() -> None:
    with pytest.raises(StepFailedError, match="shape"):
        measure(SENTENCE, [[1]], [[1, 0]], [[1, 0, 0]])


def test_an_empty_set_of_samples_proves_nothing() -> None:
    with pytest.raises(StepFailedError, match="nothing was compared"):
        parity.total([])


def test_a_set_of_nothing_but_padding_proves_nothing() -> None:
    with pytest.raises(StepFailedError, match="nothing was compared"):
        parity.total([measure(SENTENCE, [[0, 0]], [[0, 0]], [[0, 0]])])


def test_numbers_inside_their_bounds_are_no_violation() -> None:
    assert list(parity.violations(measured(), STRICT)) == []


VIOLATIONS = {
    "a cosine below": ({"min_cosine": 0.89}, "minCosine is 0.89"),
    "a cosine that touches": ({"min_cosine": 0.9}, "minCosine is 0.9"),
    "a difference above": ({"max_absolute": 0.2}, "maxAbsolute is 0.2"),
    "a difference that touches": ({"max_absolute": 0.1}, "maxAbsolute is 0.1"),
    "a relative difference that touches": ({"max_relative": 0.1}, "maxRelative is 0.1"),
    "a cosine that is NaN": ({"min_cosine": math.nan}, "minCosine is nan"),
    "a difference that is NaN": ({"max_absolute": math.nan}, "maxAbsolute is nan"),
    "an infinite cosine": ({"min_cosine": math.inf}, "minCosine is inf"),
    "labels that disagree": ({"label_agreement": 0.99}, "minLabelAgreement is 0.99"),
    "labels that are NaN": ({"label_agreement": math.nan}, "minLabelAgreement is nan"),
}


@pytest.mark.parametrize("case", VIOLATIONS, ids=lambda case: case.replace(" ", "-"))
def test_a_number_that_is_not_inside_its_bound_is_a_violation_by_name(case: str) -> None:
    changes, words = VIOLATIONS[case]
    (violation,) = parity.violations(measured(**changes), STRICT)
    assert violation.startswith(words)


def test_all_labels_equal_reaches_a_bound_of_1() -> None:
    assert list(parity.violations(measured(label_agreement=1.0), STRICT)) == []


@pytest.mark.parametrize("scheme", [scheme for scheme in Scheme if scheme is not Scheme.AUTO])
@pytest.mark.parametrize("task", [task for task in Task if task is not Task.AUTO])
def test_every_scheme_judges_something_of_every_task(scheme: Scheme, task: Task) -> None:
    tolerance = parity.tolerance_of(Parity(), scheme, task)
    disaster = measured(min_cosine=0.51, max_absolute=5.0, max_relative=2.0, label_agreement=0.4)
    assert parity.violations(disaster, tolerance)


def test_of_experts_that_rounding_chose_the_worst_vector_is_bounded_by_whoever_asks_for_it_alone() -> None:
    worst = measured(min_cosine=0.3, label_agreement=0.96)
    for scheme in (Scheme.NONE, Scheme.INT8_DYNAMIC):
        for asked in ({}, {"minCosine": "0.8"}):
            parity_ = Parity.model_validate(asked)
            tolerance = parity.tolerance_of(parity_, scheme, Task.TEXT_GENERATION, has_experts=True)
            assert bool(parity.violations(worst, tolerance)) == (scheme is Scheme.NONE or bool(asked))
    wrong = measured(min_cosine=0.3, label_agreement=0.5)
    assert parity.violations(
        wrong, parity.tolerance_of(Parity(), Scheme.INT8_DYNAMIC, Task.TEXT_GENERATION, has_experts=True)
    )


def test_a_bound_of_the_user_replaces_that_one_alone() -> None:
    default = parity.tolerance_of(Parity(), Scheme.NONE, SENTENCE)
    given = parity.tolerance_of(Parity.model_validate({"minCosine": "0.5"}), Scheme.NONE, SENTENCE)
    assert given == replace(default, min_cosine=0.5)


#: What the graph says where the original prefers the first of two words by a gap, and how a bound of 0.1 takes it.
GAPS = {
    "the same words": (0.5, [1.0, 0.45], "", False),
    "another word of a near tie": (0.06, [1.0, 1.01], "gap 0.06, largest difference 0.07", False),
    "another word than one that is far better": (0.15, [0.92, 0.93], "gap 0.15, largest difference 0.08", True),
}


@pytest.mark.parametrize("case", GAPS, ids=lambda case: case.replace(" ", "-"))
def test_a_text_that_becomes_another_is_told_from_where_on_and_refused_unless_by_a_near_tie(case: str) -> None:
    gap, said, words, is_refused = GAPS[case]
    truth = np.array([[[1, 0], [1, 0], [1, 0]], [[1, 0], [1, 0], [1, 1 - gap]]], np.float32)
    answer = truth.copy()
    answer[1, 2] = said
    found = parity.measure_writing(sample(np.ones((2, 3))), truth, answer)
    assert found.sample == (f"s; text 2: first difference: token 3, {words}" if words else "s")
    tolerance = replace(STRICT, min_cosine=None, max_relative=None, min_label_agreement=None)
    violated = parity.violations(parity.total([found]), tolerance)
    assert [text for text in violated if "first differs" in text] == list(violated)
    assert bool(violated) == is_refused
