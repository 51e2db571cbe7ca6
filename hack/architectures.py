"""Writes docs/reference/architectures.md of what the tests of every architecture measure. Minutes.

`make architectures`. By the gate itself, with the tolerances that users get.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import architectures

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("conversion", "decoders", "encoder_decoders", "images", "speech")
#: Of each file the test that keeps rows.
WANTED = "agrees_with_torch or every_scheme or every_architecture"

HEAD = f"""# Architectures

What this version converts, as the tests measure it on small checkpoints with random weights, by the gate itself and on
the CPU; `make test` leaves the same table beside its reports, and `make architectures` writes this page. Trained
weights may quantise better or worse: your own checkpoint is measured before it is served, and its revision says what
came out.

Any other encoder or language model for texts, any other that reads a text and writes one (Blenderbot, M2M-100 with
NLLB), and any other classifier of images, that transformers has built in is tried in the same way. Nothing is known of
it but what the gate measures on your checkpoint, and its revision says so; what transformers has not built in is
refused, as code of a checkpoint is never run. A whole `clip` is two models, one
for each task: `image-feature-extraction` takes the encoder for images, `sentence-embedding` and `auto` the one for
texts. Of a whole `siglip` the encoder for images is converted.

Layers of **experts** (`mixtral`, `qwen2_moe`, `qwen3_moe`; OLMoE, GLM-4, DeepSeek-V3, PhiMoE, Granite, gpt-oss and
their like are tried): with `fused-attention`, on the CPU, each is one operator, which asks only the experts that a
token is routed to, and its weights are in whole numbers in every scheme that quantises; the router's are not. With
`trace` all experts are asked for every token, which is right and slow, and such a graph is `none`, `float16` or
`bfloat16`: other schemes are refused. Rounding sends tokens that are undecided to another expert, and their vectors
become others, here, where experts have nothing in common, wholly so. So where anything is rounded what is written
decides, and `minCosine` only if you ask for it. Of a small Mixtral that had read some prose `int8-dynamic` writes 96 %
of the same tokens and loses 0.3 % of perplexity, with vectors down to a cosine of 0.50.

Routes: the ways to a graph that passed. `trace` takes whatever torch can export; `fused-attention` makes attention and
rotation one operator each, where the model lets them be replaced, and does not cover `float16`. The one in bold is
taken; every other that covers the model was tried alone, with `none`, by the same gate, and one that did not pass has
the reason beside it. A route that does not cover a model is not tried and not named. Under each scheme: the largest
difference, the smallest cosine and, where there are some, the share of equal labels or tokens. The verdict stands
before them where it is not {architectures.VALIDATED}.

"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {architectures.FOLDER: folder}
        tests = [f"tests/unit/converter/test_{name}.py" for name in TESTS]
        command = [sys.executable, "-m", "pytest", "-n2", "-k", WANTED, *tests]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        architectures.PAGE.write_text(HEAD + architectures.table(architectures.rows(Path(folder))))


if __name__ == "__main__":
    main()
