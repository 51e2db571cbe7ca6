"""What is published: a Triton model repository with a manifest, and beside it golden requests and the evidence."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from checkpoints import TINY_LENGTH, tiny_sentence
from onnx_converter import artifact, engines, package
from onnx_converter.conversion import Conversion
from onnx_converter.spec import Provider, Serving
from unit.converter.steps import Line
from unit.converter.test_report_page import a_benchmark

if TYPE_CHECKING:
    from pathlib import Path

CPU = "CPUExecutionProvider"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Line, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("published")
    line = Line(folder / "line")
    digest = line.fetch(tiny_sentence(folder / "model")).details["digest"]
    line.convert(digest)
    line.validate(digest)
    return line, line.publish().details


@pytest.fixture
def folder(published: tuple[Line, dict[str, Any]]) -> Path:
    line, details = published
    return line.artifact(details["digest"])


def config_of(folder: Path) -> Any:
    text = (folder / "triton" / CPU / "model" / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_an_artifact_holds_what_the_contract_names_and_nothing_else(folder: Path) -> None:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {path for path in found if not path.startswith("tokenizer/")} == {
        f"triton/{CPU}/model/config.pbtxt",
        f"triton/{CPU}/model/1/model.onnx",
        "manifest.json",
    }
    assert "tokenizer/tokenizer.json" in found


def test_the_digest_is_the_manifests_and_the_manifest_names_every_file(
    published: tuple[Line, dict[str, Any]], folder: Path
) -> None:
    details = published[1]
    assert details["digest"] == "sha256:" + hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    manifest = artifact.verify(folder, details["digest"])
    assert details["files"] == len(manifest.files)
    assert (
        details["bytes"]
        == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        - (folder / "manifest.json").stat().st_size
    )


def test_the_lineage_names_source_tools_parameters_and_what_the_operator_added(folder: Path) -> None:
    lineage = json.loads((folder / "manifest.json").read_text())["lineage"]
    assert lineage["operator"] == {"model": "m"}
    assert lineage["source"]["digest"] == lineage["conversion"]["sourceDigest"]
    assert lineage["conversion"]["spec"]["opset"] == 18
    assert lineage["serving"]["maxBatchSize"] == 32
    assert {"torch", "transformers", "onnx", "onnxruntime", "onnxscript", "python"} <= set(
        lineage["conversion"]["tools"]
    )


def test_what_was_measured_on_the_way_is_told_by_the_report_and_the_page_and_not_by_the_lineage(
    published: tuple[Line, dict[str, Any]], folder: Path, report: dict[str, Any]
) -> None:
    told = json.loads((folder / "manifest.json").read_text())["lineage"]["conversion"]
    full = report["conversion"]
    assert full.keys() - told.keys() == {"sensitive"}
    assert full["graphs"][CPU].keys() - told["graphs"][CPU].keys() == {"stages", "routesRefused"}
    page = published[0].beside(published[1]["digest"], "report.html").read_text()
    lineage = page[page.index("<h2>Lineage") :]
    assert f"conversion.graphs.{CPU}.stages[0].minCosine" in lineage
    assert "conversion.files" not in lineage


def test_publishing_again_finds_the_same_artifact_and_leaves_it_untouched(
    published: tuple[Line, dict[str, Any]], folder: Path
) -> None:
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    assert published[0].publish().details == published[1]
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == before


def test_files_of_an_artifact_are_read_only(folder: Path) -> None:
    assert {oct(path.stat().st_mode & 0o777) for path in folder.rglob("*") if path.is_file()} == {"0o444"}


def test_an_artifact_that_was_damaged_in_the_store_is_reported_and_not_overwritten(tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny_sentence(tmp_path / "model")).details["digest"]
    line.convert(digest)
    line.validate(digest)
    tokenizer = line.artifact(line.publish().details["digest"]) / "tokenizer" / "tokenizer.json"
    tokenizer.chmod(0o644)
    tokenizer.write_text("[]")
    ended = line.publish()
    assert (ended.summary.reason, ended.code) == ("ArtifactCorrupt", 29)
    assert tokenizer.read_text() == "[]"


def test_the_configuration_is_complete_and_in_tritons_own_words(folder: Path) -> None:
    config = config_of(folder)
    assert (config.backend, config.max_batch_size, config.name) == ("onnxruntime", 32, "")
    assert [(item.name, item.data_type, list(item.dims)) for item in config.input] == [
        (name, model_config_pb2.TYPE_INT64, [-1]) for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    assert [(item.name, item.data_type, list(item.dims)) for item in config.output] == [
        ("sentence_embedding", model_config_pb2.TYPE_FP32, [32])
    ]
    (group,) = config.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_CPU, 1)
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert config.parameters["intra_op_thread_count"].string_value == "1"


def test_warming_up_stays_within_the_graphs_bounds_and_the_graph_answers_it(folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / "triton" / CPU / "model" / "1" / "model.onnx", providers=[CPU])
    warmups = config_of(folder).model_warmup
    assert [item.batch_size for item in warmups] == [1, 8]
    for item in warmups:
        inputs = {
            name: np.zeros((item.batch_size, *tensor.dims), np.int64)
            for name, tensor in item.inputs.items()
            if tensor.zero_data
        }
        assert all(tensor.shape[1] <= TINY_LENGTH for tensor in inputs.values())
        assert np.isfinite(session.run(None, inputs)[0]).all()


def configured(folder: Path, serving: dict[str, int], provider: Provider = Provider.CPU) -> Any:
    conversion = Conversion.read(folder)
    (text,) = package.configs_of(conversion, Serving.model_validate(serving), provider).values()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_serving_parameters_reach_the_configuration(published: tuple[Line, dict[str, Any]]) -> None:
    graph = published[0].work / "graph"
    serving = {"maxBatchSize": 4, "maxQueueDelayMicroseconds": 7, "instances": 3, "threads": 2}
    config = configured(graph, serving)
    assert config.max_batch_size == 4
    assert config.dynamic_batching.max_queue_delay_microseconds == 7
    assert config.instance_group[0].count == 3
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert [item.batch_size for item in config.model_warmup] == [1, 4]


def test_without_batches_nothing_waits_for_others(published: tuple[Line, dict[str, Any]]) -> None:
    config = configured(published[0].work / "graph", {"maxBatchSize": 1})
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")


def test_on_cuda_the_instances_are_of_the_gpu(published: tuple[Line, dict[str, Any]]) -> None:
    config = configured(published[0].work / "graph", {}, Provider.CUDA)
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert "memory.enable_memory_arena_shrinkage" not in config.parameters


def test_on_tensorrt_an_engine_is_built_for_all_that_is_served_and_kept(published: tuple[Line, dict[str, Any]]) -> None:
    config = configured(published[0].work / "graph", {"maxBatchSize": 16}, Provider.TENSORRT)
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    told = dict(accelerator.parameters)
    names = ("input_ids", "attention_mask", "token_type_ids")
    length = TINY_LENGTH
    for which, shape in (("min", "1x1"), ("opt", f"8x{min(128, length)}"), ("max", f"16x{length}")):
        assert told.pop(f"trt_profile_{which}_shapes") == ",".join(f"{name}:{shape}" for name in names)
    assert (accelerator.name, told) == (
        "tensorrt",
        {
            "precision_mode": "FP32",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": "/engines",
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": "/engines",
        },
    )
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU


@pytest.mark.parametrize(
    ("scheme", "precision"),
    [
        ("none", {}),
        ("float16", {"trt_fp16_enable": "1", "trt_layer_norm_fp32_fallback": "1"}),
        ("bfloat16", {"trt_bf16_enable": "1"}),
        ("int8-static", {"trt_int8_enable": "1"}),
    ],
)
def test_onnxruntime_is_told_the_same_in_words_of_its_own(scheme: str, precision: dict[str, str]) -> None:
    told = engines.options(engines.parameters(["ids"], scheme, batch=2, length=4, folder="here"))
    assert told.pop("trt_engine_cache_path") == told.pop("trt_timing_cache_path") == "here"
    assert told == precision | {
        "trt_engine_cache_enable": "1",
        "trt_timing_cache_enable": "1",
        "trt_profile_min_shapes": "ids:1x1",
        "trt_profile_opt_shapes": "ids:2x4",
        "trt_profile_max_shapes": "ids:2x4",
    }


def test_golden_requests_are_mixed_in_length_and_answered_by_the_published_graph(
    published: tuple[Line, dict[str, Any]], folder: Path
) -> None:
    golden = json.loads(published[0].beside(published[1]["digest"], "golden.json").read_text())
    assert len(golden) >= 24
    assert len({request["name"] for request in golden}) == len(golden)
    session = onnxruntime.InferenceSession(folder / "triton" / CPU / "model" / "1" / "model.onnx", providers=[CPU])
    lengths = set()
    for request in golden:
        inputs = {
            name: np.array(tensor["data"], np.int64).reshape(tensor["shape"])
            for name, tensor in request["inputs"].items()
        }
        assert {tensor.shape[0] for tensor in inputs.values()} == {1}
        lengths.add(inputs["input_ids"].shape[1])
        ((name, wanted),) = request["outputs"].items()
        assert (name, wanted["datatype"], wanted["shape"]) == ("sentence_embedding", "FP32", [1, 32])
        found = session.run([name], inputs)[0]
        np.testing.assert_allclose(found, np.array(wanted["data"]).reshape(wanted["shape"]), atol=1e-6)
    assert len(lengths) >= 8


def digest_of(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_what_was_measured_lies_beside_the_artifact_read_only_under_digests_that_are_told(
    published: tuple[Line, dict[str, Any]], folder: Path
) -> None:
    line, details = published
    names = ("benchmark.json", "golden.json", "report.html", "report.json")
    assert sorted(folder.parent.iterdir()) == [folder, *(line.beside(details["digest"], name) for name in names)]
    assert {oct(line.beside(details["digest"], name).stat().st_mode & 0o777) for name in names} == {"0o444"}
    told = {"golden.json": "goldenDigest", "report.html": "pageDigest", "report.json": "reportDigest"}
    for name, key in told.items():
        assert details[key] == digest_of(line.beside(details["digest"], name))


def test_the_page_names_the_artifact(published: tuple[Line, dict[str, Any]], folder: Path) -> None:
    text = folder.with_name(f"{folder.name}.report.html").read_text()
    assert published[1]["digest"] in text
    assert text.index("Passed") < text.index("Smallest cosine") < text.index("Lineage")
    assert json.loads(folder.with_name(f"{folder.name}.benchmark.json").read_text()) == {CPU: {}}


def test_how_fast_a_graph_was_changes_the_page_and_no_byte_of_the_artifact(
    published: tuple[Line, dict[str, Any]], folder: Path
) -> None:
    line, details = published
    (line.work / f"validation-{CPU}" / "benchmark.json").write_text(json.dumps(a_benchmark()))
    timed, page = line.publish().details, folder.with_name(f"{folder.name}.report.html")
    assert timed == details | {"pageDigest": digest_of(page)} != details
    assert "Speed on" in page.read_text()
    (line.work / f"validation-{CPU}" / "benchmark.json").write_text("{")
    assert line.publish().details == details
    assert "Speed on" not in page.read_text()
    artifact.verify(folder, details["digest"])


def test_another_measurement_replaces_the_report_and_leaves_the_golden_requests(tmp_path: Path, line: Line) -> None:
    digest = line.fetch(tiny_sentence(tmp_path / "model")).details["digest"]
    line.convert(digest)
    line.validate(digest)
    first, validated = line.publish().details, line.work / f"validation-{CPU}"
    measured = json.loads((validated / "report.json").read_text())
    measured["parity"]["maxAbsolute"] = "0.5"
    (validated / "report.json").write_text(json.dumps(measured))
    asked = line.beside(first["digest"], "golden.json").read_bytes()
    (validated / "golden.json").write_text(json.dumps(json.loads(asked)[:1]))
    second = line.publish().details
    report = line.beside(first["digest"], "report.json")
    assert second == first | {"reportDigest": digest_of(report), "pageDigest": second["pageDigest"]}
    assert second["reportDigest"] != first["reportDigest"]
    assert json.loads(report.read_text())["reports"][CPU]["parity"]["maxAbsolute"] == "0.5"
    assert line.beside(first["digest"], "golden.json").read_bytes() == asked


@pytest.fixture
def report(published: tuple[Line, dict[str, Any]]) -> dict[str, Any]:
    line, details = published
    found: dict[str, Any] = json.loads(line.beside(details["digest"], "report.json").read_text())["reports"][CPU]
    return found


def test_the_report_counts_each_operator_where_it_ran(report: dict[str, Any]) -> None:
    counts = [count for places in report["coverage"].values() for count in places.values()]
    assert report["placement"] == {CPU: sum(counts)}
    assert report["coverage"]["MatMul"][CPU] > 4


def test_the_report_says_how_each_sample_did_and_what_was_ignored(report: dict[str, Any]) -> None:
    assert report["verdict"] == "Passed"
    assert report["samples"] == len(report["rows"])
    assert report["ignored"] == sum(row["ignored"] for row in report["rows"]) > 0
    names = " ".join(row["sample"] for row in report["rows"])
    for wanted in (
        "batch 1",
        "batch 4",
        "length 1,",
        f"length {TINY_LENGTH}",
        "left padding",
        "right padding",
        "all-row",
    ):
        assert wanted in names
