"""Which way a graph is made: the fastest that covers the model and was shown to be right, and why no faster one."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import onnx
import pytest

from checkpoints import tiny, tiny_decoder
from onnx_converter import load, routes
from onnx_converter.contest import Original
from onnx_converter.route import Goal, Route
from onnx_converter.spec import Provider, Scheme, Task
from unit.converter import matrix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from unit.converter.steps import Line

CPU = "CPUExecutionProvider"
FUSED, TRACE = routes.ROUTES
GOAL = Goal(Provider.CPU, Scheme.NONE, 18)

MISSED: dict[str, tuple[str, dict[str, Any], Goal, str]] = {
    "no language model": ("bert", {}, GOAL, "language models"),
    "attention in code of its own": ("falcon", {}, GOAL, "its own code"),
    "scores that are bounded": ("gemma2", {}, GOAL, "attn_logit_softcapping"),
    "a provider that nobody ran it on": ("llama", {}, Goal(Provider.CUDA, Scheme.NONE, 18), "CUDAExecutionProvider"),
}


@pytest.mark.parametrize("case", MISSED, ids=lambda case: case.replace(" ", "-"))
def test_what_a_route_does_not_cover_it_says_before_anything_is_made(case: str, tmp_path: Path) -> None:
    name, sizes, goal, words = MISSED[case]
    make = tiny if name == "bert" else tiny_decoder
    checkpoint = load.load(make(tmp_path / "model", name, **sizes), Task.AUTO, None)
    assert words in str(FUSED.misses(checkpoint, goal))
    assert TRACE.misses(checkpoint, goal) is None


@contextmanager
def unrotated(model: Any) -> Iterator[None]:
    code = vars(sys.modules[type(model).__module__])
    with FUSED.traced(model), patch.dict(code, apply_rotary_pos_emb=lambda query, key, *_: (query, key)):
        yield


@contextmanager
def given_up(_model: Any) -> Iterator[None]:
    raise RuntimeError("there is no such operator")
    yield


def test_a_route_that_is_wrong_or_gives_up_is_refused_with_a_reason_and_the_next_one_taken(
    tmp_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = (Route("unrotated", FUSED.misses, unrotated), Route("given-up", FUSED.misses, given_up))
    monkeypatch.setattr(routes, "ROUTES", (*wrong, TRACE))
    digest = line.fetch(tiny_decoder(tmp_path / "model", num_hidden_layers=1)).details["digest"]
    converted = line.convert(digest)
    assert "by trace" in converted.summary.message
    found = converted.details["graphs"][CPU]
    assert found["route"] == "trace"
    assert [refused["route"] for refused in found["routesRefused"]] == ["unrotated", "given-up"]
    assert "tolerance" in found["routesRefused"][0]["reason"]
    assert found["routesRefused"][1]["reason"] == "there is no such operator"
    assert next(said["trialSeconds"] for said in converted.lines if said["event"] == "GraphExported") > 0
    written = json.loads((line.work / "graph" / "conversion.json").read_text())["graphs"][CPU]
    assert {key: inner for key, inner in written.items() if key != "stages"} == found
    graph = onnx.load(line.work / "graph" / CPU / "model.onnx").graph
    assert all(node.domain == "" for node in graph.node), "nothing of what was refused is left in it"
    original = Original.load(line.checkpoint(digest), Task.AUTO, None)
    ends = matrix.by_other_routes(original, line, digest, "trace")
    assert ends == {"unrotated": "ParityFailed", "given-up": "Crashed"}, "as the reference says it"


def test_providers_that_differ_in_what_covers_them_have_graphs_by_different_routes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_decoder(tmp_path / "model")
    checkpoint, made = load.load(source, Task.AUTO, None), []
    monkeypatch.setattr(routes, "tried", lambda *_, **__: None)
    monkeypatch.setattr(routes, "_export", lambda *given, **_: given[3].mkdir(parents=True))
    for provider in (Provider.CPU, Provider.CUDA, Provider.CPU):
        goal = Goal(provider, Scheme.NONE, 18)
        made.append(routes.make(checkpoint, source, tmp_path / "exported", goal))
    assert [one.route for one in made] == ["fused-attention", "trace", "fused-attention"]
    assert all(one.folder.is_dir() for one in made)


def test_a_large_model_is_tried_as_a_small_one_with_a_layer_of_each_kind_and_a_window_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    folder = tiny_decoder(tmp_path / "model", "gemma3_text", num_hidden_layers=3, layer_types=kinds)
    large = load.load(folder, Task.AUTO, None)
    monkeypatch.setattr(routes, "_SMALL", 0)
    small = routes.shrunk(large)
    assert small.model.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert len(small.cache) == 6
    assert len(large.cache) == 6
    assert small.max_sequence_length > small.model.config.sliding_window
    windowless = Route("windowless", FUSED.misses, without_windows)
    assert "tolerance" in str(routes.tried(windowless, large, folder, tmp_path / "windowless", GOAL))
    assert routes.tried(FUSED, large, folder, tmp_path / "fused", GOAL) is None
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "what was tried is gone"


@contextmanager
def without_windows(model: Any) -> Iterator[None]:
    code = vars(sys.modules[type(model).__module__])
    with FUSED.traced(model), patch.dict(code, create_sliding_window_causal_mask=code["create_causal_mask"]):
        yield
