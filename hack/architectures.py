"""Writes docs/reference/architectures.md: converts and judges a small checkpoint of every architecture. Minutes.

`PYTHONPATH=tests python hack/architectures.py`. By the gate itself, with the tolerances that users get.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints import DECODERS, SHAPES, tiny, tiny_decoder
from onnx_converter import calibration, export, parity, quantize, texts, validate
from onnx_converter.contest import Candidate, Original
from onnx_converter.progress import Progress
from onnx_converter.spec import ConversionSpec, Parity, Provider, Scheme, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET = Path(__file__).resolve().parents[1] / "docs" / "reference" / "architectures.md"

HEAD = """# Architectures

What this version converts, measured by `make architectures` on small checkpoints with random weights, by the gate
itself and on the CPU. Trained weights may quantise better or worse: your own checkpoint is measured before it is
served, and its revision says what came out.

| architecture | task | scheme | verdict | largest difference | smallest cosine | equal labels or tokens |
|---|---|---|---|---|---|---|
"""


def rows() -> Iterator[str]:
    """One for each architecture, task and scheme."""
    with tempfile.TemporaryDirectory() as name:
        for number, architecture in enumerate(SHAPES):
            for head in ("encoder", "sequence", "token"):
                folder = tiny(Path(name, f"{number}-{head}"), architecture, head)
                yield from _judge(architecture, folder)
        for number, decoder in enumerate(DECODERS):
            yield from _judge(decoder, tiny_decoder(Path(name, f"decoder-{number}"), decoder))


def _judge(architecture: str, folder: Path) -> Iterator[str]:
    original = Original.load(folder, Task.AUTO, None)
    task = original.checkpoint.task
    exported = folder / "exported.onnx"
    export.save(export.export(original.checkpoint, original.wrapper, opset=18), exported)
    quantised = folder / "quantised.onnx"
    for scheme in Scheme:
        if scheme is Scheme.INT8_STATIC and original.checkpoint.cache:
            continue
        if scheme is not Scheme.NONE:
            requests = calibration.requests(original.checkpoint, texts.ALL)
            quantize.quantise(ConversionSpec(scheme=scheme), exported, quantised, requests)
        path = exported if scheme is Scheme.NONE else quantised
        tolerance = parity.tolerance_of(Parity(), scheme, task)
        candidate = Candidate.load(path, Provider.CPU)
        judged = validate.judge(original, candidate, tolerance, Progress("validate", io.StringIO()))
        measured = judged.total
        numbers = (
            ("", "", "")
            if measured is None
            else (
                f"{measured.max_absolute:.1g}",
                f"{measured.min_cosine:.4f}",
                "" if measured.label_agreement is None else f"{measured.label_agreement:.3f}",
            )
        )
        yield f"| {architecture} | `{task}` | `{scheme}` | {judged.reason.name} | {' | '.join(numbers)} |\n"


if __name__ == "__main__":
    TARGET.write_text(HEAD + "".join(rows()))
