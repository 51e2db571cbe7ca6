"""The gate lets a good graph through and stops the ones that converters were seen to emit."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from checkpoints import ROOT, minilm, minilm_moved, tiny, tiny_sentence
from onnx_converter import calibration, evaluate, fetch, parity, quantize, reasons, samples, texts, validate
from onnx_converter.contest import Answers, Candidate, Original
from onnx_converter.digest import sha256_of
from onnx_converter.progress import Progress
from onnx_converter.spec import ConversionSpec, Evaluation, Parity, Provider, Scheme, Task
from unit.converter.steps import Line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


CPU = "CPUExecutionProvider"
EVALUATIONS = ROOT / "examples" / "evaluations.yaml"


def _initializer(model: onnx.ModelProto, *, size: int = 500) -> onnx.TensorProto:
    """A weight matrix of the encoder."""
    return next(
        tensor
        for tensor in reversed(model.graph.initializer)
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
        and len(tensor.dims) == 2
        and np.prod(tensor.dims) > size
    )


def _feed_instead(model: onnx.ModelProto, old: str, new: str, nodes: list[onnx.NodeProto]) -> None:
    """Every reader of one value reads another, which the given nodes make."""
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    made = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(made)


def _after_output(model: onnx.ModelProto, nodes: Callable[[str, str], list[onnx.NodeProto]]) -> None:
    """Nodes between what the graph computed and its output."""
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["computed" if name == output else name for name in node.output]
        node.input[:] = ["computed" if name == output else name for name in node.input]
    model.graph.node.extend(nodes("computed", output))


def _constant(model: onnx.ModelProto, name: str, value: NDArray[Any]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def perturb_a_layer(model: onnx.ModelProto) -> None:
    tensor = _initializer(model)
    values = numpy_helper.to_array(tensor)
    noise = np.random.default_rng(1).normal(0, values.std() / 4, values.shape)
    tensor.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), tensor.name))


def flip_one_weight(model: onnx.ModelProto) -> None:
    tensor = _initializer(model)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 100
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def ignore_the_mask(model: onnx.ModelProto) -> None:
    ones = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["shape_of_ids"]),
        helper.make_node("ConstantOfShape", ["shape_of_ids"], ["mask_of_ones"], value=ones),
    ]
    _feed_instead(model, "attention_mask", "mask_of_ones", nodes)


def ignore_the_token_types(model: onnx.ModelProto) -> None:
    nodes = [helper.make_node("Sub", ["token_type_ids", "token_type_ids"], ["no_types"])]
    _feed_instead(model, "token_type_ids", "no_types", nodes)


def freeze_the_batch_inside(model: onnx.ModelProto) -> None:
    shape = _constant(model, "frozen_shape", np.array([2, -1], np.int64))
    _feed_instead(model, "input_ids", "frozen_ids", [helper.make_node("Reshape", ["input_ids", shape], ["frozen_ids"])])


def answer_nan(model: onnx.ModelProto) -> None:
    nan = _constant(model, "nan", np.array(np.nan, np.float32))
    _after_output(model, lambda computed, output: [helper.make_node("Add", [computed, nan], [output])])


def answer_nan_on_padding(model: onnx.ModelProto) -> None:
    """Divides by the mask: infinite where nobody looks."""
    axes = _constant(model, "last_axis", np.array([-1], np.int64))

    def nodes(computed: str, output: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Cast", ["attention_mask"], ["mask_as_float"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask_as_float", axes], ["mask_by_token"]),
            helper.make_node("Div", [computed, "mask_by_token"], [output]),
        ]

    _after_output(model, nodes)


def drop_a_column(model: onnx.ModelProto) -> None:
    bounds = {"first_column": 0, "end_of_columns": -1, "axis_of_columns": 2}
    names = [_constant(model, name, np.array([value], np.int64)) for name, value in bounds.items()]
    _after_output(model, lambda computed, output: [helper.make_node("Slice", [computed, *names], [output])])


def double_the_answer(model: onnx.ModelProto) -> None:
    """Keeps every cosine."""
    two = _constant(model, "two", np.array(2, np.float32))
    _after_output(model, lambda computed, output: [helper.make_node("Mul", [computed, two], [output])])


Broken = tuple["Callable[[onnx.ModelProto], None]", str, str]
BROKEN: dict[str, Broken] = {
    "a layer's weights are off": (perturb_a_layer, "ParityFailed", "minCosine"),
    "one weight is wrong": (flip_one_weight, "ParityFailed", "tolerance"),
    "the attention mask has no effect": (ignore_the_mask, "InputIgnored", "attention_mask has no effect"),
    "the token types have no effect": (ignore_the_token_types, "InputIgnored", "token_type_ids has no effect"),
    "the batch is frozen inside": (freeze_the_batch_inside, "AxisFrozen", "answers with an error"),
    "it answers NaN": (answer_nan, "NotFinite", "NaN or infinity"),
    "it answers NaN on padding only": (answer_nan_on_padding, "NotFinite", "NaN or infinity"),
    "a column of the answer is missing": (drop_a_column, "ParityFailed", "shape"),
    "the answer is twice as long": (double_the_answer, "ParityFailed", "maxAbsolute"),
}


def _freeze(axis: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for item in model.graph.input:
            item.type.tensor_type.shape.dim[axis].dim_value = 2

    return change


def _set_output_name(model: onnx.ModelProto) -> None:
    _after_output(model, lambda computed, output: [helper.make_node("Identity", [computed], [f"other_{output}"])])
    model.graph.output[0].name = f"other_{model.graph.output[0].name}"


def _half_the_precision(model: onnx.ModelProto) -> None:
    _after_output(
        model, lambda computed, output: [helper.make_node("Cast", [computed], [output], to=TensorProto.FLOAT16)]
    )
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def _foreign_operator(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("mine", 1))
    _after_output(model, lambda computed, output: [helper.make_node("Magic", [computed], [output], domain="mine")])


def _weights_outside(model: onnx.ModelProto) -> None:
    tensor = _initializer(model)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/hostname")


def _input_too_many(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch", "sequence"]))


def _store_twice(model: onnx.ModelProto, *, turned: bool) -> None:
    """A layer of its own for each, as an exporter does that does not know of tied weights."""
    matrix = np.random.default_rng(2).normal(size=(128, 256)).astype(np.float32)
    _constant(model, "table", matrix)
    _constant(model, "head", np.ascontiguousarray(matrix.T) if turned else matrix)


MALFORMED: dict[str, Broken] = {
    "the batch is frozen": (_freeze(0), "AxisFrozen", "froze"),
    "the length is frozen": (_freeze(1), "AxisFrozen", "froze"),
    "the output has another name": (_set_output_name, "GraphRefused", "outputs"),
    "an input too many": (_input_too_many, "GraphRefused", "position_ids"),
    "the output has half the precision": (_half_the_precision, "GraphRefused", "FP32"),
    "an operator no runtime brings": (_foreign_operator, "GraphRefused", "mine::Magic"),
    "weights outside of the folder": (_weights_outside, "GraphRefused", "etc/hostname"),
    "weights stored twice": (lambda model: _store_twice(model, turned=False), "WeightsStoredTwice", "131072 bytes"),
    "weights stored twice, once turned": (
        lambda model: _store_twice(model, turned=True),
        "WeightsStoredTwice",
        "as table and as head",
    ),
    "a newer IR version than the server's": (
        lambda model: setattr(model, "ir_version", 13),
        "RuntimeTooOld",
        "IR version 13",
    ),
}


@dataclass(slots=True)
class Bench:
    """A converted checkpoint whose graph can be swapped for another one, as a wrong converter would have written it."""

    line: Line
    digest: str
    good: bytes = field(repr=False)

    @classmethod
    def of(cls, line: Line, folder: Path) -> Bench:
        digest = line.fetch(folder).details["digest"]
        assert line.convert(digest).summary.reason == "Converted"
        return cls(line, digest, (line.work / "graph" / CPU / "model.onnx").read_bytes())

    def put(self, data: bytes) -> None:
        folder = self.line.work / "graph"
        path = folder / CPU / "model.onnx"
        path.write_bytes(data)
        conversion = json.loads((folder / "conversion.json").read_text())
        conversion["files"][f"{CPU}/model.onnx"] = sha256_of(path)
        conversion["graphs"][CPU]["digest"] = f"sha256:{sha256_of(path)}"
        (folder / "conversion.json").write_text(json.dumps(conversion))

    def put_changed(self, change: Callable[[onnx.ModelProto], None]) -> None:
        model = onnx.load_from_string(self.good)
        change(model)
        self.put(model.SerializeToString())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    return Bench.of(Line(folder / "line"), tiny(folder / "model"))


def test_the_graph_that_the_broken_ones_are_made_from_passes(bench: Bench) -> None:
    bench.put(bench.good)
    assert bench.line.validate(bench.digest).summary.reason == "Validated"


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.replace(" ", "-"))
def test_a_graph_that_answers_otherwise_is_stopped_and_published_by_nobody(case: str, bench: Bench) -> None:
    change, reason, words = BROKEN[case]
    bench.put_changed(change)
    ended = bench.line.validate(bench.digest)
    assert ended.summary.reason == reason, ended.summary.message
    assert words in ended.summary.message
    folder = bench.line.work / f"validation-{CPU}"
    report = json.loads((folder / "report.json").read_text())
    assert (report["verdict"], report["reason"]) == ("Failed", reason)
    assert "Failed" in (folder / "report.html").read_text().split("</title>")[0]
    assert not (folder / "golden.json").exists()
    assert bench.line.publish().summary.reason == "ParityFailed"
    assert not (bench.line.root / "artifacts").exists()


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case.replace(" ", "-"))
def test_a_graph_that_a_server_could_not_take_is_refused_before_it_is_run(case: str, bench: Bench) -> None:
    change, reason, words = MALFORMED[case]
    bench.put_changed(change)
    ended = bench.line.validate(bench.digest)
    assert ended.summary.reason == reason, ended.summary.message
    assert words in ended.summary.message


def test_a_graph_that_is_no_graph_is_refused(bench: Bench) -> None:
    bench.put(b"\x08\x0anonsense")
    assert bench.line.validate(bench.digest).summary.reason == "GraphRefused"


def test_a_graph_that_was_changed_behind_the_converters_back_is_refused(bench: Bench) -> None:
    bench.put(bench.good)
    (bench.line.work / "graph" / CPU / "model.onnx").write_bytes(bench.good + b"\0")
    ended = bench.line.validate(bench.digest)
    assert ended.summary.reason == "ArtifactCorrupt"
    assert f"{CPU}/model.onnx" in ended.summary.message


def test_a_report_of_another_graph_publishes_nothing(bench: Bench) -> None:
    bench.put(bench.good)
    bench.line.validate(bench.digest)
    bench.put_changed(perturb_a_layer)
    ended = bench.line.publish()
    assert ended.summary.reason == "ParityFailed"
    assert "validate this graph" in ended.summary.message


def test_tolerances_of_the_user_replace_those_of_the_scheme(bench: Bench) -> None:
    bench.put(bench.good)
    assert bench.line.validate(bench.digest, {"maxAbsolute": "1e-12"}).summary.reason == "ParityFailed"
    bench.put_changed(perturb_a_layer)
    lax = {"minCosine": "0.01", "maxAbsolute": "1e3", "maxRelative": "1e3"}
    assert bench.line.validate(bench.digest, lax).summary.reason == "Validated"


def test_a_provider_that_this_onnxruntime_lacks_is_told_and_nothing_falls_back(bench: Bench) -> None:
    import onnxruntime  # noqa: PLC0415

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has the provider")
    spec: dict[str, Any] = {"providers": ["CUDAExecutionProvider", CPU]}
    bench.line.convert(bench.digest, **spec)
    ended = bench.line.validate(bench.digest, **spec)
    assert (ended.summary.reason, ended.code) == ("PlacementFailed", 28)
    assert "CUDAExecutionProvider" in ended.summary.message
    assert bench.line.convert(bench.digest).summary.reason == "Converted"


def test_int8_of_a_small_model_passes_by_its_own_tolerance(tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny_sentence(tmp_path / "model")).details["digest"]
    line.convert(digest, scheme="int8-dynamic")
    ended = line.validate(digest, scheme="int8-dynamic")
    assert float(ended.details["parity"]["minCosine"]) < 0.99999, "it was quantised"


# The real MiniLM --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Real:
    """MiniLM and its fp32 graph."""

    original: Original
    graph: Path

    def judge(self, graph: Path, scheme: Scheme) -> validate.Judgement:
        tolerance = parity.tolerance_of(Parity(), scheme, Task.SENTENCE_EMBEDDING)
        return validate.judge(
            self.original,
            Candidate.load([graph], Provider.CPU, is_proved=True),
            tolerance,
            Progress("validate", io.StringIO()),
        )

    def evaluate(self, graph: Path, folder: Path) -> evaluate.Verdict:
        """How well it says how alike the sentences of examples/evaluations.yaml are."""
        pairs, model = yaml.safe_load_all(EVALUATIONS.read_text())
        for name, text in pairs["data"].items():
            (folder / name).write_text(text)
        declared = Evaluation.model_validate(model["spec"]["validation"]["evaluations"][0])
        examples = evaluate.Examples.read(declared, folder, self.original.checkpoint)
        # The one that remembers goes by names of samples, and both sentences of a line have one.
        original = Original(self.original.checkpoint, self.original.wrapper)
        sides = evaluate.asks(original, Candidate.load([graph], Provider.CPU), [])
        return evaluate.judge([examples], sides, Progress("validate", io.StringIO()))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    folder = tmp_path_factory.mktemp("real")
    line = Line(folder / "line")
    digest = line.fetch(minilm(folder / "minilm")).details["digest"]
    assert line.convert(digest).summary.reason == "Converted"
    original = Original.load(folder / "minilm", Task.AUTO, None)
    # Asked each question once.
    return Real(replace(original, answered=Answers(1 << 30)), line.work / "graph" / CPU / "model.onnx")


def test_minilm_in_fp32_is_the_original_to_the_sixth_digit(real: Real) -> None:
    judged = real.judge(real.graph, Scheme.NONE)
    assert judged.reason.name == "Validated", judged.message
    assert judged.total is not None
    assert judged.total.max_absolute < 1e-5
    assert {where for places in judged.coverage.values() for where in places} == {CPU}


#: Half of MiniLM is its table of words.
SHARES = {
    Scheme.INT8_DYNAMIC: 0.27,
    Scheme.INT8_STATIC: 0.27,
    Scheme.INT8_WEIGHT_ONLY: 0.3,
    Scheme.INT4_WEIGHT_ONLY: 0.24,
}


@pytest.mark.parametrize("scheme", SHARES)
def test_minilm_in_every_scheme_passes_and_is_as_small_as_promised(scheme: Scheme, real: Real, tmp_path: Path) -> None:
    requests = calibration.requests(real.original.checkpoint, texts.ALL)
    quantize.quantise(ConversionSpec(scheme=scheme), real.graph, tmp_path / "model.onnx", requests)
    judged = real.judge(tmp_path / "model.onnx", scheme)
    assert judged.reason.name == "Validated", judged.message
    assert (tmp_path / "model.onnx").stat().st_size < SHARES[scheme] * real.graph.stat().st_size
    verdict = real.evaluate(tmp_path / "model.onnx", tmp_path)
    assert verdict.reason is None, verdict.message
    (evaluated,) = verdict.evaluated
    assert evaluated.compared.original.value == pytest.approx(0.867, abs=0.01)
    assert not evaluated.is_shown, "thirty pairs are too few"


def test_minilm_in_the_coarsest_blocks_that_there_are_is_stopped(real: Real, tmp_path: Path) -> None:
    spec = ConversionSpec(scheme=Scheme.INT4_WEIGHT_ONLY, block_size=256, symmetric=True)
    quantize.quantise(spec, real.graph, tmp_path / "model.onnx")
    judged = real.judge(tmp_path / "model.onnx", Scheme.INT4_WEIGHT_ONLY)
    assert judged.reason.name == "ParityFailed", judged.message


def test_minilm_with_every_operator_quantised_is_the_known_disaster_and_is_stopped(real: Real, tmp_path: Path) -> None:
    class Texts(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [sample.tensors for sample in samples.golden_requests(real.original.checkpoint)]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    quantize_static(
        real.graph,
        tmp_path / "model.onnx",
        Texts(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    judged = real.judge(tmp_path / "model.onnx", Scheme.INT8_STATIC)
    assert judged.reason.name == "ParityFailed", judged.message
    verdict = real.evaluate(tmp_path / "model.onnx", tmp_path)
    assert verdict.reason is reasons.QUALITY_LOST, verdict.evaluated
    assert "evaluation sts: stsSpearman is" in verdict.message


def test_the_moved_minilm_looks_healthy_by_itself_and_disagrees_with_the_original(real: Real, tmp_path: Path) -> None:
    folder = minilm_moved(tmp_path / "moved")
    fetch.check_folder(folder)
    moved = Original.load(folder, Task.AUTO, None)
    pair = samples.encode(
        real.original.checkpoint, ("The cat sat on the mat.", "A cat was sitting on a mat."), 64, "right"
    )
    sample = samples.Sample("pair", is_text=True, tensors=pair)
    before, after = (side.answer(sample)["sentence_embedding"] for side in (real.original, moved))
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, atol=1e-5)
    assert after[0] @ after[1] == pytest.approx(before[0] @ before[1], abs=1e-4)
    assert np.abs((before * after).sum(axis=1)).max() < 0.5
