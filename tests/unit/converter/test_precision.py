"""Graphs that compute in 16-bit floats: right on the CPU by detours, and refused where there is none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx import TensorProto, numpy_helper
from safetensors.numpy import load_file, save_file

from checkpoints import ANSWER_LENGTH, WEIGHTS, tiny_decoder, tiny_encoder_decoder, tiny_sentence
from onnx_converter import export, load, precision
from onnx_converter.heads import modules_of, parts_of
from onnx_converter.spec import Provider, Scheme, Task
from unit.converter.test_gate import CPU

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from unit.converter.steps import Line

#: BART's layers look for infinity before they clamp.
MODELS: dict[str, Callable[[Path], Path]] = {
    "an encoder": tiny_sentence,
    "a decoder": lambda folder: tiny_decoder(folder, num_hidden_layers=1),
    "an encoder and a decoder": lambda folder: tiny_encoder_decoder(folder, "bart"),
}
SPEC = {"scheme": "float16", "maxSequenceLength": ANSWER_LENGTH}


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_passes_the_gate_in_float16_in_half_the_space(
    name: str, tmp_path: Path, line: Line
) -> None:
    folder = MODELS[name](tmp_path / "model")
    spec = SPEC if name != "an encoder" else {"scheme": "float16"}
    digest = line.fetch(folder).details["digest"]
    converted = line.convert(digest, **spec)
    assert "so it is smaller there and no faster" in converted.summary.message
    validated = line.validate(digest, **spec).details
    assert 0.98 < float(validated["parity"]["minCosine"]) < 0.9999999, "it was rounded"
    graphs = line.work / "graph" / CPU
    size = sum(path.stat().st_size for path in graphs.iterdir() if path.name.startswith(("model", "weights")))
    numbers = sum(tensor.size for tensor in load_file(folder / WEIGHTS).values())
    assert size < 4 * numbers
    for path in graphs.glob("*.onnx"):
        assert_no_mask_is_so_low_that_less_is_infinite(onnx.load(path))
    golden = json.loads((line.work / f"validation-{CPU}" / "golden.json").read_text())
    for request in golden:
        assert {answer["datatype"] for answer in request["outputs"].values()} == {"FP32"}
        cached = [tensor for name, tensor in request["inputs"].items() if name.startswith("past_key_values")]
        assert {(tensor["datatype"], len(tensor["data"])) for tensor in cached} <= {("FP16", 0)}
    assert line.publish(**spec).details["digest"]


def assert_no_mask_is_so_low_that_less_is_infinite(model: onnx.ModelProto) -> None:
    chosen = {name for node in model.graph.node if node.op_type == "Where" for name in node.input}
    halves = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16]
    lowest = min(numpy_helper.to_array(tensor).item() for tensor in halves if tensor.name in chosen)
    assert lowest == np.finfo(np.float16).min / 2, "there is a mask"
    assert np.isfinite(np.float16(lowest) + np.float16(-30_000))


def test_t5_keeps_in_float32_what_overflows_in_float16(tmp_path: Path) -> None:
    model = load.load(tiny_encoder_decoder(tmp_path / "model"), Task.AUTO, ANSWER_LENGTH, torch.float16).model
    kinds = {name.rpartition(".")[0].rpartition(".")[2]: weight.dtype for name, weight in model.named_parameters()}
    assert (kinds["wo"], kinds["wi"], kinds["k"]) == (torch.float32, torch.float16, torch.float16)


def test_keys_and_values_of_bfloat16_are_float32_at_the_border_and_bfloat16_inside(tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "model", num_hidden_layers=1)
    model = onnx_ir.to_proto(exported(folder, torch.bfloat16))
    border = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert {kind for name, kind in border.items() if "key" in name or "value" in name} == {TensorProto.FLOAT}
    assert border["logits"] == TensorProto.FLOAT
    weights = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    assert weights == {TensorProto.BFLOAT16}
    onnx.checker.check_model(model)


def exported(folder: Path, dtype: torch.dtype) -> onnx_ir.Model:
    checkpoint = load.load(folder, Task.AUTO, None, dtype)
    (part,), (module,) = parts_of(checkpoint), modules_of(checkpoint, folder)
    return export.settle(export.trace(checkpoint, part, module, 18), checkpoint, Provider.CPU)


def test_bfloat16_on_the_cpu_is_refused_before_anything_is_loaded(tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny_decoder(tmp_path / "model")).details["digest"]
    ended = line.convert(digest, scheme="bfloat16")
    assert (ended.summary.reason, ended.summary.outcome) == ("SpecImpossible", "Failed")
    assert "use float16 or none there" in ended.summary.message


def test_a_model_that_overflows_in_float16_is_stopped_and_told_what_to_take(tmp_path: Path, line: Line) -> None:
    folder = tiny_decoder(tmp_path / "model", num_hidden_layers=1)
    tensors = load_file(folder / WEIGHTS)
    for name, factor in (("v_proj", 3e4), ("o_proj", 1 / 3e4)):
        (key,) = (key for key in tensors if name in key)
        tensors[key] = tensors[key] * np.float32(factor)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    digest = line.fetch(folder).details["digest"]
    line.convert(digest, scheme="float16")
    ended = line.validate(digest, scheme="float16")
    assert ended.summary.reason == "NotFinite"
    assert "take bfloat16 or none" in ended.summary.message


@pytest.mark.parametrize("scheme", Scheme)
def test_answers_are_compared_in_what_the_graph_is_told(scheme: Scheme) -> None:
    assert precision.border_of(scheme) == ("float16" if scheme is Scheme.FLOAT16 else "float32")
