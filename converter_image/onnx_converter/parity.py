"""Whether a graph still answers like the torch original: the gate.

Every judgement is made on numbers in float64. Vectors that belong to padding are ignored, since no client reads them
and no two kernels agree on them, and are counted; but a graph that is not finite there fails like anywhere else.
Fails closed: nothing measured, a NaN on either side, another shape, a number that only touches its bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from onnx_converter import decoders, encoder_decoders
from onnx_converter.heads import CLASSIFIERS, GENERATORS, PER_TOKEN
from onnx_converter.reasons import CACHE_DIFFERS, NOT_FINITE, PARITY_FAILED, StepFailedError
from onnx_converter.spec import Scheme, Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_converter.samples import Sample
    from onnx_converter.spec import Parity

_GAP: Final = "the gap of logits where a written text first differs"
#: Below this length a vector has no direction worth comparing.
_NO_DIRECTION: Final = 1e-6
#: Numbers that are compared at a time.
_AT_ONCE: Final = 1 << 21


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Bounds; None is not judged."""

    min_cosine: float | None
    max_absolute: float | None
    max_relative: float | None
    min_label_agreement: float | None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one sample showed."""

    sample: str
    is_text: bool
    vectors: int
    ignored: int
    min_cosine: float
    max_absolute: float
    max_relative: float
    labels: int
    labels_agreeing: int
    #: Mean of what the vectors lost: of those that choose a label, the divergence in nats; of others 1 - cosine.
    divergence: float
    #: Of a language model the largest of its words alone, without what it keeps.
    words_relative: float | None = None
    #: Of texts that are written: by how much the original prefers another token where a text first becomes another.
    gap: float = 0.0


@dataclass(frozen=True, slots=True)
class Total:
    """The worst over all samples."""

    samples: int
    vectors: int
    ignored: int
    min_cosine: float
    max_absolute: float
    max_relative: float
    label_agreement: float | None
    #: Of real text, where there was any: how much perplexity rises on what the original would say, as a share of it;
    #: of vectors that choose no label, the mean of 1 - cosine.
    quality_loss: float | None
    gap: float = 0.0


_DEFAULTS: Final[dict[Scheme, tuple[Tolerance, Tolerance, Tolerance]]] = {
    # Embeddings, classifiers, language models. A classifier's few logits have no direction: its labels and their
    # distance count. A language model has both, and keys and values with directions.
    Scheme.NONE: (
        Tolerance(0.99999, 1e-3, 1e-3, None),
        Tolerance(None, 1e-3, 1e-3, 0.999),
        Tolerance(0.99999, 1e-3, 1e-3, 0.999),
    ),
    Scheme.FLOAT16: (
        Tolerance(0.999, None, None, None),
        Tolerance(None, None, 0.05, 0.98),
        Tolerance(0.98, None, None, 0.98),
    ),
    Scheme.BFLOAT16: (
        Tolerance(0.95, None, None, None),
        Tolerance(None, None, 0.4, 0.9),
        Tolerance(0.9, None, None, 0.9),
    ),
    Scheme.INT8_DYNAMIC: (
        Tolerance(0.85, None, None, None),
        Tolerance(None, None, 1.5, 0.8),
        Tolerance(0.8, None, None, 0.75),
    ),
    Scheme.INT8_STATIC: (
        Tolerance(0.75, None, None, None),
        Tolerance(None, None, 1.5, 0.8),
        Tolerance(0.8, None, None, 0.75),
    ),
    Scheme.INT8_WEIGHT_ONLY: (
        Tolerance(0.98, None, None, None),
        Tolerance(None, None, 0.5, 0.95),
        Tolerance(0.95, None, None, 0.9),
    ),
    Scheme.INT4_WEIGHT_ONLY: (
        Tolerance(0.7, None, None, None),
        Tolerance(None, None, 1.5, 0.7),
        Tolerance(0.6, None, None, 0.6),
    ),
}


def loosest(schemes: Iterable[Scheme], task: Task) -> Scheme:
    """Of graphs that answer together, the scheme that loses most."""
    return min(schemes, key=lambda scheme: _default(scheme, task).min_cosine or 0.0)


def _default(scheme: Scheme, task: Task) -> Tolerance:
    return _DEFAULTS[scheme][2 if task in GENERATORS else task in CLASSIFIERS]


def tolerance_of(parity: Parity, scheme: Scheme, task: Task, *, has_experts: bool = False) -> Tolerance:
    """The user's bounds, and those of the scheme where the user gave none.

    Where experts are chosen, rounding sends a token that is undecided to another one, and its vector is another: the
    worst of thousands says nothing then, and what is written decides.
    """
    default = _default(scheme, task)
    if has_experts and scheme is not Scheme.NONE:
        default = replace(default, min_cosine=None)
    return Tolerance(
        default.min_cosine if parity.min_cosine is None else parity.min_cosine,
        default.max_absolute if parity.max_absolute is None else parity.max_absolute,
        default.max_relative if parity.max_relative is None else parity.max_relative,
        default.min_label_agreement if parity.min_label_agreement is None else parity.min_label_agreement,
    )


def compare(
    task: Task, sample: Sample, truth: Mapping[str, NDArray[np.float32]], answer: Mapping[str, NDArray[np.float32]]
) -> Measurement:
    """Everything that was answered to one sample."""
    if task in GENERATORS:
        return measure_generation(sample, truth, answer)
    (output,) = truth
    return measure(task, sample, truth[output], answer[output])


def measure(task: Task, sample: Sample, truth: NDArray[np.float32], answer: NDArray[np.float32]) -> Measurement:
    if "attention_mask" not in sample.tensors:
        judged = np.ones(len(truth), dtype=bool)
    else:
        judged = sample.mask if task in PER_TOKEN else np.asarray(sample.mask.any(axis=1))
    return _measure(sample, judged, truth, answer, is_labels=task in CLASSIFIERS)


def measure_generation(
    sample: Sample, truth: Mapping[str, NDArray[np.float32]], answer: Mapping[str, NDArray[np.float32]]
) -> Measurement:
    """Logits of the new tokens, of which the largest is a label, and the keys and values of all tokens there are."""
    parts = []
    for name, wanted in truth.items():
        found, is_logits = answer[name], name == decoders.LOGITS
        judged = _judged(sample, name, wanted)
        if name.startswith(decoders.PRESENT) and found.shape != wanted.shape:
            raise StepFailedError(
                CACHE_DIFFERS,
                f"on {sample.name} the graph keeps {name} in shape {found.shape}, the original in {wanted.shape}",
            )
        if is_logits and sample.is_last_only:
            judged[:, :-1] = False
        if not is_logits and found.shape == wanted.shape:
            wanted, found = decoders.by_token(wanted), decoders.by_token(found)  # noqa: PLW2901
        parts.append(_measure(sample, judged, wanted, found, is_labels=is_logits))
    logits = parts[0]
    return replace(
        logits,
        vectors=sum(part.vectors for part in parts),
        ignored=sum(part.ignored for part in parts),
        min_cosine=min(part.min_cosine for part in parts),
        max_absolute=max(part.max_absolute for part in parts),
        max_relative=max(part.max_relative for part in parts),
        words_relative=logits.max_relative,
    )


def measure_writing(sample: Sample, truth: NDArray[np.float32], answer: NDArray[np.float32]) -> Measurement:
    """The logits that chose each token of texts, and where each text is first another than the original's own."""
    measured = measure_generation(sample, {decoders.LOGITS: truth}, {decoders.LOGITS: answer})
    found = [first_difference(*row) for row in zip(truth, answer, strict=True)]
    words = [f"; text {number}: {difference.words}" for number, difference in enumerate(found, 1) if difference]
    gap = max((difference.gap for difference in found if difference), default=0.0)
    return replace(measured, sample=sample.name + "".join(words), gap=gap)


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a text that is written is first another than the original's."""

    #: From 1 on.
    token: int
    #: Of the original's logits, its best one above that of the graph's choice.
    gap: float
    #: The largest of all logits at this token; a choice can only be another where it is at least half of the gap.
    largest: float

    @property
    def words(self) -> str:
        return f"first difference: token {self.token}, gap {self.gap:.3g}, largest difference {self.largest:.3g}"


def first_difference(truth: NDArray[np.float32], answer: NDArray[np.float32]) -> Difference | None:
    """Of one text, of the logits (tokens, words) of both sides for the same tokens before."""
    chosen = answer.argmax(axis=-1)
    others = np.flatnonzero(truth.argmax(axis=-1) != chosen)
    if not others.size:
        return None
    step = int(others[0])
    wanted, found = truth[step].astype(np.float64), answer[step].astype(np.float64)
    return Difference(step + 1, float(wanted.max() - wanted[chosen[step]]), float(np.abs(wanted - found).max()))


def _judged(sample: Sample, name: str, wanted: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which tokens are none of padding; whoever writes beside a text to read writes none, but may have none to read."""
    tokens = wanted.shape[1 if name == decoders.LOGITS else 2]
    if "attention_mask" not in sample.tensors:
        return np.ones((len(wanted), tokens), dtype=bool)
    if "decoder_input_ids" not in sample.tensors:
        return sample.mask[:, -tokens:]
    if name.startswith(encoder_decoders.CROSS):
        return sample.mask
    return np.repeat(sample.mask.any(axis=1, keepdims=True), tokens, axis=1)


def _measure(
    sample: Sample,
    judged: NDArray[np.bool_],
    truth: NDArray[np.float32],
    answer: NDArray[np.float32],
    *,
    is_labels: bool,
) -> Measurement:
    if truth.shape != answer.shape:
        raise StepFailedError(
            PARITY_FAILED,
            f"on {sample.name} the graph answers with shape {answer.shape}, the original with {truth.shape}",
        )
    for whose, values in (("original", truth), ("graph", answer)):
        if not np.isfinite(values).all():
            raise StepFailedError(NOT_FINITE, f"on {sample.name} the {whose} answers with NaN or infinity")
    rows = np.flatnonzero(judged)
    if not rows.size or not truth.size:
        return Measurement(sample.name, sample.is_text, 0, judged.size, 1.0, 0.0, 0.0, 0, 0, 0.0)
    flat = [values.reshape(judged.size, *truth.shape[judged.ndim :]) for values in (truth, answer)]
    # Some at a time: logits of a text are tens of megabytes, and several times as many in doubles.
    step = max(1, _AT_ONCE * judged.size // truth.size)
    parts = [
        _compared(*(values[rows[at : at + step]].astype(np.float64) for values in flat), is_labels=is_labels)
        for at in range(0, rows.size, step)
    ]
    cosines, absolute, relative, agreeing, divergence = map(np.concatenate, zip(*parts, strict=True))
    return Measurement(
        sample=sample.name,
        is_text=sample.is_text,
        vectors=rows.size,
        ignored=judged.size - rows.size,
        min_cosine=float(cosines.min()),
        max_absolute=float(absolute.max()),
        max_relative=float(relative.max()),
        labels=rows.size if is_labels else 0,
        labels_agreeing=int(agreeing.sum()) if is_labels else 0,
        divergence=float(np.mean(divergence)),
    )


def _compared(
    wanted: NDArray[np.float64], found: NDArray[np.float64], *, is_labels: bool
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of each vector its cosine, the largest difference, the same as a share of the largest number, whether it chooses
    the same label, and how far it diverges.
    """
    cosines, difference = _cosines(wanted, found), np.abs(wanted - found).max(axis=-1)
    relative = difference / np.maximum(np.abs(wanted).max(axis=-1), np.finfo(np.float32).tiny)
    agreeing = wanted.argmax(axis=-1) == found.argmax(axis=-1)
    divergence = np.array(list(map(_divergence, wanted, found))) if is_labels else 1 - cosines
    return cosines, difference, relative, agreeing, divergence


def _divergence(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """Kullback and Leibler's, of the distributions that two vectors of logits stand for. In nats."""
    before, after = (logits - logits.max() for logits in (wanted, found))
    likely = np.exp(before)
    ratio = before - after - np.log(likely.sum()) + np.log(np.exp(after).sum())
    return max(float(likely @ ratio / likely.sum()), 0.0)


def _cosines(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(wanted, axis=-1), np.linalg.norm(found, axis=-1)
    directed = (lengths[0] > _NO_DIRECTION) & (lengths[1] > _NO_DIRECTION)
    both_empty = (lengths[0] <= _NO_DIRECTION) & (lengths[1] <= _NO_DIRECTION)
    products = (wanted * found).sum(axis=-1) / np.where(directed, lengths[0] * lengths[1], 1.0)
    return np.where(directed, products, np.where(both_empty, 1.0, 0.0))


def total(measurements: Iterable[Measurement]) -> Total:
    listed = list(measurements)
    vectors = sum(item.vectors for item in listed)
    if not vectors:
        raise StepFailedError(PARITY_FAILED, "nothing was compared: the sample set is empty")
    labels = sum(item.labels for item in listed)
    texts = [item for item in listed if item.is_text and item.vectors]
    weights = [item.labels or item.vectors for item in texts]
    lost = np.average([item.divergence for item in texts], weights=weights) if texts else None
    return Total(
        samples=len(listed),
        vectors=vectors,
        ignored=sum(item.ignored for item in listed),
        min_cosine=min(item.min_cosine for item in listed),
        max_absolute=max(item.max_absolute for item in listed),
        max_relative=max(item.max_relative for item in listed),
        label_agreement=sum(item.labels_agreeing for item in listed) / labels if labels else None,
        quality_loss=lost if lost is None else float(np.expm1(lost) if labels else lost),
        gap=max(item.gap for item in listed),
    )


def violations(measured: Total, tolerance: Tolerance) -> Sequence[str]:
    """Every bound that is not kept, in words. A number must lie inside its bound: touching it is not enough."""
    found = [
        _violation("minCosine", measured.min_cosine, tolerance.min_cosine, is_floor=True),
        _violation("maxAbsolute", measured.max_absolute, tolerance.max_absolute, is_floor=False),
        _violation("maxRelative", measured.max_relative, tolerance.max_relative, is_floor=False),
        # Two tokens that are nearly as good as each other explain why another one is written.
        _violation(_GAP, measured.gap, tolerance.max_absolute, is_floor=False),
    ]
    agreement, wanted = measured.label_agreement, tolerance.min_label_agreement
    # A share of 1 can be reached and not exceeded, so this bound may be touched.
    if agreement is not None and wanted is not None and not agreement >= wanted:
        found.append(f"minLabelAgreement is {agreement:.4f}, below the tolerance {wanted}")
    return [text for text in found if text]


def _violation(name: str, value: float, bound: float | None, *, is_floor: bool) -> str:
    if bound is None:
        return ""
    # Written so that NaN, which compares false with everything, is a violation.
    kept = value > bound if is_floor else value < bound
    if kept and math.isfinite(value):
        return ""
    return f"{name} is {value:.6g}, {'not above' if is_floor else 'not below'} the tolerance {bound:g}"
