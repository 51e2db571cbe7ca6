"""Files of the user's that are held to a digest: texts to calibrate on, examples to evaluate with.

Refuses a file that is not the one that was declared, and one that is no text: what follows from it would look like any
other number.
"""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Final

from onnx_converter.digest import digest_of_bytes
from onnx_converter.reasons import DATASET_INVALID, DIGEST_MISMATCH, SOURCE_ESCAPES, SOURCE_NOT_FOUND, StepFailedError
from onnx_converter.spec import Metric

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onnx_converter.spec import Dataset

#: The field of the texts.
CALIBRATION: Final = "quantization.calibration"
#: What a ConfigMap can hold.
MOST_BYTES_OF_TEXTS: Final = 1 << 20
MOST_BYTES: Final = 8 << 20
#: Of lines with sounds, about 13 minutes of them.
MOST_BYTES_OF_SOUND: Final = 32 << 20


def most_bytes_of(metric: Metric) -> int:
    return MOST_BYTES_OF_SOUND if metric is Metric.WORD_ERROR_RATE else MOST_BYTES


def examples(dataset: Dataset, root: Path, field: str, most_bytes: int) -> Sequence[tuple[int, str]]:
    """Each in JSON with its number from 1: its line, or its place in the list where the file is one."""
    text, name = _text(dataset, root, field, most_bytes), dataset.file.path
    try:
        if name.endswith(".csv"):
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            return [(reader.line_num, json.dumps(row)) for row in reader]
        if name.endswith(".json") and text.lstrip().startswith("["):
            return [(number, json.dumps(one)) for number, one in enumerate(json.loads(text), 1)]
    except (csv.Error, ValueError, RecursionError, TypeError) as error:
        raise StepFailedError(
            DATASET_INVALID, f"{field}: {dataset.file} is not what its name says: {error}: repair or rename it"
        ) from error
    return _lines(text)


def texts(dataset: Dataset, root: Path, field: str, most_bytes: int = MOST_BYTES_OF_TEXTS) -> Sequence[str]:
    """The lines that say something of the file below `root`."""
    return [text for _, text in _lines(_text(dataset, root, field, most_bytes))]


def _lines(text: str) -> Sequence[tuple[int, str]]:
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _text(dataset: Dataset, root: Path, field: str, most_bytes: int) -> str:
    file = dataset.file
    path = root / dataset.place
    # A key of a ConfigMap is a link to a file beside it; nothing may lead further.
    if not path.resolve().is_relative_to(root.resolve()):
        raise StepFailedError(SOURCE_ESCAPES, f"{field}: {file} is a link that leads out of its volume")
    if not path.is_file():
        raise StepFailedError(SOURCE_NOT_FOUND, f"{field}: {file} does not exist: create it, then change retryToken")
    with path.open("rb") as stream:
        data = stream.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise too_large(dataset, field, most_bytes)
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
    return decoded


def too_large(dataset: Dataset, field: str, most_bytes: int) -> StepFailedError:
    return StepFailedError(
        DATASET_INVALID, f"{field}: {dataset.file} is larger than {most_bytes} bytes: take fewer lines"
    )
