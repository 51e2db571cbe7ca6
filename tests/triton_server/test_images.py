"""A model that sees, served: pictures of several clients are answered together, as torch answers each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tritonclient.http

from checkpoints import tiny_vision
from onnx_converter import images, samples
from onnx_converter.contest import Original
from onnx_converter.images import PIXELS
from onnx_converter.spec import Task
from onnx_operator.prober.compare import Tolerance, difference
from triton_server.writers import ask, asked_by_both, publishing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from triton_server.serverprocess import Server
    from triton_server.writers import Published


@pytest.fixture(scope="module")
def published(server_root: Path) -> Iterator[Published]:
    with publishing(server_root, tiny_vision) as made:
        yield made


def test_pictures_of_several_clients_are_answered_as_torch_answers_each(writer: Server, published: Published) -> None:
    original = Original.load(published.line.root / "model", Task.AUTO, None)
    assert original.checkpoint.sight is not None
    asked = list(samples.images_one_by_one(original.checkpoint.sight))
    with ThreadPoolExecutor(len(asked)) as clients:
        answers = list(clients.map(lambda sample: ask(writer, "http", sample.tensors), asked))
    for sample, served in zip(asked, answers, strict=True):
        truth = original.answer(sample)["image_embeds"]
        np.testing.assert_allclose(served["image_embeds"], truth, atol=1e-4, err_msg=sample.name)


def test_an_image_of_another_size_is_an_error_of_the_model(writer: Server) -> None:
    with pytest.raises(tritonclient.http.InferenceServerException, match="shape"):
        ask(writer, "http", {PIXELS: np.zeros((1, 3, 8, 8), np.float32)})


def test_golden_requests_are_pictures_that_the_prober_sends_and_compares(writer: Server, published: Published) -> None:
    names = []
    for request, by_http, by_grpc in asked_by_both(writer, published):
        assert difference(by_http.outputs, by_grpc.outputs, request.outputs, Tolerance(), mask=request.mask) is None
        names.append(request.name)
    assert names == list(images.pictures((3, 16, 16)))
