"""Models of every kind but plain encoders, through the whole cluster: converted in Jobs, served on Triton, asked for
token after token, or about an image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
import tritonclient.http
import yaml

from checkpoints import IMAGE_SIZE, ROOT, minilm, tiny_clip, tiny_decoder, tiny_encoder_decoder
from demo import checkpoints as claims
from demo import installation
from demo.model import Model
from demo.site import gateway_of
from demo.waiting import until
from onnx_operator.api.common import EDGE, ExecutionProvider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from demo.kubectl import Kubectl, Manifest
    from demo.site import Site

    #: Tokens, and a number for each word.
    Logits = NDArray[np.float32]

NAME = "writer"
TRANSLATOR = "translator"
HEARER = "hearer"
SEER = "seer"
EVALUATED = "evaluated"
TOKENS = 8
#: As many tokens as are asked for on the wire, and the numbers that chose them.
GREEDY: dict[str, Any] = {
    "max_new_tokens": TOKENS,
    "min_new_tokens": TOKENS,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
}
#: All but QNN, which takes int8-static alone.
PACKED_FOR = tuple(str(one) for one in EDGE if one is not ExecutionProvider.QNN)
#: What the small checkpoint begins every answer with.
START = 1


def declared(name: str = NAME, **spec: Any) -> Manifest:
    claim = {"claimName": installation.CHECKPOINTS, "path": name}
    rollout = {
        "steps": [{"weight": 50, "duration": "5s"}],
        "analysis": {
            "interval": "2s",
            "minimumSamples": 20,
            "metrics": [{"name": "disagreement", "maximum": "0.02"}],
        },
    }
    # Small enough for two versions and a Job beside everything else on two cores.
    serving = {"resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}}
    return {
        "apiVersion": "onnx-operator.io/v1alpha1",
        "kind": "OnnxModel",
        "metadata": {"name": name},
        "spec": {"source": {"persistentVolumeClaim": claim}, "serving": serving, "rollout": rollout, **spec},
    }


def lay_out(cluster: Site, models: Kubectl, folder: Path) -> None:
    """A checkpoint on the claim, by its name, which no model has yet."""
    archives = {folder.name: claims.packed_folder(folder)}
    claims.put(models, archives, claim=installation.CHECKPOINTS, image=cluster.images["operator"])
    models.delete("onnxmodel", folder.name)


@pytest.fixture(scope="module")
def checkpoint(cluster: Site, models: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tiny_decoder(tmp_path_factory.mktemp("decoder") / NAME)
    lay_out(cluster, models, folder)
    yield folder
    models.delete("onnxmodel", NAME)


def until_model(models: Kubectl, what: str, is_it: Callable[[Model], object], name: str = NAME) -> Model:
    def look() -> Model | None:
        model = Model.of(models.get("onnxmodel", name) or {})
        return model if is_it(model) else None

    return until(what, look, seconds=300)


def applied(models: Kubectl, manifest: Manifest) -> Model:
    models.apply(manifest)
    name = manifest["metadata"]["name"]
    return until_model(models, f"{name} to rest", lambda it: it.is_promoted or it.is_given_up, name)


def written(cluster: Site, model: Model, checkpoint: Path, prompt: str) -> tuple[int, Logits]:
    """What a client of the gateway chooses tokens by, each by one request that carries the past along, and the one
    version that answered them all: whoever read the prompt is named in every later request.
    """
    endpoint, gateway = model.status.endpoint, gateway_of(cluster)
    assert endpoint is not None
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer([prompt], return_tensors="np")["input_ids"].astype(np.int64)
    logits: list[Logits] = []
    with tritonclient.http.InferenceServerClient(f"{gateway.address}:{gateway.http_port}") as client:
        headers, version = {"Host": endpoint.host}, ""
        metadata = client.get_model_metadata(NAME, headers=headers)
        past = {
            one["name"]: np.zeros((1, int(one["shape"][1]), 0, int(one["shape"][3])), np.float32)
            for one in metadata["inputs"]
            if one["name"].startswith("past_key_values.")
        }
        assert past
        length = ids.shape[1]
        for _ in range(TOKENS):
            mask = np.ones((1, length), np.int64)
            arrays = {"input_ids": ids, "attention_mask": mask, **past}
            asked = [tensor(*one) for one in arrays.items()]
            answer = client.infer(NAME, asked, model_version=version, headers=headers)
            version = answer.get_response()["model_version"]
            headers["x-onnx-version"] = version
            logits.append(answer.as_numpy("logits")[0, -1])
            ids, length = np.array([[logits[-1].argmax()]]), length + 1
            past = {name: answer.as_numpy(name.replace("past_key_values", "present")) for name in past}
    return int(version), np.stack(logits)


def tensor(name: str, array: Any) -> Any:
    made = tritonclient.http.InferInput(name, list(array.shape), "INT64" if array.dtype == np.int64 else "FP32")
    made.set_data_from_numpy(array)
    return made


def generated(checkpoint: Path, prompt: str) -> Logits:
    """What torch chooses tokens by."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    given = tokenizer([prompt], return_tensors="pt")
    with torch.inference_mode():
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
        answer = model.generate(**given, **GREEDY, eos_token_id=None, pad_token_id=1)
    return torch.cat(answer.logits).numpy()


def assert_alike(found: Logits, wanted: Logits) -> None:
    """One token after the other: each was chosen by the same numbers, and all after it were asked for with it."""
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    assert (found.argmax(axis=-1) == wanted.argmax(axis=-1)).all()


def test_a_language_model_writes_through_the_gateway_what_torch_writes(
    cluster: Site, models: Kubectl, checkpoint: Path
) -> None:
    model = applied(models, declared())

    assert model.is_promoted, model.message("Ready")
    for prompt in ("the cat", "water and the train"):
        assert_alike(written(cluster, model, checkpoint, prompt)[1], generated(checkpoint, prompt))


def test_its_next_version_is_compared_by_the_token_that_comes_next_and_a_text_stays_with_the_version_that_began_it(
    cluster: Site, models: Kubectl, checkpoint: Path
) -> None:
    before = applied(models, declared()).status.stable

    models.apply(declared(maxSequenceLength=48))
    shared = until_model(models, "requests to be shared", lambda it: it.is_seen and it.candidate_weight)
    # An answer of the version that is not in the URL would be an error of Triton's.
    begun = {written(cluster, shared, checkpoint, "the cat")[0] for _ in range(8)}
    model = until_model(models, f"{NAME} to rest", lambda it: it.is_promoted or it.is_given_up)

    assert model.is_promoted, model.message("Ready")
    assert model.status.stable is not None
    assert before is not None
    assert model.status.stable.number > before.number
    assert begun <= {before.number, model.status.stable.number}
    version, logits = written(cluster, model, checkpoint, "the cat")
    assert version == model.status.stable.number
    assert_alike(logits, generated(checkpoint, "the cat"))


def test_a_model_that_reads_and_writes_answers_through_the_gateway_what_torch_answers(
    cluster: Site, models: Kubectl, tmp_path: Path
) -> None:
    folder = tiny_encoder_decoder(tmp_path / TRANSLATOR, "bart")
    lay_out(cluster, models, folder)
    model = applied(models, declared(TRANSLATOR))

    assert model.is_promoted, model.message("Ready")
    read = transformers.AutoTokenizer.from_pretrained(folder)(["the cat"], return_tensors="pt")
    with torch.inference_mode():
        original = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        wanted = original.generate(**read, **GREEDY, num_beams=1, eos_token_id=None, pad_token_id=0)
    found = answered(cluster, model, {name: value.numpy() for name, value in read.items()}, START)
    assert_alike(found, torch.cat(wanted.logits).numpy())
    models.delete("onnxmodel", TRANSLATOR)


def test_a_model_that_hears_answers_what_torch_answers_and_auto_takes_what_loses_nothing(
    cluster: Site, models: Kubectl, tmp_path: Path
) -> None:
    folder = tiny_encoder_decoder(tmp_path / HEARER, "whisper")
    lay_out(cluster, models, folder)
    model = applied(models, declared(HEARER, quantization={"scheme": "auto", "auto": {"maxQualityLoss": "0"}}))

    assert model.is_promoted, model.message("Ready")
    sound = np.sin(np.linspace(0, 2000, 16_000) ** 1.1).astype(np.float32)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    heard = extractor(sound, sampling_rate=16_000, return_tensors="pt")["input_features"]
    original = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    start = original.config.decoder_start_token_id
    written = torch.tensor([[start]])
    with torch.inference_mode():
        for _ in range(TOKENS):
            logits = original(input_features=heard, decoder_input_ids=written).logits
            written = torch.cat([written, logits[:, -1:].argmax(dim=-1)], dim=1)
        logits = original(input_features=heard, decoder_input_ids=written[:, :-1]).logits
    assert_alike(answered(cluster, model, {"input_features": heard.numpy()}, start), logits[0].numpy())
    assert model.status.stable is not None
    revision = models.get("onnxmodelrevision", model.status.stable.revision)
    assert revision is not None
    (chosen,) = revision["status"]["quantization"]
    assert chosen["scheme"] == "none"
    lost = {one["scheme"]: float(one["loss"]) for one in chosen["schemes"] if "loss" in one}
    assert {"int8-dynamic", "int8-weight-only"} <= lost.keys()
    assert all(loss > 0 for scheme, loss in lost.items() if scheme != "none")
    models.delete("onnxmodel", HEARER)


def test_a_model_that_sees_answers_through_the_gateway_what_torch_answers_and_is_packed_for_other_devices(
    cluster: Site, models: Kubectl, tmp_path: Path
) -> None:
    folder = tiny_clip(tmp_path / SEER)
    lay_out(cluster, models, folder)
    # The checkpoint has an encoder for texts, too.
    providers = [{"name": "CPUExecutionProvider"}, *({"name": one, "serving": "none"} for one in PACKED_FOR)]
    model = applied(models, declared(SEER, task="image-feature-extraction", executionProviders=providers))

    assert model.is_promoted, model.message("Ready")
    assert model.status.endpoint is not None
    assert model.status.stable is not None
    revision = models.get("onnxmodelrevision", model.status.stable.revision)
    assert revision is not None
    assert {one["provider"] for one in revision["status"]["parity"] if "checked" in one} == set(PACKED_FOR)
    images = np.random.default_rng(0).standard_normal((3, 3, IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32)
    with torch.inference_mode():
        original = transformers.CLIPModel.from_pretrained(folder).eval()
        wanted = original.get_image_features(torch.from_numpy(images)).pooler_output.numpy()
    gateway, headers = gateway_of(cluster), {"Host": model.status.endpoint.host}
    with tritonclient.http.InferenceServerClient(f"{gateway.address}:{gateway.http_port}") as client:
        seen = client.infer(SEER, [tensor("pixel_values", images)], headers=headers).as_numpy("image_embeds")
    np.testing.assert_allclose(seen, wanted, rtol=1e-4, atol=1e-4)
    models.delete("onnxmodel", SEER)


def test_what_is_lost_on_data_of_a_config_map_and_how_fast_the_graph_is_are_told_on_the_revision(
    cluster: Site, models: Kubectl, tmp_path: Path
) -> None:
    data, example = yaml.safe_load_all((ROOT / "examples" / "evaluations.yaml").read_text())
    models.apply(data)
    lay_out(cluster, models, minilm(tmp_path / EVALUATED))
    asked = {key: example["spec"][key] for key in ("quantization", "validation")}
    model = applied(models, declared(EVALUATED, **asked))

    assert model.is_promoted, model.message("Ready")
    assert model.status.stable is not None
    status = (models.get("onnxmodelrevision", model.status.stable.revision) or {})["status"]
    (told,) = status["evaluations"]
    assert (told["name"], told["metric"], told["samples"]) == ("sts", "stsSpearman", 30)
    assert float(told["original"]) > 0.8
    assert abs(float(told["original"]) - float(told["graph"])) < float(told["maxLoss"]) == 0.02
    (benchmark,) = status["benchmark"]
    assert benchmark["graph"]["sizeBytes"] < 0.5 * benchmark["original"]["sizeBytes"]
    assert benchmark["cells"]
    for cell in benchmark["cells"]:
        for side in (cell["original"], cell["graph"]):
            assert (
                0 < float(side["p50Milliseconds"]) <= float(side["p90Milliseconds"]) <= float(side["p99Milliseconds"])
            )
    models.delete("onnxmodel", EVALUATED)
    models.delete("configmap", data["metadata"]["name"])


def answered(cluster: Site, model: Model, read: dict[str, Any], start: int) -> Logits:
    """What a client of the gateway chooses tokens by, of a text that is read or heard once; one request for each."""
    endpoint, gateway = model.status.endpoint, gateway_of(cluster)
    assert endpoint is not None
    headers = {"Host": endpoint.host}
    with tritonclient.http.InferenceServerClient(f"{gateway.address}:{gateway.http_port}") as client:

        def ask(step: str, arrays: dict[str, Any]) -> dict[str, Any]:
            name = f"{model.name}-{step}"
            answer = client.infer(name, [tensor(*one) for one in arrays.items()], headers=headers)
            outputs = client.get_model_metadata(name, headers=headers)["outputs"]
            return {one["name"]: answer.as_numpy(one["name"]) for one in outputs}

        kept = ask("encoder", read)
        mask = {name: value for name, value in read.items() if name == "attention_mask"}
        past = {
            name.replace("cross", "past"): np.zeros((*value.shape[:2], 0, value.shape[3]), np.float32)
            for name, value in kept.items()
        }
        new = np.full((1, 1), start)
        logits: list[Logits] = []
        for _ in range(TOKENS):
            answer = ask("decoder", {"decoder_input_ids": new, **mask, **past, **kept})
            logits.append(answer["logits"][0, -1])
            new = np.array([[logits[-1].argmax()]])
            past = {name: answer[name.replace("past_key_values", "present")] for name in past}
    return np.stack(logits)
