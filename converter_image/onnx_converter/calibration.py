"""The texts that int8-static measures the ranges of activations on.

Refuses a file that is no list of texts: with wrong ranges a graph looks like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from onnx_converter import held, samples, texts
from onnx_converter.held import CALIBRATION
from onnx_converter.reasons import DATASET_INVALID, StepFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from onnx_converter.load import Checkpoint
    from onnx_converter.spec import Dataset

MOST_TEXTS: Final = 1024
#: Tokens of a text: ranges come from the words, and hardly from how many there are.
_LONGEST: Final = 128


def read(calibration: Dataset | None, root: Path) -> Sequence[str]:
    """The texts below `root`; those of the image where none are declared."""
    if calibration is None:
        return texts.ALL
    found = held.texts(calibration, root, CALIBRATION)
    if not 0 < len(found) <= MOST_TEXTS:
        raise StepFailedError(
            DATASET_INVALID,
            f"{CALIBRATION}: {calibration.file} holds {len(found)} texts, it must be 1 to {MOST_TEXTS}, one a line",
        )
    return found


def requests(checkpoint: Checkpoint, read_texts: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
    """One text, or generated image, each: all activations of many at once would be too many."""
    if checkpoint.sight:
        yield from (sample.tensors for sample in samples.images_one_by_one(checkpoint.sight))
        return
    longest = min(checkpoint.max_sequence_length, _LONGEST)
    for text in read_texts:
        yield samples.encode(checkpoint, (text,), longest, "right")
