"""Files of the user's that are held to a digest: texts to calibrate on, examples to evaluate with.

Refuses a file that is not the one that was declared, and one that is no text: what follows from it would look like any
other number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_converter.digest import digest_of_bytes
from onnx_converter.reasons import DATASET_INVALID, DIGEST_MISMATCH, SOURCE_ESCAPES, SOURCE_NOT_FOUND, StepFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onnx_converter.spec import Dataset


def lines(dataset: Dataset, root: Path, field: str, most_bytes: int) -> Sequence[tuple[int, str]]:
    """The lines that say something, each with its number from 1, of the file below `root`."""
    file = dataset.file
    path = root / file.path
    # A key of a ConfigMap is a link to a file beside it; nothing may lead further.
    if not path.resolve().is_relative_to(root.resolve()):
        raise StepFailedError(SOURCE_ESCAPES, f"{field}: {file} is a link that leads out of its volume")
    if not path.is_file():
        raise StepFailedError(SOURCE_NOT_FOUND, f"{field}: {file} does not exist: create it, then change retryToken")
    with path.open("rb") as stream:
        data = stream.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise StepFailedError(DATASET_INVALID, f"{field}: {file} is larger than {most_bytes} bytes: take fewer lines")
    if (found := digest_of_bytes(data)) != dataset.digest:
        raise StepFailedError(
            DIGEST_MISMATCH,
            f"{field}: {file} has digest {found}, not {dataset.digest}: where this is the file that you mean, set "
            "digest to its",
        )
    try:
        decoded = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StepFailedError(DATASET_INVALID, f"{field}: {file} is not UTF-8: {error.reason}") from error
    if "\0" in decoded:
        raise StepFailedError(DATASET_INVALID, f"{field}: {file} is binary: give plain text")
    return [(number, line.strip()) for number, line in enumerate(decoded.split("\n"), 1) if line.strip()]
