"""Small ONNX graphs, each with the one property that a test needs, and model repositories that hold them.

Nothing here comes from the converter: what the server does is tested against arithmetic that fits on a screen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Ids = NDArray[np.int64]
    Vectors = NDArray[np.float32]

VOCABULARY = 50
POSITIONS = 16
WIDTH = 8
OPSET = 18
IR_VERSION = 10

_RANDOM = np.random.default_rng(3)
WORDS = _RANDOM.standard_normal((VOCABULARY, WIDTH), dtype=np.float32)
PLACES = _RANDOM.standard_normal((POSITIONS, WIDTH), dtype=np.float32)

EMBEDDER_INPUTS = """
input [
  { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] }
]"""
EMBEDDER_OUTPUT = f"""
output [ {{ name: "sentence_embedding" data_type: TYPE_FP32 dims: [ {WIDTH} ] }} ]"""
ONE_INSTANCE = """
instance_group [ { kind: KIND_CPU count: 1 } ]"""
ONE_THREAD = """
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
parameters { key: "inter_op_thread_count" value { string_value: "1" } }"""


@dataclass(frozen=True)
class Model:
    """A model of a repository: bytes of a graph, and config.pbtxt without name and backend."""

    name: str
    graph: bytes | None
    config: str
    version: int = 1

    def write(self, repository: Path, artifacts: Path) -> None:
        """As the operator lays it out: the files lie elsewhere, the repository holds links to them."""
        files = artifacts / self.name
        (files / "1").mkdir(parents=True)
        if self.graph is not None:
            (files / "1" / "model.onnx").write_bytes(self.graph)
        (files / "config.pbtxt").write_text(f'name: "{self.name}"\nbackend: "onnxruntime"\n{self.config}\n')
        (repository / self.name).mkdir(parents=True)
        (repository / self.name / "config.pbtxt").symlink_to(files / "config.pbtxt")
        (repository / self.name / str(self.version)).symlink_to(files / "1")


def embedder_config(*more: str, batch: int = 8) -> str:
    """The usual one, and more."""
    return "\n".join((f"max_batch_size: {batch}", EMBEDDER_INPUTS, EMBEDDER_OUTPUT, ONE_INSTANCE, ONE_THREAD, *more))


def warm_up(length: int) -> str:
    """Three requests of two rows, as part of a config.pbtxt."""
    inputs = " ".join(
        f'inputs {{ key: "{name}" value {{ data_type: TYPE_INT64 dims: [ {length} ] zero_data: true }} }}'
        for name in ("input_ids", "attention_mask")
    )
    return f'model_warmup [ {{ name: "of {length}" batch_size: 2 count: 3 {inputs} }} ]'


def parameter(key: str, value: str) -> str:
    """A parameter in config.pbtxt."""
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def embed(ids: Ids, mask: Ids) -> Vectors:
    """What the embedder computes, in numpy."""
    vectors = (WORDS[ids] + PLACES[: ids.shape[1]]) * mask[:, :, None]
    return np.asarray(vectors.sum(axis=1), dtype=np.float32)


def embedder(*, opset: int = OPSET, ir_version: int = IR_VERSION, batch: str | int = "batch") -> bytes:
    """Sum of word and position vectors: longer than the position table, or outside the vocabulary, it fails."""
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["word"]),
        helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
        helper.make_node("Slice", ["places", "zero", "length"], ["place"]),
        helper.make_node("Add", ["word", "place"], ["sum"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "two"], ["column"]),
        helper.make_node("Mul", ["sum", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sentence_embedding"], keepdims=0),
    ]
    return _serialized(
        nodes,
        inputs=[_ids("input_ids", batch), _ids("attention_mask", batch)],
        outputs=[helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, [batch, WIDTH])],
        constants={
            "words": WORDS,
            "places": PLACES,
            "zero": np.array([0]),
            "one": np.array([1]),
            "two": np.array([2]),
        },
        opset=opset,
        ir_version=ir_version,
    )


WORKER_CONFIG = f"""
max_batch_size: 4
input [ {{ name: "rounds" data_type: TYPE_INT64 dims: [ 1 ] }} ]
output [ {{ name: "done" data_type: TYPE_INT64 dims: [ 1 ] }} ]
{ONE_INSTANCE}{ONE_THREAD}"""


def worker() -> bytes:
    """Multiplies matrices for as many rounds as the input says, then answers with the input."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "turn"], ["after"]),
            helper.make_node("Identity", ["going"], ["still"]),
        ],
        "round",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [256, 256]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [256, 256]),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["rounds"], ["most"], keepdims=0),
        helper.make_node("Loop", ["most", "", "turn"], ["result"], body=body),
        # The result has to be used, or the loop would be optimised away.
        helper.make_node("ReduceMax", ["result"], ["largest"], keepdims=0),
        helper.make_node("Clip", ["largest", "nothing", "nothing"], ["zero"]),
        helper.make_node("Cast", ["zero"], ["none"], to=TensorProto.INT64),
        helper.make_node("Add", ["rounds", "none"], ["done"]),
    ]
    rotation = np.linalg.qr(_RANDOM.standard_normal((256, 256)))[0].astype(np.float32)
    return _serialized(
        nodes,
        inputs=[helper.make_tensor_value_info("rounds", TensorProto.INT64, ["batch", 1])],
        outputs=[helper.make_tensor_value_info("done", TensorProto.INT64, ["batch", 1])],
        constants={"turn": rotation, "nothing": np.array(0, dtype=np.float32)},
    )


HUNGRY_INPUT = """
input [ { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] } ]
output [ { name: "largest" data_type: TYPE_FP32 dims: [ 1 ] } ]"""


def hungry() -> bytes:
    """Takes 64 KiB for each token while it runs."""
    nodes = [
        # As in any real graph, something small comes first: where outputs land when it is free again.
        helper.make_node("Abs", ["input_ids"], ["index"]),
        helper.make_node("Gather", ["wide", "index"], ["word"]),
        helper.make_node("ReduceMax", ["word", "axes"], ["flat"], keepdims=0),
        helper.make_node("Unsqueeze", ["flat", "one"], ["largest"]),
    ]
    wide = np.arange(4, dtype=np.float32)[:, None] * np.ones((1, 16384), dtype=np.float32)
    return _serialized(
        nodes,
        inputs=[_ids("input_ids", "batch")],
        outputs=[helper.make_tensor_value_info("largest", TensorProto.FLOAT, ["batch", 1])],
        constants={"wide": wide, "axes": np.array([1, 2]), "one": np.array([1])},
    )


SUMMER_CONFIG = f"""
input [
  {{ name: "left" data_type: TYPE_FP32 dims: [ 3 ] }},
  {{ name: "right" data_type: TYPE_FP32 dims: [ 3 ] }}
]
output [
  {{ name: "sum" data_type: TYPE_FP32 dims: [ 3 ] }},
  {{ name: "less" data_type: TYPE_FP32 dims: [ 3 ] }}
]
{ONE_INSTANCE}"""


def summer() -> bytes:
    """Adds two vectors of fixed length; has no batch dimension."""
    return _serialized(
        [helper.make_node("Add", ["left", "right"], ["sum"]), helper.make_node("Sub", ["left", "right"], ["less"])],
        inputs=[helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("left", "right")],
        outputs=[helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("sum", "less")],
        constants={},
    )


def _ids(name: str, batch: str | int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, [batch, "sequence"])


def _serialized(
    nodes: list[onnx.NodeProto],
    *,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, NDArray[np.generic]],
    opset: int = OPSET,
    ir_version: int = IR_VERSION,
) -> bytes:
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    return bytes(model.SerializeToString())
