"""Says whether two answers to the same request are the same answer, and if not, how they differ.

Pure. Never raises on a broken answer: whatever a model server may send has a `Difference`. Two answers that are both
broken are not this module's business; the caller looks at stable's with `is_sound` first.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    Answer = Mapping[str, NDArray[Any]]
    Vectors = NDArray[np.float64]

_LABELS: Final = "logits"
"""Outputs of this name are scores of labels: which is highest matters, not by how much."""


class Difference(StrEnum):
    """How a candidate's answer differs from stable's."""

    MISSING_OUTPUT = "MissingOutput"
    """An output is not there, or not made of numbers."""
    SHAPE = "Shape"
    """An output has another shape."""
    NOT_FINITE = "NotFinite"
    """An output holds NaN or infinity where stable's does not."""
    COSINE = "Cosine"
    """A vector points elsewhere."""
    ABSOLUTE = "Absolute"
    """A value is further off than allowed."""
    LABEL = "Label"
    """Other labels score highest."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far apart two answers may be."""

    min_cosine: float = 0.95
    max_absolute: float | None = None
    min_label_agreement: float = 1.0


def is_sound(answer: Answer, outputs: Iterable[str]) -> bool:
    """Whether every output is there, has values, and all of them are numbers."""
    return all(_is_numeric(answer.get(name)) and bool(np.isfinite(answer[name]).all()) for name in outputs)


def difference(
    stable: Answer, candidate: Answer, outputs: Iterable[str], tolerance: Tolerance, *, mask: NDArray[Any] | None = None
) -> Difference | None:
    """The first difference beyond tolerance; None when there is none.

    `stable` must be sound. `mask` (batch, positions) leaves out the answers at padding, which mean nothing.
    """
    for name in outputs:
        found = _difference(stable[name], candidate.get(name), tolerance, mask=mask, is_labels=name == _LABELS)
        if found is not None:
            return found
    return None


def _difference(
    stable: NDArray[Any],
    candidate: NDArray[Any] | None,
    tolerance: Tolerance,
    *,
    mask: NDArray[Any] | None,
    is_labels: bool,
) -> Difference | None:
    if candidate is None or not _is_numeric(candidate):
        return Difference.MISSING_OUTPUT
    if candidate.shape != stable.shape:
        return Difference.SHAPE
    ours, theirs = _vectors(candidate, mask), _vectors(stable, mask)
    if not np.isfinite(ours).all():
        return Difference.NOT_FINITE
    return _label_difference(ours, theirs, tolerance) if is_labels else _vector_difference(ours, theirs, tolerance)


def _label_difference(ours: Vectors, theirs: Vectors, tolerance: Tolerance) -> Difference | None:
    agreement = float(np.mean(ours.argmax(axis=-1) == theirs.argmax(axis=-1)))
    return Difference.LABEL if agreement < tolerance.min_label_agreement else None


def _vector_difference(ours: Vectors, theirs: Vectors, tolerance: Tolerance) -> Difference | None:
    if float(_cosines(ours, theirs).min()) < tolerance.min_cosine:
        return Difference.COSINE
    if tolerance.max_absolute is not None and float(np.abs(ours - theirs).max()) > tolerance.max_absolute:
        return Difference.ABSOLUTE
    return None


def _is_numeric(values: NDArray[Any] | None) -> bool:
    return values is not None and values.dtype.kind in "fiub" and values.size > 0 and values.ndim > 0


def _vectors(values: NDArray[Any], mask: NDArray[Any] | None) -> Vectors:
    """The last axis as vectors, one for each of the positions that count."""
    if mask is not None and mask.any() and values.ndim > mask.ndim and values.shape[: mask.ndim] == mask.shape:
        values = values[mask.astype(bool)]
    return values.reshape(-1, values.shape[-1]).astype(np.float64)


def _cosines(ours: Vectors, theirs: Vectors) -> Vectors:
    """Cosine of each pair of vectors; two zero vectors are the same, a zero vector and another are not."""
    lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    products = np.einsum("ij,ij->i", ours, theirs)
    same_nothing = (~ours.any(axis=-1)) & (~theirs.any(axis=-1))
    return np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1.0), same_nothing.astype(np.float64))
