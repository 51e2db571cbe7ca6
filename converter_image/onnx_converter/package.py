"""The Triton model repository of one execution provider: config.pbtxt in words, one for each model of Triton's.

A model of two graphs is three of them: each graph, and both in turn under the model's own name. Written out, never
completed by Triton, so that NVIDIA's native onnxruntime backend and the Python one of this project read the same. Pure
text: refuses nothing, knows no files.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from onnx_converter import engines
from onnx_converter.spec import DECODER, ENCODER, Provider, Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from onnx_converter.conversion import Conversion, Signature
    from onnx_converter.spec import Serving

#: The folder that is renamed to the model; those of its steps have more to their name.
MODEL: Final = "model"
PAST: Final = "past_key_values"
CROSS: Final = "cross_key_values"
#: Those that read with one graph and write with another.
_TWO: Final = (Task.TEXT2TEXT_GENERATION, Task.AUTOMATIC_SPEECH_RECOGNITION)
#: Of a sound: frames that become one position.
_FRAMES: Final = 2
#: Warm-up requests: a single short one, and a batch of the size that clients send together.
_WARMUP_BATCH: Final = 8
_WARMUP_LENGTHS: Final = (16, 128)


def configs_of(conversion: Conversion, serving: Serving, provider: Provider) -> dict[str, str]:
    """config.pbtxt of each model by its folder; the one named MODEL is what golden requests and endpoints name."""
    if conversion.task not in _TWO:
        return {MODEL: _config_of(conversion, serving, provider)}
    past = [item for item in conversion.inputs if item.name.startswith(f"{PAST}.")]
    *read, new = conversion.inputs[: len(conversion.inputs) - len(past)]
    # The last axis of what is read: a sound is of one length.
    tokens = read[0].shape[-1] // _FRAMES if read[0].shape[-1] > 0 else -1
    cross = [
        item.model_copy(
            update={"name": item.name.replace(PAST, CROSS, 1), "shape": (*item.shape[:2], tokens, item.shape[3])}
        )
        for item in past
    ]
    length = min(_WARMUP_LENGTHS[0], conversion.max_sequence_length - 1)
    lengths = {item.name: length for item in read}
    steps = {
        ENCODER: (read, cross, (lengths,)),
        DECODER: (
            (new, *read[1:], *past, *cross),
            conversion.outputs,
            tuple({new.name: 1, **lengths, PAST: written, CROSS: length} for written in (0, length)),
        ),
    }
    configs = {
        f"{MODEL}-{step}": "\n".join(
            [
                'backend: "onnxruntime"',
                f'default_model_filename: "{step}.onnx"',
                "max_batch_size: 0",
                *_tensors("input", inputs, skip=0),
                *_tensors("output", outputs, skip=0),
                *_instances(serving, conversion.spec.place_of(step, provider)),
                *_parameters(serving, conversion.spec.place_of(step, provider)),
                *_warmups([_request(inputs, lengths) for lengths in warmups]),
            ]
        )
        + "\n"
        for step, (inputs, outputs, warmups) in steps.items()
    }
    return {MODEL: _ensemble_of(conversion, {step: given[:2] for step, given in steps.items()}), **configs}


def _ensemble_of(conversion: Conversion, steps: Mapping[str, tuple[Iterable[Signature], Iterable[Signature]]]) -> str:
    """The steps in turn, each fed by name with what was asked and what those before it have answered."""
    # What goes from step to step is no output: asked for some of those only, Triton gives up.
    lines = [
        'platform: "ensemble"',
        "max_batch_size: 0",
        *_tensors("input", conversion.inputs, skip=0),
        *_tensors("output", conversion.outputs, skip=0),
        "ensemble_scheduling {",
        "  step [",
        ",\n".join(
            "\n".join(
                [
                    "    {",
                    f'      model_name: "{MODEL}-{step}"',
                    "      model_version: -1",
                    *(
                        f"      {role}_map {{ key: {json.dumps(item.name)} value: {json.dumps(item.name)} }}"
                        for role, items in zip(("input", "output"), given, strict=True)
                        for item in items
                    ),
                    "    }",
                ]
            )
            for step, given in steps.items()
        ),
        "  ]",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _config_of(conversion: Conversion, serving: Serving, provider: Provider) -> str:
    # Requests after pasts of different length cannot be laid into one batch, so a decoder's batch is an axis like any.
    is_decoder = conversion.task is Task.TEXT_GENERATION
    lines = [
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {0 if is_decoder else serving.max_batch_size}",
        *_tensors("input", conversion.inputs, skip=0 if is_decoder else 1),
        *_tensors("output", conversion.outputs, skip=0 if is_decoder else 1),
        *_instances(serving, provider),
        *([] if is_decoder else _batching(serving)),
        *_parameters(serving, provider),
        *(_accelerator(conversion, serving) if provider is Provider.TENSORRT else []),
        *(_decoder_warmup(conversion) if is_decoder else _warmup(conversion, serving)),
    ]
    return "\n".join(lines) + "\n"


def _instances(serving: Serving, provider: Provider) -> list[str]:
    kind = "KIND_CPU" if provider is Provider.CPU else "KIND_GPU"
    return ["instance_group [", f"  {{ count: {serving.instances} kind: {kind} }}", "]"]


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


def _accelerator(conversion: Conversion, serving: Serving) -> list[str]:
    """Triton goes on with CUDA for what TensorRT lacks, by itself."""
    told = engines.parameters(
        [item.name for item in conversion.inputs],
        str(conversion.spec.scheme),
        batch=serving.max_batch_size,
        length=conversion.max_sequence_length,
    )
    return [
        "optimization { execution_accelerators { gpu_execution_accelerator [ {",
        '  name: "tensorrt"',
        *(f"  parameters {{ key: {json.dumps(key)} value: {json.dumps(value)} }}" for key, value in told.items()),
        "} ] } }",
    ]


def _warmup(conversion: Conversion, serving: Serving) -> list[str]:
    batches = (1, min(_WARMUP_BATCH, serving.max_batch_size))
    blocks = []
    for batch, wanted in zip(batches, _WARMUP_LENGTHS, strict=True):
        length = min(wanted, conversion.max_sequence_length)
        # Ids of zero under an empty mask: always in range, and as much work as any other. So is an image of zeros.
        inputs = "\n".join(
            _zeros(item, [length if size < 0 else size for size in item.shape[1:]]) for item in conversion.inputs
        )
        name = f"batch {batch}, length {length}" if length else f"batch {batch}"
        blocks.append(f'  {{\n    name: "{name}"\n    batch_size: {batch}\n{inputs}\n  }}')
    return _warmups(blocks)


def _decoder_warmup(conversion: Conversion) -> list[str]:
    """One prefill and one token after it."""
    length = min(_WARMUP_LENGTHS[0], conversion.max_sequence_length - 1)
    return _warmups(
        [
            _request(conversion.inputs, {"input_ids": new, "attention_mask": past + new, PAST: past})
            for past, new in ((0, length), (length, 1))
        ]
    )


def _warmups(requests: Iterable[str]) -> list[str]:
    return ["model_warmup [", ",\n".join(requests), "]"]


def _request(inputs: Iterable[Signature], lengths: Mapping[str, int]) -> str:
    """One request of one text; lengths are by the name of an input, or of all inputs of a cache."""
    lines = []
    for item in inputs:
        length = lengths[item.name.partition(".")[0]]
        lines.append(_zeros(item, [1, *(length if size < 0 else size for size in item.shape[1:])]))
    past, new = lengths.get(PAST, 0), next(iter(lengths.values()))
    joined = "\n".join(lines)
    return f'  {{\n    name: "past {past}, length {new}"\n    batch_size: 1\n{joined}\n  }}'


def _zeros(item: Signature, dims: Iterable[int]) -> str:
    value = f"value: {{ data_type: TYPE_{item.datatype} dims: {list(dims)} zero_data: true }}"
    return f"    inputs {{ key: {json.dumps(item.name)} {value} }}"
