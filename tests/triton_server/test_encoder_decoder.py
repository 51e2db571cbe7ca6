"""A model that reads one text and writes another, served: reads once and writes token by token, or both at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
import tritonclient.http

from checkpoints import ANSWER_LENGTH, tiny_encoder_decoder
from onnx_operator.prober.compare import Tolerance, difference
from triton_server.writers import ask, asked_by_both, publishing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from triton_server.serverprocess import Server
    from triton_server.writers import Arrays, Published

LAYERS, HEADS, WIDTH, START = 1, 4, 8, 1
NAMES = [f"{layer}.{kind}" for layer in range(LAYERS) for kind in ("key", "value")]
STEPS = 8


@pytest.fixture(scope="module")
def published(server_root: Path) -> Iterator[Published]:
    with publishing(server_root, lambda folder: tiny_encoder_decoder(folder, "bart")) as made:
        yield made


def past(answer: Arrays | None = None, batch: int = 2) -> Arrays:
    """What was written so far; at first nothing."""
    nothing = np.zeros((batch, HEADS, 0, WIDTH), np.float32)
    return {f"past_key_values.{name}": nothing if answer is None else answer[f"present.{name}"] for name in NAMES}


def given(published: Published) -> Arrays:
    tokenizer = transformers.AutoTokenizer.from_pretrained(published.line.root / "model")
    encoded = tokenizer(["the cat", "water and the train"], padding=True, return_tensors="np")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


@pytest.fixture(scope="module")
def wanted(published: Published) -> list[list[int]]:
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(published.line.root / "model").eval()
    read: dict[str, Any] = {name: torch.from_numpy(array) for name, array in given(published).items()}
    # The random model may end a text; the client here does not look at that.
    options: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False, "num_beams": 1, "eos_token_id": None}
    found: list[list[int]] = model.generate(**read, **options)[:, 1:].tolist()
    return found


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_text_that_is_read_once_is_answered_token_by_token_as_torch_answers_it(
    protocol: str, writer: Server, published: Published, wanted: list[list[int]]
) -> None:
    read = given(published)
    cross = ask(writer, protocol, read, "writer-encoder")
    new, so_far, written = np.full((2, 1), START), past(), []
    for _ in range(STEPS):
        asked = {"decoder_input_ids": new, "attention_mask": read["attention_mask"], **so_far, **cross}
        answer = ask(writer, protocol, asked, "writer-decoder")
        new, so_far = answer["logits"][:, -1:].argmax(axis=-1), past(answer)
        written.append(new)
    assert np.concatenate(written, axis=1).tolist() == wanted


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_model_itself_reads_and_writes_in_one_request(
    protocol: str, writer: Server, published: Published, wanted: list[list[int]]
) -> None:
    read, new, so_far, written = given(published), np.full((2, 1), START), past(), []
    for _ in range(STEPS):
        answer = ask(writer, protocol, {**read, "decoder_input_ids": new, **so_far})
        new, so_far = answer["logits"][:, -1:].argmax(axis=-1), past(answer)
        written.append(new)
    assert np.concatenate(written, axis=1).tolist() == wanted


@pytest.mark.parametrize("length", ["read", "written"])
def test_a_text_longer_than_was_validated_is_an_error_of_the_model(length: str, writer: Server) -> None:
    read, written = (ANSWER_LENGTH + 1, 1) if length == "read" else (1, ANSWER_LENGTH + 1)
    ids = np.ones((1, read), np.int64)
    asked = {"input_ids": ids, "attention_mask": ids, "decoder_input_ids": np.ones((1, written), np.int64)}
    with pytest.raises(tritonclient.http.InferenceServerException, match="the graph failed"):
        ask(writer, "http", asked | past(batch=1))


def test_the_weights_that_both_graphs_have_lie_there_once(writer: Server, published: Published) -> None:
    folders = [writer.repository / f"writer-{step}" / "1" for step in ("encoder", "decoder")]
    assert {(folder / "weights.data").resolve() for folder in folders} == {
        published.line.artifact(published.digest) / "triton/CPUExecutionProvider/model/1/weights.data"
    }


def test_golden_requests_go_to_the_model_itself_and_compare_its_whole_answer(
    writer: Server, published: Published
) -> None:
    for request, by_http, by_grpc in asked_by_both(writer, published):
        assert by_http.outputs.keys() == {"logits"}, "the past is not sent along"
        stable, other = by_http.outputs["logits"], by_grpc.outputs["logits"].copy()
        outputs, tolerance = request.outputs, Tolerance()
        assert difference({"logits": stable}, {"logits": other}, outputs, tolerance, mask=request.mask) is None
        other[:, 0] = np.roll(other[:, 0], 1, axis=-1)
        assert difference({"logits": stable}, {"logits": other}, outputs, tolerance, mask=request.mask) == "Label"
