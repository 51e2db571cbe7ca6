"""The two sides that are compared: the torch original and the graphs of a model on their execution provider.

Refuses nothing about their answers; parity.py judges those. An error of the graph is an answer too: a failed one.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import torch

from onnx_converter import load, placement
from onnx_converter.heads import outputs_of, wrap
from onnx_converter.limits import threads
from onnx_converter.reasons import AXIS_FROZEN, PARITY_FAILED, StepFailedError, gist

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import onnxruntime
    from numpy.typing import NDArray

    from onnx_converter.load import Checkpoint
    from onnx_converter.samples import Sample
    from onnx_converter.spec import Provider, Task

    Answer = dict[str, NDArray[np.float32]]

#: In what onnxruntime says where shapes do not fit; where it says it otherwise, a graph fails with no better name.
_SHAPES: Final = re.compile(r"reshape|broadcast|dimension", re.IGNORECASE)


@dataclass(slots=True)
class Answers:
    """What an original has answered, by what it was asked; only as many bytes as there is room for."""

    room: int
    kept: dict[bytes, Answer] = field(default_factory=dict)

    def of(self, sample: Sample, ask: Callable[[Sample], Answer]) -> Answer:
        key = _digest(sample)
        if (found := self.kept.get(key)) is None:
            found = ask(sample)
            size = sum(values.nbytes for values in found.values())
            if size <= self.room:
                self.room -= size
                self.kept[key] = found
                for values in found.values():
                    values.flags.writeable = False
        return found


def _digest(sample: Sample) -> bytes:
    found = hashlib.sha256()
    for name, values in sample.tensors.items():
        found.update(f"{name} {values.dtype} {values.shape}".encode())
        found.update(values.tobytes())
    return found.digest()


@dataclass(frozen=True, slots=True)
class Original:
    """The truth: torch, fp32, eager attention."""

    checkpoint: Checkpoint
    wrapper: torch.nn.Module
    #: Of one that is asked the same by scheme after scheme.
    answered: Answers | None = None

    @classmethod
    def load(cls, folder: Path, task: Task, max_sequence_length: int | None) -> Self:
        torch.set_num_threads(threads())
        checkpoint = load.load(folder, task, max_sequence_length)
        return cls(checkpoint, wrap(checkpoint, folder))

    @property
    def outputs(self) -> tuple[str, ...]:
        return outputs_of(self.checkpoint)

    def answer(self, sample: Sample) -> Answer:
        return self._answer(sample) if self.answered is None else self.answered.of(sample, self._answer)

    def _answer(self, sample: Sample) -> Answer:
        # What a text that is read comes to may be given instead of it.
        given = [name for name in self.outputs if name in sample.tensors]
        with torch.inference_mode():
            answer = self.wrapper(*(self._given(sample.tensors[name]) for name in (*self.checkpoint.inputs, *given)))
        tensors = (answer,) if isinstance(answer, torch.Tensor) else answer
        values = (np.asarray(tensor.cpu().numpy(), dtype=np.float32) for tensor in tensors)
        return dict(zip((name for name in self.outputs if name not in given), values, strict=True))

    def _given(self, values: NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(values.copy()).to(self.checkpoint.model.device)
        return tensor.float() if tensor.is_floating_point() else tensor


@dataclass(slots=True)
class Loaded:
    """One graph in onnxruntime."""

    path: Path
    session: onnxruntime.InferenceSession
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    #: Whether the session tells what runs for its first request.
    is_profiled: bool = False
    #: What ran for it.
    nodes: Sequence[placement.Node] = ()

    @classmethod
    def of(cls, path: Path, session: onnxruntime.InferenceSession, *, is_profiled: bool = False) -> Self:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        names = [tuple(item.name for item in items) for items in (inputs, outputs)]
        return cls(path, session, names[0], names[1], is_profiled)

    def run(
        self,
        names: Sequence[str] | None,
        known: Mapping[str, NDArray[Any]],
        options: onnxruntime.RunOptions | None = None,
    ) -> list[Any]:
        answers: list[Any] = self.session.run(names, {name: known[name] for name in self.inputs}, options)
        if self.is_profiled:
            # In this session and not in one of its own: each takes the weights in memory once more or twice.
            self.nodes, self.is_profiled = placement.ran(self.session), False
        return answers


@dataclass(frozen=True, slots=True)
class Candidate:
    """The graphs of a model, in the order in which they are run: each is told what those before it have answered."""

    provider: Provider
    graphs: tuple[Loaded, ...]
    #: Where each graph runs, if not all do on the provider.
    places: tuple[Provider, ...] = ()

    @classmethod
    def load(
        cls,
        paths: Sequence[Path],
        provider: Provider,
        intra_op: int | None = None,
        told: Mapping[str, str] | None = None,
        places: tuple[Provider, ...] = (),
        *,
        is_proved: bool = False,
    ) -> Self:
        """`is_proved` where it is to tell its coverage."""
        graphs = []
        for path, place in zip(paths, places or (provider,) * len(paths), strict=True):
            session = placement.session(path, place, intra_op, told, is_profiled=is_proved)
            graphs.append(Loaded.of(path, session, is_profiled=is_proved))
        return cls(provider, tuple(graphs), places)

    def answer(self, outputs: Sequence[str], sample: Sample, options: onnxruntime.RunOptions | None = None) -> Answer:
        """What was given with the sample is not answered, and a graph that would say nothing else is not run."""
        known = dict(sample.tensors)
        needed = {*outputs, *(name for graph in self.graphs for name in graph.inputs)}
        for graph in self.graphs:
            names = [name for name in graph.outputs if name in needed and name not in known]
            if not names:
                continue
            try:
                answers = graph.run(names, known, options)
            except Exception as error:
                words = f"on {sample.name} {graph.path.name} answers with an error: {gist(error)}"
                if _SHAPES.search(str(error)):
                    raise StepFailedError(
                        AXIS_FROZEN, f"{words}; inside of it an axis is a number: export it with that axis dynamic"
                    ) from error
                raise StepFailedError(PARITY_FAILED, words) from error
            known |= dict(zip(names, map(np.asarray, answers), strict=True))
        return {name: known[name] for name in outputs if name not in sample.tensors}

    def coverage(self) -> dict[str, dict[str, int]]:
        """Nodes of all graphs, each of which was asked, by operator and the provider they ran on."""
        found = dict[str, dict[str, int]]()
        for graph, place in zip(self.graphs, self.places or (self.provider,) * len(self.graphs), strict=True):
            for operator, places in placement.counted(graph.nodes, place).items():
                for where, nodes in places.items():
                    counts = found.setdefault(operator, {})
                    counts[where] = counts.get(where, 0) + nodes
        return dict(sorted(found.items()))
