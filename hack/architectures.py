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

from checkpoints import DECODERS, ENCODER_DECODERS, SHAPES, tiny, tiny_decoder, tiny_encoder_decoder
from onnx_converter import convert, parity, routes, texts, validate
from onnx_converter.contest import Candidate, Original
from onnx_converter.heads import parts_of
from onnx_converter.progress import Progress
from onnx_converter.reasons import VALIDATED
from onnx_converter.spec import ConversionSpec, Parity, Provider, Scheme, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

#: auto is one of the others, and the CPU, on which all is measured here, computes 16 bits in float32 or not at all.
SCHEMES = [scheme for scheme in Scheme if scheme not in (Scheme.AUTO, Scheme.FLOAT16, Scheme.BFLOAT16)]
TARGET = Path(__file__).resolve().parents[1] / "docs" / "reference" / "architectures.md"

HEAD = f"""# Architectures

What this version converts, measured by `make architectures` on small checkpoints with random weights, by the gate
itself and on the CPU. Trained weights may quantise better or worse: your own checkpoint is measured before it is
served, and its revision says what came out.

Any other encoder or language model for texts that transformers has built in is tried in the same way. Nothing is known
of it but what the gate measures on your checkpoint, and its revision says so; what transformers has not built in is
refused, as code of a checkpoint is never run. Of `clip` the encoder for texts is converted, the one for images is not.

Route: how the graph was made. `trace` takes whatever torch can export; `fused-attention` makes attention and rotation
one operator each, where the model lets them be replaced. Under each scheme: the largest difference, the smallest cosine
and, where there are some, the share of equal labels or tokens. The verdict stands before them where it is not
{VALIDATED.name}.

| architecture | task | route | {" | ".join(f"`{scheme}`" for scheme in SCHEMES)} |
|---|---|---|{"---|" * len(SCHEMES)}
"""


def rows(wanted: list[str]) -> Iterator[str]:
    """One for each architecture and task; those that are not wanted stay as they are."""
    before = TARGET.read_text().splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as name:
        for number, architecture in enumerate([*SHAPES, *DECODERS, *ENCODER_DECODERS]):
            if wanted and architecture not in wanted:
                yield from (row for row in before if row.startswith(f"| {architecture} |"))
                continue
            for head in SHAPES[architecture].heads if architecture in SHAPES else ("all",):
                folder = Path(name, f"{number}-{head}")
                if architecture in SHAPES:
                    tiny(folder, architecture, head)
                elif architecture in DECODERS:
                    tiny_decoder(folder, architecture)
                else:
                    tiny_encoder_decoder(folder, architecture)
                yield _judge(architecture, folder)


def _judge(architecture: str, folder: Path) -> str:
    original = Original.load(folder, Task.AUTO, None)
    checkpoint = original.checkpoint
    made = routes.make(checkpoint, folder, folder / "exported", routes.Goal(Provider.CPU, Scheme.NONE, opset=18))
    cells = []
    for scheme in SCHEMES:
        if scheme is Scheme.INT8_STATIC and checkpoint.cache:
            cells.append("")
            continue
        target = folder / scheme
        convert.write_graphs(checkpoint, ConversionSpec(scheme=scheme), texts.ALL, made.folder, target)
        candidate = Candidate.load([target / part.file for part in parts_of(checkpoint)], Provider.CPU)
        tolerance = parity.tolerance_of(Parity(), scheme, checkpoint.task)
        judged = validate.judge(original, candidate, tolerance, Progress("validate", io.StringIO()))
        words = [] if judged.reason is VALIDATED else [judged.reason.name]
        if (measured := judged.total) is not None:
            words += [f"{measured.max_absolute:.1g}", f"{measured.min_cosine:.4f}"]
            words += [] if measured.label_agreement is None else [f"{measured.label_agreement:.3f}"]
        cells.append(", ".join(words))
    return f"| {architecture} | `{checkpoint.task}` | {made.route} | {' | '.join(cells)} |\n"


if __name__ == "__main__":
    TARGET.write_text(HEAD + "".join(rows(sys.argv[1:])))
