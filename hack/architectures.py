"""Writes docs/reference/architectures.md: converts and judges a small checkpoint of every architecture. Minutes.

`PYTHONPATH=tests python hack/architectures.py`. By the gate itself, with the tolerances that users get. With names of
architectures as arguments only their rows are measured anew.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints import DECODERS, SHAPES, tiny, tiny_decoder
from onnx_converter import calibration, export, parity, quantize, texts, validate
from onnx_converter.contest import Candidate, Original
from onnx_converter.progress import Progress
from onnx_converter.reasons import VALIDATED
from onnx_converter.spec import ConversionSpec, Parity, Provider, Scheme, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET = Path(__file__).resolve().parents[1] / "docs" / "reference" / "architectures.md"

HEAD = f"""# Architectures

What this version converts, measured by `make architectures` on small checkpoints with random weights, by the gate
itself and on the CPU. Trained weights may quantise better or worse: your own checkpoint is measured before it is
served, and its revision says what came out.

Any other encoder or language model for texts that transformers has built in is tried in the same way. Nothing is known
of it but what the gate measures on your checkpoint, and its revision says so; what transformers has not built in is
refused, as code of a checkpoint is never run. Of `clip` the encoder for texts is converted, the one for images is not.

Under each scheme: the largest difference, the smallest cosine and, where there are some, the share of equal labels or
tokens. The verdict stands before them where it is not {VALIDATED.name}.

| architecture | task | {" | ".join(f"`{scheme}`" for scheme in Scheme)} |
|---|---|{"---|" * len(Scheme)}
"""


def rows(wanted: list[str]) -> Iterator[str]:
    """One for each architecture and task; those that are not wanted stay as they are."""
    before = TARGET.read_text().splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as name:
        for number, architecture in enumerate([*SHAPES, *DECODERS]):
            if wanted and architecture not in wanted:
                yield from (row for row in before if row.startswith(f"| {architecture} |"))
                continue
            for head in SHAPES[architecture].heads if architecture in SHAPES else ("decoder",):
                folder = Path(name, f"{number}-{head}")
                tiny_decoder(folder, architecture) if head == "decoder" else tiny(folder, architecture, head)
                yield _judge(architecture, folder)


def _judge(architecture: str, folder: Path) -> str:
    original = Original.load(folder, Task.AUTO, None)
    task = original.checkpoint.task
    exported = folder / "exported.onnx"
    export.save(export.export(original.checkpoint, original.wrapper, opset=18), exported)
    cells = []
    for scheme in Scheme:
        if scheme is Scheme.INT8_STATIC and original.checkpoint.cache:
            cells.append("")
            continue
        path = exported if scheme is Scheme.NONE else folder / f"{scheme}.onnx"
        if scheme is not Scheme.NONE:
            requests = calibration.requests(original.checkpoint, texts.ALL)
            quantize.quantise(ConversionSpec(scheme=scheme), exported, path, requests)
        tolerance = parity.tolerance_of(Parity(), scheme, task)
        judged = validate.judge(
            original, Candidate.load(path, Provider.CPU), tolerance, Progress("validate", io.StringIO())
        )
        words = [] if judged.reason is VALIDATED else [judged.reason.name]
        if (measured := judged.total) is not None:
            words += [f"{measured.max_absolute:.1g}", f"{measured.min_cosine:.4f}"]
            words += [] if measured.label_agreement is None else [f"{measured.label_agreement:.3f}"]
        cells.append(", ".join(words))
    return f"| {architecture} | `{task}` | {' | '.join(cells)} |\n"


if __name__ == "__main__":
    TARGET.write_text(HEAD + "".join(rows(sys.argv[1:])))
