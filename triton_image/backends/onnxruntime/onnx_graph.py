"""A loaded graph that answers several requests at once: onnxruntime and numpy, without Triton.

It never runs on another execution provider than the one asked for, and it never lets one request spoil the answer of
another: where a batch fails, each of its requests is run alone and fails or succeeds on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime as ort
from serving_contract import (
    SHRINK_ARENA,
    ContractError,
    GraphTensor,
    Settings,
    check_shapes,
    check_signature,
    rows_per_run,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Arrays = Mapping[str, np.ndarray[Any, Any]]

TENSORRT: Final = "TensorrtExecutionProvider"
#: A model of 135 M in 4 bits on two threads of its own, asked for a token every 30 ms: by onnxruntime's own rule that
#: took 5.2 ms and 36 of processor time, so it takes 5.6 and 12, and with threads that sleep at once 7.8 and 9.
SPIN_MICROSECONDS: Final = "50"
PROVIDERS: Final = {"CPU": "CPUExecutionProvider", "GPU": "CUDAExecutionProvider"}


class GraphError(RuntimeError):
    """The graph failed on inputs that its signature allows, such as a text longer than its position table."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request: its inputs and the outputs it wants."""

    inputs: Arrays
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """One session with what it was configured for."""

    session: ort.InferenceSession
    settings: Settings
    inputs: tuple[GraphTensor, ...]
    run_options: ort.RunOptions

    def answer(self, questions: Sequence[Question]) -> list[Arrays | ContractError | GraphError]:
        """Answer in order; a question that cannot be answered gets its error in its place.

        Triton puts only requests of one row shape into a batch (ragged ones are refused at load), so whatever is here
        can be laid end to end.
        """
        refusals = {index: error for index, question in enumerate(questions) if (error := self._refusal(question))}
        sound = [question for index, question in enumerate(questions) if index not in refusals]
        ran = iter(self._run_together(sound))
        return [refusals[index] if index in refusals else next(ran) for index in range(len(questions))]

    def _refusal(self, question: Question) -> ContractError | None:
        try:
            check_shapes(self.inputs, {name: array.shape for name, array in question.inputs.items()})
        except ContractError as error:
            return error
        return None

    def _run_together(self, questions: Sequence[Question]) -> list[Arrays | GraphError]:
        if len(questions) <= 1 or not self.settings.batched:
            return [self._run_alone(question) for question in questions]
        names = [spec.name for spec in self.settings.inputs]
        wanted = tuple(dict.fromkeys(name for question in questions for name in question.outputs))
        rows = [len(question.inputs[names[0]]) for question in questions]
        ends = np.cumsum(rows)
        try:
            batch = {name: np.concatenate([question.inputs[name] for question in questions]) for name in names}
            outputs = self._run(batch, wanted)
        except (GraphError, ValueError):
            return [self._run_alone(question) for question in questions]
        return [
            {name: outputs[name][end - count : end] for name in question.outputs}
            for question, count, end in zip(questions, rows, ends, strict=True)
        ]

    def _run_alone(self, question: Question) -> Arrays | GraphError:
        try:
            return self._run(question.inputs, question.outputs)
        except GraphError as error:
            return error

    def _run(self, inputs: Arrays, wanted: tuple[str, ...]) -> Arrays:
        if not self.settings.batched:
            return self._run_session(inputs, wanted)
        shapes = {name: array.shape for name, array in inputs.items()}
        total = next(iter(shapes.values()))[0]
        step = rows_per_run(self.settings, shapes)
        parts = [
            self._run_rows({name: array[start : start + step] for name, array in inputs.items()}, wanted)
            for start in range(0, total, step)
        ]
        if len(parts) == 1:
            return parts[0]
        try:
            return {name: np.concatenate([part[name] for part in parts]) for name in wanted}
        except ValueError as error:
            raise GraphError(f"the outputs for different rows of one batch do not fit together: {error}") from error

    def _run_rows(self, inputs: Arrays, wanted: tuple[str, ...]) -> Arrays:
        rows = len(next(iter(inputs.values())))
        outputs = self._run_session(inputs, wanted)
        for name, array in outputs.items():
            if array.shape[:1] != (rows,):
                raise GraphError(f"output '{name}' has shape {list(array.shape)} for a batch of {rows} rows")
        return outputs

    def _run_session(self, inputs: Arrays, wanted: tuple[str, ...]) -> Arrays:
        try:
            arrays = self.session.run(wanted, inputs, self.run_options)
        except Exception as error:  # onnxruntime's errors have no common base, and any of them is this request's
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise GraphError(f"the graph failed on {shapes}: {error}") from error
        return dict(zip(wanted, arrays, strict=True))


def load_graph(path: Path, settings: Settings, kind: str, device: int) -> Graph:
    """Open the model file on the execution provider of an instance group's kind, and check it against config.pbtxt."""
    provider = PROVIDERS.get(kind)
    if provider is None:
        raise ContractError(f"instance_group.kind: KIND_{kind} is not one of KIND_CPU, KIND_GPU")
    if kind == "GPU" and settings.tensorrt_options is not None:
        provider = TENSORRT
    if provider not in ort.get_available_providers():
        raise ContractError(
            f"instance_group.kind: KIND_{kind} needs {provider}, which onnxruntime {ort.__version__} here does "
            f"not have (it has {', '.join(ort.get_available_providers())}); use KIND_CPU, or NVIDIA's Triton image"
        )
    if not path.is_file():
        raise ContractError(f"{path} does not exist; default_model_filename in config.pbtxt names the model file")
    try:
        session = ort.InferenceSession(path, session_options(settings), providers=_chosen(provider, settings, device))
    except Exception as error:  # onnxruntime's errors have no common base
        raise ContractError(f"{path}: onnxruntime {ort.__version__} cannot load it: {error}") from error
    if provider not in session.get_providers():
        raise ContractError(f"instance_group.kind: onnxruntime could not start {provider} (its reason is logged above)")
    session.disable_fallback()
    graph_inputs = tuple(map(_describe, session.get_inputs()))
    check_signature(settings, graph_inputs, tuple(map(_describe, session.get_outputs())))
    return Graph(session, settings, graph_inputs, _run_options(settings, kind))


def _chosen(provider: str, settings: Settings, device: int) -> list[Any]:
    """Of TensorRT with CUDA behind it, for the nodes that it lacks."""
    if provider == PROVIDERS["CPU"]:
        return [provider]
    chosen: list[Any] = [(PROVIDERS["GPU"], {"device_id": str(device), **settings.cuda_options})]
    if provider == TENSORRT:
        chosen.insert(0, (provider, {"device_id": str(device), **(settings.tensorrt_options or {})}))
    return chosen


def session_options(settings: Settings) -> ort.SessionOptions:
    """Translate the settings. A thread that waits for the next product of a request stays awake for a moment, since
    to wake it takes a fifth of what a token takes, and then sleeps: what waits for requests burns no CPU limit.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, settings.graph_level)
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if settings.parallel else ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = settings.intra_op_threads
    options.inter_op_num_threads = settings.inter_op_threads
    options.enable_cpu_mem_arena = settings.memory_arena
    options.enable_mem_pattern = settings.memory_pattern
    if settings.intra_op_threads > 1:
        options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
    else:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _run_options(settings: Settings, kind: str) -> ort.RunOptions:
    # Left alone, the arena keeps the peak of the largest batch ever seen. Shrinking it after each run costs about a
    # hundredth; doing without it doubles the time of large batches.
    by_default = "cpu:0" if kind == "CPU" and settings.memory_arena else ""
    devices = by_default if settings.shrink_arena is None else settings.shrink_arena
    options = ort.RunOptions()
    if devices:
        options.add_run_config_entry(SHRINK_ARENA, devices)
    return options


def _describe(node: ort.NodeArg) -> GraphTensor:
    return GraphTensor(node.name, node.type, tuple(node.shape))
