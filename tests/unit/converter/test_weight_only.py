"""Weights as whole numbers: which layers, in whatever form the exporter left them, and what is left alone."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo
from onnxruntime.quantization import quantize_dynamic

from onnx_converter import blocks, integers, quantize, share, wire
from onnx_converter.reasons import StepFailedError
from onnx_converter.spec import ConversionSpec, Provider

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

WIDTH, WORDS = 48, 40
MATRICES = {
    "square": (WIDTH, WIDTH),
    "table": (WORDS, WIDTH),
    "bias": (WIDTH,),
}


def write(path: Path, layers: Sequence[onnx.NodeProto], matrices: Mapping[str, tuple[int, ...]] = MATRICES) -> Path:
    """A language model of a table of words, the layers, and the same table turned before the logits."""
    random = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(random.standard_normal(shape, dtype=np.float32) / 4, name)
        for name, shape in matrices.items()
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"], name="words"),
        *layers,
        helper.make_node("Transpose", ["table"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["last", "turned"], ["raw"], name="head"),
        helper.make_node("Tanh", ["raw"], ["logits"], name="cap"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["sequence", WORDS])],
        tensors,
    )
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    )
    return path


def answer(path: Path) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input_ids": np.arange(WORDS)})
    return np.asarray(found)


LAYERS = {
    "a product": [helper.make_node("MatMul", ["words", "square"], ["last"], name="layer")],
    "a product and its bias": [helper.make_node("Gemm", ["words", "square", "bias"], ["last"], name="layer")],
    "a turned product and its bias": [
        helper.make_node("Gemm", ["words", "square", "bias"], ["last"], name="layer", transB=1)
    ],
    "a turned product": [helper.make_node("Gemm", ["words", "square"], ["last"], name="layer", transB=1)],
}
#: The layers are nearly all of the file; the table of words is still read.
LARGE = MATRICES | {"up": (WIDTH, 8192), "down": (8192, WIDTH)}
LARGE_LAYERS = [
    helper.make_node("MatMul", ["words", "up"], ["between"], name="up"),
    helper.make_node("MatMul", ["between", "down"], ["last"], name="down"),
]


@pytest.mark.parametrize("form", LAYERS, ids=lambda form: form.replace(" ", "-"))
@pytest.mark.parametrize("scheme", ["int8-weight-only", "int4-weight-only"])
@pytest.mark.parametrize("keeps_head", [True, False])
def test_a_layer_is_quantised_in_whatever_form_it_is_and_the_head_as_asked(
    form: str, scheme: str, tmp_path: Path, *, keeps_head: bool
) -> None:
    source, target = write(tmp_path / "source.onnx", LAYERS[form]), tmp_path / "target.onnx"
    spec = ConversionSpec.model_validate({"scheme": scheme, "keepOutputHead": keeps_head})
    quantize.quantise(spec, source, target)
    onnx.checker.check_model(str(target), full_check=True)
    graph = onnx.load(target).graph
    made = {node.name.rpartition("_Q")[0] for node in graph.node if node.op_type == "MatMulNBits"}
    assert made == ({"layer"} if keeps_head else {"layer", "head"})
    bits = {item.i for node in graph.node if "head" in node.name for item in node.attribute if item.name == "bits"}
    assert bits == (set() if keeps_head else {8})
    assert any(node.op_type == "Transpose" for node in graph.node) == keeps_head
    # Of words in and out the bytes are there once, kept in floats or not.
    assert ("table" in {tensor.name for tensor in graph.initializer}) == keeps_head
    assert len([tensor for tensor in graph.initializer if tensor.dims[0] == WORDS and len(tensor.dims) == 3]) == (
        0 if keeps_head else 1
    )
    np.testing.assert_allclose(answer(target), answer(source), atol=0.05 if "8" in scheme else 0.5)


#: A head whose words are a table's; the same weight in a layer of four bits; a table of columns, and one of two words.
TABLES = {
    "the head's": [helper.make_node("MatMul", ["words", "square"], ["last"], name="layer")],
    "a layer's": [
        helper.make_node("Transpose", ["table"], ["layer_turned"], name="layer_turn", perm=[1, 0]),
        helper.make_node("MatMul", ["words", "layer_turned"], ["scores"], name="layer"),
        helper.make_node("MatMul", ["scores", "table"], ["last"], name="back"),
    ],
    "one of columns": [
        helper.make_node("Gather", ["square", "columns"], ["chosen"], name="chosen", axis=1),
        helper.make_node("MatMul", ["words", "chosen"], ["last"], name="layer"),
    ],
    "one of kinds": [
        helper.make_node("Gather", ["kinds", "kind"], ["of_kind"], name="of_kind"),
        helper.make_node("Add", ["words", "of_kind"], ["added"], name="added"),
        helper.make_node("MatMul", ["added", "square"], ["last"], name="layer"),
    ],
}


def looked_up(path: Path) -> tuple[onnx.ModelProto, NDArray[Any]]:
    """The words' rows as a graph has them, what follows left out."""
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info("words", TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return model, np.asarray(session.run(["words"], {"input_ids": np.arange(WORDS)})[0])


# Of 48 columns the last block of 32 is cut, of 64 the only one.
@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("scheme", ["int8-weight-only", "int4-weight-only"])
@pytest.mark.parametrize("form", TABLES, ids=lambda form: form.replace(" ", "-"))
def test_rows_of_a_table_are_looked_up_in_eight_bits(
    form: str, scheme: str, block: int, tmp_path: Path, *, symmetric: bool
) -> None:
    more = {"kinds": (2, WIDTH)}
    source, target = write(tmp_path / "source.onnx", TABLES[form], MATRICES | more), tmp_path / "target.onnx"
    model = onnx.load(source)
    for name, values in (("kind", np.array([1])), ("columns", np.arange(WIDTH))):
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(model, source)
    spec = ConversionSpec.model_validate({"scheme": scheme, "blockSize": block, "symmetric": symmetric})
    quantize.quantise(spec, source, target)
    _, exact = looked_up(source)
    model, found = looked_up(target)
    assert 0 < np.abs(found - exact).max() < 0.01
    tables = [node for node in model.graph.node if node.op_type == "GatherBlockQuantized"]
    assert len(tables) == (2 if form == "one of kinds" else 1)
    (head,) = (node for node in model.graph.node if node.name == "head_Q8")
    assert head.input[1] == tables[0].input[0], "the bytes are there once"
    assert np.abs(answer(target) - answer(source)).mean() < (0.02 if "8" in scheme else 0.2)
    # Where it is not known whether the kernel is there, rows are looked up in floats.
    quantize.quantise(spec, source, target, provider=Provider.CUDA)
    np.testing.assert_array_equal(looked_up(target)[1], exact)


@pytest.mark.parametrize("form", LAYERS, ids=lambda form: form.replace(" ", "-"))
def test_int8_dynamic_answers_to_the_bit_as_the_graph_that_onnxruntime_itself_would_make(
    form: str, tmp_path: Path
) -> None:
    source, target = write(tmp_path / "source.onnx", LAYERS[form]), tmp_path / "target.onnx"
    model = onnx.load(source)
    matrices = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    # A column of zeros has no scale, and one of tiny numbers none that a float can be divided by.
    matrices["square"][:, 3], matrices["table"][5], matrices["square"][7] = 0, 1e-40, 0
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in matrices.items())
    for node in model.graph.node:
        node.ClearField("name")
    onnx.save(model, source)
    quantize.quantise(ConversionSpec.model_validate({"scheme": "int8-dynamic"}), source, target)
    graph = onnx.load(target).graph
    # Left to onnxruntime the last product would be in floats, by a table that is turned for every token.
    assert {node.op_type for node in graph.node} & {"MatMul", "Gemm", "Transpose"} == set()
    assert len([node for node in graph.node if node.op_type == "MatMulInteger"]) == 2
    assert all(tensor.data_type != TensorProto.FLOAT for tensor in graph.initializer if len(tensor.dims) > 1)
    assert {path.name for path in tmp_path.iterdir()} == {"source.onnx", "target.onnx"}
    (turn,) = (node for node in model.graph.node if node.op_type == "Transpose")
    model.graph.node.remove(turn)
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(matrices["table"].T), "turned"))
    onnx.save(model, source)
    quantize_dynamic(
        source,
        tmp_path / "theirs.onnx",
        op_types_to_quantize=["MatMul", "Gather"],
        per_channel=True,
        reduce_range=True,
    )
    np.testing.assert_array_equal(answer(target), answer(tmp_path / "theirs.onnx"))
    np.testing.assert_allclose(answer(target), answer(source), atol=0.1)


def test_of_a_weight_that_words_in_and_out_share_int8_dynamic_makes_one_for_each(tmp_path: Path) -> None:
    source, target = write(tmp_path / "source.onnx", LAYERS["a product"]), tmp_path / "target.onnx"
    quantize.quantise(ConversionSpec.model_validate({"scheme": "int8-dynamic"}), source, target)
    graph = onnx.load(target).graph
    assert {node.op_type for node in graph.node} & {"MatMul", "Transpose"} == set()
    assert len([node for node in graph.node if node.op_type == "MatMulInteger"]) == 2
    assert all(tensor.data_type != TensorProto.FLOAT for tensor in graph.initializer if len(tensor.dims) > 1)
    assert {path.name for path in tmp_path.iterdir()} == {"source.onnx", "target.onnx"}
    np.testing.assert_allclose(answer(target), answer(source), atol=0.05)


#: The layer is called so in each form; what is excluded, and what is then in whole numbers.
EXCLUDED = {
    "a layer": (["l?yer"], {"head", "words"}),
    "the head, with the words that it shares": (["head"], {"layer"}),
    "what another graph has as well": (["*.dense", "layer"], {"head", "words"}),
}


@pytest.mark.parametrize("form", LAYERS, ids=lambda form: form.replace(" ", "-"))
@pytest.mark.parametrize("case", EXCLUDED, ids=lambda case: case.replace(" ", "-"))
def test_layers_that_int8_dynamic_is_told_to_exclude_multiply_floats(case: str, form: str, tmp_path: Path) -> None:
    source, target = write(tmp_path / "source.onnx", LAYERS[form]), tmp_path / "target.onnx"
    other = onnx.load(source)
    other.graph.node[1].name = "block.dense"
    onnx.save(other, tmp_path / "other.onnx")
    exclude, expected = EXCLUDED[case]
    spec = ConversionSpec.model_validate({"scheme": "int8-dynamic", "exclude": exclude})
    quantize.quantise(spec, source, target, alike=[tmp_path / "other.onnx"])
    onnx.checker.check_model(str(target), full_check=True)
    graph, held = onnx.load(target).graph, {}
    for tensor in graph.initializer:
        held[tensor.name] = tensor.data_type
    layers = {node.name.removesuffix("_quant") for node in graph.node if node.op_type == "MatMulInteger"}
    tables = {node.name for node in graph.node if node.op_type == "Gather" and held[node.input[0]] == TensorProto.UINT8}
    assert layers | tables == expected
    floats = [tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT and tensor.dims]
    assert [name for name in floats if name in ("square", "table")] == (["table"] if "head" in exclude else ["square"])
    np.testing.assert_allclose(answer(target), answer(source), atol=0.1)


NOT_EXCLUDED = {
    "a layer that is not there": (["decoder.*"], (), "'decoder.*' matches no layer; there is layer, head"),
    "what is no layer": (["words"], (), "'words' matches no layer"),
    "every layer": (["*"], (), "leaves none of 2 layers to quantise: use scheme none"),
    "every layer of one graph": (["*"], ("source.onnx",), "use scheme none in quantization.components for that graph"),
}


@pytest.mark.parametrize("case", NOT_EXCLUDED, ids=lambda case: case.replace(" ", "-"))
def test_this_int8_dynamic_cannot_exclude(case: str, tmp_path: Path) -> None:
    exclude, alike, words = NOT_EXCLUDED[case]
    source = write(tmp_path / "source.onnx", LAYERS["a product"])
    spec = ConversionSpec.model_validate({"scheme": "int8-dynamic", "exclude": exclude})
    with pytest.raises(StepFailedError, match=r"^quantization\.exclude") as raised:
        quantize.quantise(spec, source, tmp_path / "target.onnx", alike=[tmp_path / name for name in alike])
    assert raised.value.reason.name == "SpecImpossible"
    assert words in raised.value.message


def test_what_is_not_excluded_leaves_no_trace_in_an_artifact() -> None:
    said = ConversionSpec.model_validate({"scheme": "int8-dynamic"}).model_dump(by_alias=True)
    assert said["exclude"] is None


def test_what_is_no_layer_with_weights_is_left_as_it_is_and_a_graph_without_any_is_refused(tmp_path: Path) -> None:
    layers = [
        helper.make_node("Gemm", ["words", "square", "bias"], ["scaled"], name="scaled", alpha=2.0),
        helper.make_node("MatMul", ["scaled", "square"], ["last"], name="layer"),
    ]
    source, target = write(tmp_path / "source.onnx", layers), tmp_path / "target.onnx"
    quantize.quantise(ConversionSpec.model_validate({"scheme": "int8-weight-only"}), source, target)
    assert [node.op_type for node in onnx.load(target).graph.node if node.name == "scaled"] == ["Gemm"]
    source = write(tmp_path / "source.onnx", [helper.make_node("Relu", ["words"], ["last"], name="layer")])
    spec = ConversionSpec.model_validate({"scheme": "int4-weight-only", "keepOutputHead": True})
    with pytest.raises(StepFailedError, match="no multiplication"):
        quantize.quantise(spec, source, target)


@pytest.mark.parametrize("scheme", ["int4-weight-only", "int8-dynamic"])
def test_the_same_graph_gives_the_same_bytes_however_much_is_rounded_at_a_time(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source.onnx", LAYERS["a turned product and its bias"])
    found = []
    for number, at_once in enumerate((blocks._AT_ONCE, 10 * WIDTH)):
        for module in (blocks, integers):
            monkeypatch.setattr(module, "_AT_ONCE", at_once)
        quantize.quantise(ConversionSpec.model_validate({"scheme": scheme}), source, tmp_path / f"{number}.onnx")
        found.append((tmp_path / f"{number}.onnx").read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("scheme", "matrices"),
    [
        ("int4-weight-only", LARGE),
        ("int8-dynamic", LARGE),
        # Of a table that is read in floats, too, it is when it is written.
        ("int8-weight-only", LARGE | {"table": (32_768, WIDTH)}),
    ],
)
def test_the_last_time_weights_that_nothing_reads_any_more_are_given_back_before_the_graph_is_written(
    scheme: str, matrices: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    spec = ConversionSpec.model_validate({"scheme": scheme})
    found = {}
    for is_last in (False, True):
        folder = tmp_path / str(is_last)
        folder.mkdir()
        source = write(folder / "source.onnx", LARGE_LAYERS, matrices)
        before = source.stat()
        quantize.quantise(spec, source, folder / "target.onnx", is_last=is_last)
        assert source.stat().st_size == before.st_size
        found[is_last] = (folder / "target.onnx").read_bytes(), source.stat().st_blocks / before.st_blocks
    assert found[False][0] == found[True][0]
    assert found[False][1] == 1
    assert found[True][1] < 0.2


@pytest.mark.parametrize("keeps_head", [True, False])
def test_words_that_one_graph_reads_and_another_writes_lie_in_their_file_once(
    tmp_path: Path, *, keeps_head: bool
) -> None:
    spec = ConversionSpec.model_validate({"scheme": "int4-weight-only", "keepOutputHead": keeps_head})
    matrices = MATRICES | {"table": (1024, WIDTH)}
    reader = onnx.load(write(tmp_path / "decoder.onnx", LAYERS["a product"], matrices))
    del reader.graph.node[2:], reader.graph.output[:]
    reader.graph.output.append(helper.make_tensor_value_info("last", TensorProto.FLOAT, ["sequence", WIDTH]))
    onnx.save(reader, tmp_path / "encoder.onnx")
    target = tmp_path / "target"
    target.mkdir()
    weights, places = share.Weights(target), list[set[int]]()
    for name in ("encoder.onnx", "decoder.onnx"):
        quantize.quantise(spec, tmp_path / name, target / name, shared=weights)
        of_words = (one for one in wire.outline(target / name).graph.initializer if one.dims[0] == matrices["table"][0])
        places.append({ExternalDataInfo(tensor).offset for tensor in of_words})
    assert places[0] == places[1]
    assert len(places[0]) == (1 if keeps_head else 3), "the codes, and of each block the scale and the zero"


@pytest.mark.parametrize("scheme", ["int8-weight-only", "int8-dynamic"])
def test_what_graphs_share_is_written_once_and_given_back_only_after_the_last_that_reads_it(
    scheme: str, tmp_path: Path
) -> None:
    spec, names = ConversionSpec.model_validate({"scheme": scheme}), ("first.onnx", "second.onnx")
    whole = write(tmp_path / "whole.onnx", LARGE_LAYERS, LARGE)
    found = {}
    for is_last in (False, True):
        exported, target = tmp_path / f"exported-{is_last}", tmp_path / f"target-{is_last}"
        exported.mkdir()
        target.mkdir()
        weights = share.Weights(exported)
        for name in names:
            weights.write(wire.outline(whole), exported / name, partial(wire.mapped, folder=tmp_path))
        assert (exported / share.FILE).stat().st_size < whole.stat().st_size, "both graphs hold the same"
        before, shared = (exported / share.FILE).stat().st_blocks, share.Weights(target)
        left = []
        for number, name in enumerate(names, 1):
            later = [exported / one for one in names[number:]]
            quantize.quantise(spec, exported / name, target / name, is_last=is_last, later=later, shared=shared)
            left.append((exported / share.FILE).stat().st_blocks / before)
        found[is_last] = {path.name: path.read_bytes() for path in target.iterdir()}
        assert left[0] == 1
        assert left[1] < 0.2 if is_last else left[1] == 1
        np.testing.assert_array_equal(answer(target / names[0]), answer(target / names[1]))
    assert found[False] == found[True]
    assert found[True].keys() == {*names, share.FILE}
    assert found[True][names[0]] == found[True][names[1]]
