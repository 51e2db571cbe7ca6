"""From a torch module to an ONNX graph with a dynamic batch and dynamic lengths.

Refuses to hand on a graph whose bytes depend on where it was made: the exporter writes stack traces with absolute
paths into node metadata, and those are taken out.
"""

from __future__ import annotations

import ast
import re
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from onnx_converter import (
    capture,
    decoders,
    encoder_decoders,
    experts,
    idioms,
    keeping,
    precision,
    share,
    siblings,
    wire,
)
from onnx_converter.images import PIXELS
from onnx_converter.layers import SCOPES
from onnx_converter.products import EXPERTS, PRODUCTS
from onnx_converter.reasons import EXPORT_FAILED, StepFailedError, gist
from onnx_converter.route import Route
from onnx_converter.spec import Provider
from onnx_converter.speech import FEATURES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from onnx_converter.graph import Part
    from onnx_converter.load import Checkpoint

BATCH: Final = "batch"
SEQUENCE: Final = "sequence"
WRITTEN_SEQUENCE: Final = "decoder_sequence"
PAST_SEQUENCE: Final = "past_sequence"
TOTAL_SEQUENCE: Final = "total_sequence"
#: Protobuf ends at 2 GiB; beside the weights there is room for the graph itself.
_INLINE_LIMIT: Final = 1_900_000_000
#: As transformers itself computes it, whatever it is, but that every expert is asked.
ROUTE: Final = Route("trace", lambda _checkpoint, _goal: None, partial(experts.traced, as_operator=False))


def sample_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Two texts of different length: with a mask of ones alone the exporter may drop the mask from the graph."""
    if checkpoint.sight:
        return {PIXELS: torch.ones(2, *checkpoint.sight.shape)}
    # A size that is 1, or equal to another one, may be taken for that number or for that axis.
    past = 3 if checkpoint.cache else 0
    heard = checkpoint.speech
    length = min(7, checkpoint.max_sequence_length) - (0 if checkpoint.cross else past)
    padding = checkpoint.tokenizer.pad_token_id
    ids = torch.arange(2 * length).reshape(2, length) % (int(checkpoint.model.config.vocab_size) - 1)
    ids += ids >= padding
    mask = torch.ones_like(ids)
    mask[1, length // 2 + 1 :] = 0
    ids = torch.where(mask.bool(), ids, padding)
    if heard:
        # Of one length, so that nothing is to be told apart from it.
        named = {FEATURES: torch.ones(2, *heard.shape), "decoder_input_ids": ids}
    elif checkpoint.cross:
        # Fewer tokens are written here than read: the two lengths have nothing to do with each other.
        named = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, 1:-1]}
    else:
        mask = torch.nn.functional.pad(mask, (past, 0), value=1)
        named = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    for prefix, cache, tokens in (
        (decoders.PAST, checkpoint.cache, past),
        (encoder_decoders.CROSS, checkpoint.cross, heard.positions if heard else length),
    ):
        cached = (torch.ones(2, heads, tokens, width, dtype=getattr(torch, checkpoint.kept)) for heads, width in cache)
        named |= dict(zip(decoders.names_of(prefix, cache), cached, strict=True))
    return named


def axes_of(checkpoint: Checkpoint, name: str) -> dict[int, str]:
    """The dynamic axes of an input, and what they are called."""
    if name.startswith(decoders.PAST):
        return {0: BATCH, 2: PAST_SEQUENCE}
    if name in (FEATURES, PIXELS):
        return {0: BATCH}
    if name.startswith(encoder_decoders.CROSS):
        return {0: BATCH} if checkpoint.speech else {0: BATCH, 2: SEQUENCE}
    if name == "decoder_input_ids":
        return {0: BATCH, 1: WRITTEN_SEQUENCE}
    if checkpoint.cache and not checkpoint.cross and name == "attention_mask":
        return {0: BATCH, 1: TOTAL_SEQUENCE}
    return {0: BATCH, 1: SEQUENCE}


def trace(checkpoint: Checkpoint, part: Part, module: torch.nn.Module, opset: int) -> onnx_ir.Model:
    """The graph in memory as torch's exporter writes it, its weights still those of the module."""
    axes = {spec.name: axes_of(checkpoint, spec.name) for spec in part.inputs}
    sample = sample_of(checkpoint)
    try:
        with (
            torch.no_grad(),
            precision.always_clamping(checkpoint.model.dtype),
            capture.once(module),
            warnings.catch_warnings(),
        ):
            # Deprecations inside torch and a remark about training mode that eval() has settled.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                tuple(sample[name] for name in axes),
                dynamo=True,
                # The wrapper takes one variadic argument, so the shapes of all tensors are one tuple.
                dynamic_shapes=(tuple(dict.fromkeys(each, torch.export.Dim.DYNAMIC) for each in axes.values()),),
                opset_version=opset,
                input_names=list(axes),
                output_names=[spec.name for spec in part.outputs],
                verbose=False,
            )
    except Exception as error:
        # What it says itself is advice to whoever debugs it.
        said = gist(error.__cause__ or error)
        raise StepFailedError(
            EXPORT_FAILED, f"torch's exporter gives up on {checkpoint.architecture} at opset {opset}: {said}"
        ) from error
    if program is None:
        raise StepFailedError(
            EXPORT_FAILED, f"torch's exporter returned nothing for {checkpoint.architecture} at opset {opset}"
        )
    model: onnx_ir.Model = program.model
    return model


def settle(model: onnx_ir.Model, checkpoint: Checkpoint, provider: Provider) -> onnx_ir.Model:
    """The same graph in the words of the provider, with names that people know and nothing of this machine in it."""
    axes = {str(item.name): axes_of(checkpoint, str(item.name)) for item in model.graph.inputs}
    idioms.settle(model, provider)
    _name_layers(model)
    if checkpoint.cache and provider is Provider.CPU:
        siblings.join(model)
    precision.keep_masks_finite(model)
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    _name_axes(model, axes)
    keeping.settle(model)
    experts.settle(model)
    return model


def _name_layers(model: onnx_ir.Model) -> None:
    """As in the checkpoint, so that people can name them; the exporter counts, and counts anew in each version."""
    taken = set()
    for node in model.graph:
        weights = node.inputs[1] if len(node.inputs) > 1 else None
        if (turned := idioms.maker(weights, "Transpose")) is not None:
            weights = turned.inputs[0]
        is_product = node.op_type in PRODUCTS and weights is not None and weights.is_initializer()
        if not is_product and node.op_type != EXPERTS:
            continue
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        name = scopes[-2].removeprefix("model.") if len(scopes) > 1 else ""
        if name and name not in taken:
            taken.add(name)
            node.name = name


def _name_axes(model: onnx_ir.Model, axes: Mapping[str, Mapping[int, str]]) -> None:
    """The exporter counts its symbols, and gives one axis several; readers of the graph want to know which is which."""
    words: dict[str, str] = {}
    for graph_input in model.graph.inputs:
        dims = graph_input.shape.dims if graph_input.shape is not None else []
        wanted = axes[str(graph_input.name)]
        names = {axis: dim.value for axis, dim in enumerate(dims) if isinstance(dim, onnx_ir.SymbolicDim)}
        if names.keys() != wanted.keys() or None in names.values():
            raise StepFailedError(
                EXPORT_FAILED, f"the exported graph froze an axis of {graph_input.name}: {graph_input.shape}"
            )
        words |= {str(name): wanted[axis] for axis, name in names.items()}
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, words))})\b")
    for value in _values(model):
        if value.shape is None:
            continue
        dims = [
            onnx_ir.SymbolicDim(pattern.sub(lambda match: words[match[1]], dim.value))
            if isinstance(dim, onnx_ir.SymbolicDim) and dim.value is not None
            else dim
            for dim in value.shape.dims
        ]
        value.shape = onnx_ir.Shape(dims)


def _values(model: onnx_ir.Model) -> list[onnx_ir.Value]:
    return [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]


def save(model: onnx_ir.Model, path: Path, shared: share.Weights | None = None) -> None:
    """One file, or beyond protobuf's limit one file and its weights beside it, or its weights among the shared ones.

    No weight is copied in memory.
    """
    weights: dict[str, Any] = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes > wire.LARGE
    }
    if shared is None and sum(weight.nbytes for weight in weights.values()) > _INLINE_LIMIT:
        onnx_ir.save(model, path, external_data=f"{path.name}.data")
        return
    for name, weight in weights.items():
        model.graph.initializers[name].const_value = onnx_ir.ExternalTensor(
            path.name,
            0,
            weight.nbytes,
            weight.dtype,
            shape=weight.shape,
            name=name,
            doc_string=weight.doc_string,
            metadata_props=weight.metadata_props,
        )
    bare = onnx_ir.to_proto(model)
    for name, weight in weights.items():
        model.graph.initializers[name].const_value = weight
    if shared is None:
        wire.write(bare, path, lambda tensor, stream: weights[tensor.name].tofile(stream))
    else:
        shared.write(bare, path, lambda tensor: weights[tensor.name].numpy())
