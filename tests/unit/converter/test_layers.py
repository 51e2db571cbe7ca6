"""A graph that was grown from a few layers is the one that comes of all of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from checkpoints import tiny_decoder
from onnx_converter import export, layers, load, routes
from onnx_converter.route import Goal, Route
from onnx_converter.spec import Provider, Scheme, Task

if TYPE_CHECKING:
    from pathlib import Path

    from onnx_converter.load import Checkpoint

FUSED, TRACE = routes.ROUTES
GOAL = Goal(Provider.CPU, Scheme.NONE, 18)
#: One of them is only like itself, and is not the last.
KINDS = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]


def checkpoint_of(folder: Path, name: str = "llama", depth: int = 5, **sizes: Any) -> Checkpoint:
    sizes |= {"n_layer" if name == "gpt2" else "num_hidden_layers": depth}
    return load.load(tiny_decoder(folder, name, **sizes), Task.AUTO, None)


def plan_of(checkpoint: Checkpoint) -> layers.Plan:
    plan = layers.plan_of(checkpoint)
    assert plan is not None
    return plan


def answers(folder: Path) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=[Provider.CPU])
    random = np.random.default_rng(0)
    given: dict[str, Any] = {
        "input_ids": np.array([[5, 6, 7], [8, 9, 10]]),
        "attention_mask": np.ones((2, 7), np.int64),
    }
    given["attention_mask"][1, :2] = 0
    for item in session.get_inputs()[2:]:
        given[item.name] = random.standard_normal((2, item.shape[1], 4, item.shape[3]), dtype=np.float32)
    return dict(zip((item.name for item in session.get_outputs()), session.run(None, given), strict=True))


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """With more words and a larger inner width than its trial."""
    monkeypatch.setattr(routes, "_SMALL", 0)
    return checkpoint_of(tmp_path / "model", vocab_size=700, intermediate_size=300)


@pytest.mark.parametrize("route", [FUSED, TRACE], ids=lambda route: route.name)
def test_it_answers_as_the_one_that_was_traced_whole_to_the_last_bit(
    route: Route, large: Checkpoint, tmp_path: Path
) -> None:
    checkpoint = large
    plan = plan_of(checkpoint)
    assert routes._grown(route, checkpoint, tmp_path / "model", tmp_path / "True", GOAL, plan=plan) is None
    assert {path.name for path in tmp_path.iterdir()} == {"model", "True"}, "what was tried is gone"
    routes._export(route, checkpoint, tmp_path / "model", tmp_path / "False", GOAL)
    grown, whole = (onnx.load(tmp_path / str(grows) / "model.onnx").graph for grows in (True, False))
    # What each layer makes of the same lengths is made once, so of some others there are fewer.
    for kind in ("MatMul", "MultiHeadAttention", "Softmax", "RotaryEmbedding", "ReduceMean"):
        assert len({node.name for node in grown.node if node.op_type == kind}) == sum(
            node.op_type == kind for node in whole.node
        )
    layers_of = [{node.name for node in graph.node if "_proj" in node.name} for graph in (grown, whole)]
    assert layers_of[0] == layers_of[1]
    assert "model.layers.4.self_attn.q_proj+k_proj+v_proj" in layers_of[0]
    assert [item.name for item in grown.input] == [item.name for item in whole.input]
    wanted, found = answers(tmp_path / "False"), answers(tmp_path / "True")
    assert list(found) == list(wanted)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert checkpoint.model.config.num_hidden_layers == len(checkpoint.model.model.layers) == 5, (
        "the model is as before"
    )


@pytest.mark.parametrize("kind", ["by their configuration", "by themselves"])
def test_layers_of_several_kinds_are_each_what_they_are(kind: str, tmp_path: Path) -> None:
    if kind == "by themselves":
        checkpoint = checkpoint_of(tmp_path / "model")
        checkpoint.model.model.layers[3].self_attn.scaling = 0.05
    else:
        checkpoint = checkpoint_of(tmp_path / "model", "gemma3_text", layer_types=KINDS)
    assert plan_of(checkpoint)[2:] == ([0, 3], [0, 0, 0, 1, 0])
    # Small enough to be the trial itself.
    assert routes.tried(FUSED, checkpoint, tmp_path / "model", tmp_path / "graph", GOAL, grows=True) is None


#: What of a growth is made wrong, and what the trial says.
WRONG: dict[str, tuple[str, Any, str]] = {
    "the layers are in another order": (
        "Growth.__init__",
        lambda growth, model, few, cache, init=layers.Growth.__init__: init(
            growth, model, replace(few, layers=few.layers[::-1]), cache
        ),
        "tolerance",
    ),
    "a layer is left out": (
        "Growth._put",
        lambda growth, number, place, hidden, put=layers.Growth._put: (
            put(growth, number, place, hidden) if number else (hidden, *put(growth, number, place, hidden)[1:])
        ),
        "tolerance",
    ),
    "the words are those of the large model": ("_exchange", lambda *_: None, "answers with shape"),
}


def test_a_growth_that_is_wrong_is_refused_by_its_trial(
    large: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[Any] = []

    def once(*given: Any, trace: Any = export.trace) -> Any:
        traced[:] = traced or [trace(*given)]
        return traced[0].clone()

    monkeypatch.setattr(export, "trace", once)
    folder = tmp_path / "grown"
    grown = partial(routes._grown, FUSED, large, tmp_path / "model", folder, GOAL, plan=plan_of(large))
    for name, (what, instead, words) in WRONG.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"onnx_converter.layers.{what}", instead)
            assert words in str(routes._proved(grown, folder)), name
        assert [path.name for path in tmp_path.iterdir()] == ["model"], name
    assert routes._proved(grown, folder) is None


def test_layers_that_compute_with_their_number_are_traced_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LlamaDecoderLayer.forward

    def counting(layer: Any, *given: Any, **named: Any) -> Any:
        return original(layer, *given, **named) * (1 + layer.self_attn.layer_idx)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counting)
    checkpoint = checkpoint_of(tmp_path / "model", depth=3)
    with pytest.raises(layers.UnlikeError, match="two layers of one kind came out differently"):
        routes._export(FUSED, checkpoint, tmp_path / "model", tmp_path / "grown", GOAL, grows=True)
    assert routes.make(checkpoint, tmp_path / "model", tmp_path / "made", GOAL).route == FUSED.name


def test_layers_that_were_told_their_number_are_all_of_a_kind_of_their_own(tmp_path: Path) -> None:
    assert layers.plan_of(checkpoint_of(tmp_path / "alike", "gpt2")) is not None
    assert layers.plan_of(checkpoint_of(tmp_path / "scaled", "gpt2", scale_attn_by_inverse_layer_idx=True)) is None


def test_a_model_that_is_no_deeper_than_two_layers_of_each_kind_is_traced_as_it_is(tmp_path: Path) -> None:
    assert layers.plan_of(load.load(tiny_decoder(tmp_path / "model"), Task.AUTO, None)) is None
