"""Between which numbers lies what goes into layers, as far as texts show.

Told coarsely, since another processor's kernels add up in another order: what they measure differs in the last of some
seven digits, and would in the bytes of each scale. Refuses nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from onnx_converter import inner

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Ranges = Mapping[str, tuple[float, float]]

#: Binary digits of a bound that are told. With these a range is 1 % wider in the mean, and so are its steps, 8 bits as
#: 16; each digit less doubles that, and halves how often two processors tell another bound.
_DIGITS: Final = 6


def of(source: Path, names: Sequence[str], requests: Iterable[dict[str, NDArray[Any]]]) -> Ranges:
    """Of tensors of a graph the smallest and the largest number, each rounded away from zero, which lies between."""
    session = inner.session_of(source, names)
    found = dict.fromkeys(names, (0.0, 0.0))
    for request in requests:
        for name, values in zip(names, session.run(names, request), strict=True):
            low, high = found[name]
            found[name] = min(low, float(values.min())), max(high, float(values.max()))
    return {name: (-_coarse(-low), _coarse(high)) for name, (low, high) in found.items()}


def _coarse(size: float) -> float:
    share, exponent = math.frexp(size)
    return math.ldexp(math.ceil(math.ldexp(share, _DIGITS)), exponent - _DIGITS)
