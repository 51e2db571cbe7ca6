"""The same input makes the same artifact: on another kind of processor, and however Python hashes words."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import onnxruntime
import pytest
import torch

from checkpoints import tiny_decoder, tiny_encoder_decoder, tiny_sentence
from onnx_converter import convert, load, ranges, texts
from onnx_converter.digest import sha256_of
from onnx_converter.heads import parts_of
from onnx_converter.spec import ConversionSpec, Provider, Task
from unit.converter.steps import Line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SCHEMES = ("none", "int8-dynamic", "int4-weight-only")
#: Which of its own kernels numpy can do without, it tells nobody by a public name.
NUMPY: Any = importlib.import_module("numpy._core._multiarray_umath")
#: An older processor, to torch, to both libraries that multiply for it, and to numpy.
OLDER: Final = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "NPY_DISABLE_CPU_FEATURES": " ".join(one for one in NUMPY.__cpu_dispatch__ if NUMPY.__cpu_features__[one]),
}


def publish_each(root: Path, source: Path) -> dict[str, Any]:
    """What publish tells, by scheme."""
    told = {}
    for scheme in SCHEMES:
        line = Line(root / scheme)
        digest = line.fetch(source).details["digest"]
        assert line.convert(digest, scheme=scheme).code == 0
        # Weights of chance are about the worst that four bits can meet.
        ended = line.validate(digest, {"minCosine": "0.001", "minLabelAgreement": "0.001"}, scheme=scheme)
        assert ended.code == 0, ended.summary.message
        told[scheme] = line.publish(scheme=scheme).details
    return told


def published(root: Path, source: Path, **environment: str) -> dict[str, Any]:
    """All steps in a process of their own, as libraries look at the processor once."""
    done = subprocess.run(
        [sys.executable, "-c", "from unit.converter import test_same_bytes; test_same_bytes.main()", root, source],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def main() -> None:
    root, source = (Path(argument) for argument in sys.argv[1:])
    told = publish_each(root, source)
    print(json.dumps({"capability": torch.backends.cpu.get_cpu_capability(), "told": told}))  # noqa: T201


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch has no other kernels here")
def test_another_kind_of_processor_measures_other_numbers_and_makes_the_same_artifact(tmp_path: Path) -> None:
    source = tiny_decoder(tmp_path / "source", num_hidden_layers=1)
    ours, older = published(tmp_path / "ours", source), published(tmp_path / "older", source, **OLDER)
    assert ours["capability"] != older["capability"] == "DEFAULT"
    for scheme in SCHEMES:
        one, other = ours["told"][scheme], older["told"][scheme]
        assert one["reportDigest"] != other["reportDigest"], "else nothing was measured otherwise"
        assert one["digest"] == other["digest"]
        stages = [stages_of(tmp_path / side / scheme) for side in ("ours", "older")]
        assert stages[0] != stages[1], "nor on the way to the graph"


def stages_of(root: Path) -> Any:
    conversion = json.loads((Line(root).work / "graph" / "conversion.json").read_text())
    return conversion["graphs"]["CPUExecutionProvider"]["stages"]


class PlainSession(onnxruntime.InferenceSession):  # type: ignore[misc]
    """Every node by a kernel of its own, which adds up in another order than those of several nodes together."""

    def __init__(self, path: Path, sess_options: onnxruntime.SessionOptions | None = None, **rest: Any) -> None:
        options = sess_options or onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        super().__init__(path, options, **rest)


MEASURED: Final[dict[str, tuple[Callable[[Path], Path], str]]] = {
    "an encoder": (tiny_sentence, "uint8"),
    "a decoder": (tiny_decoder, "uint16"),
    "a model of two graphs": (lambda folder: tiny_encoder_decoder(folder, "bart"), "uint8"),
}


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: case.replace(" ", "-"))
def test_other_kernels_measure_other_ranges_and_int8_static_makes_the_same_graphs(
    case: str, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, activations = MEASURED[case]
    digest = line.fetch(build(line.root / "source")).details["digest"]
    assert line.convert(digest).code == 0
    checkpoint = load.load(line.checkpoint(digest), Task.AUTO, None)
    sources = [line.work / "graph" / Provider.CPU / part.file for part in parts_of(checkpoint)]
    spec = ConversionSpec.model_validate({"scheme": "int8-static", "activations": activations})

    def made(name: str) -> dict[str, str]:
        convert.write_graphs(checkpoint, spec, texts.ALL[:8], sources, line.root / name)
        return {path.name: sha256_of(path) for path in (line.root / name).iterdir()}

    def with_every_digit(name: str) -> dict[str, str]:
        with monkeypatch.context() as patch:
            patch.setattr(ranges, "_DIGITS", 24)
            return made(name)

    ours, exact = made("ours"), with_every_digit("exact")
    monkeypatch.setattr(onnxruntime, "InferenceSession", PlainSession)
    assert made("others") == ours
    assert with_every_digit("others-exact") != exact, "else nothing was measured otherwise"


def test_words_that_are_hashed_otherwise_make_the_same_graph(tmp_path: Path) -> None:
    """Gemma 3 turns heads in two ways, by names that transformers has in a set."""
    line = Line(tmp_path)
    digest = line.fetch(tiny_decoder(tmp_path / "source", "gemma3_text")).details["digest"]
    flags = ["--checkpoint", line.checkpoint(digest), "--source-digest", digest, "--spec", "{}"]
    made = set()
    for seed in seeds_of_unlike_order():
        subprocess.run(
            [sys.executable, "-m", "onnx_converter", "convert", *flags, "--output", tmp_path / seed],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        conversion = json.loads((tmp_path / seed / "conversion.json").read_text())
        made.add(conversion["graphs"]["CPUExecutionProvider"]["digest"])
    assert len(made) == 1


def seeds_of_unlike_order() -> Iterable[str]:
    words = [sys.executable, "-c", "print(*{'full_attention', 'sliding_attention'})"]
    seeds = map(str, range(1, 20))
    found = {subprocess.check_output(words, env={**os.environ, "PYTHONHASHSEED": seed}): seed for seed in seeds}
    assert len(found) == 2
    return found.values()
