"""What the convert step leaves for the steps after it: conversion.json beside the graphs.

Refuses to read a folder whose files are not those that were written.
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, Self

from pydantic import ValidationError

from onnx_converter.digest import canonical_json, sha256_of
from onnx_converter.reasons import ARTIFACT_CORRUPT, StepFailedError
from onnx_converter.spec import ConversionSpec, Parameters, Provider, Task

if TYPE_CHECKING:
    from pathlib import Path

FILE: Final = "conversion.json"
_TOOLS: Final = ("torch", "transformers", "tokenizers", "safetensors", "onnx", "onnx-ir", "onnxscript", "numpy")
#: Bumped whenever the converter itself would make other bytes of the same input.
CONVERTER: Final = "12"


class Signature(Parameters):
    """An input or output; -1 is dynamic."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class RefusedRoute(Parameters):
    """A faster way to the graph, and why it was not taken."""

    route: str
    reason: str


class Stage(Parameters):
    """How far a graph was from the original on the CPU before what is served was made of it."""

    stage: str
    samples: int = 0
    min_cosine: str | None = None
    max_absolute: str | None = None
    max_relative: str | None = None
    label_agreement: str | None = None
    #: Why there is no number, where it is the graph's fault.
    error: str | None = None
    #: And where it is none.
    not_measured: str | None = None


class Graph(Parameters):
    """One provider's graph, and which way it was made."""

    digest: str
    bytes: int
    opset: int
    ir_version: int
    nodes: int
    route: str
    routes_refused: tuple[RefusedRoute, ...]
    stages: tuple[Stage, ...] = ()


class Conversion(Parameters):
    """Inputs, tools and results of one conversion."""

    source_digest: str
    spec: ConversionSpec
    tools: dict[str, str]
    architecture: str
    #: Whether there is a tested route for it; one that was only tried has the gate alone to speak for it.
    known_architecture: bool
    task: Task
    #: 0 where no text is read.
    max_sequence_length: int
    inputs: tuple[Signature, ...]
    outputs: tuple[Signature, ...]
    graphs: dict[Provider, Graph]
    #: Layers that int8-static left in float32 as maxLayerError asks, and how far each would have moved.
    sensitive: dict[str, str]
    #: Path below the folder to sha256, for every other file there.
    files: dict[str, str]

    def write(self, folder: Path) -> None:
        (folder / FILE).write_bytes(canonical_json(self.model_dump(mode="json", by_alias=True)))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The conversion, once every file it names was found unchanged."""
        try:
            found = cls.model_validate_json((folder / FILE).read_bytes())
        except (OSError, ValidationError) as error:
            raise StepFailedError(
                ARTIFACT_CORRUPT, f"{FILE} is missing or cannot be read: run the convert step again"
            ) from error
        for path, sha256 in found.files.items():
            if not (folder / path).is_file() or sha256_of(folder / path) != sha256:
                raise StepFailedError(
                    ARTIFACT_CORRUPT, f"{path} was changed after it was converted: run the convert step again"
                )
        return found


def tools() -> dict[str, str]:
    """Versions of everything that has a hand in the bytes."""
    found = {name: version(name) for name in _TOOLS}
    return found | {"onnx-converter": CONVERTER, "onnxruntime": runtime_version(), "python": platform.python_version()}


def runtime_version() -> str:
    import onnxruntime  # noqa: PLC0415  two distributions bring this module, so metadata cannot be asked

    return str(onnxruntime.__version__)
