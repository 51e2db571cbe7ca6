"""What a conversion costs, and how fast what comes out of it is beside torch.

    make bench-converter

Writes docs/benchmarks.md. Random weights of real shapes: what is measured here depends on shapes alone. Every step is a
process of its own; torch and the graph answer the same requests in turn, in the same process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import onnxruntime
import torch
import transformers

import checkpoints
from onnx_converter import footprint
from onnx_converter.conversion import Conversion
from onnx_converter.digest import tree_digest
from onnx_converter.fetch import check_folder
from onnx_converter.limits import threads
from onnx_converter.spec import Scheme

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

TARGET: Final = Path(__file__).resolve().parents[3] / "docs" / "benchmarks.md"
#: How long the graph and the original are timed.
SECONDS: Final = 20
#: Weights without meaning are quantised worse than any real ones, and nothing here is judged.
ANYTHING_GOES: Final = {"minCosine": "1e-9", "maxAbsolute": "1e9", "maxRelative": "1e9", "minLabelAgreement": "1e-9"}
GIGABYTE: Final = 1e9
LARGEST: Final = "Llama, 135 M (SmolLM)"
MARIAN: Final = "Marian, 75 M (English to German)"
WHISPER: Final = "Whisper, 38 M (tiny)"
BUILDER: Final = "onnxruntime_genai.models.builder"
#: How often it and a conversion are timed.
TURNS: Final = 3


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint and what is asked of it."""

    make: Callable[[Path], Path]
    schemes: tuple[Scheme, ...]
    #: The shape of request that the targets speak of: new tokens, and those that are past.
    length: int
    past: int = 0


def encoder(width: int, layers: int) -> Callable[[Path], Path]:
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 512,
        "vocab_size": 30_522,
    }
    return lambda folder: checkpoints.tiny(folder, spread=0.02, **sizes)


def llama(width: int, layers: int, heads: int, between: int, vocabulary: int) -> Callable[[Path], Path]:
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 3,
        "intermediate_size": between,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }
    return lambda folder: checkpoints.tiny_decoder(folder, spread=0.02, **sizes)


def two_sided(name: str, width: int, layers: int, vocabulary: int, **more: Any) -> Callable[[Path], Path]:
    side = {"layers": layers, "attention_heads": width // 64, "ffn_dim": 4 * width}
    sizes: dict[str, Any] = {"d_model": width, "vocab_size": vocabulary}
    sizes |= {f"{which}_{what}": size for which in ("encoder", "decoder") for what, size in side.items()}
    return lambda folder: checkpoints.tiny_encoder_decoder(folder, name, spread=0.02, **sizes, **more)


_ENCODED: Final = (Scheme.NONE, Scheme.INT8_DYNAMIC, Scheme.INT8_WEIGHT_ONLY, Scheme.INT4_WEIGHT_ONLY)
_WRITTEN: Final = (Scheme.NONE, Scheme.INT8_DYNAMIC, Scheme.INT8_WEIGHT_ONLY, Scheme.INT4_WEIGHT_ONLY)
CASES: Final = {
    "encoder, 22 M (MiniLM-L6)": Case(encoder(384, 6), _ENCODED, 128),
    "encoder, 109 M (BERT base)": Case(encoder(768, 12), _ENCODED, 128),
    "Llama, 32 M": Case(llama(384, 12, 6, 1024, 32_000), _WRITTEN, 1, 128),
    LARGEST: Case(llama(576, 30, 9, 1536, 49_152), _WRITTEN, 1, 128),
    MARIAN: Case(
        two_sided("marian", 512, 6, 58_101, max_position_embeddings=512), (Scheme.NONE, Scheme.INT8_DYNAMIC), 1, 128
    ),
    WHISPER: Case(
        two_sided("whisper", 384, 4, 51_865, num_mel_bins=80, max_source_positions=1500, max_target_positions=448),
        (Scheme.NONE, Scheme.INT8_DYNAMIC),
        1,
        128,
    ),
}
#: Times torch for a token that a model of two graphs writes.
SECOND: Final = 2.1
#: Times torch, by whether something is written (decoded) or read.
SPEED: Final = {
    True: {Scheme.NONE: 3.5, Scheme.INT8_WEIGHT_ONLY: 6.0, Scheme.INT4_WEIGHT_ONLY: 8.5},
    False: {Scheme.NONE: 2.0, Scheme.INT8_DYNAMIC: 5.0},
}
#: Gigabytes above the imports for the largest, and times the unique weights on disk.
PEAK: Final = {Scheme.NONE: 0.95, Scheme.INT4_WEIGHT_ONLY: 1.0}
DISK: Final = 1.15
COLUMNS: Final = (
    *("checkpoint", "scheme", "speed", "target", "ms", "converting", "peak of convert, GB", "target"),
    *("peak of validate, GB", "planned, GB", "graph on disk", "work folder"),
)
HEAD: Final = f"""# Benchmarks
What a conversion costs, and how fast its graphs are beside torch. `make bench-converter` measures it anew and writes
this page: the section of the machine that it runs on, and no other. The checkpoints have the shapes that they are named
after and random weights, which neither speed nor memory depend on; what quantisation costs in likeness is in
[reference/architectures.md](reference/architectures.md).

- **Speed**: how many times as fast as torch in fp32 with eager attention, medians of one text at a time, both asked in
  turns of some requests in one process for up to {SECONDS} s: for encoders texts of 128 tokens, for all that write one
  token after 128 that are past. How much there is to gain is the processor's: where a few threads of torch do all that
  it can, or wait for memory, nothing can be twice as fast in the same numbers.
- **Peak**: what convert and validate take at most above their imports (0.5 GB), mapped files included, which the kernel
  gives back where memory is short. **Planned**: what the Jobs request where the class names no memory, and by what they
  are refused; imports included.
- **Disk**: of the graph, and of the work folder at its fullest, times the weights of the checkpoint (target: at most
  {DISK}).
"""
#: Of one machine.
SECTION: Final = "\n## "
MEASURED: Final = f"""{{cpu}}
Measured at {{commit}}. Instructions for whole numbers: {{kinds}}; {{threads}} threads for either side, {{memory}} GB of
memory, read by them at {{bandwidth}} GB/s, so that no token of a model with a gigabyte of weights takes less than
{{least}} ms; torch {{torch}}, transformers {{transformers}}, onnxruntime {{onnxruntime}}. {{busy}}

| {" | ".join(COLUMNS)} |
|{"---|" * len(COLUMNS)}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What one variant took; sizes in bytes."""

    case: str
    scheme: Scheme
    seconds: float
    convert: int
    validate: int
    planned: int
    weights: int
    work: int
    graph: int
    cell: Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="only this checkpoint, and write no page")
    parser.add_argument("--scheme", action="append", choices=list(Scheme), help="only this scheme, and write no page")
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    rows, wall = [], ""
    for name, case in CASES.items():
        if asked.case and name not in asked.case:
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = case.make(Path(folder, "checkpoint"))
            for scheme in case.schemes:
                if not asked.scheme or scheme in asked.scheme:
                    rows.append(measure(name, case, scheme, source, Path(folder, scheme)))
                    print(rows[-1], flush=True)
            if name == LARGEST:
                wall = beside_builder(source, Path(folder))
    section = section_of(rows, load) + wall
    print(section)
    if not (asked.case or asked.scheme):
        TARGET.write_text(page_of(section, TARGET.read_text()))
    if missed := [f"{row.case}, {row.scheme}: {what}" for row in rows for what in _missed(row)]:
        sys.exit("\n".join(["not reached:", *missed]))


def measure(name: str, case: Case, scheme: Scheme, source: Path, folder: Path) -> Row:
    digest = tree_digest(check_folder(source))
    spec = json.dumps({"scheme": scheme})
    with Watched(folder / "graph") as disk:
        made = step("convert", "--source-digest", digest, "--spec", spec, checkpoint=source, output=folder / "graph")
    validated = step(
        *("validate", "--graph", str(folder / "graph"), "--provider", "CPUExecutionProvider", "--spec", spec),
        *("--parity", json.dumps(ANYTHING_GOES), "--serving", json.dumps({"threads": threads()})),
        *("--benchmark", str(SECONDS)),
        checkpoint=source,
        output=folder / "validation",
    )
    cells = validated["ended"]["details"]["benchmark"]["cells"]
    weights = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    return Row(
        name,
        scheme,
        made["seconds"],
        made["peak"],
        validated["peak"],
        footprint.peak(footprint.sizes_of(source), scheme),
        weights,
        disk.most,
        next(iter(Conversion.read(folder / "graph").graphs.values())).bytes,
        next(one for one in cells if (one["sequenceLength"], one.get("pastLength", 0)) == (case.length, case.past)),
    )


def step(*flags: str, checkpoint: Path, output: Path) -> dict[str, Any]:
    """What bench.converter.step says of one step."""
    command = [sys.executable, "-m", "bench.converter.step", *flags]
    command += ["--checkpoint", str(checkpoint), "--output", str(output)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found["ended"]["exitCode"]:
        sys.exit(f"{flags[0]}: {found['ended']['message']}")
    return found


def beside_builder(source: Path, folder: Path) -> str:
    """Whole processes of a conversion and of onnxruntime-genai's builder, in turns, with bytecode as in an image."""
    if find_spec(BUILDER.partition(".")[0]) is None:
        return f"\nWall time of a whole conversion beside {BUILDER}: that is not installed.\n"
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    build = [BUILDER, "-m", str(source), "-p", "fp32", "-e", "cpu", "-c", str(folder / "cache")]
    convert = ["onnx_converter", "convert", "--checkpoint", str(source), "--spec", "{}"]
    convert += ["--source-digest", tree_digest(check_folder(source)), "--termination-log", os.devnull]

    def timed(command: list[str]) -> tuple[float, str]:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", *command], check=True, env=environment, capture_output=True, text=True
        )
        return time.perf_counter() - began, done.stdout

    ours, theirs, proofs = list[float](), list[float](), list[float]()
    for turn in range(TURNS + 1):
        seconds, said = timed([*convert, "--output", str(folder / f"turn-{turn}")])
        ours.append(seconds)
        lines = [json.loads(line) for line in said.splitlines()]
        proofs.append(sum(line.get("trialSeconds", 0) + line.get("seconds", 0) for line in lines))
        theirs.append(timed([*build, "-o", str(folder / f"built-{turn}")])[0])
    # The first of each compiled what it imports.
    one, other, proof = (statistics.median(taken[1:]) for taken in (ours, theirs, proofs))
    return (
        f"\nA whole conversion of {LARGEST} to `none`, imports included, takes {one:.1f} s of wall time, {proof:.1f} s "
        f"of it proof (the trial of the route, and the graph as exported and as optimised beside torch); "
        f"{BUILDER} takes {other:.1f} s. Without the proof that is {(one - proof) / other:.2f} times as long.\n"
    )


class Watched:
    """The most that a folder holds while something is done, looked at again and again."""

    def __init__(self, folder: Path) -> None:
        self.most = 0
        self._folder = folder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.05):
            held = 0
            for path in self._folder.rglob("*"):
                try:
                    # What was given back in the middle of a file is no longer taken.
                    held += path.lstat().st_blocks * 512
                except FileNotFoundError:
                    continue  # a step removes what it needs no more
            self.most = max(self.most, held)


def page_of(section: str, before: str) -> str:
    """docs/benchmarks.md, with what is there of other machines."""
    others = [one for one in before.split(SECTION)[1:] if one.partition("\n")[0] != section.partition("\n")[0]]
    return SECTION.join([HEAD, *(one.rstrip() + "\n" for one in (section, *others))])


def section_of(rows: list[Row], load: float) -> str:
    """By the name of the processor."""
    lines = [
        f"| {row.case} | `{row.scheme}` | {float(row.cell['speedup']):.1f} | {_target(_speed_wanted(row), 'at least')} "
        f"| {row.cell['graph']['p50Milliseconds']} | {row.seconds:.0f} s "
        f"| {row.convert / GIGABYTE:.2f} | {_target(_peak_wanted(row), 'at most')} | {row.validate / GIGABYTE:.2f} "
        f"| {row.planned / GIGABYTE:.2f} | {row.graph / row.weights:.2f} | {row.work / row.weights:.2f} |"
        for row in rows
    ]
    busy = (
        f"Other work was done on the machine at the same time (load {load:.1f}): times are longer than they need be, "
        "and the ratios, taken in turn, are what counts."
        if load > 1
        else "Nothing else was done on the machine at the same time."
    )
    return MEASURED.format(busy=busy, **_machine()) + "\n".join(lines) + "\n"


def _target(wanted: float | None, word: str) -> str:
    return "" if wanted is None else f"{word} {wanted:g}"


def _speed_wanted(row: Row) -> float | None:
    if row.case in (MARIAN, WHISPER):
        return SECOND if row.scheme is Scheme.NONE else None
    return SPEED[bool(CASES[row.case].past)].get(row.scheme)


def _peak_wanted(row: Row) -> float | None:
    return PEAK.get(row.scheme) if row.case == LARGEST else None


def _missed(row: Row) -> Iterator[str]:
    """Each target that the row does not reach, and by how much."""
    speed, peak = float(row.cell["speedup"]), row.convert / GIGABYTE
    if (wanted := _speed_wanted(row)) is not None and speed < wanted:
        yield f"{speed:.1f} times as fast instead of {wanted:g}"
    if (wanted := _peak_wanted(row)) is not None and peak > wanted:
        yield f"{peak:.2f} GB at its peak instead of {wanted:g}"
    if (disk := row.work / row.weights) > DISK:
        yield f"{disk:.2f} times the weights on disk instead of {DISK:g}"


def _machine() -> dict[str, Any]:
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    facts = {name.strip(): value.strip() for name, _, value in lines}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIGABYTE
    kinds = ", ".join(
        kind for kind in ("avx2", "avx512_vnni", "avx_vnni", "amx_int8") if kind in facts.get("flags", "").split()
    )
    bandwidth = _bandwidth()
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=TARGET.parent, check=True, capture_output=True, text=True).stdout.strip()
    return {
        "commit": commit,
        "bandwidth": f"{bandwidth / GIGABYTE:.0f}",
        "least": f"{1000 * GIGABYTE / bandwidth:.0f}",
        "cpu": facts.get("model name", platform.machine()),
        "kinds": kinds or "none of them",
        "threads": threads(),
        "memory": f"{memory:.0f}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def _bandwidth() -> float:
    """Bytes a second, of something that no cache holds."""
    torch.set_num_threads(threads())
    numbers, took = torch.ones(1 << 28), []
    for _ in range(5):
        began = time.perf_counter()
        numbers.sum()
        took.append(time.perf_counter() - began)
    return numbers.nbytes / min(took)


if __name__ == "__main__":
    main()
