"""The Triton model repository of one execution provider: config.pbtxt in words.

Written out, never completed by Triton, so that NVIDIA's native onnxruntime backend and the Python one of this project
read the same. Pure text: refuses nothing, knows no files.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from onnx_converter.spec import Provider

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx_converter.conversion import Conversion, Signature
    from onnx_converter.spec import Serving

#: Warm-up requests: a single short one, and a batch of the size that clients send together.
_WARMUP_BATCH: Final = 8
_WARMUP_LENGTHS: Final = (16, 128)


def config_of(conversion: Conversion, serving: Serving, provider: Provider) -> str:
    """config.pbtxt of the graph for one provider; the model's name is that of its folder."""
    lines = [
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {serving.max_batch_size}",
        *_tensors("input", conversion.inputs),
        *_tensors("output", conversion.outputs),
        "instance_group [",
        f"  {{ count: {serving.instances} kind: {'KIND_CPU' if provider is Provider.CPU else 'KIND_GPU'} }}",
        "]",
        *_batching(serving),
        *_parameters(serving, provider),
        *_warmup(conversion, serving),
    ]
    return "\n".join(lines) + "\n"


def _tensors(role: str, signatures: Iterable[Signature]) -> list[str]:
    # With a batch size the first axis is Triton's own.
    entries = [
        f"  {{ name: {json.dumps(item.name)} data_type: TYPE_{item.datatype} dims: {list(item.shape[1:])} }}"
        for item in signatures
    ]
    return [f"{role} [", ",\n".join(entries), "]"]


def _batching(serving: Serving) -> list[str]:
    if serving.max_batch_size == 1:
        return []
    return ["dynamic_batching {", f"  max_queue_delay_microseconds: {serving.max_queue_delay_microseconds}", "}"]


def _parameters(serving: Serving, provider: Provider) -> list[str]:
    values = {"intra_op_thread_count": str(serving.threads), "inter_op_thread_count": "1"}
    if provider is Provider.CPU:
        # The arena never gives back what the largest batch took (3 GB were seen); shrunk after each request it does.
        values["memory.enable_memory_arena_shrinkage"] = "cpu:0"
    return [
        f"parameters {{ key: {json.dumps(key)} value: {{ string_value: {json.dumps(value)} }} }}"
        for key, value in sorted(values.items())
    ]


def _warmup(conversion: Conversion, serving: Serving) -> list[str]:
    batches = (1, min(_WARMUP_BATCH, serving.max_batch_size))
    blocks = []
    for batch, wanted in zip(batches, _WARMUP_LENGTHS, strict=True):
        length = min(wanted, conversion.max_sequence_length)
        # Ids of zero under an empty mask: always in range, and as much work as any other.
        value = f"value: {{ data_type: TYPE_INT64 dims: [{length}] zero_data: true }}"
        inputs = "\n".join(f"    inputs {{ key: {json.dumps(item.name)} {value} }}" for item in conversion.inputs)
        blocks.append(f'  {{\n    name: "batch {batch}, length {length}"\n    batch_size: {batch}\n{inputs}\n  }}')
    return ["model_warmup [", ",\n".join(blocks), "]"]
