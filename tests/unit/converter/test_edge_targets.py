"""Graphs for devices outside of the cluster: checked against the tables of their makers, packed, and run nowhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from checkpoints import tiny_sentence
from onnx_converter import targets
from onnx_converter.reasons import StepFailedError
from onnx_converter.spec import ConversionSpec, Provider
from unit.converter.steps import Ended, Line, run

if TYPE_CHECKING:
    from collections.abc import Callable

CPU = Provider.CPU
CUDA = Provider.CUDA
DML = Provider.DML
COREML = Provider.COREML
WEBGPU = Provider.WEBGPU
OPENVINO = Provider.OPENVINO
QNN = Provider.QNN


def a_graph(
    folder: Path, operator: str, *types: int, opset: int = 18, domain: str = "", answers: int = TensorProto.FLOAT
) -> Path:
    inputs = [helper.make_tensor_value_info(f"x{place}", kind, ["n", 4]) for place, kind in enumerate(types)]
    node = helper.make_node(operator, [one.name for one in inputs], ["y"], domain=domain)
    output = helper.make_tensor_value_info("y", answers, None)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", inputs, [output]), opset_imports=imports), path)
    return path


F32, F64, INT64, BOOL = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.BOOL


@pytest.mark.parametrize(
    ("provider", "operator", "types", "options", "why"),
    [
        pytest.param(DML, "Add", (F32, F32), {}, None, id="known"),
        pytest.param(DML, "Add", (F64, F64), {"answers": F64}, "of double is not in the table", id="of another type"),
        pytest.param(DML, "Equal", (BOOL, BOOL), {"answers": BOOL}, "of bool is not in the table", id="of bool"),
        pytest.param(DML, "Cos", (F32,), {"opset": 21}, None, id="the newest operator set"),
        pytest.param(
            DML, "Gelu", (F32,), {"opset": 20}, "is not in the table", id="of onnx and only known of ort's own"
        ),
        pytest.param(DML, "Gelu", (F32,), {"domain": "com.microsoft"}, None, id="of ort's own"),
        pytest.param(
            DML, "IsInf", (F32,), {"opset": 20, "answers": BOOL}, None, id="of a newer version that is listed"
        ),
        pytest.param(WEBGPU, "ReduceMax", (F32,), {"opset": 20}, None, id="a range that ends and the version after it"),
        pytest.param(DML, "Size", (F32,), {"opset": 18, "answers": INT64}, None, id="an end that is open"),
        pytest.param(COREML, "Where", (BOOL, F32, F32), {"opset": 23}, None, id="a table without versions"),
        pytest.param(COREML, "IsInf", (F32,), {"answers": BOOL}, "is not in the table", id="not there at all"),
        pytest.param(WEBGPU, "Max", (F32, F32), {}, "is not in the table", id="not there either"),
        pytest.param(OPENVINO, "LayerNormalization", (F32, F32), {}, None, id="a version that a reader is for"),
        pytest.param(OPENVINO, "Cast", (F32,), {"opset": 21}, None, id="a version that an older reader takes"),
        pytest.param(OPENVINO, "IsInf", (F32,), {"answers": BOOL}, "is not in the table", id="read and not given"),
        pytest.param(QNN, "PRelu", (F32, F32), {}, None, id="listed by another spelling"),
        pytest.param(QNN, "Erf", (F32,), {}, "is not in the table", id="not on the page"),
    ],
)
def test_a_node_falls_back_where_the_table_does_not_know_it(
    *,
    provider: Provider,
    operator: str,
    types: tuple[int, ...],
    options: dict[str, Any],
    why: str | None,
    tmp_path: Path,
) -> None:
    found = targets.check([a_graph(tmp_path, operator, *types, **options)], provider)
    assert found.fallbacks == ({} if why is None else {operator: why})
    assert found.coverage == {operator: {str(provider if why is None else CPU): 1}}
    assert (found.fallen, found.nodes) == (why is not None, 1)


def test_an_open_end_stands_for_the_versions_of_its_time(tmp_path: Path) -> None:
    # Version 19 of Size is listed, and so is 21; of 20 there is none, and 23 came later.
    kernels = targets.table_of(DML).kernels["ai.onnx", "Size"]
    assert [any(one.is_for(since) for one in kernels) for since in (13, 19, 20, 21, 23)] == [True] * 2 + [
        False,
        True,
        False,
    ]
    listed = targets.table_of(WEBGPU).kernels["ai.onnx", "Cast"]
    assert [any(one.is_for(since) for one in listed) for since in (13, 18, 19, 21, 23)] == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("provider", "operator", "types", "options", "message"),
    [
        pytest.param(
            DML, "Add", (F32, F32), {"opset": 23}, "opset 23 is above 21, the newest of Dml", id="a newer opset"
        ),
        pytest.param(
            OPENVINO,
            "Add",
            (F32, F32),
            {"opset": 24},
            "opset 24 is above 23, the newest of Open",
            id="a still newer one",
        ),
        pytest.param(
            COREML,
            "MatMulInteger",
            (TensorProto.INT8, TensorProto.INT8),
            {"answers": TensorProto.INT32},
            "MatMulInteger is not in the table of CoreMLExecutionProvider",
            id="products that fall back",
        ),
        pytest.param(
            QNN,
            "MatMulInteger",
            (TensorProto.INT8, TensorProto.INT8),
            {"answers": TensorProto.INT32},
            r"MatMulInteger is not in the table of QNNExecutionProvider \(docs/execution-providers/QNN",
            id="products that no NPU takes",
        ),
        pytest.param(
            OPENVINO,
            "MultiHeadAttention",
            (F32, F32, F32),
            {"domain": "com.microsoft"},
            "MultiHeadAttention is not in the table of OpenVINOExecutionProvider",
            id="attention that nobody reads",
        ),
    ],
)
def test_a_graph_that_the_device_is_no_device_for_is_refused(
    *, provider: Provider, operator: str, types: tuple[int, ...], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(StepFailedError, match=f"{message}.*, or leave .* out$"):
        targets.check([a_graph(tmp_path, operator, *types, **options)], provider)


@pytest.mark.parametrize(("provider", "opset"), [(DML, 21), (WEBGPU, 21), (COREML, None), (OPENVINO, 23), (QNN, None)])
def test_every_table_is_read_and_tells_its_newest_operator_set(provider: Provider, opset: int | None) -> None:
    table = targets.table_of(provider)
    assert table.opset == opset
    assert ("ai.onnx", "MatMul") in table.kernels
    schemas = {name for name, since in ((one.name, one.since_version) for one in onnx.defs.get_all_schemas())}
    ours = {"SimplifiedLayerNormalization"}  # which onnxruntime has in the domain of onnx
    assert {name for domain, name in table.kernels if domain == "ai.onnx"} <= schemas | ours


def test_sizes_that_have_to_be_fixed_are_told_where_no_other_run(tmp_path: Path) -> None:
    path = a_graph(tmp_path, "Add", F32, F32)
    assert targets.check([path], QNN).words.endswith(
        ", once the sizes of x0, x1 are fixed, without which none runs there"
    )
    assert targets.check([path], OPENVINO).words.endswith(targets.table_of(OPENVINO).words)
    model = onnx.load(path)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)
    assert targets.check([path], QNN).words.endswith(targets.table_of(QNN).words)


def test_what_one_device_alone_has_is_told(tmp_path: Path) -> None:
    path = a_graph(tmp_path, "GroupQueryAttention", F32, F32, F32, domain="com.microsoft")
    assert targets.check([path], OPENVINO).notes == {"GroupQueryAttention": "on the GPU alone"}


def test_a_scheme_is_not_chosen_where_nothing_is_measured() -> None:
    with pytest.raises(ValueError, match="nothing is measured on WebGpuExecutionProvider: name a scheme"):
        ConversionSpec.model_validate({"scheme": "auto", "providers": [CPU, WEBGPU]})


def test_the_table_of_coreml_is_that_of_the_onnxruntime_in_use() -> None:
    assert targets.table_of(COREML).words.endswith(f" of onnxruntime {onnxruntime.__version__}")
    text = Path(onnxruntime.__file__).with_name("tools") / "mobile_helpers" / "coreml_supported_mlprogram_ops.md"
    listed = re.findall(r"^\|([\w.]+):(\w+)\|", text.read_text(), re.MULTILINE)
    assert {(domain, name.replace("Argmax", "ArgMax")) for domain, name in listed} == targets.table_of(
        COREML
    ).kernels.keys()


# ---- a model, from checkpoint to artifact


SPEC: dict[str, Any] = {"providers": [str(DML), str(COREML), str(CPU)]}


@pytest.fixture(scope="module")
def packed(new_line: Callable[[str], Line], tmp_path_factory: pytest.TempPathFactory) -> tuple[Line, dict[str, Ended]]:
    line = new_line("packed")
    digest = line.fetch(tiny_sentence(tmp_path_factory.mktemp("model"))).details["digest"]
    line.convert(digest, **SPEC)
    return line, {provider: validated(line, digest, provider) for provider in SPEC["providers"]}


def validated(line: Line, digest: str, provider: str) -> Ended:
    return run(
        "validate",
        ("--checkpoint", line.checkpoint(digest), "--graph", line.work / "graph", "--provider", provider),
        ("--spec", json.dumps(SPEC), "--parity", "{}"),
        ("--benchmark", 1 if provider == COREML else 0),
        ("--output", line.work / f"validation-{provider}"),
    )


def test_the_numbers_are_those_of_the_cpu_and_the_places_those_of_the_table(
    packed: tuple[Line, dict[str, Ended]],
) -> None:
    ended = packed[1][COREML]
    details = ended.details
    assert float(details["parity"]["minCosine"]) > 0.9999
    assert details["provider"] == COREML
    assert details["placement"][COREML] > 10 * details["placement"][CPU] > 0
    assert "benchmark" not in details
    assert re.search(
        r"agree with the original on CPUExecutionProvider; packed for CoreMLExecutionProvider, not run there: "
        r"\d+ of \d+ nodes fall back to the CPU by coreml_supported_mlprogram_ops.md of onnxruntime [\d.]+$",
        ended.summary.message,
    )
    assert " 0 of " in packed[1][DML].summary.message


def test_the_artifact_holds_the_graph_without_a_servers_configuration(packed: tuple[Line, dict[str, Ended]]) -> None:
    line, _ = packed
    published = line.publish(**SPEC).details["digest"]
    folder = line.artifact(published)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {path for path in found if not path.startswith("tokenizer/")} == {
        f"edge/{DML}/model.onnx",
        f"edge/{COREML}/model.onnx",
        f"triton/{CPU}/model/config.pbtxt",
        f"triton/{CPU}/model/1/model.onnx",
        "manifest.json",
    }
    reports = json.loads(line.beside(published, "report.json").read_text())["reports"]
    assert "checked" not in reports[CPU]
    assert reports[COREML]["checked"]["fallbacks"]["Gather"] == "is not in the table"
    assert reports[COREML]["checked"]["dynamicInputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    page = line.beside(published, "report.html").read_text()
    assert "It was not run there" in page
    assert "starts/ends/axes/steps must be constant initializers." in page
    assert line.assemble(published, DML).summary.reason == "SpecImpossible"
    assert line.assemble(published).code == 0


def published(line: Line, *unproved: str, flag: str = "--unvalidated", **spec: Any) -> Ended:
    return run(
        "publish",
        ("--work", line.work, "--store", line.root / "artifacts", "--spec", json.dumps(SPEC | spec)),
        *((flag, one) for one in unproved),
    )


def test_what_no_node_could_judge_is_published_with_that_said(packed: tuple[Line, dict[str, Ended]]) -> None:
    line, _ = packed
    digest = published(line, COREML).details["digest"]
    folder = line.artifact(digest)
    assert json.loads((folder / "manifest.json").read_text())["lineage"]["notValidated"] == [COREML]
    assert json.loads(line.beside(digest, "report.json").read_text())["reports"].keys() == {DML, CPU}
    assert (folder / "edge" / COREML / "model.onnx").is_file()
    assert "notValidated" in line.beside(digest, "report.html").read_text()


def test_what_is_left_out_is_not_in_the_artifact(packed: tuple[Line, dict[str, Ended]]) -> None:
    line, _ = packed
    digest = published(line, COREML, flag="--left-out").details["digest"]
    folder = line.artifact(digest)
    lineage = json.loads((folder / "manifest.json").read_text())["lineage"]
    assert (lineage["leftOut"], lineage["conversion"]["graphs"].keys()) == ([COREML], {DML, CPU})
    assert json.loads(line.beside(digest, "report.json").read_text())["reports"].keys() == {DML, CPU}
    assert [path.name for path in (folder / "edge").iterdir()] == [DML]


def test_something_has_to_be_proved(packed: tuple[Line, dict[str, Ended]]) -> None:
    line, _ = packed
    for ended in (
        published(line, *SPEC["providers"]),
        published(line, *SPEC["providers"], flag="--left-out"),
        published(line, CUDA, scheme="auto", providers=[CPU, CUDA]),
    ):
        assert ended.summary.reason == "ParityFailed"
        assert "validate on " in ended.summary.message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param({"opset": 23}, "opset 23 is above 21", id="a newer opset"),
        pytest.param(
            {"scheme": "bfloat16"}, "on which graphs for DmlExecutionProvider are judged", id="nothing to judge on"
        ),
        pytest.param(
            {"providers": [str(QNN)], "scheme": "float16"},
            "float16 is not known to QNNExecutionProvider: use int8-static there",
            id="floats for an NPU of whole numbers",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused_before_the_checkpoint_is_opened(
    spec: dict[str, Any], message: str, line: Line
) -> None:
    ended = line.convert("sha256:" + "0" * 64, **{"providers": [str(DML)]} | spec)
    assert ended.summary.reason == "SpecImpossible"
    assert message in ended.summary.message
