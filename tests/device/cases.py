"""What a device is asked: small models by every scheme through the steps as a Job runs them, and what must be told.

Each case gives one row and never raises: on a machine that is lent for minutes, a case that breaks must not hide the
next. No network; versions may be others than the locked ones.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import onnxruntime
import torch

from checkpoints import ANSWER_LENGTH, TINY_LENGTH, tiny, tiny_decoder, tiny_encoder_decoder, tiny_vision
from onnx_converter import parity, quantize, validate
from onnx_converter.contest import Candidate, Loaded, Original
from onnx_converter.heads import parts_of
from onnx_converter.progress import Progress
from onnx_converter.reasons import StepFailedError
from onnx_converter.spec import ConversionSpec, Parity, Provider, Scheme, Task
from unit.converter.steps import Line, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
#: Random weights lose more to four bits than real ones: here it counts that the kernels answer, and that all agree.
_LENIENT: Final = {Scheme.INT4_WEIGHT_ONLY: {"minCosine": "0.3", "minLabelAgreement": "0.1"}}
_LENGTH: Final = 160
_WORDS: Final[dict[str, Any]] = {
    "hidden_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
_GROUPED: Final[dict[str, Any]] = {
    "hidden_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
_BOTH: Final[dict[str, Any]] = {"d_model": 384, "d_kv": 64, "d_ff": 1024, "num_layers": 2, "num_heads": 6}
#: Large enough that a device has something to do, small enough to be exported in seconds.
MODELS: Final[dict[str, Callable[[Path], Path]]] = {
    "bert": lambda folder: tiny(folder, spread=0.08, **_WORDS, max_position_embeddings=_LENGTH),
    "llama": lambda folder: tiny_decoder(
        folder, spread=0.075, **_GROUPED, intermediate_size=1376, max_position_embeddings=_LENGTH
    ),
    "t5": lambda folder: tiny_encoder_decoder(
        folder, spread=0.05, **_BOTH, relative_attention_num_buckets=32, relative_attention_max_distance=128
    ),
    # Its positions come from the length alone, and with them a product that a device might leave to the CPU.
    "modernbert": lambda folder: tiny(folder, "modernbert"),
    "whisper": lambda folder: tiny_encoder_decoder(folder, "whisper"),
    "clip's tower for images": tiny_vision,
}
#: Models that are tiny allow no more, and an image has none.
LENGTHS: Final = {"modernbert": TINY_LENGTH, "whisper": ANSWER_LENGTH, "clip's tower for images": None}
#: What TensorRT is asked: it is for encoders.
ENCODERS: Final = ("bert", "modernbert")
ENGINES: Final = (Scheme.NONE, Scheme.FLOAT16, Scheme.BFLOAT16, Scheme.INT8_STATIC)
SCHEMES: Final = (Scheme.NONE, Scheme.FLOAT16, Scheme.BFLOAT16, Scheme.INT4_WEIGHT_ONLY)


@dataclass(frozen=True, slots=True)
class Row:
    """How one case ended."""

    name: str
    is_good: bool
    told: str
    seconds: float = 0.0
    cells: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Bench:
    """One folder, the provider that is asked, and when to stop."""

    root: Path
    provider: Provider
    #: By the monotonic clock: after it no case begins.
    end: float
    #: For the latencies of each model.
    seconds: float

    def rows(self) -> Iterator[Row]:
        """Every case; those after the end are told to be left out."""
        for name, case in self.cases().items():
            began = time.monotonic()
            if began > self.end:
                yield Row(name, is_good=False, told="left out: no time is left")
                continue
            try:
                row = case()
            except Exception as error:  # noqa: BLE001  the next case may be well
                last = traceback.extract_tb(error.__traceback__)[-1]
                row = Row(name, is_good=False, told=f"{type(error).__name__} in {last.name}: {str(error)[:300]}")
            yield Row(row.name, row.is_good, row.told, time.monotonic() - began, row.cells)

    def cases(self) -> dict[str, Callable[[], Row]]:
        """What matters most comes first: time may end before they do."""
        if self.provider is Provider.TENSORRT:
            engines = {
                f"{model} {scheme}": partial(self.gate, model, scheme) for scheme in ENGINES for model in ENCODERS
            }
            return {**engines, "a device that cannot be started": self.without_device}
        gates = {
            f"{model} {scheme}": partial(self.gate, model, scheme)
            for scheme in SCHEMES
            for model in MODELS
            if (self.provider, scheme) != (Provider.CPU, Scheme.BFLOAT16)
            if model not in LENGTHS or scheme in (Scheme.NONE, Scheme.FLOAT16)
        }
        others: dict[str, Callable[[], Row]] = {
            "nodes without kernels": self.left_behind,
            "a device that cannot be started": self.without_device,
            "llama auto": partial(self.gate, "llama", Scheme.AUTO),
            "t5 with its decoder on the CPU": self.in_two_places,
            "llama by fused attention": self.fused,
            **{f"{model} rounded to ten bits": partial(self.rounded, model) for model in ("bert", "llama", "t5")},
        }
        first = len(MODELS)
        return dict([*list(gates.items())[:first], *others.items(), *list(gates.items())[first:]])

    def gate(self, model: str, scheme: Scheme) -> Row:
        """Through the steps as a Job runs them."""
        name = f"{model} {scheme}"
        line, digest, spec = self.converted(model, scheme)
        ended = run(
            "validate",
            ("--checkpoint", line.checkpoint(digest), "--graph", line.work / "graph", "--provider", self.provider),
            ("--spec", json.dumps(spec), "--parity", json.dumps(_LENIENT.get(scheme, {}))),
            ("--benchmark", self.seconds, "--output", line.work / f"validation-{self.provider}"),
        )
        if ended.summary.outcome != "Succeeded":
            return Row(name, is_good=False, told=f"{ended.summary.reason}: {ended.summary.message[:400]}")
        found = ended.details
        numbers = " ".join(f"{key}={value}" for key, value in found["parity"].items() if value is not None)
        return Row(name, is_good=True, told=f"{numbers} {found['placement']}", cells=_cells(found.get("benchmark", {})))

    def in_two_places(self) -> Row:
        """Eight bits have kernels on the CPU alone."""
        name = "t5 with its decoder on the CPU"
        decoder = {"scheme": "int8-dynamic", "executionProvider": "CPUExecutionProvider"}
        line, digest, spec = self.converted("t5", Scheme.NONE, components={"decoder": decoder})
        ended = line.validate(digest, **spec)
        return Row(name, ended.code == 0, f"{ended.summary.message[:300]} {ended.summary.details.get('placement')}")

    def converted(self, model: str, scheme: Scheme, **more: Any) -> tuple[Line, str, dict[str, Any]]:
        """A line whose graph is there; the checkpoint is made and fetched once."""
        line = Line(self.root / "-".join([model, scheme, *more]))
        if not (self.root / "sources" / model).is_dir():
            MODELS[model](self.root / "sources" / model)
        digest = line.fetch(self.root / "sources" / model).details["digest"]
        spec = {"scheme": scheme, "maxSequenceLength": LENGTHS.get(model, _LENGTH), "providers": [str(self.provider)]}
        spec |= more
        ended = line.convert(digest, **spec)
        assert ended.summary.outcome == "Succeeded", f"{ended.summary.reason}: {ended.summary.message}"
        return line, digest, spec

    def rounded(self, model: str) -> Row:
        """What `none` would be if the device rounded what it multiplies, as it does unless told otherwise."""
        name = f"{model} rounded to ten bits"
        line, digest, _ = self.converted(model, Scheme.NONE)
        original = Original.load(line.checkpoint(digest), Task.AUTO, _LENGTH)
        tolerance = parity.tolerance_of(Parity(), Scheme.NONE, original.checkpoint.task)
        graphs = []
        for part in parts_of(original.checkpoint):
            path = line.work / "graph" / self.provider / part.file
            told = [({"use_tf32": "1"} if self.provider is Provider.CUDA else {})]
            options = onnxruntime.SessionOptions()
            options.enable_profiling, options.profile_file_prefix = True, str(self.root / "profile")
            session = onnxruntime.InferenceSession(path, options, [str(self.provider)], told)
            graphs.append(Loaded.of(path, session, is_profiled=True))
        judged = validate.judge(original, Candidate(self.provider, tuple(graphs)), tolerance, _silent())
        measured = judged.total
        numbers = measured and f"minCosine={measured.min_cosine:.7f} maxRelative={measured.max_relative:.3g}"
        return Row(name, is_good=measured is not None, told=f"{judged.reason.name} {numbers}")

    def fused(self) -> Row:
        """Graphs by the route that is taken on the CPU alone so far: would it be right on a device?"""
        line = Line(self.root / "llama-fused")
        digest = line.fetch(self.root / "sources" / "llama").details["digest"]
        details = line.convert(digest, maxSequenceLength=_LENGTH).details
        original = Original.load(line.checkpoint(digest), Task.AUTO, _LENGTH)
        candidate = Candidate.load([line.work / "graph" / Provider.CPU / "model.onnx"], self.provider, is_proved=True)
        tolerance = parity.tolerance_of(Parity(), Scheme.NONE, original.checkpoint.task)
        judged = validate.judge(original, candidate, tolerance, _silent())
        route = details["graphs"][str(Provider.CPU)]["route"]
        return Row(
            "llama by fused attention",
            is_good=route == "fused-attention",
            told=f"{judged.reason.name}: {judged.message[:300]}",
        )

    def left_behind(self) -> Row:
        """Layers in 8-bit integers have no kernels there, and run on the CPU without a word of onnxruntime."""
        name = "nodes without kernels"
        line, _, _ = self.converted("bert", Scheme.NONE)
        source = line.work / "graph" / self.provider / "model.onnx"
        path = self.root / "int8.onnx"
        quantize.quantise(ConversionSpec(scheme=Scheme.INT8_DYNAMIC), source, path)
        ids = {item.name: torch.ones(1, 8, dtype=torch.long).numpy() for item in onnxruntime_inputs(path)}

        def placed() -> dict[str, dict[str, int]]:
            candidate = Candidate.load([path], self.provider, is_proved=True)
            candidate.graphs[0].run(None, ids)
            return candidate.coverage()

        return _refused(name, placed, wanted="PlacementFailed")

    def without_device(self) -> Row:
        """A node whose device is gone: the session must not be one of the CPU's."""
        name = "a device that cannot be started"
        line, _, _ = self.converted("bert", Scheme.NONE)
        path = line.work / "graph" / self.provider / "model.onnx"
        program = (
            "from pathlib import Path; import sys; from onnx_converter import placement, spec\n"
            "try: placement.session(Path(sys.argv[1]), spec.Provider(sys.argv[2]))\n"
            "except Exception as error: print(getattr(error, 'reason', error).name, error)\n"
            "else: print('a session without a word')"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program, path, self.provider],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        last = (ended.stdout.strip() or ended.stderr.strip() or "nothing").splitlines()[-1]
        return Row(name, is_good=last.startswith(("PlacementFailed", "GraphRefused")), told=last[:400])


def onnxruntime_inputs(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=[str(Provider.CPU)]).get_inputs()


def _refused(name: str, act: Callable[[], object], wanted: str) -> Row:
    try:
        act()
    except StepFailedError as error:
        return Row(name, is_good=error.reason.name == wanted, told=f"{error.reason.name}: {error.message[:300]}")
    return Row(name, is_good=False, told="nothing was told")


def _cells(benchmark: dict[str, Any]) -> list[str]:
    found = [
        f"{cell['batch']} x {cell['sequenceLength']} after {cell.get('pastLength', 0)}: "
        f"{cell['graph']['p50Milliseconds']} ms, torch on {benchmark.get('originalDevice', 'cpu')} "
        f"{cell['original']['p50Milliseconds']} ms, {cell['speedup']} x"
        for cell in benchmark.get("cells", ())
    ]
    return [*found, *([benchmark["message"]] if "message" in benchmark else [])]


def _silent() -> Progress:
    return Progress("validate", io.StringIO())
