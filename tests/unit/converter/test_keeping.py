"""Attention keeps its cache by itself and reads what layers write, and answers as it did, number by number."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_converter import keeping
from unit.converter.rewriting import rewritten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: Of the cache, each as wide as the least that can be rotated.
KEPT, WIDTH = 2, 8
#: What the axis of queries is called, by how many share a head of the cache.
ROWS = {1: "N", 2: "rows"}
#: What lies between the layers and the attention, by whose heads it has.
ROTATED = "{0}t = Transpose<perm=[0,2,1,3]>({0}4) {0}h = com.microsoft.RotaryEmbedding({0}t, ids, cos, sin)"
AS_IT_IS = "{0}h = Transpose<perm=[0,2,1,3]>({0}4)"
NORMED = "{0}n = Mul({0}4, gain) {0}h = Transpose<perm=[0,2,1,3]>({0}n)"
NORMED_LATE = "{0}t = Transpose<perm=[0,2,1,3]>({0}4) {0}h = Mul({0}t, gain)"
OTHERWISE = "{0}t = Transpose<perm=[0,2,1,3]>({0}4) {0}h = Softmax<axis=2>({0}t)"


def graph_of(group: int, queries: str, keys: str, more: str = "") -> onnx.ModelProto:
    """As fused.py has it traced."""
    heads, rows = KEPT * group, ROWS[group]
    shared = f"{KEPT},{rows},{WIDTH}"
    ask = "asked = Transpose<perm=[0,2,1,3]>(qh)"
    end = "y4 = Reshape(o, split) w = Reshape(y4, wide)"
    if group > 1:
        ask = "qg = Reshape(qh, shared) asked = Transpose<perm=[0,2,1,3]>(qg)"
        end = "y5 = Reshape(o, groups) y4 = Transpose<perm=[0,2,3,1,4]>(y5) w = Reshape(y4, wide)"
    return onnx.parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>
        layer (float[B,N,{heads * WIDTH}] q, float[B,N,{KEPT * WIDTH}] k, float[B,N,{KEPT * WIDTH}] v,
            float[B,{KEPT},P,{WIDTH}] pk, float[B,{KEPT},P,{WIDTH}] pv, float[B,1,{rows},T] mask,
            int64[B,N] ids, float[M,{WIDTH // 2}] cos, float[M,{WIDTH // 2}] sin)
        => (float[B,N,{heads * WIDTH}] y, float[B,{KEPT},T,{WIDTH}] ck, float[B,{KEPT},T,{WIDTH}] cv)
        <int64[4] split = {{0, 0, -1, {WIDTH}}}, int64[3] wide = {{0, -1, {heads * WIDTH}}},
            int64[4] shared = {{0, {KEPT}, -1, {WIDTH}}}, int64[3] few = {{0, -1, {KEPT * WIDTH}}},
            int64[5] groups = {{0, {group}, -1, {KEPT}, {WIDTH}}}, float[1] gain = {{1.5}},
            float[B,N,{heads},{WIDTH}] q4, float[B,N,{KEPT},{WIDTH}] k4, float[B,N,{KEPT},{WIDTH}] v4,
            float[B,N,{heads},{WIDTH}] qn, float[B,N,{KEPT},{WIDTH}] kn, float[B,{KEPT},N,{WIDTH}] kh,
            float[B,{heads},N,{WIDTH}] qh, float[B,{shared}] qg, float[B,{rows},{KEPT},{WIDTH}] asked,
            float[B,{rows},{KEPT * WIDTH}] o, float[B,N,{heads * WIDTH}] w,
            float[B,{rows},{KEPT * WIDTH}] asked3>
        {{
            q4 = Reshape(q, split) {queries.format("q")}
            k4 = Reshape(k, split) {keys.format("k")}
            v4 = Reshape(v, split) vh = Transpose<perm=[0,2,1,3]>(v4)
            ck = Concat<axis=-2>(pk, kh) cv = Concat<axis=2>(pv, vh)
            {ask} asked3 = Reshape(asked, few) {more}
            o = com.microsoft.MultiHeadAttention<num_heads={KEPT}>(asked3, ck, cv, , , mask)
            {end} y = Neg(w)
        }}
        """
    )


def answers(model: onnx.ModelProto, group: int, texts: int, new: int, past: int) -> Sequence[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    sizes = {"B": texts, "N": new, "P": past, "T": past + new, ROWS[group]: group * new, "M": texts * new}
    random = np.random.default_rng(0)
    given: dict[str, NDArray[Any]] = {
        item.name: random.standard_normal([sizes.get(dim, dim) for dim in item.shape]).astype(np.float32)
        for item in session.get_inputs()
    }
    given["ids"] = np.arange(texts * new).reshape(texts, new)
    return [np.asarray(answer) for answer in session.run(None, given)]


def kinds_of(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


#: Heads that share one of the cache, what is between for queries and keys, and what is left, None for all of it.
LAYERS: dict[str, tuple[int, str, str, dict[str, int] | None]] = {
    "a query for each head": (1, ROTATED, ROTATED, {"RotaryEmbedding": 2}),
    "without rotation": (1, AS_IT_IS, AS_IT_IS, {}),
    "queries that share heads": (2, ROTATED, ROTATED, {"RotaryEmbedding": 2, "Reshape": 4, "Transpose": 2}),
    "normed before they are turned": (1, NORMED, NORMED, {"Mul": 2, "Reshape": 4}),
    "turned before they are normed": (1, NORMED_LATE, NORMED_LATE, {"Mul": 2, "Reshape": 4}),
    "queries that come otherwise": (1, OTHERWISE, AS_IT_IS, {"Softmax": 1, "Reshape": 2, "Transpose": 2}),
    "keys that come otherwise": (1, ROTATED, OTHERWISE, None),
}


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.replace(" ", "-"))
def test_what_only_turns_and_joins_is_gone_and_no_number_is_another(case: str) -> None:
    group, queries, keys, left = LAYERS[case]
    before = graph_of(group, queries, keys)
    after = kept(before)
    assert kinds_of(after) == (
        kinds_of(before) if left is None else Counter({"MultiHeadAttention": 1, "Neg": 1, **left})
    )
    assert [(item.name, item.type) for item in after.graph.output] == [
        (item.name, item.type) for item in before.graph.output
    ]
    for texts, new, past in ((1, 1, 5), (2, 3, 4), (2, 3, 0), (3, 1, 1)):
        found, wanted = (answers(model, group, texts, new, past) for model in (after, before))
        assert all(np.array_equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_a_cache_that_something_else_reads_as_well_stays_where_it_is() -> None:
    before = graph_of(1, ROTATED, ROTATED, "z = Neg(ck)")
    before.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["B", KEPT, "T", WIDTH]))
    assert kinds_of(kept(before)) == kinds_of(before)


def kept(graph: onnx.ModelProto) -> onnx.ModelProto:
    return rewritten(graph, keeping.settle)
