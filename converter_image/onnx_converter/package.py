"""The Triton model repository of one execution provider: config.pbtxt in words.

Written out, never completed by Triton, so that NVIDIA's native onnxruntime backend and the Python one of this project
read the same. Pure text: refuses nothing, knows no files.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from onnx_converter.spec import Provider, Task

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx_converter.conversion import Conversion, Signature
    from onnx_converter.spec import Serving

#: Warm-up requests: a single short one, and a batch of the size that clients send together.
_WARMUP_BATCH: Final = 8
_WARMUP_LENGTHS: Final = (16, 128)


def config_of(conversion: Conversion, serving: Serving, provider: Provider) -> str:
    """config.pbtxt of the graph for one provider; the model's name is that of its folder."""
    # Requests after pasts of different length cannot be laid into one batch, so a decoder's batch is an axis like any.
    is_decoder = conversion.task is Task.TEXT_GENERATION
    lines = [
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {0 if is_decoder else serving.max_batch_size}",
        *_tensors("input", conversion.inputs, skip=0 if is_decoder else 1),
        *_tensors("output", conversion.outputs, skip=0 if is_decoder else 1),
        "instance_group [",
        f"  {{ count: {serving.instances} kind: {'KIND_CPU' if provider is Provider.CPU else 'KIND_GPU'} }}",
        "]",
        *([] if is_decoder else _batching(serving)),
        *_parameters(serving, provider),
        *(_decoder_warmup(conversion) if is_decoder else _warmup(conversion, serving)),
    ]
    return "\n".join(lines) + "\n"


def _tensors(role: str, signatures: Iterable[Signature], *, skip: int) -> list[str]:
    # With a batch size the first axis is Triton's own.
    entries = [
        f"  {{ name: {json.dumps(item.name)} data_type: TYPE_{item.datatype} dims: {list(item.shape[skip:])} }}"
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


def _decoder_warmup(conversion: Conversion) -> list[str]:
    """One prefill and one token after it."""
    length = min(_WARMUP_LENGTHS[0], conversion.max_sequence_length - 1)
    return [
        "model_warmup [",
        ",\n".join(_decoder_request(conversion, past, new) for past, new in ((0, length), (length, 1))),
        "]",
    ]


def _decoder_request(conversion: Conversion, past: int, new: int) -> str:
    lines = []
    for item in conversion.inputs:
        lengths = (new,) if item.name == "input_ids" else (past + new,) if item.name == "attention_mask" else None
        dims = [1, *lengths] if lengths else [1, item.shape[1], past, item.shape[3]]
        value = f"value: {{ data_type: TYPE_{item.datatype} dims: {dims} zero_data: true }}"
        lines.append(f"    inputs {{ key: {json.dumps(item.name)} {value} }}")
    inputs = "\n".join(lines)
    return f'  {{\n    name: "past {past}, length {new}"\n    batch_size: 1\n{inputs}\n  }}'
