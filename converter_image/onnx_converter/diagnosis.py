"""What a graph that differs from its original has lost, told from which samples differ.

Exporters and fusions go wrong in ways that some requests never see: a layer that forgets what came before, a window
that became all of the text. Names such a fault only where all other samples agree, and clearly so; whatever else
differs has no better name than that it differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from onnx_converter import decoders, parity
from onnx_converter.reasons import CACHE_DIFFERS, LONG_TEXTS_DIFFER, PARITY_FAILED, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnx_converter.parity import Measurement, Tolerance
    from onnx_converter.samples import Sample

    Compared = Sequence[tuple[Sample, Measurement]]

#: How many times as far off as all others what is suspected must be.
_CLEARLY: Final = 10


def reason_of(compared: Compared, tolerance: Tolerance) -> tuple[Reason, str]:
    """The reason for which a graph fails of which some samples violate the tolerance, and words about it."""
    compared = [(sample, measured) for sample, measured in compared if measured.vectors]
    if _part(compared, tolerance, guilty=lambda sample: _past(sample) > 0, cleared=lambda sample: _past(sample) == 0):
        return CACHE_DIFFERS, "the first call is right, and what goes on from its keys and values is not"
    shortest = min((_length(sample) for sample, measured in compared if _violates(measured, tolerance)), default=0)
    # Of texts that are hardly longer than a window, little is lost.
    is_long, is_short = (lambda sample: _length(sample) >= 2 * shortest), (lambda sample: _length(sample) < shortest)
    if _part(compared, tolerance, guilty=is_long, cleared=is_short):
        return LONG_TEXTS_DIFFER, f"texts shorter than {shortest} tokens agree, longer ones do not"
    return PARITY_FAILED, ""


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
    return next((int(value.shape[2]) for name, value in sample.tensors.items() if name.startswith(decoders.PAST)), 0)


def _length(sample: Sample) -> int:
    """Tokens of the text that is written, or of the only one; an image has none."""
    names = (name for name in ("decoder_input_ids", "input_ids") if name in sample.tensors)
    return _past(sample) + next((int(sample.tensors[name].shape[1]) for name in names), 0)
