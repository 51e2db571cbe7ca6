"""What a config.pbtxt asks of the ONNX Runtime backend, and whether a graph can give it: pure, without Triton.

It refuses what it would have to ignore (ragged batches, sequences, optional inputs, other accelerators), and it refuses
what NVIDIA's native onnxruntime backend would refuse when the same repository is served there: a wrong name, datatype,
rank or dimension. So a configuration that loads here loads there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: Triton's name of a datatype → ONNX Runtime's. The two have no numpy type that both sides agree on for the rest.
DATATYPES: Final = {
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_UINT16": "tensor(uint16)",
    "TYPE_UINT32": "tensor(uint32)",
    "TYPE_UINT64": "tensor(uint64)",
    "TYPE_INT8": "tensor(int8)",
    "TYPE_INT16": "tensor(int16)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP64": "tensor(double)",
}

#: What the native backend calls otherwise than onnxruntime does.
TENSORRT_WORDS: Final = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
PRECISIONS: Final = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "BF16": {"trt_bf16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}
#: `optimization.graph.level` as the native backend reads it; absent or 0 is everything.
GRAPH_LEVELS: Final = {-1: "ORT_ENABLE_BASIC", 0: "ORT_ENABLE_ALL", 1: "ORT_ENABLE_EXTENDED", 2: "ORT_DISABLE_ALL"}

#: Rows of a batch are run in turns of at most so many positions (rows x dynamic dimensions; for text: tokens), because
#: memory grows with them and speed does not. See the README for what was measured.
DEFAULT_POSITIONS_PER_RUN: Final = 2048

#: Devices whose arena gives its memory back after each run, such as "cpu:0"; named as ONNX Runtime names it.
SHRINK_ARENA: Final = "memory.enable_memory_arena_shrinkage"

DYNAMIC: Final = -1


class ContractError(ValueError):
    """The model cannot be served as configured; the message names the field, tensor or file."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One `input` or `output` of config.pbtxt, without the batch dimension."""

    name: str
    datatype: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """One input or output of the graph; a dimension is a number, or the name (or None) of a dynamic one."""

    name: str
    datatype: str
    shape: tuple[int | str | None, ...]

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape as Triton writes it: every dynamic dimension is -1."""
        return tuple(dim if isinstance(dim, int) else DYNAMIC for dim in self.shape)


@dataclass(frozen=True, slots=True)
class Settings:
    """What config.pbtxt asks for, with the defaults filled in."""

    model_file: str
    batched: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    graph_level: str
    parallel: bool
    intra_op_threads: int
    inter_op_threads: int
    memory_arena: bool
    memory_pattern: bool
    shrink_arena: str | None
    positions_per_run: int
    cuda_options: Mapping[str, str]
    #: None where TensorRT is not asked for.
    tensorrt_options: Mapping[str, str] | None


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Read Triton's JSON form of a config.pbtxt."""
    for field in ("sequence_batching", "batch_input", "batch_output"):
        if config.get(field):
            raise ContractError(f"{field}: not supported by this backend; NVIDIA's Triton image has it")
    batched = int(config.get("max_batch_size", 0)) > 0
    parameters = {key: str(value.get("string_value", "")) for key, value in config.get("parameters", {}).items()}
    optimization = config.get("optimization", {})
    level = int(optimization.get("graph", {}).get("level", 0))
    arena = _read_flag(parameters, "enable_mem_arena", default=True)
    if level not in GRAPH_LEVELS:
        raise ContractError(f"optimization.graph.level: {level} is not one of {sorted(GRAPH_LEVELS)}")
    if SHRINK_ARENA in parameters and not arena:
        raise ContractError(f"parameters.{SHRINK_ARENA}: there is no arena to shrink when enable_mem_arena is 0")
    return Settings(
        model_file=config.get("default_model_filename") or "model.onnx",
        batched=batched,
        inputs=tuple(_read_tensor("input", entry) for entry in config.get("input", [])),
        outputs=tuple(_read_tensor("output", entry) for entry in config.get("output", [])),
        graph_level=GRAPH_LEVELS[level],
        parallel=_read_flag(parameters, "execution_mode", default=False),
        intra_op_threads=_read_count(parameters, "intra_op_thread_count", default=0),
        inter_op_threads=_read_count(parameters, "inter_op_thread_count", default=0),
        memory_arena=arena,
        memory_pattern=_read_flag(parameters, "enable_mem_pattern", default=True),
        shrink_arena=parameters.get(SHRINK_ARENA),
        positions_per_run=_read_count(parameters, "max_positions_per_run", default=DEFAULT_POSITIONS_PER_RUN),
        **_read_accelerators(optimization.get("execution_accelerators", {})),
    )


def check_signature(settings: Settings, inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor]) -> None:
    """Refuse a configuration whose tensors are not the graph's."""
    unfed = {tensor.name for tensor in inputs} - {spec.name for spec in settings.inputs}
    if unfed:
        raise ContractError(f"input: the graph also needs {_listed(unfed)}, which config.pbtxt does not give")
    for spec in settings.inputs:
        _check_tensor("input", spec, inputs, batched=settings.batched, exact=False)
    for spec in settings.outputs:
        _check_tensor("output", spec, outputs, batched=settings.batched, exact=True)


def check_shapes(inputs: Sequence[GraphTensor], shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse a request whose tensors contradict the graph or each other, before the graph fails in its own words.

    Triton has compared each tensor with config.pbtxt by now. What it cannot know is that two dynamic dimensions of the
    graph carry one name and must be equal.
    """
    seen: dict[str, tuple[str, int, int]] = {}
    for tensor in inputs:
        for axis, (wanted, given) in enumerate(zip(tensor.shape, shapes[tensor.name], strict=True)):
            if isinstance(wanted, int):
                if wanted != given:
                    raise ContractError(
                        f"input '{tensor.name}' has {given} in dimension {axis}, the model has {wanted}"
                    )
            elif wanted:
                other, other_axis, expected = seen.setdefault(wanted, (tensor.name, axis, given))
                if given != expected:
                    raise ContractError(
                        f"input '{tensor.name}' has {given} in dimension {axis}, but input '{other}' has {expected} in "
                        f"dimension {other_axis}: the model wants them equal ('{wanted}')"
                    )


def rows_per_run(settings: Settings, shapes: Mapping[str, Sequence[int]]) -> int:
    """How many rows of a batch run at once: at least one, else what keeps the positions within their limit."""
    positions = 1
    for spec in settings.inputs:
        row = shapes[spec.name][1:]
        dynamic = 1
        for dim, length in zip(spec.dims, row, strict=True):
            dynamic *= length if dim == DYNAMIC else 1
        positions = max(positions, dynamic)
    return max(1, settings.positions_per_run // positions) if settings.positions_per_run else 2**31


def _read_tensor(field: str, entry: Mapping[str, Any]) -> TensorSpec:
    name = str(entry.get("name", ""))
    where = f"{field} '{name}'"
    if entry.get("allow_ragged_batch"):
        raise ContractError(f"{where}: allow_ragged_batch is not supported by this backend")
    if entry.get("optional"):
        raise ContractError(f"{where}: optional inputs are not supported by this backend")
    if entry.get("is_shape_tensor"):
        raise ContractError(f"{where}: is_shape_tensor belongs to TensorRT, not to ONNX Runtime")
    datatype = str(entry.get("data_type", ""))
    if datatype not in DATATYPES:
        raise ContractError(f"{where}: data_type {datatype} is not one of {', '.join(DATATYPES)}")
    dims = entry["reshape"].get("shape", []) if entry.get("reshape") else entry.get("dims", [])
    return TensorSpec(name, datatype, tuple(int(dim) for dim in dims))


def _read_count(parameters: Mapping[str, str], name: str, *, default: int) -> int:
    text = parameters.get(name, str(default))
    if not text.isdecimal():
        raise ContractError(f"parameters.{name}: '{text}' is not a whole number of 0 or more")
    return int(text)


def _read_flag(parameters: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = parameters.get(name, "1" if default else "0").lower()
    if text not in {"0", "1", "false", "true"}:
        raise ContractError(f"parameters.{name}: '{text}' is not 0 or 1")
    return text in {"1", "true"}


def _read_accelerators(accelerators: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"cuda_options": {}, "tensorrt_options": None}
    for field in ("cpu_execution_accelerator", "gpu_execution_accelerator"):
        for entry in accelerators.get(field, []):
            name = entry.get("name", "")
            if field.startswith("cpu") or name not in {"cuda", "tensorrt"}:
                raise ContractError(
                    f"optimization.execution_accelerators.{field}: '{name}' is not supported by this backend"
                )
            key, given = f"{name}_options", entry.get("parameters", {})
            options[key] = (options[key] or {}) | (_in_words_of_onnxruntime(given) if name == "tensorrt" else given)
    return options


def _in_words_of_onnxruntime(parameters: Mapping[str, str]) -> dict[str, str]:
    """As the native backend reads them; what it calls by onnxruntime's own name stays."""
    named = parameters.items()
    options = {TENSORRT_WORDS.get(name, name): value for name, value in named if name != "precision_mode"}
    precision = parameters.get("precision_mode", "FP32")
    if precision not in PRECISIONS:
        raise ContractError(
            "optimization.execution_accelerators.gpu_execution_accelerator.parameters.precision_mode: "
            f"'{precision}' is not one of {', '.join(PRECISIONS)}"
        )
    return options | PRECISIONS[precision]


def _check_tensor(field: str, spec: TensorSpec, graph: Sequence[GraphTensor], *, batched: bool, exact: bool) -> None:
    where = f"{field} '{spec.name}'"
    found = next((tensor for tensor in graph if tensor.name == spec.name), None)
    if found is None:
        raise ContractError(f"{where}: the graph has no such {field}; it has {_listed(t.name for t in graph)}")
    if DATATYPES[spec.datatype] != found.datatype:
        raise ContractError(f"{where}: config.pbtxt says {spec.datatype}, the graph has {found.datatype}")
    wanted = (DYNAMIC, *spec.dims) if batched else spec.dims
    shown = f"config.pbtxt says {list(wanted)}" + (" (max_batch_size adds the first)" if batched else "")
    if len(wanted) != len(found.dims):
        raise ContractError(f"{where}: {shown}, which is rank {len(wanted)}; the graph has {list(found.dims)}")
    if batched and found.dims[0] != DYNAMIC:
        raise ContractError(
            f"{where}: max_batch_size > 0 needs a dynamic first dimension; the graph has {found.dims[0]}"
        )
    for want, has in zip(wanted, found.dims, strict=True):
        # An output must be declared as the graph declares it; an input may be narrower.
        if want != has and (exact or has != DYNAMIC):
            raise ContractError(f"{where}: {shown}, the graph has {list(found.dims)}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)) or "none"
