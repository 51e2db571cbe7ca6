"""When two answers are the same answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnx_operator.prober.compare import Difference, Tolerance, difference, is_sound

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = Tolerance(min_cosine=0.99, max_absolute=0.5, min_label_agreement=0.75)
VECTOR = np.array([[3.0, 4.0, 0.0]], dtype=np.float32)
TOKENS = np.array([[[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]], dtype=np.float32)
LOGITS = np.array([[[2.0, 1.0], [0.0, 9.0], [1.0, 0.0], [4.0, 0.0]]], dtype=np.float32)


def embedding(values: Any) -> dict[str, NDArray[Any]]:
    return {"sentence_embedding": np.asarray(values)}


@pytest.mark.parametrize(
    ("stable", "candidate", "expected"),
    [
        pytest.param(embedding(VECTOR), embedding(VECTOR), None, id="the same numbers are the same"),
        pytest.param(embedding(VECTOR), embedding(VECTOR * 1.05), None, id="slightly longer is the same"),
        pytest.param(embedding(VECTOR), embedding(VECTOR.astype(np.float16)), None, id="fewer bits are the same"),
        pytest.param(embedding(VECTOR), embedding(-VECTOR), Difference.COSINE, id="the opposite differs"),
        pytest.param(
            embedding(VECTOR), embedding(VECTOR * 2), Difference.ABSOLUTE, id="the same direction, too far off"
        ),
        pytest.param(embedding(VECTOR), embedding([[3.0, 4.0, np.nan]]), Difference.NOT_FINITE, id="NaN differs"),
        pytest.param(embedding(VECTOR), embedding([[np.inf, 4.0, 0.0]]), Difference.NOT_FINITE, id="infinity differs"),
        pytest.param(embedding(VECTOR), embedding([3.0, 4.0, 0.0]), Difference.SHAPE, id="another rank differs"),
        pytest.param(embedding(VECTOR), embedding([[3.0, 4.0]]), Difference.SHAPE, id="another width differs"),
        pytest.param(embedding(VECTOR), {}, Difference.MISSING_OUTPUT, id="an output that is not there differs"),
        pytest.param(
            embedding(VECTOR), embedding(np.zeros((0, 3))), Difference.MISSING_OUTPUT, id="an empty output differs"
        ),
        pytest.param(
            embedding(VECTOR),
            embedding(np.array([[b"3", b"4", b"0"]], dtype=np.object_)),
            Difference.MISSING_OUTPUT,
            id="bytes are no numbers",
        ),
        pytest.param(embedding(VECTOR), embedding(VECTOR * 0), Difference.COSINE, id="nothing is not something"),
        pytest.param(embedding(VECTOR * 0), embedding(VECTOR * 0), None, id="nothing is nothing"),
        pytest.param(
            {"last_hidden_state": TOKENS},
            {"last_hidden_state": TOKENS * [[[1], [-1], [1]]]},
            Difference.COSINE,
            id="one token of three that differs is enough",
        ),
        pytest.param({"logits": LOGITS}, {"logits": LOGITS * 3}, None, id="more certain labels are the same labels"),
        pytest.param(
            {"logits": LOGITS},
            {"logits": LOGITS * [[[-1], [1], [1], [1]]]},
            None,
            id="one label of four is within tolerance",
        ),
        pytest.param(
            {"logits": LOGITS},
            {"logits": LOGITS * [[[-1], [1], [-1], [1]]]},
            Difference.LABEL,
            id="two labels of four differ",
        ),
    ],
)
def test_answers(
    stable: dict[str, NDArray[Any]], candidate: dict[str, NDArray[Any]], expected: Difference | None
) -> None:
    assert difference(stable, candidate, stable, TOLERANCE) is expected


def test_padding_means_nothing() -> None:
    mask = np.array([[1, 1, 0]])
    candidate = {"last_hidden_state": TOKENS * [[[1], [1], [-1]]]}
    assert difference({"last_hidden_state": TOKENS}, candidate, candidate, TOLERANCE, mask=mask) is None
    assert difference({"last_hidden_state": TOKENS}, candidate, candidate, TOLERANCE) is Difference.COSINE


def test_a_pooled_vector_has_no_padding() -> None:
    answer = embedding(np.array([[1.0, 2.0, 3.0]]))
    assert difference(answer, answer, answer, TOLERANCE, mask=np.array([[1, 1, 0]])) is None


@pytest.mark.parametrize(
    ("answer", "sound"),
    [
        pytest.param(embedding(VECTOR), True, id="numbers"),
        pytest.param({}, False, id="nothing"),
        pytest.param(embedding([[np.nan]]), False, id="NaN"),
        pytest.param(embedding(np.float32(3)), False, id="a scalar"),
    ],
)
def test_stable_s_answer_is_sound(answer: dict[str, NDArray[Any]], sound: bool) -> None:  # noqa: FBT001 - a column of the table
    assert is_sound(answer, ["sentence_embedding"]) is sound


SHAPES = st.lists(st.integers(0, 3), max_size=4).map(tuple)
ANYTHING = st.sampled_from([np.float32, np.float64, np.int64, np.bool_, np.object_]).flatmap(
    lambda dtype: (
        arrays(np.object_, SHAPES, elements=st.binary(max_size=2)) if dtype is np.object_ else arrays(dtype, SHAPES)
    )
)


@given(ANYTHING, ANYTHING, st.sampled_from(["logits", "sentence_embedding"]))
def test_no_answer_whatsoever_makes_it_fail(stable: NDArray[Any], candidate: NDArray[Any], name: str) -> None:
    with np.errstate(all="ignore"):
        if is_sound({name: stable}, [name]):
            difference({name: stable}, {name: candidate}, [name], TOLERANCE, mask=np.ones((1, 2)))
