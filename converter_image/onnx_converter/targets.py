"""What runs on devices outside of any cluster, checked without one: each node of a graph against the table of operators
that the makers of the execution provider publish.

A node that the table does not know falls back to the CPU, which onnxruntime does by itself; that is counted and told.
Refuses a graph of a newer operator set than the table knows, and one whose matrix products would fall back. That the
graph computes the same there is not shown by this.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import onnx

from onnx_converter import wire
from onnx_converter.reasons import PLACEMENT_FAILED, SPEC_IMPOSSIBLE, StepFailedError
from onnx_converter.spec import Provider

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

#: Facts taken from the tables: domain, operator, versions, types by constraint, what else is said.
_TABLES: Final = {
    Provider.DML: "dml.tsv",
    Provider.COREML: "coreml.tsv",
    Provider.WEBGPU: "webgpu.tsv",
    Provider.OPENVINO: "openvino.tsv",
    Provider.QNN: "qnn.tsv",
}
#: Whose page says that every size has to be known before; the application sets them, so this is told and not refused.
_OF_FIXED_SIZES: Final = frozenset({Provider.QNN})
#: Without these on the device, it is no device for this graph.
_PRODUCTS: Final = frozenset(
    {"MatMul", "Gemm", "MatMulInteger", "MatMulNBits", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    | {"Attention", "MultiHeadAttention", "GroupQueryAttention"}
)
_OURS: Final = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One row: first and last version, None for open; neither where the table tells none."""

    versions: tuple[tuple[int, int | None], ...]
    types: Mapping[str, frozenset[str]]
    note: str

    def is_for(self, since: int) -> bool:
        """As onnxruntime itself decides: an open end stands for the versions known when the kernel was written."""
        return not self.versions or any(
            first == since or (last is not None and first <= since <= last) for first, last in self.versions
        )


@dataclass(frozen=True, slots=True)
class Table:
    """What an execution provider is said to know."""

    words: str
    kernels: Mapping[tuple[str, str], tuple[Kernel, ...]]

    @property
    def opset(self) -> int | None:
        """The newest operator set that it speaks of."""
        of_onnx = (one for (domain, _), rows in self.kernels.items() if domain in _OURS for one in rows)
        return max((first for one in of_onnx for first, _ in one.versions), default=None)


@dataclass(frozen=True, slots=True)
class Checked:
    """What the table says of the graphs of a model."""

    table: str
    #: Operator to execution provider to nodes.
    coverage: dict[str, dict[str, int]]
    #: Why each operator falls back, and what the table says of those that do not and is not checked.
    fallbacks: dict[str, str]
    notes: dict[str, str]
    #: Inputs whose size is known only when they come, which the device may take slowly or not.
    dynamic: tuple[str, ...]
    is_of_fixed_sizes: bool

    @property
    def nodes(self) -> int:
        return sum(sum(places.values()) for places in self.coverage.values())

    @property
    def fallen(self) -> int:
        return sum(places.get(Provider.CPU, 0) for places in self.coverage.values())

    @property
    def words(self) -> str:
        told = f"{self.fallen} of {self.nodes} nodes fall back to the CPU by {self.table}"
        if not (self.dynamic and self.is_of_fixed_sizes):
            return told
        return f"{told}, once the sizes of {', '.join(self.dynamic)} are fixed, without which none runs there"

    def value(self) -> dict[str, Any]:
        return {
            "table": self.table,
            "nodes": self.nodes,
            "fallen": self.fallen,
            "share": f"{self.fallen / self.nodes:.3g}" if self.nodes else "0",
            "fallbacks": self.fallbacks,
            "notes": self.notes,
            "dynamicInputs": list(self.dynamic),
        }


@cache
def table_of(provider: Provider) -> Table:
    head, _, *lines = (Path(__file__).parent / "targets" / _TABLES[provider]).read_text(encoding="utf-8").splitlines()
    kernels: dict[tuple[str, str], tuple[Kernel, ...]] = {}
    for line in lines:
        domain, operator, versions, types, note = (line.split("\t") + [""] * 4)[:5]
        kernel = Kernel(tuple(_versions(versions)), dict(_types(types)), note)
        kernels[domain, operator] = (*kernels.get((domain, operator), ()), kernel)
    return Table(head.removeprefix("# "), kernels)


def _versions(text: str) -> Iterator[tuple[int, int | None]]:
    for first, last, end in re.findall(r"(\d+)(?:-(\d+)|(\+))?", text):
        yield int(first), None if end else int(last or first)


def _types(text: str) -> Iterator[tuple[str, frozenset[str]]]:
    for constraint in filter(None, text.split(";")):
        name, _, known = constraint.partition("=")
        yield name, frozenset(known.split(","))


def refuse_opset(opset: int, provider: Provider) -> None:
    newest = table_of(provider).opset if provider.is_edge else None
    if newest is not None and opset > newest:
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"opset {opset} is above {newest}, the newest of {provider} by {table_of(provider).words}: lower "
            "spec.opset, or leave that provider out",
        )


def check(paths: Iterable[Path], provider: Provider) -> Checked:
    """The graphs of a model against the provider's table."""
    table = table_of(provider)
    counts: Counter[tuple[str, Provider]] = Counter()
    fallbacks: dict[str, str] = {}
    notes: dict[str, str] = {}
    dynamic: dict[str, None] = {}
    for path in paths:
        model = onnx.shape_inference.infer_shapes(wire.outline(path))
        opset = next(item.version for item in model.opset_import if item.domain in _OURS)
        refuse_opset(opset, provider)
        types = _types_of(model.graph)
        for node in model.graph.node:
            if node.op_type == "Constant":
                continue  # a weight by the time that anything runs
            kernel, why = _kernel_of(node, table, opset, types)
            counts[node.op_type, Provider.CPU if kernel is None else provider] += 1
            if kernel is None:
                fallbacks.setdefault(node.op_type, why)
            elif kernel.note:
                notes.setdefault(node.op_type, kernel.note)
        dynamic |= dict.fromkeys(one.name for one in model.graph.input if _is_dynamic(one))
    coverage: dict[str, dict[str, int]] = {}
    for (operator, where), count in sorted(counts.items()):
        coverage.setdefault(operator, {})[str(where)] = count
    if lost := sorted(_PRODUCTS & fallbacks.keys()):
        raise StepFailedError(
            PLACEMENT_FAILED,
            f"{lost[0]} {fallbacks[lost[0]]} of {provider} ({table.words}), and it is where a model spends its time: "
            f"take another quantization.scheme, or leave {provider} out",
        )
    return Checked(
        table.words,
        coverage,
        dict(sorted(fallbacks.items())),
        dict(sorted(notes.items())),
        tuple(dynamic),
        provider in _OF_FIXED_SIZES,
    )


def _kernel_of(node: onnx.NodeProto, table: Table, opset: int, types: Mapping[str, str]) -> tuple[Kernel | None, str]:
    """The row that takes the node; else why none does."""
    rows = table.kernels.get((node.domain or "ai.onnx", node.op_type), ())
    if not rows:
        return None, "is not in the table"
    schema = _schema_of(node, opset)
    since = schema.since_version if schema is not None else 1
    of_version = [row for row in rows if row.is_for(since)]
    if not of_version:
        return None, f"of version {since} is not in the table"
    strange = [_strange_types(node, row, schema, types) for row in of_version]
    for row, found in zip(of_version, strange, strict=True):
        if not found:
            return row, ""
    return None, f"of {', '.join(sorted(strange[0]))} is not in the table"


def _schema_of(node: onnx.NodeProto, opset: int) -> onnx.defs.OpSchema | None:
    """None for what is onnxruntime's own, of which there is one version."""
    is_known = node.domain in _OURS and onnx.defs.has(node.op_type)
    return onnx.defs.get_schema(node.op_type, opset) if is_known else None


def _strange_types(
    node: onnx.NodeProto, row: Kernel, schema: onnx.defs.OpSchema | None, types: Mapping[str, str]
) -> set[str]:
    """The types of the node that the row does not take, as far as they are known."""
    if schema is None:
        return set()
    strange = set()
    for names, formal in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for place, name in enumerate(names):
            # The last one may stand for any number of them.
            allowed = row.types.get(formal[min(place, len(formal) - 1)].type_str)
            if allowed is not None and name in types and types[name] not in allowed:
                strange.add(types[name])
    return strange


def _types_of(graph: onnx.GraphProto) -> dict[str, str]:
    values = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)
    }
    values |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: onnx.TensorProto.DataType.Name(kind).lower() for name, kind in values.items() if kind}


def _is_dynamic(value: onnx.ValueInfoProto) -> bool:
    return any(not dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
