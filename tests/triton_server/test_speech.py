"""A model that hears, served: a sound is read once and its text written token by token, as torch writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import tritonclient.http

from checkpoints import tiny_encoder_decoder
from onnx_converter import generation, samples, speech
from onnx_converter.contest import Original
from onnx_converter.samples import Sample
from onnx_converter.spec import Task
from onnx_operator.prober.compare import Tolerance, difference
from triton_server.writers import ask, asked_by_both, publishing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from triton_server.serverprocess import Server
    from triton_server.writers import Published

STEPS = 8


@pytest.fixture(scope="module")
def published(server_root: Path) -> Iterator[Published]:
    with publishing(server_root, lambda folder: tiny_encoder_decoder(folder, "whisper")) as made:
        yield made


def test_a_sound_that_is_heard_once_is_answered_token_by_token_as_torch_answers_it(
    writer: Server, published: Published
) -> None:
    original = Original.load(published.line.root / "model", Task.AUTO, None)
    heard = original.checkpoint.speech
    assert heard is not None
    sounds = samples.hear(original.checkpoint, list(speech.generated(heard.most_samples).values())[:2])
    asked = Sample("two sounds", is_text=True, tensors=sounds)
    _, logits = generation.write(original.checkpoint, original.answer, asked, STEPS)
    read = {speech.FEATURES: sounds[speech.FEATURES]}
    cross = ask(writer, "http", read, "writer-encoder")
    so_far = {name: tensor for name, tensor in sounds.items() if name not in read}
    for step in range(STEPS):
        answer = ask(writer, "grpc", {**so_far, **cross}, "writer-decoder")
        at_once = ask(writer, "http", {**so_far, **read})
        for served in (answer, at_once):
            assert np.allclose(served["logits"][:, -1], logits[:, step], atol=1e-4)
        past = {name.replace("present", "past_key_values"): answer[name] for name in answer if name != "logits"}
        so_far = {"decoder_input_ids": answer["logits"][:, -1:].argmax(axis=-1), **past}


def test_a_sound_of_another_length_is_an_error_of_the_model(writer: Server) -> None:
    with pytest.raises(tritonclient.http.InferenceServerException, match="shape"):
        ask(writer, "http", {speech.FEATURES: np.zeros((1, 16, 99), np.float32)}, "writer-encoder")


def test_golden_requests_are_sounds_that_the_prober_sends_and_compares(writer: Server, published: Published) -> None:
    for request, by_http, by_grpc in asked_by_both(writer, published):
        tolerance = Tolerance()
        assert difference(by_http.outputs, by_grpc.outputs, request.outputs, tolerance, mask=request.mask) is None
        assert request.inputs[speech.FEATURES].values.shape == (1, 16, 100)
