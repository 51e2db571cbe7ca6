"""int8 with activations quantised as they come (dynamic), by onnxruntime's own quantizer.

Refuses to quantise for a provider that has no kernels for it, and to call a graph quantised in which nothing was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx
from onnx.external_data_helper import uses_external_data
from onnxruntime.quantization import QuantType, quantize_dynamic

from onnx_converter.reasons import EXPORT_FAILED, SPEC_IMPOSSIBLE, StepFailedError, gist
from onnx_converter.spec import Provider, Scheme

if TYPE_CHECKING:
    from pathlib import Path

#: The operators that hold nearly all weights.
_OPERATORS: Final = ["MatMul", "Gemm", "Gather"]


def refuse_without_kernels(scheme: Scheme, provider: Provider) -> None:
    if scheme is Scheme.INT8_DYNAMIC and provider is not Provider.CPU:
        raise StepFailedError(
            SPEC_IMPOSSIBLE, f"quantization.scheme {scheme} has no kernels on {provider}: use none there"
        )


def int8_dynamic(source: Path, target: Path) -> None:
    model = onnx.load(source, load_external_data=False)
    # The quantizer transposes weights and leaves the shapes written beside them as they were.
    del model.graph.value_info[:]
    # By its path: of a model in memory the quantizer makes two copies more.
    bare = source.with_name(f"bare-{source.name}")
    onnx.save(model, bare)
    try:
        quantize_dynamic(
            bare,
            target,
            # A quarter of what was too large for one file may be, too.
            use_external_data_format=any(map(uses_external_data, model.graph.initializer)),
            op_types_to_quantize=_OPERATORS,
            weight_type=QuantType.QInt8,
            per_channel=True,
            # Seven bits for weights: on processors without VNNI the sum of two products of full range saturates,
            # silently, and the gate runs on another machine than the one that will serve.
            reduce_range=True,
            extra_options={"MatMulConstBOnly": True},
        )
    except Exception as error:
        raise StepFailedError(
            EXPORT_FAILED,
            f"onnxruntime's quantizer gives up: {type(error).__name__}: {gist(error)}",
        ) from error
    finally:
        bare.unlink()
    quantised = onnx.load(target, load_external_data=False)
    if not any(
        node.op_type in ("MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul") for node in quantised.graph.node
    ):
        raise StepFailedError(
            EXPORT_FAILED,
            "onnxruntime's quantizer quantised no multiplication: the graph has none with constant weights",
        )
