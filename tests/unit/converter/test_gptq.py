"""GPTQ: what is moved is made up for, and what comes out is what the graph multiplies by."""

from __future__ import annotations

import shutil
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from checkpoints import ANSWER_LENGTH, tiny_encoder_decoder
from onnx_converter import calibration, convert, gptq, inner, load, products, quantize, texts, wire
from onnx_converter.spec import ConversionSpec, Task
from unit.converter.test_encoder_decoders import GRAPHS, assert_no_weight_lies_twice, folder_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from onnx_converter.load import Checkpoint
    from unit.converter.steps import Line

ROWS, COLUMNS = 72, 24


def weights() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((ROWS, COLUMNS), dtype=np.float32)


def correlated(rows: int = 400) -> NDArray[np.float32]:
    """Inputs such as layers get: a few directions carry nearly all."""
    random = np.random.default_rng(1)
    few = random.standard_normal((rows, 9)) @ random.standard_normal((9, ROWS))
    return (few + 0.05 * random.standard_normal((rows, ROWS))).astype(np.float32)


def error(given: NDArray[np.float32], made: NDArray[np.float32]) -> float:
    exact = given @ weights()
    return float(np.linalg.norm(given @ made - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_what_is_moved_is_made_up_for_by_the_rows_that_are_left(block: int, *, symmetric: bool) -> None:
    given, others = np.split(correlated(), 2)
    plain = gptq.rounded(weights(), np.eye(ROWS), block, symmetric=symmetric).weights(block)
    made = gptq.rounded(weights(), given.T @ given, block, symmetric=symmetric).weights(block)
    assert error(given, made) < 0.4 * error(given, plain)
    assert error(others, made) < 0.5 * error(others, plain), "on inputs that it was not made for"


def test_inputs_that_have_nothing_to_do_with_each_other_leave_plain_rounding() -> None:
    found = gptq.rounded(weights(), np.eye(ROWS), 32, symmetric=False)
    nearest = np.abs(found.weights(32) - weights())
    assert (nearest <= np.repeat(found.scales, 32, axis=0)[:ROWS] * 0.5 + 1e-6).all()


def test_a_row_that_no_input_reaches_moves_nothing_and_breaks_nothing() -> None:
    given = correlated()
    given[:, 5] = 0
    found = gptq.rounded(weights(), given.T @ given, 32, symmetric=False)
    assert np.isfinite(found.weights(32)).all()


def write(path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["given", "weights"], ["first"], name="first"),
        # A product of activations: its inputs are no layer's.
        helper.make_node("Transpose", ["first"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["turned", "first"], ["scores"], name="scores"),
        helper.make_node("MatMul", ["first", "scores"], ["answer"], name="mixed"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("given", TensorProto.FLOAT, ["sequence", ROWS])],
        [helper.make_tensor_value_info("first", TensorProto.FLOAT, ["sequence", COLUMNS])],
        [numpy_helper.from_array(weights(), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def requests() -> list[dict[str, NDArray[Any]]]:
    return [{"given": part} for part in np.split(correlated(), 4)]


# Of 72 rows the last block is cut; of 16 there are five, so that the last zero has a byte of its own.
@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_graph_multiplies_by_what_was_rounded(block: int, tmp_path: Path, *, symmetric: bool) -> None:
    said = {"scheme": "int4-weight-only", "algorithm": "gptq", "blockSize": block, "symmetric": symmetric}
    source, target = write(tmp_path / "source.onnx"), tmp_path / "target.onnx"
    quantize.quantise(ConversionSpec.model_validate(said), source, target, requests())
    model = onnx.load(target)
    for node in model.graph.node:
        for item in node.attribute:
            if item.name == "accuracy_level":
                # In floats, so that only the weights are rounded.
                item.i = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = correlated()
    made = gptq.rounded(weights(), given.T @ given, block, symmetric=symmetric).weights(block)
    np.testing.assert_allclose(session.run(None, {"given": given})[0], given @ made, atol=2e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.onnx", "target.onnx"]


def test_only_what_goes_into_a_layer_that_is_quantised_is_measured(tmp_path: Path) -> None:
    source = write(tmp_path / "source.onnx")
    assert gptq.Inputs.of(source, requests()).names == ["given"]
    model = onnx.load(source)
    square = numpy_helper.from_array(np.eye(COLUMNS, dtype=np.float32), "square")
    model.graph.initializer.append(square)
    for name, perm, given in (("a layer", [1, 0], "first"), ("as it was", [0, 1], "answer")):
        model.graph.node.append(helper.make_node("Transpose", ["square"], [f"{name} turned"], perm=perm))
        model.graph.node.append(helper.make_node("MatMul", [given, f"{name} turned"], [f"{name} answer"], name=name))
    onnx.save(model, source)
    assert gptq.Inputs.of(source, requests()).names == ["given", "first"]
    spec = ConversionSpec.model_validate({"scheme": "int4-weight-only", "algorithm": "gptq"})
    quantize.quantise(spec, source, tmp_path / "target.onnx", requests())
    made = {node.name for node in onnx.load(tmp_path / "target.onnx").graph.node if node.op_type == "MatMulNBits"}
    assert made == {"first_Q4"}


def test_texts_without_an_algorithm_that_reads_them_are_refused() -> None:
    calibration = {"configMap": {"name": "texts", "key": "t"}, "digest": f"sha256:{'a' * 64}"}
    with pytest.raises(ValueError, match="no meaning with algorithm rtn"):
        ConversionSpec.model_validate({"scheme": "int4-weight-only", "calibration": calibration})


def test_an_algorithm_that_is_useless_on_the_cpu_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="slower than none: use rtn or gptq"):
        ConversionSpec.model_validate({"scheme": "int4-weight-only", "algorithm": "hqq"})


class Counted:
    """Requests that are made when they are asked for: how many somebody held at once, and how often all were read."""

    def __init__(self) -> None:
        self.most = self.passes = 0
        self._made: list[weakref.ref[NDArray[np.float32]]] = []

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        self.passes += 1
        for one in requests():
            given = one["given"].copy()
            self._made.append(weakref.ref(given))
            self.most = max(self.most, sum(made() is not None for made in self._made))
            yield {"given": given}


def test_requests_are_read_anew_for_the_next_layers_and_never_held_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source.onnx")
    model = onnx.load(source)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(COLUMNS, dtype=np.float32), "square"))
    model.graph.node.append(helper.make_node("MatMul", ["first", "square"], ["second"], name="second"))
    model.graph.output[0].name = "second"
    onnx.save(model, source)
    spec = ConversionSpec.model_validate({"scheme": "int4-weight-only", "algorithm": "gptq"})
    for passes, held in ((1, gptq._HELD), (2, 1)):
        monkeypatch.setattr(gptq, "_HELD", held)
        counted = Counted()
        quantize.quantise(spec, source, tmp_path / f"{passes}.onnx", counted)
        assert counted.passes == passes
        assert counted.most <= 2, "that which is read, and the one before it"
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()


@dataclass(frozen=True, slots=True)
class Exported:
    """The two graphs of a model in floats."""

    checkpoint: Checkpoint
    graphs: list[Path]

    def written(self, target: Path, *, is_last: bool = False, **said: Any) -> Path:
        spec = ConversionSpec.model_validate({"scheme": "int4-weight-only", **said})
        convert.write_graphs(self.checkpoint, spec, texts.ALL, self.graphs, target, is_last=is_last)
        return target


@pytest.fixture(scope="module", params=["t5", "whisper"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, new_line: Callable[[str], Line]
) -> Exported:
    line = new_line(f"gptq-{request.param}")
    folder = tiny_encoder_decoder(tmp_path_factory.mktemp("models") / "model", request.param)
    digest = line.fetch(folder).details["digest"]
    assert line.convert(digest).code == 0
    return Exported(load.load(line.checkpoint(digest), Task.AUTO, None), [folder_of(line) / name for name in GRAPHS])


def numbers_of(graph: Path) -> dict[str, NDArray[Any]]:
    return {tensor.name: wire.mapped(tensor, graph.parent) for tensor in wire.outline(graph).graph.initializer}


def multiplied_by(graph: Path) -> dict[str, NDArray[np.float32]]:
    """Of each layer in four bits, the floats that its kernel stands for: what it answers to unit vectors."""
    numbers, found = numbers_of(graph), {}
    for node in wire.outline(graph).graph.node:
        layer = node.name.removesuffix("_Q4")
        if node.op_type != "MatMulNBits" or layer == node.name:
            continue
        said = {item.name: helper.get_attribute_value(item) for item in node.attribute} | {"accuracy_level": 1}
        rows, columns = said["K"], said["N"]
        alone = helper.make_graph(
            [helper.make_node(node.op_type, ["given", *node.input[1:]], ["answer"], domain=node.domain, **said)],
            "layer",
            [helper.make_tensor_value_info("given", TensorProto.FLOAT, [rows, rows])],
            [helper.make_tensor_value_info("answer", TensorProto.FLOAT, [rows, columns])],
            [numpy_helper.from_array(np.ascontiguousarray(numbers[name]), name) for name in node.input[1:]],
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(node.domain, 1)]
        model = helper.make_model(alone, opset_imports=opsets, ir_version=10)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found[layer] = session.run(None, {"given": np.eye(rows, dtype=np.float32)})[0]
    return found


def test_every_layer_of_both_graphs_loses_less_than_by_plain_rounding_of_what_texts_bring_to_it(
    exported: Exported, tmp_path: Path
) -> None:
    folders = {algorithm: exported.written(tmp_path / algorithm, algorithm=algorithm) for algorithm in ("rtn", "gptq")}
    for number, source in enumerate(exported.graphs):
        made = {algorithm: multiplied_by(folder / source.name) for algorithm, folder in folders.items()}
        graph, numbers = wire.outline(source).graph, numbers_of(source)
        layers = {node.name: node for node in products.layers_of(graph) if node.name in made["gptq"]}
        assert made["rtn"].keys() == made["gptq"].keys() == layers.keys()
        assert len(layers) > 3
        given = sorted({layer.input[0] for layer in layers.values()})
        session = inner.session_of(source, given)
        lost = {algorithm: dict.fromkeys(layers, 0.0) for algorithm in made}
        for request in calibration.requests(exported.checkpoint, texts.ALL, exported.graphs[: number + 1]):
            rows = dict(zip(given, session.run(given, request), strict=True))
            for name, layer in layers.items():
                for algorithm, weights_of in made.items():
                    moved = rows[layer.input[0]] @ (weights_of[name] - numbers[layer.input[1]])
                    lost[algorithm][name] += float(np.square(moved).sum(dtype=np.float64))
        assert all(lost["gptq"][name] < 0.9 * lost["rtn"][name] for name in layers)


def test_words_and_head_are_one_weight_in_both_graphs_as_with_plain_rounding(
    exported: Exported, tmp_path: Path
) -> None:
    folders = [exported.written(tmp_path / algorithm, algorithm=algorithm) for algorithm in ("rtn", "gptq")]
    sizes = []
    for folder in folders:
        assert_no_weight_lies_twice(folder)
        sizes.append((folder / "weights.data").stat().st_size)
    assert sizes[0] == sizes[1]
    for source in exported.graphs:
        plain, made = (
            {node.name: node for node in wire.outline(folder / source.name).graph.node if node.name.endswith("_Q8")}
            for folder in folders
        )
        assert plain == made
        numbers = [numbers_of(folder / source.name) for folder in folders]
        read = {name for node in plain.values() for name in node.input if name in numbers[0]}
        assert read or source.name != GRAPHS[1]
        assert all(np.array_equal(numbers[0][name], numbers[1][name]) for name in read)


@pytest.mark.parametrize("chosen", ["encoder", "decoder"])
def test_one_graph_has_the_same_weights_beside_a_graph_of_another_scheme(
    chosen: str, exported: Exported, tmp_path: Path
) -> None:
    (other,) = {"encoder", "decoder"} - {chosen}
    whole = exported.written(tmp_path / "whole", algorithm="gptq")
    copied = shutil.copytree(exported.graphs[0].parent, tmp_path / "exported")
    again = Exported(exported.checkpoint, [copied / name for name in GRAPHS])
    # The last time: what the encoder holds is given back no sooner than the decoder was measured.
    part = again.written(
        tmp_path / "part", is_last=True, algorithm="gptq", components={other: {"scheme": "int8-dynamic"}}
    )
    wanted, found = (multiplied_by(folder / f"{chosen}.onnx") for folder in (whole, part))
    assert wanted.keys() == found.keys()
    assert len(wanted) > 3
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)
    assert not multiplied_by(part / f"{other}.onnx")
    assert_no_weight_lies_twice(part)


def test_a_model_of_two_graphs_is_converted_and_passes_the_gate(line: Line) -> None:
    digest = line.fetch(tiny_encoder_decoder(line.root / "source", "bart")).details["digest"]
    asked: dict[str, Any] = {"scheme": "int4-weight-only", "algorithm": "gptq", "maxSequenceLength": ANSWER_LENGTH}
    assert line.convert(digest, **asked).code == 0
    validated = line.validate(digest, **asked)
    assert validated.summary.reason == "Validated", validated.summary.message
