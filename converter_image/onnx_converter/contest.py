"""The two sides that are compared: the torch original and a graph on its execution provider.

Refuses nothing about their answers; parity.py judges those. An error of the graph is an answer too: a failed one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from onnx_converter import load, placement
from onnx_converter.heads import outputs_of, wrap
from onnx_converter.limits import threads
from onnx_converter.reasons import PARITY_FAILED, StepFailedError, gist

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnxruntime
    from numpy.typing import NDArray

    from onnx_converter.load import Checkpoint
    from onnx_converter.samples import Sample
    from onnx_converter.spec import Provider, Task

    Answer = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Original:
    """The truth: torch, fp32, eager attention."""

    checkpoint: Checkpoint
    wrapper: torch.nn.Module

    @classmethod
    def load(cls, folder: Path, task: Task, max_sequence_length: int | None) -> Self:
        torch.set_num_threads(threads())
        checkpoint = load.load(folder, task, max_sequence_length)
        return cls(checkpoint, wrap(checkpoint, folder))

    @property
    def outputs(self) -> tuple[str, ...]:
        return outputs_of(self.checkpoint)

    def answer(self, sample: Sample) -> Answer:
        with torch.inference_mode():
            answer = self.wrapper(*(torch.from_numpy(sample.tensors[name].copy()) for name in self.checkpoint.inputs))
        tensors = (answer,) if isinstance(answer, torch.Tensor) else answer
        values = (np.asarray(tensor.numpy(), dtype=np.float32) for tensor in tensors)
        return dict(zip(self.outputs, values, strict=True))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A graph in onnxruntime."""

    path: Path
    provider: Provider
    session: onnxruntime.InferenceSession

    @classmethod
    def load(cls, path: Path, provider: Provider) -> Self:
        return cls(path, provider, placement.session(path, provider))

    def answer(self, outputs: Sequence[str], sample: Sample) -> Answer:
        try:
            answers = self.session.run(list(outputs), sample.tensors)
        except Exception as error:
            raise StepFailedError(
                PARITY_FAILED, f"on {sample.name} the graph answers with an error: {gist(error)}"
            ) from error
        return dict(zip(outputs, map(np.asarray, answers), strict=True))

    def coverage(self, sample: Sample) -> dict[str, dict[str, int]]:
        return placement.prove(self.path, self.provider, sample)
