"""What a finished graph must look like, whatever made it, before anything is computed with it.

Refuses a graph that lacks an input or output of the task, has another one, froze the batch or the length, has weights
outside its folder or twice, or needs a newer runtime than the one that will serve it.
"""

from __future__ import annotations

import math
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnx_converter import wire
from onnx_converter.digest import sha256_of, tree_digest
from onnx_converter.reasons import (
    AXIS_FROZEN,
    COMPONENT_MISSING,
    CROSS_COMPUTED_ANEW,
    GRAPH_REFUSED,
    RUNTIME_TOO_OLD,
    SPEC_IMPOSSIBLE,
    WEIGHTS_STORED_TWICE,
    StepFailedError,
    gist,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

#: Domains whose operators onnxruntime itself brings: no other library will be there where the graph is served.
_DOMAINS: Final = frozenset({"", "ai.onnx", "com.microsoft", "ai.onnx.ml"})
_DATATYPES: Final = {
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.FLOAT16: "FP16",
}
MODEL: Final = "model.onnx"
#: Elements; smaller tables may be equal by chance.
_LARGE: Final = 16_384


@dataclass(frozen=True, slots=True)
class Runtime:
    """The newest graph that the serving image reads."""

    name: str
    opset: int
    ir_version: int


#: The floor of production is NVIDIA's Triton 26.07; the oldest onnxruntime this project serves on is 1.23.
SERVING_RUNTIME: Final = Runtime("onnxruntime 1.23", opset=23, ir_version=11)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output as Triton and a client see it; -1 is dynamic."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def value(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True, slots=True)
class Part:
    """One graph of a model, which may have several: its file, its inputs, and how its outputs begin."""

    file: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]


@dataclass(frozen=True, slots=True)
class Before:
    """What is known of the graphs of a model that were looked at before the next one."""

    #: The names of what they make.
    made: set[str] = field(default_factory=set)
    #: Their large weights with the files that they are of, by what equal ones have in common.
    seen: dict[tuple[object, ...], list[tuple[Path, onnx.TensorProto]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What is told of a graph, or of all graphs of a model together."""

    digest: str
    bytes: int
    opset: int
    ir_version: int
    nodes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def brief(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "bytes": self.bytes,
            "opset": self.opset,
            "irVersion": self.ir_version,
            "nodes": self.nodes,
        }


def refuse_opset(opset: int, runtime: Runtime = SERVING_RUNTIME) -> None:
    if opset > runtime.opset:
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"opset {opset} exceeds {runtime.opset}, the newest that {runtime.name} serves: lower opset",
        )


def inspect(
    path: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    runtime: Runtime = SERVING_RUNTIME,
    before: Before | None = None,
) -> GraphFacts:
    """The facts of a graph that is as it must be; the shapes of outputs need only begin as given."""
    before = before or Before()
    if not path.is_symlink() and not path.exists():
        raise _missing(path.name, "which is one of the model's graphs")
    try:
        model = wire.outline(path)
    except Exception as error:
        raise StepFailedError(GRAPH_REFUSED, f"{path.name} is no valid ONNX graph: {gist(error)}") from error
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    if opset > runtime.opset or model.ir_version > runtime.ir_version:
        raise StepFailedError(
            RUNTIME_TOO_OLD,
            (
                f"{path.name} has opset {opset} and IR version {model.ir_version}, "
                f"{runtime.name} reads up to {runtime.opset} and {runtime.ir_version}: lower opset"
            ),
        )
    _refuse_foreign(model, path)
    _refuse_invalid(model, path)
    found_inputs, found_outputs = tuple(map(_spec_of, model.graph.input)), tuple(map(_spec_of, model.graph.output))
    _refuse_made_anew(path, inputs, found_inputs, before.made)
    _refuse_signature(path, "input", inputs, found_inputs)
    _refuse_signature(path, "output", outputs, found_outputs)
    with ThreadPoolExecutor(1) as pool:
        # Both read all of it, and leave Python alone meanwhile.
        hashed = pool.submit(sha256_of, path)
        _refuse_twice(model, path, before.seen)
    size = sum(file.stat().st_size for file in {path, *_data_files(model, path)})
    return GraphFacts(
        "sha256:" + hashed.result(), size, opset, model.ir_version, len(model.graph.node), found_inputs, found_outputs
    )


def _refuse_invalid(model: onnx.ModelProto, path: Path) -> None:
    """By onnx's own checker, which looks at weights by their size alone: it is given holes of that size."""
    with tempfile.TemporaryDirectory() as folder:
        for file in {path, *_data_files(model, path)}:
            with Path(folder, file.name).open("wb") as stream:
                stream.truncate(file.stat().st_size)
        bare = Path(folder, f"outline-of-{path.name}")
        bare.write_bytes(model.SerializeToString())
        try:
            onnx.checker.check_model(str(bare))
        except Exception as error:
            raise StepFailedError(GRAPH_REFUSED, f"{path.name} is no valid ONNX graph: {gist(error)}") from error


def inspect_parts(folder: Path, parts: Sequence[Part], runtime: Runtime = SERVING_RUNTIME) -> GraphFacts:
    """The facts of a model's graphs as one: what goes from graph to graph is none of its inputs and outputs."""
    before = Before()
    found: list[GraphFacts] = []
    for part in parts:
        found.append(inspect(folder / part.file, part.inputs, part.outputs, runtime, before))
        before.made.update(spec.name for spec in part.outputs)
    if len(found) == 1:
        return found[0]
    inputs = {spec.name: spec for facts in found for spec in facts.inputs if spec.name not in before.made}
    return GraphFacts(
        digest_of(folder),
        sum(path.stat().st_size for path in folder.iterdir()),
        max(facts.opset for facts in found),
        max(facts.ir_version for facts in found),
        sum(facts.nodes for facts in found),
        tuple(inputs.values()),
        found[-1].outputs,
    )


def digest_of(folder: Path) -> str:
    """Of the graph; of several, with the weights that they share, that of the folder."""
    if (folder / MODEL).is_file():
        return "sha256:" + sha256_of(folder / MODEL)
    return tree_digest({path.name: sha256_of(path) for path in folder.iterdir()})


def _refuse_foreign(model: onnx.ModelProto, path: Path) -> None:
    for node in model.graph.node:
        if node.domain not in _DOMAINS:
            raise StepFailedError(
                GRAPH_REFUSED,
                f"{path.name}: node {node.name} needs operator {node.domain}::{node.op_type}, which no runtime brings",
            )
    for info in _external(model, path):
        file, offset, length = path.parent / info.location, info.offset or 0, info.length or 0
        is_beside = len(PurePosixPath(info.location).parts) == 1
        if is_beside and not file.is_symlink() and not file.exists():
            raise _missing(info.location, f"where {path.name} keeps its weights")
        if not is_beside or file.is_symlink() or not file.is_file():
            raise StepFailedError(
                GRAPH_REFUSED, f"{path.name} keeps weights in {info.location!r}, which is no file beside it"
            )
        status = file.stat()
        # onnxruntime follows a hard link to wherever its file came from.
        if status.st_nlink > 1 or length < 0 or offset + length > status.st_size:
            raise StepFailedError(
                GRAPH_REFUSED, f"{path.name} names {length} bytes at {offset} of {info.location}, which are not its own"
            )


def _missing(name: str, what: str) -> StepFailedError:
    return StepFailedError(COMPONENT_MISSING, f"{name} is missing, {what}: convert again")


def _refuse_made_anew(
    path: Path, wanted: Sequence[TensorSpec], found: Sequence[TensorSpec], made: Collection[str]
) -> None:
    expected, names = {spec.name for spec in wanted}, {spec.name for spec in found}
    left = sorted((expected - names) & set(made))
    if left and (instead := sorted(names - expected)):
        raise StepFailedError(
            CROSS_COMPUTED_ANEW,
            f"{path.name} takes {', '.join(instead)} and not {left[0]} ({len(left)} inputs), made once: it makes it "
            "anew at each step; export it with the keys and values of what is read as inputs",
        )


def _refuse_twice(
    model: onnx.ModelProto, path: Path, seen: dict[tuple[object, ...], list[tuple[Path, onnx.TensorProto]]]
) -> None:
    for tensor in model.graph.initializer:
        if len(tensor.dims) < 2 or math.prod(tensor.dims) < _LARGE:  # noqa: PLR2004
            continue
        values = wire.mapped(tensor, path.parent)
        # What may be equal, turned or not, has these in common; only that is held side by side.
        words = values.reshape(-1).view(f"u{values.itemsize}")
        likeness = (*sorted(tensor.dims), tensor.data_type, int(words.sum(dtype=np.uint64)))
        for holder, other in seen.setdefault(likeness, []):
            # One graph that names the same bytes twice has a matrix too many; two graphs of a model share them.
            is_shared = uses_external_data(tensor) and wire.place_of(other) == wire.place_of(tensor)
            if holder != path and is_shared:
                continue
            held = wire.mapped(other, path.parent)
            if np.array_equal(held, values) or (holder == path and np.array_equal(held, values.T)):
                raise StepFailedError(
                    WEIGHTS_STORED_TWICE,
                    f"{path.name} holds {values.nbytes} bytes of weights twice, as {other.name} and as {tensor.name}"
                    if holder == path
                    else f"{path.name} holds {values.nbytes} bytes of weights as {tensor.name} and {holder.name} as "
                    f"{other.name}, once more: let both refer to the same bytes of one file",
                )
        seen[likeness].append((path, tensor))


def _external(model: onnx.ModelProto, path: Path) -> list[ExternalDataInfo]:
    try:
        return [ExternalDataInfo(tensor) for tensor in model.graph.initializer if uses_external_data(tensor)]
    except ValueError as error:
        raise StepFailedError(
            GRAPH_REFUSED, f"{path.name} describes weights beside it wrongly: {gist(error)}"
        ) from error


def _data_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    return [path.parent / name for name in sorted({info.location for info in _external(model, path)})]


def _spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    return TensorSpec(value.name, _DATATYPES.get(tensor.elem_type, f"type {tensor.elem_type}"), shape)


def _refuse_signature(path: Path, role: str, wanted: Sequence[TensorSpec], found: Sequence[TensorSpec]) -> None:
    expected = {spec.name: spec for spec in wanted}
    names = [spec.name for spec in found]
    if sorted(names) != sorted(expected):
        raise StepFailedError(
            GRAPH_REFUSED, f"{path.name} has {role}s {', '.join(names) or 'none'}, the task needs {', '.join(expected)}"
        )
    for spec in found:
        datatype, shape = expected[spec.name].datatype, expected[spec.name].shape
        if spec.datatype != datatype:
            raise StepFailedError(
                GRAPH_REFUSED, f"{path.name}: {role} {spec.name} has datatype {spec.datatype}, not {datatype}"
            )
        if (spec.shape if role == "input" else spec.shape[: len(shape)]) != shape:
            raise StepFailedError(
                AXIS_FROZEN,
                f"{path.name} froze an axis of {role} {spec.name} or has another: shape {list(spec.shape)}, "
                f"it must be {list(shape)}, -1 is dynamic",
            )
