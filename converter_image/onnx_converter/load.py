"""The torch original of a checkpoint, and its tokenizer.

transformers builds the module, but reads no weights and chooses no class: the class follows from model_type and the
task in the tables of encoders.py, decoders.py and encoder_decoders.py, its configuration is made of declared fields
only, and the tensors come through safetensors after weights.py has checked them. An architecture in none of our tables
is taken from transformers' own, which name what it has built in; so a checkpoint selects among those and brings no
code. Refuses tensors that are missing, left over or of another shape.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from safetensors.torch import load_file

from onnx_converter import decoders, encoder_decoders, encoders, footprint, images, policy
from onnx_converter.reasons import (
    ALREADY_QUANTIZED,
    ARCHITECTURE_UNSUPPORTED,
    CONFIG_INVALID,
    SHAPE_MISMATCH,
    SPEC_IMPOSSIBLE,
    TOKENIZER_INVALID,
    TOKENIZER_MISMATCH,
    TOKENIZER_MISSING,
    WEIGHTS_MISMATCH,
    WEIGHTS_MISSING,
    StepFailedError,
    gist,
)
from onnx_converter.spec import Task
from onnx_converter.speech import FEATURES, Speech, speech_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from onnx_converter.precision import Kept

#: Tensors that a checkpoint may have beyond what the task needs, and that change nothing in its answer.
_HARMLESS_LEFTOVERS: Final = re.compile(
    r"(.*\.)?(pooler|lm_head|cls|vocab_(transform|layer_norm|projector)|discriminator_predictions|generator_\w+)\..*"
    r"|(.*\.)?(position_ids|token_type_ids)"
    # Heads of the training of ALBERT, DeBERTa and ModernBERT, and of CLIP what is not its encoder for texts.
    r"|(predictions|sop_classifier|lm_predictions|mask_predictions|head|decoder)\..*"
    r"|(vision_model|visual_projection|text_projection)\..*|logit_scale"
)
#: The same of a model that sees: heads, and of two towers what is not the one for images.
_HARMLESS_BESIDE_IMAGES: Final = re.compile(
    r"(pooler|classifier|text_model|text_projection)\..*|logit_(scale|bias)|(.*\.)?(position_ids|mask_token)"
)
#: Keys of config.json that are never handed to a configuration class.
_NEVER_SET: Final = frozenset({"dtype", "torch_dtype", "architectures", "model_type", "transformers_version"})
#: The fewest tokens that are still a text.
SHORTEST: Final = 8
#: What a tokenizer can give, in the order of the graph's inputs.
INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")
#: Any of these is enough for transformers to make the tokenizer of.
_VOCABULARIES: Final = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
_HEADS: Final = {
    "ForSequenceClassification": Task.TEXT_CLASSIFICATION,
    "ForTokenClassification": Task.TOKEN_CLASSIFICATION,
}
#: What the number of layers is called of a decoder that has an encoder beside it.
_DECODER_LAYERS: Final = ("decoder_layers", "num_decoder_layers")
#: How many numbers a model may have for each of its weights, and besides: matrices used twice, masks, positions.
_MOST_TIMES: Final = 4
_BESIDES: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory: the bare transformers model of the task, with eager attention where that is right."""

    model: PreTrainedModel
    #: The tokenizer of a model that reads or writes texts.
    words: PreTrainedTokenizerBase | None
    architecture: str
    task: Task
    #: The names of the graph's inputs, in order.
    inputs: tuple[str, ...]
    #: The longest text in tokens; 0 where there are none.
    max_sequence_length: int
    #: Of a decoder; an encoder keeps nothing.
    cache: decoders.Cache = ()
    #: Of a model that reads a text or a sound and writes another text: what its decoder is told of what is read.
    cross: decoders.Cache = ()
    #: How it writes.
    writing: encoder_decoders.Writing = encoder_decoders.FREE
    #: How it hears, where it reads sounds.
    speech: Speech | None = None
    #: How it sees, where it is given images.
    sight: images.Sight | None = None
    #: Whether the model itself answers with one vector for a text.
    embeds: bool = False
    #: Whether its architecture is one of our tables, or was only tried.
    is_known: bool = True
    #: In what its graphs take and answer keys and values.
    kept: Kept = "float32"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        assert self.words is not None  # noqa: S101  only models of texts are asked
        return self.words


def load(folder: Path, task: Task, max_sequence_length: int | None, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """As transformers itself runs it in that type: parts that overflow or lose too much in 16 bits stay in 32."""
    # Its remarks on left-over tensors are judged below, in words of ours.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    value = policy.read_object(folder, policy.CONFIG)
    if value.get("quantization_config"):
        raise StepFailedError(
            ALREADY_QUANTIZED,
            f"{policy.CONFIG}: quantization_config: the weights are quantised already; give the unquantised checkpoint",
        )
    kind = value.get("model_type")
    if isinstance(kind, str) and (family := decoders.FAMILIES.get(kind)) is not None:
        return _load_decoder(folder, value, family, task, max_sequence_length, dtype=dtype)
    if (family := encoder_decoders.family_of(kind)) is not None:
        return _load_encoder_decoder(folder, value, family, task, max_sequence_length, dtype=dtype)
    name = _class_of(value)
    if images.is_meant(kind, name, task):
        return _load_image_model(folder, value, task, max_sequence_length, dtype=dtype)
    is_known = isinstance(kind, str) and kind in encoders.ARCHITECTURES
    if not is_known and (task is Task.TEXT_GENERATION or name.endswith(policy.GENERATORS)):
        family = encoders.generator_of(kind)
        return _load_decoder(folder, value, family, task, max_sequence_length, dtype=dtype, undeclared=None)
    architecture = _architecture_of(value)
    embeds = encoders.is_embedder(architecture, name, value)
    resolved = resolve_task(folder, value, task, embeds=embeds)
    config = _config_of(
        architecture.config, encoders.settings_of(value), architecture.undeclared if architecture.is_known else None
    )
    config.use_cache = False
    if not architecture.is_known:
        _refuse_unusual(config, kind, "vocab_size")
    embeds = embeds and resolved is Task.SENTENCE_EMBEDDING and not (folder / policy.MODULES).is_file()
    model = _model_of(folder, *_encoder_of(architecture, resolved, embeds=embeds), config, dtype)
    tokenizer = _tokenizer_of(folder, config, pads=True, with_any=architecture.pads_with_any)
    most = encoders.most_of(architecture, model, max_sequence_length, tokenizer.pad_token_id)
    capacity = _capacity(most, max_sequence_length)
    inputs = tuple(name for name in INPUTS if name in _accepted(model, tokenizer))
    return Checkpoint(
        model,
        tokenizer,
        str(kind),
        resolved,
        inputs,
        capacity,
        embeds=embeds,
        is_known=architecture.is_known,
    )


def _load_decoder(
    folder: Path,
    value: dict[str, Any],
    family: decoders.Family,
    task: Task,
    max_sequence_length: int | None,
    *,
    dtype: torch.dtype,
    undeclared: frozenset[str] | None = decoders.OLDER_FIELDS,
) -> Checkpoint:
    is_known = undeclared is not None
    name = _class_of(value) or policy.GENERATORS[0]
    if not name.endswith(policy.GENERATORS):
        raise StepFailedError(
            ARCHITECTURE_UNSUPPORTED,
            f"{policy.CONFIG}: architectures {name!r} is no language model: a decoder is supported for text-generation",
        )
    if task not in (Task.AUTO, Task.TEXT_GENERATION):
        raise StepFailedError(
            SPEC_IMPOSSIBLE, f"task {task} does not fit {name}, a decoder: use auto or {Task.TEXT_GENERATION}"
        )
    config = _config_of(family.config, value, undeclared)
    decoders.refuse_variants(value, config)
    if not is_known:
        length = ("max_position_embeddings",) if decoders.counts(family.model, config) else ()
        _refuse_unusual(config, value["model_type"], "vocab_size", *length)
    capacity = _capacity(decoders.most_of(config, max_sequence_length), max_sequence_length)
    model = _model_of(folder, family.model, {}, config, dtype)
    decoders.settle_rotation(model)
    tokenizer = _tokenizer_of(folder, config, pads=False)
    cache = decoders.cache_of(model)
    inputs = (*decoders.INPUTS, *decoders.names_of(decoders.PAST, cache))
    return Checkpoint(
        model, tokenizer, str(value["model_type"]), Task.TEXT_GENERATION, inputs, capacity, cache, is_known=is_known
    )


def _capacity(most: int, wanted: int | None) -> int:
    """The longest text in tokens; where more can be read, no more than are usual unless it is asked for."""
    if most < SHORTEST:
        raise StepFailedError(
            CONFIG_INVALID,
            f"{policy.CONFIG} gives the model {most} positions, fewer than the {SHORTEST} of a text: repair the file",
        )
    if wanted is None:
        return min(most, footprint.DEFAULT_LENGTH)
    if wanted < SHORTEST:
        raise StepFailedError(
            SPEC_IMPOSSIBLE, f"maxSequenceLength {wanted} leaves no room for a text: use {SHORTEST} or more"
        )
    if wanted > most:
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"maxSequenceLength {wanted} exceeds the {most} positions that this converter can give the checkpoint: "
            f"use at most {most}",
        )
    return wanted


def _load_encoder_decoder(
    folder: Path,
    value: dict[str, Any],
    family: decoders.Family,
    task: Task,
    max_sequence_length: int | None,
    *,
    dtype: torch.dtype,
) -> Checkpoint:
    name = _class_of(value) or family.model.__name__
    if name != family.model.__name__:
        raise StepFailedError(
            ARCHITECTURE_UNSUPPORTED,
            f"{policy.CONFIG}: architectures {name!r} writes no text: {family.model.__name__} is supported",
        )
    hears = encoder_decoders.hears(family)
    fitting = Task.AUTOMATIC_SPEECH_RECOGNITION if hears else Task.TEXT2TEXT_GENERATION
    if task not in (Task.AUTO, fitting):
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"task {task} does not fit {name}, which reads {'a sound' if hears else 'one text'} and writes "
            f"{'a text' if hears else 'another'}: use auto or {fitting}",
        )
    encoder_decoders.refuse_variants(value)
    is_known = value["model_type"] in encoder_decoders.FAMILIES
    config = _config_of(family.config, value, encoder_decoders.UNDECLARED if is_known else None)
    if not is_known:
        _refuse_unusual(config, value["model_type"], "vocab_size", reads_and_writes=True)
    capacity = _capacity(encoder_decoders.most_of(config, max_sequence_length), max_sequence_length)
    said = encoder_decoders.settings_of(folder, value)
    heard = speech_of(folder, config, encoder_decoders.languages_of(*said)) if hears else None
    model = _model_of(folder, family.model, {}, config, dtype)
    if not is_known:
        encoder_decoders.try_unknown(model, capacity)
    # What is heard is never padded with words.
    tokenizer = _tokenizer_of(folder, config, pads=True, with_any=hears)
    writing = encoder_decoders.writing_of(*said, config, tokenizer.pad_token_id)
    cache, cross = encoder_decoders.caches_of(model, heard.shape if heard else None)
    read = (FEATURES,) if hears else encoder_decoders.TEXT
    return Checkpoint(
        model,
        tokenizer,
        str(value["model_type"]),
        fitting,
        (*read, encoder_decoders.WRITTEN, *decoders.names_of(decoders.PAST, cache)),
        capacity,
        cache,
        cross,
        writing,
        heard,
        is_known=is_known,
    )


def _load_image_model(
    folder: Path, value: dict[str, Any], task: Task, max_sequence_length: int | None, *, dtype: torch.dtype
) -> Checkpoint:
    kind = value.get("model_type")
    family = images.family_of(kind)
    resolved, model_class, read = images.class_of(family, kind, _class_of(value), task)
    if max_sequence_length is not None:
        raise StepFailedError(
            SPEC_IMPOSSIBLE, f"maxSequenceLength is the length of a text, and task {resolved} has none: use no such"
        )
    config = _config_of(
        family.config, encoders.settings_of(value, images.TOWER), frozenset() if family.is_known else None
    )
    if not family.is_known:
        _refuse_unusual(config, kind)
    options = _without_pooler(model_class) if model_class is family.encoder else {}
    model = _model_of(folder, model_class, options, config, dtype, harmless=_HARMLESS_BESIDE_IMAGES)
    sight = images.sight_of(folder, config, read)
    return Checkpoint(model, None, str(kind), resolved, (images.PIXELS,), 0, sight=sight, is_known=family.is_known)


def _architecture_of(value: dict[str, Any]) -> encoders.Architecture:
    architecture = encoders.architecture_of(value.get("model_type"))
    positions = value.get("position_embedding_type", "absolute")
    if architecture.is_known and positions != "absolute":
        raise StepFailedError(
            ARCHITECTURE_UNSUPPORTED,
            f"{policy.CONFIG}: position_embedding_type {positions!r} is not supported, absolute is",
        )
    if value.get("is_decoder") or value.get("add_cross_attention") or value.get("is_encoder_decoder"):
        raise StepFailedError(
            ARCHITECTURE_UNSUPPORTED, f"{policy.CONFIG}: this is an encoder used as a decoder, which is not supported"
        )
    return architecture


def _refuse_unusual(config: PreTrainedConfig, kind: object, *names: str, reads_and_writes: bool = False) -> None:
    """What every model here has, and one that nobody knows may not have."""
    if config.is_encoder_decoder and not reads_and_writes:
        raise StepFailedError(
            ARCHITECTURE_UNSUPPORTED,
            f"{policy.CONFIG}: model_type {kind!r} has an encoder and a decoder: of such models "
            f"{', '.join(encoder_decoders.FAMILIES)} are supported",
        )
    for name in ("hidden_size", "num_hidden_layers", *names):
        if not isinstance(getattr(config, name, None), int):
            raise StepFailedError(
                ARCHITECTURE_UNSUPPORTED, f"{policy.CONFIG}: model_type {kind!r} has no {name}, so it cannot be tried"
            )


def _class_of(value: dict[str, Any]) -> str:
    """The class that the checkpoint was saved from; empty where it does not say."""
    names = value.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise StepFailedError(CONFIG_INVALID, f"{policy.CONFIG}: architectures {names!r} is no list of names")
    return names[0] if names else ""


def resolve_task(folder: Path, value: dict[str, Any], task: Task, *, embeds: bool = False) -> Task:
    """What `auto` means for this checkpoint, or an error where it cannot do what is asked."""
    name = _class_of(value)
    head = next((found for suffix, found in _HEADS.items() if name.endswith(suffix)), None)
    is_sentence = embeds or (folder / policy.MODULES).is_file()
    if task is Task.AUTO:
        return Task.SENTENCE_EMBEDDING if is_sentence else head or Task.FEATURE_EXTRACTION
    if task is Task.SENTENCE_EMBEDDING and not is_sentence:
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"task {task} needs the checkpoint's {policy.MODULES}, which is missing: use feature-extraction",
        )
    if task not in (head, Task.SENTENCE_EMBEDDING, Task.FEATURE_EXTRACTION):
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"task {task} does not fit architectures {name!r} in {policy.CONFIG}: use auto or feature-extraction",
        )
    return task


def _config_of(
    kind: type[PreTrainedConfig], value: dict[str, Any], undeclared: frozenset[str] | None
) -> PreTrainedConfig:
    """`undeclared` are fields to keep besides; None keeps whatever is no part of the class itself."""
    # A class may write a field by another name than that it is declared by.
    declared = ({field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map.values())) - _NEVER_SET
    kept = {
        key: inner
        for key, inner in value.items()
        if key in declared
        or (
            not (key in _NEVER_SET or key.startswith("_") or hasattr(kind, key))
            if undeclared is None
            else key in undeclared
        )
    }
    if isinstance(kept.get("id2label"), dict):
        kept["num_labels"] = len(kept["id2label"])
    elif isinstance(value.get("num_labels"), int):
        kept["num_labels"] = value["num_labels"]
    try:
        return kind(**kept)
    except Exception as error:
        raise StepFailedError(CONFIG_INVALID, f"{policy.CONFIG} is impossible: {gist(error)}") from error


def _encoder_of(
    architecture: encoders.Architecture, task: Task, *, embeds: bool
) -> tuple[type[PreTrainedModel], dict[str, Any]]:
    """The class, and how it is to be built."""
    match task:
        case Task.TEXT_CLASSIFICATION:
            kind = architecture.sequence
        case Task.TOKEN_CLASSIFICATION:
            kind = architecture.token
        case _:
            kind = architecture.embedder if embeds else architecture.encoder
    if kind is None:
        raise StepFailedError(SPEC_IMPOSSIBLE, f"task {task} has no class in this architecture: use feature-extraction")
    return kind, _without_pooler(kind) if kind is architecture.encoder else {}


def _without_pooler(kind: type[PreTrainedModel]) -> dict[str, Any]:
    """An untrained one would be made up where the checkpoint has none, and no task here reads it."""
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}


def _model_of(
    folder: Path,
    kind: type[PreTrainedModel],
    options: dict[str, Any],
    config: PreTrainedConfig,
    dtype: torch.dtype,
    *,
    harmless: re.Pattern[str] = _HARMLESS_LEFTOVERS,
) -> PreTrainedModel:
    tensors: dict[str, torch.Tensor] = {}
    for shard in policy.shards_of(folder, frozenset(policy.list_folder(folder))):
        tensors |= load_file(folder / shard)
    # Before they are built: a million layers take an hour and all memory, and none has a weight.
    layers = max(config.num_hidden_layers, *(getattr(config, name, None) or 0 for name in _DECODER_LAYERS))
    if layers > len(tensors):
        raise StepFailedError(
            WEIGHTS_MISMATCH,
            f"{policy.CONFIG} has {layers} layers, the weights {len(tensors)} tensors: they are of two models",
        )
    # The same for widths: what has another shape than its weight is made before that is told.
    with _errors_of_config(kind), torch.device("meta"):
        outline = kind(copy.deepcopy(config), **options)
    described = sum(one.numel() for one in (*outline.parameters(), *outline.buffers()))
    there = sum(one.numel() for one in tensors.values())
    if described > _MOST_TIMES * there + _BESIDES:
        raise StepFailedError(
            WEIGHTS_MISMATCH,
            f"{policy.CONFIG} describes {described} numbers, the weights hold {there}: they are of two models",
        )
    with _errors_of_config(kind):
        model, found = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=dtype,
            # With ALiBi a Falcon's eager attention adds each distance twice (transformers 5.23).
            attn_implementation="sdpa" if getattr(config, "alibi", False) else "eager",
            # Others multiply by what nobody asked for, or in another order.
            experts_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    _refuse_misfits(found, kind.__name__, harmless)
    model.eval()
    model.requires_grad_(requires_grad=False)
    return model


@contextmanager
def _errors_of_config(kind: type[PreTrainedModel]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise StepFailedError(
            CONFIG_INVALID, f"{policy.CONFIG} describes no {kind.__name__} that can be built: {gist(error)}"
        ) from error


def _refuse_misfits(found: dict[str, Any], kind: str, harmless: re.Pattern[str]) -> None:
    if missing := sorted(found["missing_keys"]):
        raise StepFailedError(
            WEIGHTS_MISSING,
            f"the weights lack {missing[0]} ({len(missing)} tensors) that {kind} needs: save the whole model, or "
            f"name the model_type in {policy.CONFIG} that they are of",
        )
    if mismatched := sorted(found["mismatched_keys"]):
        name, there, wanted = mismatched[0]
        raise StepFailedError(
            SHAPE_MISMATCH,
            f"the weights hold {name} in the shape {list(there)}, {policy.CONFIG} says {list(wanted)}: they are of two "
            "models",
        )
    if left := sorted(key for key in found["unexpected_keys"] if not harmless.fullmatch(key)):
        raise StepFailedError(
            WEIGHTS_MISMATCH,
            f"the weights hold {left[0]} ({len(left)} tensors) for which {kind} has no place: model_type does not fit",
        )


def _tokenizer_of(
    folder: Path, config: PreTrainedConfig, *, pads: bool, with_any: bool = False
) -> PreTrainedTokenizerBase:
    """A tokenizer that fits; without `pads` it need have no padding, and it may pad `with_any`, as a mask hides it."""
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        if (folder / "tokenizer.model").is_file():
            raise StepFailedError(
                TOKENIZER_MISSING,
                "tokenizer.json is missing, and tokenizer.model alone is not read: load the tokenizer with transformers"
                " and save it beside the model",
            )
        raise StepFailedError(
            TOKENIZER_MISSING,
            "the checkpoint has neither tokenizer.json nor a vocabulary: save the tokenizer beside the model",
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except Exception as error:
        raise StepFailedError(TOKENIZER_INVALID, f"the tokenizer cannot be loaded: {gist(error)}") from error
    rows = config.vocab_size
    # A language model shares its tokenizer with others that see images, whose special tokens it has no row for.
    spared = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special and not pads}
    if (largest := max(set(tokenizer.get_vocab().values()) - spared, default=-1)) >= rows:
        raise StepFailedError(
            TOKENIZER_MISMATCH,
            f"the tokenizer gives ids up to {largest}, the model has {rows} rows: they are of two checkpoints",
        )
    if largest < 0 or (pads and tokenizer.pad_token_id is None):
        raise StepFailedError(
            TOKENIZER_INVALID, "the tokenizer has no vocabulary or no pad_token: save the tokenizer beside the model"
        )
    if not pads:
        tokenizer.pad_token = _padding_of(tokenizer, rows)
        return tokenizer
    padding = getattr(config, "pad_token_id", None)
    if not with_any and padding is not None and tokenizer.pad_token_id != padding:
        raise StepFailedError(
            TOKENIZER_MISMATCH,
            f"the tokenizer pads with id {tokenizer.pad_token_id}, {policy.CONFIG} says pad_token_id {padding}",
        )
    return tokenizer


def _padding_of(tokenizer: PreTrainedTokenizerBase, rows: int) -> str:
    """The checkpoint's own, if the model has a row for it: classes of tokenizers add one to what the checkpoint has."""
    first = min(tokenizer.get_vocab().values())
    known = [tokenizer.pad_token, tokenizer.eos_token, tokenizer.convert_ids_to_tokens(first)]
    return next(str(token) for token in known if token is not None and tokenizer.convert_tokens_to_ids(token) < rows)


def _accepted(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    accepted = frozenset(tokenizer.model_input_names) & frozenset(inspect.signature(model.forward).parameters)
    # A model without kinds of tokens takes them and does not look at them.
    return accepted if getattr(model.config, "type_vocab_size", 1) else accepted - {"token_type_ids"}
