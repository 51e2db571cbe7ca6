"""Lets onnxruntime say that it has a CUDA device, where it has none and computes on the CPU.

Python imports this module by itself when it lies on its path. With it a machine without a GPU can play a node that has
one: everything about the second pool of a model is then real but the hardware, and what the numbers of its validation
say of CUDA, which is nothing.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


def pretend(onnxruntime: Any) -> None:
    available = onnxruntime.get_available_providers()
    real: Any = onnxruntime.InferenceSession

    class Session(real):  # type: ignore[misc]  # known at run time alone
        def __init__(self, path: Path, options: Any, providers: list[Any]) -> None:
            super().__init__(path, options, providers=[CPU])
            # Some are told how to compute, too.
            self._pretended = [one if isinstance(one, str) else one[0] for one in providers]

        def get_providers(self) -> list[str]:
            return self._pretended

        def end_profiling(self) -> str:
            profile = Path(super().end_profiling())
            profile.write_text(profile.read_text().replace(CPU, self._pretended[0]))
            return str(profile)

    onnxruntime.get_available_providers = lambda: [CUDA, *available]
    onnxruntime.preload_dlls = lambda: None
    onnxruntime.InferenceSession = Session


class Finder:
    """Finds onnxruntime where it is, and has the last word on it once it is loaded."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path, target) if name == "onnxruntime" else None
        if found is not None and found.loader is not None:
            load = found.loader.exec_module

            def load_and_pretend(module: ModuleType) -> None:
                load(module)
                pretend(module)

            found.loader.exec_module = load_and_pretend  # type: ignore[method-assign]
        return found


sys.meta_path.insert(0, Finder)
