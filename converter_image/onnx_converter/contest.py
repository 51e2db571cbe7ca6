"""The two sides that are compared: the torch original and a graph on its execution provider.

Refuses nothing about their answers; parity.py judges those. An error of the graph is an answer too: a failed one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from onnx_converter import load, placement
from onnx_converter.heads import OUTPUTS, Wrapper, wrap
from onnx_converter.limits import threads
from onnx_converter.reasons import PARITY_FAILED, StepFailedError, gist

if TYPE_CHECKING:
    from pathlib import Path

    import onnxruntime
    from numpy.typing import NDArray

    from onnx_converter.load import Checkpoint
    from onnx_converter.samples import Sample
    from onnx_converter.spec import Provider, Task


@dataclass(frozen=True, slots=True)
class Original:
    """The truth: torch, fp32, eager attention."""

    checkpoint: Checkpoint
    wrapper: Wrapper

    @classmethod
    def load(cls, folder: Path, task: Task, max_sequence_length: int | None) -> Self:
        torch.set_num_threads(threads())
        checkpoint = load.load(folder, task, max_sequence_length)
        return cls(checkpoint, wrap(checkpoint, folder))

    @property
    def output(self) -> str:
        return OUTPUTS[self.checkpoint.task]

    def answer(self, sample: Sample) -> NDArray[np.float32]:
        with torch.inference_mode():
            answer = self.wrapper(*(torch.from_numpy(sample.tensors[name]) for name in self.checkpoint.inputs))
        return np.asarray(answer.numpy(), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A graph in onnxruntime."""

    path: Path
    provider: Provider
    session: onnxruntime.InferenceSession

    @classmethod
    def load(cls, path: Path, provider: Provider) -> Self:
        return cls(path, provider, placement.session(path, provider))

    def answer(self, output: str, sample: Sample) -> NDArray[np.float32]:
        try:
            (answer,) = self.session.run([output], sample.tensors)
        except Exception as error:
            raise StepFailedError(
                PARITY_FAILED, f"on {sample.name} the graph answers with an error: {gist(error)}"
            ) from error
        return np.asarray(answer)

    def placement(self, sample: Sample) -> dict[str, int]:
        return placement.prove(self.path, self.provider, sample)
