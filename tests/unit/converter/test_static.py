"""int8-static: which layers are quantised, on which texts their inputs are measured, and which texts are refused."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from checkpoints import tiny_decoder, tiny_sentence
from onnx_converter import calibration, quantize, ranges, sensitivity, texts
from onnx_converter.reasons import StepFailedError
from onnx_converter.spec import Activations, ConversionSpec, Dataset, Provider

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from unit.converter.steps import Line

WIDTH = 24
LAYERS = ("encoder.layer.0.dense", "encoder.layer.0.output", "encoder.layer.1.dense")


def write(path: Path, opset: int) -> Path:
    """Three layers, one of them with a bias of its own, and a product of two activations."""
    random = np.random.default_rng(0)
    shapes = {"a": (WIDTH, WIDTH), "b": (WIDTH, WIDTH), "c": (WIDTH, WIDTH), "bias": (WIDTH,)}
    nodes = [
        helper.make_node("MatMul", ["given", "a"], ["first"], name=LAYERS[0]),
        helper.make_node("Gemm", ["first", "b", "bias"], ["second"], name=LAYERS[1]),
        helper.make_node("Transpose", ["second"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["second", "turned"], ["scores"], name="scores"),
        helper.make_node("MatMul", ["scores", "second"], ["mixed"], name="mix"),
        helper.make_node("MatMul", ["mixed", "c"], ["answer"], name=LAYERS[2]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("given", TensorProto.FLOAT, ["sequence", WIDTH])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["sequence", WIDTH])],
        [
            numpy_helper.from_array(random.standard_normal(shape, dtype=np.float32) / 4, name)
            for name, shape in shapes.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def requests() -> list[dict[str, NDArray[Any]]]:
    random = np.random.default_rng(1)
    return [{"given": random.standard_normal((length, WIDTH), dtype=np.float32)} for length in (1, 7, 30)]


def quantised(tmp_path: Path, **said: Any) -> Path:
    spec = ConversionSpec.model_validate({"scheme": "int8-static", **said})
    target = tmp_path / "target.onnx"
    quantize.quantise(spec, write(tmp_path / "source.onnx", quantize.opset_of(spec)), target, requests())
    onnx.checker.check_model(str(target), full_check=True)
    return target


def test_for_tensorrt_zero_lies_in_the_middle_of_every_range(tmp_path: Path) -> None:
    source, target = write(tmp_path / "source.onnx", 18), tmp_path / "target.onnx"
    spec = ConversionSpec.model_validate({"scheme": "int8-static", "maxLayerError": "0.5"})
    quantize.quantise(spec, source, target, requests(), provider=Provider.TENSORRT)
    graph = onnx.load(target).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zeros = [constants[node.input[2]] for node in graph.node if node.op_type.endswith("eLinear")]
    assert len(zeros) >= 2 * len(LAYERS)
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    weights = [constants[name] for name in constants if name.endswith("_quantized")]
    assert max(int(np.abs(one).max()) for one in weights) == 127, "all eight bits, as nothing saturates"
    # As it is written: fused, a CPU without VNNI would saturate.
    exact, rounded = answer(source), answer(target, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    assert 0 < np.abs(rounded - exact).max() < 0.1 * np.abs(exact).max()


def answer(
    path: Path, level: onnxruntime.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
) -> NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, requests()[0])[0])


EXCLUDED: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "nothing": ([], ()),
    "one layer": (["encoder.layer.0.output"], LAYERS[1:2]),
    "a block": (["encoder.layer.0.*"], LAYERS[:2]),
    "two patterns": (["*.output", "encoder.layer.?.output", "encoder.layer.1*"], LAYERS[1:]),
}


@pytest.mark.parametrize("activations", ["uint8", "uint16"])
@pytest.mark.parametrize("case", EXCLUDED, ids=lambda case: case.replace(" ", "-"))
def test_every_layer_but_those_excluded_multiplies_what_was_rounded_and_nothing_else_is(
    case: str, activations: str, tmp_path: Path
) -> None:
    exclude, in_floats = EXCLUDED[case]
    target = quantised(tmp_path, activations=activations, **({"exclude": exclude} if exclude else {}))
    graph = onnx.load(target).graph
    makers = {node.output[0]: node for node in graph.node}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    rounded = {
        node.name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm")
        and all(makers[name].op_type == "DequantizeLinear" for name in node.input[:2] if name in makers)
        and node.input[1] in makers
        and makers[node.input[1]].op_type == "DequantizeLinear"
    }
    assert rounded == set(LAYERS) - set(in_floats)
    for node in graph.node:
        if node.name in rounded:
            weights = makers[node.input[1]]
            assert constants[weights.input[0]].data_type == TensorProto.INT8
            assert list(constants[weights.input[1]].dims) == [WIDTH], "a scale for each column"
            zero = constants[makers[node.input[0]].input[2]]
            assert zero.data_type == getattr(TensorProto, activations.upper())
        assert node.op_type != "QuantizeLinear" or node.input[0] in {"given", "first", "mixed"}
    error = (
        np.abs(answer(target) - answer(tmp_path / "source.onnx")).max() / np.abs(answer(tmp_path / "source.onnx")).max()
    )
    assert error < (0.2 if activations == "uint8" else 0.03)


@pytest.mark.parametrize(
    ("provider", "activations", "kind"),
    [
        (Provider.CPU, "uint8", TensorProto.UINT8),
        (Provider.CPU, "uint16", TensorProto.FLOAT),
        (Provider.TENSORRT, "uint8", TensorProto.FLOAT),
        (Provider.QNN, "uint8", TensorProto.FLOAT),
    ],
)
def test_tables_of_words_are_in_eight_bits_on_the_cpu_and_layers_left_out_stay_in_floats(
    provider: Provider, activations: str, kind: int, tmp_path: Path
) -> None:
    spec = ConversionSpec.model_validate({"scheme": "int8-static", "activations": activations, "exclude": [LAYERS[2]]})
    source, target = write(tmp_path / "source.onnx", quantize.opset_of(spec)), tmp_path / "target.onnx"
    model = onnx.load(source)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("words", TensorProto.INT64, ["sequence"]))
    table = np.random.default_rng(2).standard_normal((50, WIDTH), dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    model.graph.node.insert(0, helper.make_node("Gather", ["table", "words"], ["given"], name="look up"))
    onnx.save(model, source)
    asked = {"words": np.arange(50)}
    quantize.quantise(spec, source, target, [asked], provider=provider)
    assert [path.name for path in tmp_path.iterdir() if path != source] == [target.name]
    graph = onnx.load(target).graph
    held = {tensor.name: tensor.data_type for tensor in graph.initializer}
    (looked_up,) = (node for node in graph.node if node.op_type == "Gather")
    assert held[looked_up.input[0]] == kind
    assert held["c"] == TensorProto.FLOAT
    exact, rounded = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, asked)[0]
        for path in (source, target)
    )
    assert 0 < np.abs(rounded - exact).max() < 0.2 * np.abs(exact).max()


HEAD = "lm_head"
#: Provider, what is said, layers that stay in floats, types of the table that words are looked up in and of the head's
#: weight.
TIED: dict[str, tuple[Provider, dict[str, Any], tuple[str, ...], int, int]] = {
    "both": (Provider.CPU, {}, (), TensorProto.UINT8, TensorProto.INT8),
    "the head": (Provider.QNN, {}, (), TensorProto.FLOAT, TensorProto.INT8),
    "neither, excluded": (Provider.CPU, {"exclude": [HEAD]}, (), TensorProto.FLOAT, TensorProto.FLOAT),
    "neither, moved too far": (Provider.CPU, {"maxLayerError": "0.02"}, (HEAD,), TensorProto.FLOAT, TensorProto.FLOAT),
}


def write_with_head(path: Path) -> Path:
    """The layers between a table of words and a head that has the same weight, turned."""
    model = onnx.load(write(path, 18))
    matrices = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    matrices["table"] = np.random.default_rng(2).standard_normal((50, WIDTH), dtype=np.float32)
    # One larger number that goes into the head leaves fewer steps for the others; what meets it is smaller.
    matrices["c"][:, 0] *= 4
    matrices["table"][:, 0] /= 4
    del model.graph.initializer[:], model.graph.output[:]
    model.graph.initializer.extend(numpy_helper.from_array(matrix, name) for name, matrix in matrices.items())
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("words", TensorProto.INT64, ["sequence"]))
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["sequence", 50]))
    model.graph.node.insert(0, helper.make_node("Gather", ["table", "words"], ["given"], name="look up"))
    model.graph.node.append(helper.make_node("Transpose", ["table"], ["read"], name="turn the table", perm=[1, 0]))
    model.graph.node.append(helper.make_node("MatMul", ["answer", "read"], ["logits"], name=HEAD))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("case", TIED, ids=lambda case: case.replace(" ", "-"))
def test_a_head_that_is_the_table_of_words_is_a_layer_and_in_floats_they_lie_there_once(
    case: str, tmp_path: Path
) -> None:
    provider, said, moved, table, weight = TIED[case]
    source, target = write_with_head(tmp_path / "source.onnx"), tmp_path / "target.onnx"
    spec = ConversionSpec.model_validate({"scheme": "int8-static", **said})
    asked = {"words": np.arange(50)}
    assert set(quantize.quantise(spec, source, target, [asked], provider=provider)) == set(moved)
    assert {path.name for path in tmp_path.iterdir()} == {source.name, target.name}
    onnx.checker.check_model(str(target), full_check=True)
    graph = onnx.load(target).graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    readers = {node.name: node for node in graph.node}
    makers = {node.output[0]: node for node in graph.node}
    read = makers[readers[HEAD].input[1]].input[0]
    assert (held[readers["look up"].input[0]].data_type, held[read].data_type) == (table, weight)
    words = [tensor for tensor in held.values() if 50 in tensor.dims and WIDTH in tensor.dims]
    assert len(words) == (1 if table == weight else 2)
    exact, rounded = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, asked)[0]
        for path in (source, target)
    )
    assert 0 < np.linalg.norm(rounded - exact) < 0.05 * np.linalg.norm(exact)


def test_a_layer_that_rounding_moves_too_far_stays_in_floats_and_is_named(tmp_path: Path) -> None:
    spec = ConversionSpec.model_validate({"scheme": "int8-static", "maxLayerError": "0.05"})
    source, target = write(tmp_path / "source.onnx", 18), tmp_path / "target.onnx"
    model = onnx.load(source)
    matrices = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    # One large weight in each column leaves few steps for the others; what meets it is small, so that they count.
    matrices["b"][0] *= 500
    matrices["a"][:, 0] /= 500
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(matrices[tensor.name], tensor.name))
    onnx.save(model, source)
    sensitive = quantize.quantise(spec, source, target, requests())
    assert set(sensitive) == {LAYERS[1]}
    assert sensitive[LAYERS[1]] > 0.05
    makers = {node.output[0]: node for node in onnx.load(target).graph.node}
    (gemm,) = (node for node in makers.values() if node.name == LAYERS[1])
    assert all(makers[name].op_type != "DequantizeLinear" for name in gemm.input if name in makers)
    strict = spec.model_copy(update={"max_layer_error": 1e-6})
    with pytest.raises(StepFailedError, match=r"maxLayerError 1e-06 leaves no layer .* allow more"):
        quantize.quantise(strict, source, tmp_path / "none.onnx", requests())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("inner-")]


@pytest.mark.parametrize("layer", LAYERS)
def test_the_error_of_a_layer_is_that_of_a_graph_in_which_it_alone_is_quantised(layer: str, tmp_path: Path) -> None:
    target = quantised(tmp_path, exclude=[other for other in LAYERS if other != layer])
    source = tmp_path / "source.onnx"
    output = next(node.output[0] for node in onnx.load(target).graph.node if node.name == layer)
    before, after = (_outputs_of(path, output) for path in (source, target))
    measured = ranges.of(source, ["given", "first", "mixed"], requests())
    found = sensitivity.errors(source, [layer], requests(), measured, Activations.UINT8)[layer]
    assert found == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=0.05)


def _outputs_of(path: Path, name: str) -> NDArray[Any]:
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, request)[0].ravel() for request in requests()])


def test_the_same_graph_and_texts_give_the_same_bytes(tmp_path: Path) -> None:
    assert quantised(tmp_path).read_bytes() == quantised(tmp_path).read_bytes()


def test_other_texts_give_another_graph(tmp_path: Path) -> None:
    source, spec = write(tmp_path / "source.onnx", 18), ConversionSpec.model_validate({"scheme": "int8-static"})
    for number, given in enumerate((requests(), [{"given": 9 * one["given"]} for one in requests()])):
        quantize.quantise(spec, source, tmp_path / f"{number}.onnx", given)
    assert (tmp_path / "0.onnx").read_bytes() != (tmp_path / "1.onnx").read_bytes()


@pytest.mark.parametrize("exclude", [[], [LAYERS[0]]], ids=["nothing", "a-layer-of-this-graph"])
def test_other_graphs_are_not_read_where_no_pattern_asks_for_them(exclude: list[str], tmp_path: Path) -> None:
    source, target = write(tmp_path / "source.onnx", 18), tmp_path / "target.onnx"
    spec = ConversionSpec.model_validate({"scheme": "int8-static", "exclude": exclude})
    quantize.quantise(spec, source, target, requests(), alike=[tmp_path / "nowhere.onnx"])
    assert target.is_file()


REFUSED = {
    "a layer that is not there": (["encoder.layer.0.*", "decoder.*"], "'decoder.*' matches no layer; there is encoder"),
    "what is no layer": (["scores"], "'scores' matches no layer"),
    "every layer": (["*"], "leaves none of 3 layers"),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.replace(" ", "-"))
def test_excluding_this_is_refused_by_the_pattern(case: str, tmp_path: Path) -> None:
    exclude, words = REFUSED[case]
    with pytest.raises(StepFailedError, match=words.replace("*", r"\*")):
        quantised(tmp_path, exclude=exclude)


def declared(data: bytes, **changes: Any) -> Dataset:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return Dataset.model_validate(
        {"configMap": {"name": "texts", "key": "calibration.txt"}, "digest": digest} | changes
    )


def as_the_kubelet_lays_it_out(root: Path, data: bytes) -> None:
    (root / "..data").mkdir(parents=True)
    (root / "..data" / "calibration.txt").write_bytes(data)
    (root / "calibration.txt").symlink_to("..data/calibration.txt")


def test_a_text_a_line_is_read_and_without_any_declared_those_of_the_image(tmp_path: Path) -> None:
    data = "\ufeffWhere is my parcel?\r\n\n  東京は今日も雨です。 \nok".encode()
    as_the_kubelet_lays_it_out(tmp_path, data)
    assert calibration.read(declared(data), tmp_path) == ["Where is my parcel?", "東京は今日も雨です。", "ok"]
    assert calibration.read(None, tmp_path / "nowhere") == texts.ALL
    assert "huggingFace" not in declared(data).model_dump(by_alias=True), "artifacts stay as they were"


def _put(data: bytes) -> Callable[[Path], None]:
    return lambda root: as_the_kubelet_lays_it_out(root, data)


FAULTS: dict[str, tuple[Callable[[Path], Any], bytes, str, str]] = {
    "no volume": (lambda _root: None, b"", "SourceNotFound", "key 'calibration.txt' of ConfigMap texts does not exist"),
    "no such key": (lambda root: root.mkdir(), b"", "SourceNotFound", "then change retryToken"),
    "a folder": (lambda root: (root / "calibration.txt").mkdir(parents=True), b"", "SourceNotFound", "does not exist"),
    "other texts": (
        _put(b"other"),
        b"ok",
        "DigestMismatch",
        "has digest sha256:d9298a10d1b0735837dc",
    ),
    "a megabyte and more": (_put(b"a" * ((1 << 20) + 1)), b"", "DatasetInvalid", "larger than 1048576 bytes"),
    "no text": (_put(b"\n \n"), b"\n \n", "DatasetInvalid", "holds 0 texts"),
    "too many texts": (_put(b"a\n" * 1025), b"a\n" * 1025, "DatasetInvalid", "holds 1025 texts"),
    "a picture": (_put(b"\x89PNG\r\n"), b"\x89PNG\r\n", "DatasetInvalid", "not UTF-8"),
    "zeros": (_put(b"a\0b"), b"a\0b", "DatasetInvalid", "is binary"),
}


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.replace(" ", "-"))
def test_a_file_that_is_no_list_of_texts_is_refused_by_its_field(case: str, tmp_path: Path) -> None:
    spoil, data, reason, words = FAULTS[case]
    spoil(tmp_path / "mount")
    with pytest.raises(StepFailedError) as raised:
        calibration.read(declared(data), tmp_path / "mount")
    assert raised.value.reason.name == reason
    assert raised.value.message.startswith("quantization.calibration: ")
    assert words in raised.value.message


def test_a_file_on_a_claim_may_not_be_a_link_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "claim").mkdir()
    (tmp_path / "secret").write_text("ok")
    (tmp_path / "claim" / "texts").symlink_to("../secret")
    said = declared(b"ok", configMap=None, persistentVolumeClaim={"claimName": "shop", "path": "texts"})
    with pytest.raises(StepFailedError, match="file 'texts' of claim shop is a link that leads out"):
        calibration.read(said, tmp_path / "claim")


def test_a_checkpoint_is_measured_on_declared_texts_and_its_layers_are_called_as_its_weights(
    tmp_path: Path, line: Line
) -> None:
    digest = line.fetch(tiny_sentence(tmp_path / "model")).details["digest"]
    data = "\n".join(texts.MEDIUM).encode()
    as_the_kubelet_lays_it_out(tmp_path / "texts", data)
    said: dict[str, Any] = {
        "scheme": "int8-static",
        "activations": "uint16",
        "exclude": ["encoder.layer.0.*"],
        "calibration": declared(data).model_dump(mode="json", by_alias=True, exclude_none=True),
    }
    ended = line.convert(digest, "--calibration-root", str(tmp_path / "texts"), **said)
    assert ended.details["graphs"]["CPUExecutionProvider"]["opset"] == 21
    graph = onnx.load(line.work / "graph" / "CPUExecutionProvider" / "model.onnx").graph
    rounded = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = {node.name for node in graph.node if node.op_type in ("MatMul", "Gemm") and rounded & set(node.input)}
    parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    assert layers == {f"encoder.layer.1.{part}" for part in (*parts, "intermediate.dense", "output.dense")}
    written = json.loads((line.work / "graph" / "conversion.json").read_text())
    assert written["spec"]["calibration"]["digest"] == said["calibration"]["digest"]
    validated = line.validate(digest, **said)
    assert validated.summary.reason == "Validated", validated.summary.message


def test_a_language_model_is_packed_for_an_npu_and_none_for_tensorrt(tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny_decoder(tmp_path / "model", "gpt2", n_layer=1)).details["digest"]
    spec: dict[str, Any] = {"scheme": "int8-static", "exclude": ["*.mlp.*"], "providers": [str(Provider.QNN)]}
    assert line.convert(digest, **spec).code == 0
    graph = onnx.load(line.work / "graph" / Provider.QNN / "model.onnx").graph
    rounded = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = {node.name for node in graph.node if node.op_type in ("MatMul", "Gemm") and rounded & set(node.input)}
    assert layers == {"transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj", quantize.head_of(graph)}
    ended = line.validate(digest, **spec)
    assert ended.summary.reason == "Validated", ended.summary.message
    assert "past_key_values.0.key, past_key_values.0.value are fixed" in ended.summary.message
    ended = line.convert(digest, scheme="int8-static", providers=[str(Provider.TENSORRT)])
    assert (ended.summary.reason, ended.code) == ("SpecImpossible", 24)
    assert "a shape that no engine is built for; use CUDAExecutionProvider" in ended.summary.message
