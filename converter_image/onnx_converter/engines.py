"""What TensorRT is told before it builds engines, in the words of Triton's backend and in those of onnxruntime.

An engine is built for a range of shapes: here for all that is served, so that no request waits for another one to be
built. Standard library only, as whoever mounts the folder of the engines has to know it. Refuses nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Where a server keeps them; a volume of its pod, so that a container that starts again finds them.
FOLDER: Final = "/engines"
#: By the scheme; the weights of all others are 32-bit floats.
_PRECISIONS: Final = {"float16": "FP16", "bfloat16": "BF16", "int8-static": "INT8"}
#: What kernels are tuned for: a batch that clients send together.
_USUAL_BATCH: Final = 8
_USUAL_LENGTH: Final = 128


def parameters(inputs: Iterable[str], scheme: str, *, batch: int, length: int, folder: str = FOLDER) -> dict[str, str]:
    """For texts of one token to so many, alone and up to so many together."""
    names = list(inputs)
    shapes = {"min": (1, 1), "opt": (min(_USUAL_BATCH, batch), min(_USUAL_LENGTH, length)), "max": (batch, length)}
    told = {
        f"trt_profile_{which}_shapes": ",".join(f"{name}:{rows}x{columns}" for name in names)
        for which, (rows, columns) in shapes.items()
    }
    # Sums of squares leave the range of 16 bits.
    careful = {"trt_layer_norm_fp32_fallback": "1"} if scheme == "float16" else {}
    return {
        "precision_mode": _PRECISIONS.get(scheme, "FP32"),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
        **told,
        **careful,
    }


def options(given: Mapping[str, str]) -> dict[str, str]:
    """The same as onnxruntime takes it."""
    rest = {name: value for name, value in given.items() if name != "precision_mode"}
    return rest | {f"trt_{one.lower()}_enable": "1" for one in _PRECISIONS.values() if one == given["precision_mode"]}
