"""What a way from a checkpoint to graphs is: a value in a module of its own each, and routes.py knows their order."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedModel

    from onnx_converter.load import Checkpoint
    from onnx_converter.spec import Provider, Scheme


@dataclass(slots=True)
class Trials:
    """How long was tried: a proof, and no part of what a conversion takes."""

    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class Goal:
    """What the graphs are for."""

    provider: Provider
    scheme: Scheme
    opset: int
    trials: Trials = field(default_factory=Trials, compare=False)


@dataclass(frozen=True, slots=True)
class Route:
    """One way; `misses` says why a checkpoint cannot take it, and an export inside of `traced` takes it."""

    name: str
    misses: Callable[[Checkpoint, Goal], str | None]
    traced: Callable[[PreTrainedModel], AbstractContextManager[None]]
