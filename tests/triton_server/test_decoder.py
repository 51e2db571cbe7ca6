"""A language model from checkpoint to server: it is asked for one token after the other, with its own past."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
import tritonclient.http

from checkpoints import tiny_decoder
from onnx_operator.prober.compare import Tolerance, difference
from triton_server.writers import ask, asked_by_both, publishing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from triton_server.serverprocess import Server
    from triton_server.writers import Published


LAYERS, HEADS, WIDTH = 2, 2, 8
NAMES = [f"{layer}.{kind}" for layer in range(LAYERS) for kind in ("key", "value")]


@pytest.fixture(scope="module")
def published(server_root: Path) -> Iterator[Published]:
    with publishing(server_root, tiny_decoder) as made:
        yield made


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tokens_written_one_by_one_over_the_network_are_those_that_torch_generates(
    protocol: str, writer: Server, published: Published
) -> None:
    folder = published.line.root / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left", pad_token="</s>")  # noqa: S106
    encoded = tokenizer(["the cat", "water and the train"], padding=True, return_tensors="np")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    # The random model may end a text; the client here does not look at that.
    options: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    wanted = model.generate(**given, **options, pad_token_id=1)[:, ids.shape[1] :].numpy()
    past = {f"past_key_values.{name}": np.zeros((2, HEADS, 0, WIDTH), np.float32) for name in NAMES}
    written = []
    for _ in range(8):
        answer = ask(writer, protocol, {"input_ids": ids, "attention_mask": mask, **past})
        ids = answer["logits"][:, -1:].argmax(axis=-1)
        written.append(ids)
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        past = {f"past_key_values.{name}": answer[f"present.{name}"] for name in NAMES}
    assert np.concatenate(written, axis=1).tolist() == wanted.tolist()


def test_a_text_longer_than_was_validated_is_an_error_of_the_model(writer: Server) -> None:
    past = {f"past_key_values.{name}": np.zeros((1, HEADS, 96, WIDTH), np.float32) for name in NAMES}
    with pytest.raises(tritonclient.http.InferenceServerException, match="the graph failed"):
        ask(
            writer,
            "http",
            {"input_ids": np.ones((1, 1), np.int64), "attention_mask": np.ones((1, 97), np.int64), **past},
        )


def test_golden_requests_are_answered_and_compared_by_their_next_token(writer: Server, published: Published) -> None:
    for request, by_http, by_grpc in asked_by_both(writer, published):
        assert by_http.outputs.keys() == {"logits"}, "the past is not sent along"
        stable, other = by_http.outputs["logits"], by_grpc.outputs["logits"].copy()
        outputs, tolerance = request.outputs, Tolerance()
        assert difference({"logits": stable}, {"logits": other}, outputs, tolerance, mask=request.mask) is None
        other[:, 0] = np.roll(other[:, 0], 1, axis=-1)
        assert difference({"logits": stable}, {"logits": other}, outputs, tolerance, mask=request.mask) is None
        other[:, -1] = np.roll(other[:, -1], 1, axis=-1)
        assert difference({"logits": stable}, {"logits": other}, outputs, tolerance, mask=request.mask) == "Label"
