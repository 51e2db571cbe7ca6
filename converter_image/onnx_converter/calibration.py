"""The texts that int8-static measures the ranges of activations on.

Refuses a file that is not the one that was declared, and one that is no list of texts: with wrong ranges a graph looks
like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from onnx_converter import samples, texts
from onnx_converter.digest import digest_of_bytes
from onnx_converter.reasons import DIGEST_MISMATCH, SOURCE_ESCAPES, SOURCE_NOT_FOUND, SPEC_IMPOSSIBLE, StepFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from onnx_converter.load import Checkpoint
    from onnx_converter.spec import Calibration, ClaimFile, ConfigMapFile

_FIELD: Final = "quantization.calibration"
#: What a ConfigMap can hold.
MOST_BYTES: Final = 1 << 20
MOST_TEXTS: Final = 1024
#: Tokens of a text: ranges come from the words, and hardly from how many there are.
_LONGEST: Final = 128


def read(calibration: Calibration | None, root: Path) -> Sequence[str]:
    """The texts below `root`; those of the image where none are declared."""
    if calibration is None:
        return texts.ALL
    file = calibration.file
    path = root / file.path
    # A key of a ConfigMap is a link to a file beside it; nothing may lead further.
    if not path.resolve().is_relative_to(root.resolve()):
        raise StepFailedError(SOURCE_ESCAPES, f"{_FIELD}: {file} is a link that leads out of its volume")
    if not path.is_file():
        raise StepFailedError(SOURCE_NOT_FOUND, f"{_FIELD}: {file} does not exist: create it, then change retryToken")
    with path.open("rb") as stream:
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise StepFailedError(SPEC_IMPOSSIBLE, f"{_FIELD}: {file} is larger than {MOST_BYTES} bytes: take fewer")
    if (found := digest_of_bytes(data)) != calibration.digest:
        raise StepFailedError(
            DIGEST_MISMATCH,
            f"{_FIELD}: {file} has digest {found}, not {calibration.digest}: where these are the texts that "
            "you mean, set digest to theirs",
        )
    return _texts(data, file)


def _texts(data: bytes, file: ConfigMapFile | ClaimFile) -> Sequence[str]:
    try:
        decoded = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StepFailedError(SPEC_IMPOSSIBLE, f"{_FIELD}: {file} is not UTF-8: {error.reason}") from error
    if "\0" in decoded:
        raise StepFailedError(SPEC_IMPOSSIBLE, f"{_FIELD}: {file} is binary: give plain text, a text a line")
    found = [line.strip() for line in decoded.split("\n") if line.strip()]
    if not 0 < len(found) <= MOST_TEXTS:
        raise StepFailedError(
            SPEC_IMPOSSIBLE, f"{_FIELD}: {file} holds {len(found)} texts, it must be 1 to {MOST_TEXTS}, one a line"
        )
    return found


def requests(checkpoint: Checkpoint, read_texts: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
    """One text each: all activations of many at once would be too many."""
    longest = min(checkpoint.max_sequence_length, _LONGEST)
    for text in read_texts:
        yield samples.encode(checkpoint, (text,), longest, "right")
