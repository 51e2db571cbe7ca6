"""What the graph computes around the model: one module per task.

A sentence embedding is pooled and normalised as the checkpoint's own modules.json says, by the arithmetic of
sentence-transformers. Refuses module types and pooling modes that are not written out below: an embedding pooled in
another way looks healthy and is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from typing_extensions import override

from onnx_converter import decoders, encoder_decoders, policy
from onnx_converter.graph import MODEL, Part, TensorSpec
from onnx_converter.images import PIXELS, Seeing
from onnx_converter.precision import DATATYPES
from onnx_converter.reasons import (
    ARCHITECTURE_UNSUPPORTED,
    CHECKPOINT_INCOMPLETE,
    CONFIG_INVALID,
    REMOTE_CODE_REFUSED,
    WEIGHTS_MISMATCH,
    StepFailedError,
)
from onnx_converter.spec import Task
from onnx_converter.speech import FEATURES

if TYPE_CHECKING:
    from pathlib import Path

    from onnx_converter.load import Checkpoint

OUTPUTS: Final[dict[Task, str]] = {
    Task.FEATURE_EXTRACTION: "last_hidden_state",
    Task.SENTENCE_EMBEDDING: "sentence_embedding",
    Task.TEXT_CLASSIFICATION: "logits",
    Task.TOKEN_CLASSIFICATION: "logits",
    Task.TEXT_GENERATION: decoders.LOGITS,
    Task.TEXT2TEXT_GENERATION: decoders.LOGITS,
    Task.AUTOMATIC_SPEECH_RECOGNITION: decoders.LOGITS,
    Task.IMAGE_FEATURE_EXTRACTION: "image_embeds",
    Task.IMAGE_CLASSIFICATION: "logits",
}
#: Of a model that itself makes one vector of a text, as everybody calls it.
TEXT_EMBEDS: Final = "text_embeds"
#: Tasks whose answer has one vector for each token, meaningless where the token is padding.
PER_TOKEN: Final = frozenset({Task.FEATURE_EXTRACTION, Task.TOKEN_CLASSIFICATION})
GENERATORS: Final = frozenset({Task.TEXT_GENERATION, Task.TEXT2TEXT_GENERATION, Task.AUTOMATIC_SPEECH_RECOGNITION})
CLASSIFIERS: Final = frozenset({Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.IMAGE_CLASSIFICATION})

#: In the order in which sentence-transformers concatenates them.
_LEGACY_MODES: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_MODES: Final = ("cls", "max", "mean", "mean_sqrt_len_tokens")
_ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {
    "torch.nn.modules.activation.Tanh": nn.Tanh,
    "torch.nn.modules.activation.ReLU": nn.ReLU,
    "torch.nn.modules.activation.GELU": nn.GELU,
    "torch.nn.modules.linear.Identity": nn.Identity,
}


class Wrapper(nn.Module):
    """The encoder with named tensors in and its first output out."""

    within: Tensor

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], after: nn.ModuleList, capacity: int) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.after = after
        self.register_buffer("within", torch.zeros(capacity, dtype=torch.long))

    @override
    def forward(self, *tensors: Tensor) -> Tensor:
        named = dict(zip(self.inputs, tensors, strict=True))
        # Looked up and added as nothing: so a longer text is an error of the served graph, and never cut silently or
        # answered by what was not validated, whatever the model does with its positions.
        ids = named["input_ids"]
        named["input_ids"] = ids + self.within[torch.arange(ids.shape[1])]
        answer: Tensor = self.model(**named, return_dict=False)[0].float()
        for module in self.after:
            answer = module(answer, named["attention_mask"])
        return answer


class Pooling(nn.Module):
    """One vector for each text, of its tokens' vectors."""

    def __init__(self, modes: tuple[str, ...]) -> None:
        super().__init__()
        self.modes = modes

    @override
    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        kept = mask.unsqueeze(-1).to(hidden.dtype)
        return torch.cat([self._pool(mode, hidden, mask, kept) for mode in self.modes], dim=-1)

    def _pool(self, mode: str, hidden: Tensor, mask: Tensor, kept: Tensor) -> Tensor:
        match mode:
            case "cls":
                first = mask.to(torch.int32).argmax(dim=1)
                return hidden.gather(1, first.view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])).squeeze(1)
            case "max":
                # The lowest number instead of minus infinity: a text of nothing but padding must not become NaN.
                return hidden.masked_fill(kept == 0, torch.finfo(hidden.dtype).min).max(dim=1).values
            case "mean":
                return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
            case _:
                return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9).sqrt()


class Dense(nn.Module):
    """A linear layer on the pooled vector."""

    def __init__(self, linear: nn.Linear, activation: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation

    @override
    def forward(self, vector: Tensor, _mask: Tensor) -> Tensor:
        answer: Tensor = self.activation(self.linear(vector))
        return answer


class Normalize(nn.Module):
    """To unit length."""

    @override
    def forward(self, vector: Tensor, _mask: Tensor) -> Tensor:
        return nn.functional.normalize(vector, p=2.0, dim=-1)


def outputs_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of everything that is answered, the answer of the task first."""
    answer = TEXT_EMBEDS if checkpoint.embeds else OUTPUTS[checkpoint.task]
    present = decoders.names_of(decoders.PRESENT, checkpoint.cache)
    return (answer, *present, *decoders.names_of(encoder_decoders.CROSS, checkpoint.cross))


def parts_of(checkpoint: Checkpoint) -> tuple[Part, ...]:
    """The graphs in the order in which they are run: what inputs must look like, how shapes of outputs must begin."""

    def cached(prefix: str, cache: decoders.Cache, tokens: int = -1) -> list[TensorSpec]:
        sizes = zip(decoders.names_of(prefix, cache), cache, strict=True)
        return [
            TensorSpec(name, DATATYPES[checkpoint.kept], (-1, heads, tokens, width)) for name, (heads, width) in sizes
        ]

    past, present = (cached(prefix, checkpoint.cache) for prefix in (decoders.PAST, decoders.PRESENT))
    heard, seen = checkpoint.speech, checkpoint.sight
    # What is not read as tokens is of one shape.
    shapes = ({FEATURES: heard.shape} if heard else {}) | ({PIXELS: seen.shape} if seen else {})
    cross = cached(encoder_decoders.CROSS, checkpoint.cross, heard.positions if heard else -1)
    names = checkpoint.inputs[: len(checkpoint.inputs) - len(past)]
    tokens = [
        TensorSpec(name, "FP32", (-1, *shapes[name])) if name in shapes else TensorSpec(name, "INT64", (-1, -1))
        for name in names
    ]
    answers = [TensorSpec(outputs_of(checkpoint)[0], "FP32", (-1, -1) if present else (-1,)), *present]
    if not cross:
        return (Part(MODEL, [*tokens, *past], answers),)
    *read, new = tokens
    return (
        Part(encoder_decoders.ENCODER, read, cross),
        # The mask, if there is one.
        Part(encoder_decoders.DECODER, [new, *read[1:], *past, *cross], answers),
    )


def modules_of(checkpoint: Checkpoint, folder: Path) -> list[nn.Module]:
    """What is to be exported for each part."""
    if not checkpoint.cross:
        return [wrap(checkpoint, folder)]
    model, capacity = checkpoint.model, checkpoint.max_sequence_length
    layers = len(checkpoint.cache) // 2
    read = _read_by(checkpoint)
    both = (
        encoder_decoders.Encoder(model, read, capacity, checkpoint.kept),
        encoder_decoders.Decoder(model, capacity, layers, has_mask=len(read) > 1),
    )
    return [encoder_decoders.settled(module) for module in both]


def _read_by(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What an encoder with a decoder beside it is given."""
    return checkpoint.inputs[: checkpoint.inputs.index(encoder_decoders.WRITTEN)]


def wrap(checkpoint: Checkpoint, folder: Path) -> nn.Module:
    """The whole computation of the task, ready to be run, and to be exported where it is one graph."""
    if checkpoint.task is Task.TEXT_GENERATION:
        return decoders.wrap(checkpoint.model, checkpoint.max_sequence_length)
    if checkpoint.cross:
        layers = len(checkpoint.cache) // 2
        return encoder_decoders.settled(encoder_decoders.Whole(checkpoint.model, _read_by(checkpoint), layers))
    if checkpoint.sight:
        return _still(Seeing(checkpoint.model, checkpoint.sight.read))
    pools = checkpoint.task is Task.SENTENCE_EMBEDDING and not checkpoint.embeds
    after = nn.ModuleList(sentence_modules(folder, checkpoint) if pools else [])
    return _still(Wrapper(checkpoint.model, checkpoint.inputs, after, checkpoint.max_sequence_length))


def _still(wrapper: nn.Module) -> nn.Module:
    wrapper.eval()
    wrapper.requires_grad_(requires_grad=False)
    return wrapper


def sentence_modules(folder: Path, checkpoint: Checkpoint) -> list[nn.Module]:
    entries = policy.read_json(folder, policy.MODULES)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise StepFailedError(
            CONFIG_INVALID, f"{policy.MODULES} is no list of modules: save the checkpoint with sentence-transformers"
        )
    modules: list[nn.Module] = []
    width = int(checkpoint.model.config.hidden_size)
    for number, entry in enumerate(entries):
        kind, path = str(entry.get("type", "")), str(entry.get("path", ""))
        if not kind.startswith("sentence_transformers."):
            raise StepFailedError(
                REMOTE_CODE_REFUSED,
                f"{policy.MODULES}: type {kind!r} is code of the checkpoint's own, which is never run",
            )
        if path:
            policy.refuse_escape(path)
        match kind.rpartition(".")[2]:
            case "Transformer" if number == 0 and not path:
                continue
            case "Pooling" if number == 1:
                pooling = _pooling_of(folder, path)
                width *= len(pooling.modes)
                modules.append(pooling)
            case "Dense" if modules:
                dense = _dense_of(folder, path, width)
                width = dense.linear.out_features
                modules.append(dense)
            case "Normalize" if modules:
                modules.append(Normalize())
            case name:
                raise StepFailedError(
                    ARCHITECTURE_UNSUPPORTED,
                    f"{policy.MODULES}: module {number} {name!r} at {path!r} is not supported there",
                )
    if not modules:
        raise StepFailedError(ARCHITECTURE_UNSUPPORTED, f"{policy.MODULES} has no Pooling: use task feature-extraction")
    return modules


def _settings_of(folder: Path, path: str) -> dict[str, Any]:
    name = f"{path}/{policy.CONFIG}"
    if not (folder / name).is_file():
        raise StepFailedError(
            CHECKPOINT_INCOMPLETE,
            f"{name} is missing, which {policy.MODULES} names: save the checkpoint with sentence-transformers",
        )
    return policy.read_object(folder, name)


def _pooling_of(folder: Path, path: str) -> Pooling:
    settings = _settings_of(folder, path)
    named = settings.get("pooling_mode")
    if named is not None:
        modes = (named,) if isinstance(named, str) else tuple(str(mode) for mode in named)
    else:
        modes = tuple(mode for key, mode in _LEGACY_MODES.items() if settings.get(key)) or ("mean",)
    for mode in modes:
        if mode not in _MODES:
            raise StepFailedError(
                ARCHITECTURE_UNSUPPORTED,
                f"{path}/{policy.CONFIG}: pooling mode {mode!r} is not supported, {', '.join(_MODES)} are",
            )
    return Pooling(modes)


def _dense_of(folder: Path, path: str, width: int) -> Dense:
    settings = _settings_of(folder, path)
    name, bias, residual = (
        str(settings.get("activation_function")),
        bool(settings.get("bias", True)),
        settings.get("use_residual"),
    )
    if (
        name not in _ACTIVATIONS
        or residual
        or settings.get("module_input_name", "sentence_embedding") != "sentence_embedding"
    ):
        raise StepFailedError(
            ARCHITECTURE_UNSUPPORTED,
            f"{path}/{policy.CONFIG}: activation_function {name!r} or a residual is not supported",
        )
    weights = folder / path / policy.WEIGHTS
    if not weights.is_file():
        raise StepFailedError(
            CHECKPOINT_INCOMPLETE, f"{path}/{policy.WEIGHTS} is missing: save the checkpoint as safetensors"
        )
    linear = nn.Linear(width, int(settings.get("out_features", 0)), bias=bias)
    tensors = {key.removeprefix("linear."): tensor.to(torch.float32) for key, tensor in load_file(weights).items()}
    try:
        linear.load_state_dict(tensors)
    except RuntimeError as error:
        raise StepFailedError(
            WEIGHTS_MISMATCH, f"{path}/{policy.WEIGHTS} does not fit {path}/{policy.CONFIG}: they are of two models"
        ) from error
    return Dense(linear, _ACTIVATIONS[name]())
