"""What a graph that differs from its original has lost, told from which samples differ.

Exporters and fusions go wrong in ways that some requests never see: a layer that forgets what came before, a window
that became all of the text. Names such a fault only where all other samples agree, and clearly so; whatever else
differs has no better name than that it differs. Whether the graph still knows the order of tokens is asked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from onnx_converter import decoders, parity, samples
from onnx_converter.reasons import (
    CACHE_DIFFERS,
    INPUT_IGNORED,
    LONG_TEXTS_DIFFER,
    ORDER_LOST,
    PARITY_FAILED,
    Reason,
    StepFailedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_converter.contest import Candidate, Original
    from onnx_converter.load import Checkpoint
    from onnx_converter.parity import Measurement, Tolerance
    from onnx_converter.samples import Sample

    Compared = Sequence[tuple[Sample, Measurement]]

#: How many times as far off as all others what is suspected must be.
_CLEARLY: Final = 10
#: The share of its effect on the original below which a change has none on the graph.
_NOTHING: Final = 0.01
#: What float32 tells apart; less is no difference.
_LEAST: Final = float(np.finfo(np.float32).eps)
#: Tokens whose order is turned around.
_TURNED: Final = 8


def reason_of(compared: Compared, tolerance: Tolerance) -> tuple[Reason, str]:
    """The reason for which a graph fails of which some samples violate the tolerance, and words about it."""
    compared = [(sample, measured) for sample, measured in compared if measured.vectors]
    if _part(compared, tolerance, guilty=lambda sample: _past(sample) > 0, cleared=lambda sample: _past(sample) == 0):
        return CACHE_DIFFERS, "the first call is right, and what goes on from its keys and values is not"
    shortest = min((_length(sample) for sample, measured in compared if _violates(measured, tolerance)), default=0)

    def is_long(sample: Sample) -> bool:
        # Of texts that are hardly longer than a window, little is lost; pieces go on from what was lost.
        return _length(sample) >= (2 * shortest if sample.after is None else shortest)

    if _part(compared, tolerance, guilty=is_long, cleared=lambda sample: _length(sample) < shortest):
        return LONG_TEXTS_DIFFER, f"texts shorter than {shortest} tokens agree, longer ones do not"
    # Of a piece the words are wrong as well, as it goes on from what the graph keeps.
    bad = [measured for sample, measured in compared if sample.after is None and _violates(measured, tolerance)]
    if bad and all(_has_right_words(measured, tolerance) for measured in bad):
        return CACHE_DIFFERS, "its words are right, and the keys and values that it keeps for the next are not"
    return PARITY_FAILED, ""


def better_named(original: Original, candidate: Candidate, reason: Reason, words: str) -> tuple[Reason, str]:
    """A lost order where that explains it: one that differs, or on which a text turned around has no effect."""
    if reason not in (PARITY_FAILED, LONG_TEXTS_DIFFER, INPUT_IGNORED):
        return reason, words
    try:
        lost = _order_lost(original, candidate)
    except StepFailedError:
        # Of a graph that cannot be asked this, what is known stands.
        lost = ""
    return (ORDER_LOST, f"{lost}: {words}" if words else lost) if lost else (reason, words)


def _order_lost(original: Original, candidate: Candidate) -> str:
    """What the graph takes for the same in any order, though the original does not; empty where there is nothing."""
    for what, base, turned, other in _orders(original.checkpoint):
        asked = (base, turned, other)
        wanted, found = (
            [_answer_of(ask(sample)) for sample in asked]
            for ask in (original.answer, lambda sample: candidate.answer(original.outputs, sample))
        )
        (turned_there, other_there), (turned_here, other_here) = (
            [_moved(answers[0], answer) for answer in answers[1:]] for answers in (wanted, found)
        )
        counts = turned_there > _NOTHING * other_there
        if counts and turned_here < _NOTHING * turned_there and other_here > _NOTHING * other_there:
            return f"the order of {what} has no effect on the graph: it lost its positions, or attention its bias"
    return ""


def _orders(checkpoint: Checkpoint) -> Iterator[tuple[str, Sample, Sample, Sample]]:
    """A text, the same turned around, and another one; of what was written before as well."""
    if checkpoint.sight:
        return
    past = _TURNED - 1 if checkpoint.cache else 0
    base = (
        samples.answer_of(checkpoint, batch=1, read=_TURNED, past=past, length=1)
        if checkpoint.cross
        else samples.plain(checkpoint, batch=1, past=past, length=1 if past else _TURNED)
    )

    def changed(**tensors: NDArray[Any]) -> Sample:
        return replace(base, tensors=base.tensors | tensors)

    ids = base.tensors.get("input_ids")
    if ids is not None and ids.shape[1] > 1:
        another = ids.copy()
        another[:, 0] = ids[:, 1]
        yield "the tokens that are read", base, changed(input_ids=ids[:, ::-1]), changed(input_ids=another)
    kept = {name: value for name, value in base.tensors.items() if name.startswith(decoders.PAST)}
    if kept:
        turned = {name: value[:, :, ::-1] for name, value in kept.items()}
        negative = {name: -value for name, value in kept.items() if name.endswith("value")}
        yield "what was written before", base, changed(**turned), changed(**negative)


def _answer_of(answer: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    return next(iter(answer.values())).astype(np.float64)


def _moved(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """By how much; what is answered to each token is turned around with the tokens."""
    ways = (after, after[:, ::-1]) if after.ndim == 3 else (after,)  # noqa: PLR2004
    return min(float(np.abs(before - way).max()) for way in ways)


def _has_right_words(measured: Measurement, tolerance: Tolerance) -> bool:
    words, bound = measured.words_relative, tolerance.max_relative
    # Where there is no bound, a scheme rounds words and cache alike, and which of them went wrong cannot be told.
    if words is None or bound is None or not words < bound:
        return False
    return measured.max_relative > _CLEARLY * max(words, _LEAST)


def _part(
    compared: Compared, tolerance: Tolerance, *, guilty: Callable[[Sample], bool], cleared: Callable[[Sample], bool]
) -> bool:
    """Whether most of the one violate the tolerance, and all of the other are far from it."""
    suspected = [measured for sample, measured in compared if guilty(sample)]
    bad = [measured for measured in suspected if _violates(measured, tolerance)]
    good = [measured for sample, measured in compared if cleared(sample)]
    return (
        # Not all: a mask may hide what went wrong.
        len(bad) > len(suspected) / 2
        and bool(good)
        and not any(_violates(measured, tolerance) for measured in good)
        and min(one.max_relative for one in bad) > _CLEARLY * max(one.max_relative for one in good)
    )


def _violates(measured: Measurement, tolerance: Tolerance) -> bool:
    return bool(parity.violations(parity.total([measured]), tolerance))


def _past(sample: Sample) -> int:
    """Tokens before those that are asked about; an encoder has none."""
    if sample.after is not None:
        return sample.after
    return next((int(value.shape[2]) for name, value in sample.tensors.items() if name.startswith(decoders.PAST)), 0)


def _length(sample: Sample) -> int:
    """Tokens of the text that is written, or of the only one; an image has none."""
    names = (name for name in ("decoder_input_ids", "input_ids") if name in sample.tensors)
    return _past(sample) + next((int(sample.tensors[name].shape[1]) for name in names), 0)
