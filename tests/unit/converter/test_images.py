"""Models that see, from checkpoint to a graph that answers images as transformers does."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import helper
from transformers.image_transforms import normalize, rescale

from checkpoints import IMAGE_SIZE, VISION, change_json, tiny_clip, tiny_vision
from onnx_converter import benchmark, calibration, convert, images, package, parity, samples, validate
from onnx_converter.contest import Candidate, Original
from onnx_converter.conversion import Conversion
from onnx_converter.digest import sha256_of
from onnx_converter.progress import Progress
from onnx_converter.spec import ConversionSpec, Parity, Provider, Scheme, Serving, Task
from onnx_operator.prober.golden import read_golden
from unit.converter import matrix
from unit.converter.test_conversion import answer
from unit.converter.test_decoders import instead
from unit.converter.test_encoder_decoders import Bench, folder_of, freeze
from unit.converter.test_gate import CPU

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from unit.converter.steps import Line

TASK = Task.IMAGE_FEATURE_EXTRACTION
SEEING: dict[str, Any] = {"task": str(TASK)}
SHAPE = (3, IMAGE_SIZE, IMAGE_SIZE)


@dataclass(frozen=True, slots=True)
class Seen:
    """A checkpoint of two towers, of which the gate has let the one for images through."""

    folder: Path
    bench: Bench
    validation: Path
    told: dict[str, Any]

    @property
    def original(self) -> Original:
        return Original.load(self.folder, TASK, None)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, new_line: Callable[[str], Line]) -> Seen:
    folder = tiny_clip(tmp_path_factory.mktemp("seen") / "model")
    line, spec = new_line("seen"), SEEING
    digest = line.fetch(folder).details["digest"]
    converted = line.convert(digest, **spec).details
    validated = line.validate(digest, **spec)
    assert validated.summary.reason == "Validated", validated.summary.message
    good = shutil.copytree(folder_of(line), line.root / "good")
    validation = shutil.copytree(line.work / f"validation-{CPU}", line.root / "validation")
    return Seen(folder, Bench(line, digest, good, spec), validation, converted | {"validated": validated.details})


def everything(sight: images.Sight) -> NDArray[np.float32]:
    """All generated images in one batch, as the model takes them."""
    made = images.pictures(sight.shape) | images.extremes(sight.shape)
    return sight.pixels(np.stack(list(made.values())))


def test_the_graph_agrees_with_torch_over_every_image_and_batch(seen: Seen) -> None:
    assert (seen.told["architecture"], seen.told["task"], seen.told["knownArchitecture"]) == ("clip", TASK, True)
    assert seen.told["inputs"] == [{"name": "pixel_values", "datatype": "FP32", "shape": [-1, *SHAPE]}]
    assert seen.told["outputs"] == [{"name": "image_embeds", "datatype": "FP32", "shape": [-1, 24]}]
    assert float(seen.told["validated"]["parity"]["maxRelative"]) < 1e-4
    assert float(seen.told["validated"]["parity"]["minCosine"]) > 0.99999
    report = json.loads((seen.validation / "report.json").read_text())
    asked = {row["sample"] for row in report["rows"]}
    assert {"black", "white", "noise", "a chequered board", "a disc", "images, batch 4"} <= asked
    assert {f"random pixels, batch {batch}" for batch in (1, 2, 3, 4)} <= asked


def test_the_vectors_are_those_that_texts_of_the_same_checkpoint_are_compared_with(seen: Seen) -> None:
    sight = seen.original.checkpoint.sight
    assert sight is not None
    pixels = everything(sight)
    with torch.inference_mode():
        truth = transformers.CLIPModel.from_pretrained(seen.folder).eval().get_image_features(torch.from_numpy(pixels))
    session = onnxruntime.InferenceSession(seen.bench.good / "model.onnx", providers=[CPU])
    np.testing.assert_allclose(session.run(None, {"pixel_values": pixels})[0], truth.pooler_output, atol=1e-4)


def test_bytes_become_what_the_library_of_the_processor_makes_of_them(seen: Seen) -> None:
    sight = seen.original.checkpoint.sight
    assert sight is not None
    for image in images.pictures(SHAPE).values():
        said = json.loads((seen.folder / "preprocessor_config.json").read_text())
        theirs = normalize(
            rescale(image, 1 / 255), said["image_mean"], said["image_std"], input_data_format="channels_first"
        )
        np.testing.assert_allclose(sight.pixels(image[np.newaxis])[0], theirs, atol=1e-5)


def test_generated_images_are_the_same_each_time_and_each_is_another() -> None:
    made = images.pictures(SHAPE) | images.extremes(SHAPE)
    assert len({image.tobytes() for image in made.values()}) == len(made)
    again = images.pictures(SHAPE) | images.extremes(SHAPE)
    assert all(np.array_equal(made[name], again[name]) for name in made)
    assert {image.shape for image in made.values()} == {SHAPE}
    assert all(name in made for name in ("black", "white"))
    assert (made["a chequered board"].min(), made["a chequered board"].max()) == (0, 255)


@pytest.mark.parametrize("scheme", sorted({*Scheme} - {Scheme.NONE, Scheme.AUTO, Scheme.FLOAT16, Scheme.BFLOAT16}))
def test_quantised_graphs_pass_the_same_gate(scheme: Scheme, seen: Seen, tmp_path: Path) -> None:
    original, target = seen.original, tmp_path / scheme
    convert.write_graphs(
        original.checkpoint, ConversionSpec(scheme=scheme), [], [seen.bench.good / "model.onnx"], target
    )
    tolerance = parity.tolerance_of(Parity(), scheme, TASK)
    candidate = Candidate.load([target / "model.onnx"], Provider.CPU, is_proved=True)
    judged = validate.judge(original, candidate, tolerance, Progress("validate", io.StringIO()))
    assert judged.reason.name == "Validated", judged.message
    assert judged.total is not None
    assert judged.total.min_cosine < 0.99999, "it was quantised"
    assert judged.total.quality_loss is not None, "auto compares by it"


def test_what_static_schemes_measure_on_are_images(seen: Seen) -> None:
    asked = list(calibration.requests(seen.original.checkpoint, ["a text that nobody reads"]))
    assert len(asked) == 12
    assert {tuple(request) for request in asked} == {("pixel_values",)}


def test_half_precision_is_converted_and_takes_the_same_pixels(seen: Seen, line: Line) -> None:
    spec = SEEING | {"scheme": "float16"}
    digest = line.fetch(seen.folder).details["digest"]
    assert line.convert(digest, **spec).details["inputs"] == seen.told["inputs"]
    assert line.validate(digest, **spec).summary.reason == "Validated"


def blind(model: onnx.ModelProto) -> None:
    instead(model, "pixel_values", [helper.make_node("Sub", ["pixel_values", "pixel_values"], ["nothing"])])


def of_other_colours(model: onnx.ModelProto) -> None:
    channels = onnx.numpy_helper.from_array(np.array([2, 1, 0]), "bgr")
    model.graph.initializer.append(channels)
    instead(model, "pixel_values", [helper.make_node("Gather", ["pixel_values", "bgr"], ["swapped"], axis=1)])


def of_one_image(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, *SHAPE]), "frozen"))
    instead(model, "pixel_values", [helper.make_node("Reshape", ["pixel_values", "frozen"], ["of_one"])])


BROKEN: dict[str, tuple[Callable[[onnx.ModelProto], None], str, str]] = {
    "the image has no effect": (blind, "InputIgnored", "pixel_values has no effect"),
    "red is blue": (of_other_colours, "ParityFailed", "tolerance"),
    "the batch is frozen": (freeze("pixel_values", 0), "AxisFrozen", "froze an axis of input pixel_values"),
    "the batch is frozen inside": (of_one_image, "AxisFrozen", "answers with an error"),
    "images are of another size": (freeze("pixel_values", 3), "AxisFrozen", "it must be [-1, 3, 16, 16]"),
}


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.replace(" ", "-"))
def test_a_graph_that_sees_otherwise_is_stopped_and_named(case: str, seen: Seen) -> None:
    change, reason, words = BROKEN[case]
    seen.bench.put_changed("model.onnx", change)
    ended = seen.bench.validate()
    assert ended.summary.reason == reason, ended.summary.message
    assert words in ended.summary.message


def test_golden_requests_are_pictures_that_the_prober_reads(seen: Seen) -> None:
    asked = read_golden(seen.validation / "golden.json")
    assert [request.name for request in asked] == list(images.pictures(SHAPE))
    assert all(request.inputs["pixel_values"].values.shape == (1, *SHAPE) for request in asked)
    assert all(request.mask is None for request in asked), "of an answer to an image everything counts"


def test_triton_is_told_of_the_size_and_warmed_up_with_images(seen: Seen) -> None:
    config = package.configs_of(Conversion.read(seen.bench.line.work / "graph"), Serving(), Provider.CPU)[package.MODEL]
    for part in (
        '{ name: "pixel_values" data_type: TYPE_FP32 dims: [3, 16, 16] }',
        '{ name: "image_embeds" data_type: TYPE_FP32 dims: [24] }',
        'name: "batch 8"\n    batch_size: 8\n',
        'inputs { key: "pixel_values" value: { data_type: TYPE_FP32 dims: [3, 16, 16] zero_data: true } }',
        "dynamic_batching",
    ):
        assert part in config


def test_the_image_processor_goes_along(seen: Seen) -> None:
    packed = seen.bench.line.work / "graph" / "tokenizer" / "preprocessor_config.json"
    assert packed.read_bytes() == (seen.folder / "preprocessor_config.json").read_bytes()


def test_what_a_benchmark_asks_is_answered_by_both(seen: Seen) -> None:
    original = seen.original
    candidate = Candidate.load([seen.bench.good / "model.onnx"], Provider.CPU)
    cells = benchmark.cells_of(original.checkpoint, 4)
    assert [cell.batch for cell in cells] == [1, 2, 4]
    for cell in cells:
        asked = samples.plain(original.checkpoint, cell.batch, cell.past, cell.length)
        answers = original.answer(asked), candidate.answer(original.outputs, asked)
        assert answers[0]["image_embeds"].shape == (cell.batch, 24), cell
        assert np.allclose(answers[0]["image_embeds"], answers[1]["image_embeds"], atol=1e-4), cell


# The others -------------------------------------------------------------------------------------------------------

OTHERS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "clip's tower alone": ("clip_vision_model", "encoder", lambda answer: answer.image_embeds),
    "siglip's tower": ("siglip_vision_model", "encoder", lambda answer: answer.pooler_output),
    "a vit": ("vit", "encoder", lambda answer: answer.last_hidden_state[:, 0]),
    "a vit that classifies": ("vit", "classifier", lambda answer: answer.logits),
    "a classifier in no table": ("deit", "classifier", lambda answer: answer.logits),
}


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.replace(" ", "-"))
def test_the_graph_of_every_architecture_that_sees_answers_as_transformers_does(
    case: str, tmp_path: Path, line: Line
) -> None:
    architecture, head, read = OTHERS[case]
    folder = tiny_vision(tmp_path / "model", architecture, head)
    digest = line.fetch(folder).details["digest"]
    converted = line.convert(digest).details
    assert converted["task"] == ("image-classification" if head == "classifier" else TASK)
    assert converted["knownArchitecture"] == (architecture in VISION)
    validated = line.validate(digest)
    assert validated.summary.reason == "Validated", validated.summary.message
    assert (validated.details["parity"]["minLabelAgreement"] is not None) == (head == "classifier")
    if architecture in VISION:
        is_first = head == VISION[architecture].heads[0]
        matrix.fill(architecture, line, digest, converted, validated.details, is_first=is_first)
    sight = Original.load(folder, Task.AUTO, None).checkpoint.sight
    assert sight is not None
    pixels = everything(sight)
    (name,) = (item["name"] for item in converted["outputs"])
    kind = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    with torch.inference_mode():
        truth = read(kind.from_pretrained(folder).eval()(torch.from_numpy(pixels)))
    np.testing.assert_allclose(answer(line, name, {"pixel_values": pixels}), truth, atol=1e-4)


def test_of_a_whole_siglip_the_tower_for_images_is_taken(tmp_path: Path) -> None:
    folder = tiny_vision(tmp_path / "model", "siglip_vision_model")
    tower = transformers.SiglipVisionConfig.from_pretrained(folder).to_dict()
    words = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=words, vision_config=tower)).eval()
    model.save_pretrained(folder)
    original = Original.load(folder, Task.AUTO, None)
    assert original.checkpoint.sight is not None
    asked = samples.Sample("all", is_text=True, tensors={"pixel_values": everything(original.checkpoint.sight)})
    with torch.inference_mode():
        truth = model.get_image_features(torch.from_numpy(asked.tensors["pixel_values"])).pooler_output
    np.testing.assert_allclose(original.answer(asked)["image_embeds"], truth, atol=1e-4)


def test_of_a_classifier_the_vector_can_be_had(tmp_path: Path) -> None:
    folder = tiny_vision(tmp_path / "model", "vit", "classifier")
    assert Original.load(folder, TASK, None).outputs == ("image_embeds",)
    assert Original.load(folder, Task.AUTO, None).outputs == ("logits",)


# The checkpoint ---------------------------------------------------------------------------------------------------


def other_processor(**values: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "preprocessor_config.json", **values)


def whole(_: Path) -> None:
    """As it is."""


REFUSED: dict[str, tuple[Callable[[Path], object], dict[str, Any], str, str]] = {
    "images of another model": (
        other_processor(crop_size={"height": 224, "width": 224}, size={"shortest_edge": 224}),
        SEEING,
        "PreprocessorMismatch",
        "crop_size is {'height': 224, 'width': 224}, the model of config.json takes 16 x 16",
    ),
    "images scaled by one side alone": (
        other_processor(do_center_crop=False, size={"shortest_edge": 16}),
        SEEING,
        "PreprocessorMismatch",
        "size is {'shortest_edge': 16}",
    ),
    "black borders": (
        other_processor(size={"shortest_edge": 8}),
        SEEING,
        "PreprocessorMismatch",
        "size 8 is below crop_size",
    ),
    "a size that is a word": (other_processor(crop_size="16"), SEEING, "PreprocessorMismatch", "crop_size is '16'"),
    "a switch that is a word": (
        other_processor(do_resize="no"),
        SEEING,
        "PreprocessorMismatch",
        "do_resize 'no' is neither",
    ),
    "two colours": (
        other_processor(image_mean=[0.5, 0.5]),
        SEEING,
        "PreprocessorMismatch",
        "image_mean [0.5, 0.5] is no list",
    ),
    "no mean": (other_processor(image_mean=None), SEEING, "PreprocessorMismatch", "image_mean None is no list of 3"),
    "a mean of bytes beside colours from 0 to 1": (
        other_processor(image_mean=[123.7, 116.3, 103.5]),
        SEEING,
        "PreprocessorMismatch",
        "image_mean 123.7 is no number from 0 to 1",
    ),
    "a deviation that is no number": (
        other_processor(image_std=[0.2, float("nan"), 0.2]),
        SEEING,
        "PreprocessorMismatch",
        "image_std nan is no number",
    ),
    "bytes made larger": (
        other_processor(rescale_factor=255),
        SEEING,
        "PreprocessorMismatch",
        "rescale_factor 255 is no",
    ),
    "a processor of sounds": (
        lambda at: (at / "preprocessor_config.json").write_text('{"feature_size": 80}'),
        SEEING,
        "PreprocessorMismatch",
        "size is None",
    ),
    "a length of images": (whole, SEEING | {"maxSequenceLength": 16}, "SpecImpossible", "maxSequenceLength"),
    "labels of a model without any": (
        whole,
        {"task": "image-classification"},
        "SpecImpossible",
        "use image-feature-extraction",
    ),
    "a head that is not converted": (
        lambda at: change_json(at / "config.json", architectures=["CLIPForImageClassification"]),
        {},
        "ArchitectureUnsupported",
        "model_type 'clip' is not supported for image-classification: take vit",
    ),
    "images of an encoder of texts": (
        lambda at: change_json(at / "config.json", model_type="bert"),
        SEEING,
        "ArchitectureUnsupported",
        "model_type 'bert' has no class for this",
    ),
    "a tower that is no object": (
        lambda at: change_json(at / "config.json", vision_config=["vit"]),
        SEEING,
        "ConfigInvalid",
        "vision_config is no object",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.replace(" ", "-"))
def test_what_is_no_supported_model_of_images_is_refused_by_name(
    case: str, seen: Seen, tmp_path: Path, line: Line
) -> None:
    spoil, spec, reason, words = REFUSED[case]
    folder = shutil.copytree(seen.folder, tmp_path / "model")
    spoil(folder)
    line.refuses(folder, reason, words, **spec)


def test_texts_to_measure_on_are_refused(seen: Seen, tmp_path: Path, line: Line) -> None:
    texts = tmp_path / "texts"
    texts.write_text("a text that nobody reads\n")
    said = {"configMap": {"name": "m", "key": "texts"}, "digest": f"sha256:{sha256_of(texts)}"}
    spec = SEEING | {"scheme": "int8-static", "calibration": said}
    words, flags = "quantization.calibration holds texts", ("--calibration-root", str(tmp_path))
    line.refuses(seen.folder, "SpecImpossible", words, *flags, **spec)


def test_a_processor_that_is_told_with_others_is_found(seen: Seen, tmp_path: Path) -> None:
    folder = shutil.copytree(seen.folder, tmp_path / "model")
    said = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": said}))
    assert Original.load(folder, TASK, None).checkpoint.sight is not None
