"""Graphs that compute in 16-bit floats: the types inside, at the border, and who can run them.

The graph is exported from the model as transformers itself runs it in that type, so norms, sums of squares and what
else overflows stay in float32 where they do there. Answers are float32 always. Keys and values of float16 stay in 16
bits at the border, as they are the bulk of what travels; those of bfloat16 are float32 there, which loses nothing,
since neither numpy nor Triton's backends for onnxruntime know the type. Of a model of two graphs all of them cross as
the decoder computes, which reads them at every token. Refuses a provider without kernels.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal
from unittest import mock

import onnx_ir
import torch

from onnx_converter.reasons import SPEC_IMPOSSIBLE, StepFailedError
from onnx_converter.spec import COMPONENTS, Provider, Scheme

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from onnx_converter.spec import ConversionSpec

#: By one name for numpy and torch.
Kept = Literal["float16", "float32"]

_DTYPES: Final = {Scheme.FLOAT16: torch.float16, Scheme.BFLOAT16: torch.bfloat16}
#: As Triton calls them.
DATATYPES: Final[dict[str, str]] = {"float16": "FP16", "float32": "FP32", "int64": "INT64"}


def dtype_of(scheme: Scheme) -> torch.dtype:
    """In what the model is loaded to be exported; quantizers begin with float32."""
    return _DTYPES.get(scheme, torch.float32)


def border_of(scheme: Scheme) -> Kept:
    """In what keys and values cross the border of a graph."""
    return "float16" if scheme is Scheme.FLOAT16 else "float32"


def outward(tensor: Tensor) -> Tensor:
    """Keys and values as they leave a graph."""
    return tensor.float() if tensor.dtype is torch.bfloat16 else tensor


def as_kept(tensor: Tensor, kept: Kept) -> Tensor:
    """Keys and values as they leave a graph for another one, which may compute in another type."""
    wanted: torch.dtype = getattr(torch, kept)
    # Asked for the type that it has, the exporter calls what follows by other names.
    return tensor if tensor.dtype is wanted else tensor.to(wanted)


class _Doubtful:
    """What tells a layer to clamp."""

    def all(self) -> bool:
        return False


def _doubtful(_numbers: Tensor) -> _Doubtful:
    return _Doubtful()


@contextmanager
def always_clamping(dtype: torch.dtype) -> Iterator[None]:
    """Layers of BART and its kin look for infinity among float16 and clamp if there is any: no graph branches on that.

    What is clamped whatever it holds is the same but above 64504, where little is left to lose.
    """
    if dtype is not torch.float16:
        yield
        return
    with mock.patch.object(torch, "isfinite", _doubtful):
        yield


def keep_masks_finite(model: onnx_ir.Model) -> None:
    """Takes the lowest number there is in a mask by half: what is added to it would be minus infinity.

    A row of padding alone would be NaN for that, and every token that looks at it. Half of it hides a token as well.
    """
    lowest = torch.finfo(torch.float16).min
    for weight in model.graph.initializers.values():
        found = weight.const_value
        if found is None or found.dtype != onnx_ir.DataType.FLOAT16 or found.size != 1:
            continue
        if found.numpy().item() == lowest and all(node.op_type == "Where" for node, _ in weight.uses()):
            weight.const_value = onnx_ir.tensor(found.numpy() / 2, name=weight.name)


def is_half(spec: ConversionSpec) -> bool:
    return spec.scheme is Scheme.FLOAT16


def remark_of(spec: ConversionSpec) -> str:
    """What a converted model should be told with; empty where there is nothing."""
    places = {spec.place_of(one, pool) for pool in spec.providers for one in COMPONENTS if is_half(spec.of(one))}
    if Provider.CPU in places:
        return f"; on {Provider.CPU} float16 is computed in float32, so it is smaller there and no faster"
    return ""


def way_out_of(spec: ConversionSpec) -> str:
    """Where numbers are not finite that are so in float32."""
    found = [component for component in COMPONENTS if is_half(spec.of(component))]
    if len(found) == 1:
        return f": float16 ends at 65504, take none for the {found[0]}"
    return ": float16 ends at 65504, take bfloat16 or none" if found else ""


def refuse_without_kernels(scheme: Scheme, provider: Provider, field: str) -> None:
    """`field` is where the scheme was said."""
    if scheme is Scheme.BFLOAT16 and provider.judged_on is Provider.CPU:
        where = f"{Provider.CPU}, on which graphs for {provider} are judged" if provider.is_edge else provider
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"{field} {scheme} has no kernels on {where}: use float16 or none there, or a provider of "
            "an accelerator alone",
        )
