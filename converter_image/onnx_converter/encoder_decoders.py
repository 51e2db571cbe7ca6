"""Models that read a text or a sound and write a text: which there are, and the two graphs of each.

The encoder's graph takes a text and its mask, or the features of a sound, and answers with the keys and values of it
for each layer of the decoder: what never changes while a text is written is computed once. The decoder's graph takes
those, the mask if there is one, the new tokens and the keys and values of the tokens before them, and is the same for
the first token and every later one. An architecture that is in no table is tried as transformers has it built in.
Refuses lengths beyond what was validated, as decoders.py does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto import modeling_auto
from typing_extensions import override

from onnx_converter import encoders, policy, precision, speech
from onnx_converter.decoders import Cache, Family, kept_of, tensors_of, unreadable
from onnx_converter.reasons import ARCHITECTURE_UNSUPPORTED, CONFIG_INVALID, StepFailedError, gist
from onnx_converter.tables import Table

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel

FAMILIES: Final = Table[Family](
    {
        "bart": lambda: Family(transformers.BartConfig, transformers.BartForConditionalGeneration),
        "marian": lambda: Family(transformers.MarianConfig, transformers.MarianMTModel),
        "mbart": lambda: Family(transformers.MBartConfig, transformers.MBartForConditionalGeneration),
        "pegasus": lambda: Family(transformers.PegasusConfig, transformers.PegasusForConditionalGeneration),
        "t5": lambda: Family(transformers.T5Config, transformers.T5ForConditionalGeneration),
        "whisper": lambda: Family(transformers.WhisperConfig, transformers.WhisperForConditionalGeneration),
    }
)
#: Fields that a configuration class reads and does not declare: whether T5 scales what its head reads, and the token
#: that every answer begins with.
UNDECLARED: Final = frozenset({"tie_word_embeddings", "scale_decoder_outputs", "decoder_start_token_id"})
WRITTEN: Final = "decoder_input_ids"
#: What is read of a text; of a sound it is its features alone.
TEXT: Final = ("input_ids", "attention_mask")
#: Keys and values of the text that is read.
CROSS: Final = "cross_key_values"
ENCODER: Final = "encoder.onnx"
DECODER: Final = "decoder.onnx"
GENERATION: Final = "generation_config.json"
#: How its modules call attention to the text that is read, and their projections of it.
_ATTENTIONS: Final = ("encoder_attn", "EncDecAttention")
#: The longest text of a model whose positions are relative, so that no table ends it.
_UNTOLD_LENGTH: Final = 512


@dataclass(frozen=True, slots=True)
class Writing:
    """How an answer begins, and which tokens are never written, or not as the first one."""

    begin: tuple[int, ...] = ()
    never: tuple[int, ...] = ()
    never_first: tuple[int, ...] = ()


#: Begins with nothing and leaves nothing out.
FREE: Final = Writing()


class Whole(nn.Module):
    """The original as transformers runs it, with named tensors in and out: what the two graphs must answer together.

    Given keys and values of the text that is read, it is the decoder alone.
    """

    def __init__(self, model: PreTrainedModel, read: tuple[str, ...], layers: int) -> None:
        super().__init__()
        self.model = model
        self.read = read
        self.layers = layers

    @override
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        read = dict(zip(self.read, tensors, strict=False))
        new, *cached = tensors[len(read) :]
        past, cross = cached[: 2 * self.layers], cached[2 * self.layers :]
        if cross:
            return _decode(self.model, read.get("attention_mask"), new, past, cross)
        cache = EncoderDecoderCache(kept_of(past, self.model.dtype), DynamicCache())
        answer = self.model(**read, decoder_input_ids=new, past_key_values=cache, use_cache=True)
        kept = answer.past_key_values
        return (answer.logits.float(), *tensors_of(kept.self_attention_cache), *tensors_of(kept.cross_attention_cache))


class Encoder(nn.Module):
    """From a text or a sound to its keys and values in every layer of the decoder, in the type in which they cross."""

    within: Tensor

    def __init__(self, model: PreTrainedModel, read: tuple[str, ...], capacity: int, kept: precision.Kept) -> None:
        super().__init__()
        self.kept = kept
        # Whole, so that every layer is called as in the checkpoint; what an encoder has no use for is in no graph.
        self.model = model
        self.read = read
        self.register_buffer("within", torch.zeros(capacity, dtype=torch.long))

    @override
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        read = dict(zip(self.read, tensors, strict=True))
        if (ids := read.get("input_ids")) is not None:
            # Looked up and added as nothing: a longer text is an error of the graph, as positions may be relative.
            read["input_ids"] = ids + self.within[torch.arange(ids.shape[1])]
        if (sound := read.get(speech.FEATURES)) is not None:
            read[speech.FEATURES] = sound.to(self.model.dtype)
        hidden = self.model.get_encoder()(**read)[0]
        return tuple(
            precision.as_kept(projection(hidden).unflatten(-1, (_heads_of(attention), -1)).transpose(1, 2), self.kept)
            for attention in _attentions_of(self.model)
            for projection in _projections_of(attention)
        )


class Decoder(nn.Module):
    """The next tokens, of the keys and values of what is read and of what was written so far."""

    within: Tensor

    def __init__(self, model: PreTrainedModel, capacity: int, layers: int, *, has_mask: bool) -> None:
        super().__init__()
        self.model = model
        self.layers = layers
        self.has_mask = has_mask
        self.register_buffer("within", torch.zeros(capacity, dtype=torch.long))

    @override
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        new, *cached = tensors
        mask = cached.pop(0) if self.has_mask else None
        past, cross = cached[: 2 * self.layers], cached[2 * self.layers :]
        places = torch.arange(new.shape[1]) + past[0].shape[2]
        if mask is not None:
            # One of another length than what was read would be cut or stretched without a word: so it ends the table.
            surplus = _count(mask[0] > 0) - _count(cross[0][0, 0, :, 0].isnan())
            places = places + surplus * surplus * self.within.shape[0]
        return _decode(self.model, mask, new + self.within[places], past, cross)


def _count(row: Tensor) -> Tensor:
    """Of values that are there: lengths that must be equal are one number to the exporter, whatever is sent later."""
    return (row | ~row).sum()


def _decode(
    model: PreTrainedModel, mask: Tensor | None, new: Tensor, past: list[Tensor], cross: list[Tensor]
) -> tuple[Tensor, ...]:
    cache = EncoderDecoderCache(kept_of(past, model.dtype), DynamicCache())
    # Given to the constructor, their length would be looked at, and frozen in the graph.
    cache.cross_attention_cache = kept_of(cross, model.dtype)
    cache.is_updated = dict.fromkeys(range(len(cross) // 2), True)
    # What the encoder made is in the keys and values; of this only the length is looked at.
    batch, length = (new.shape[0], cross[0].shape[2]) if mask is None else mask.shape
    width = int(model.config.hidden_size)
    read = torch.zeros(batch, length, width, dtype=model.dtype, device=model.device)
    answer = model(
        attention_mask=mask,
        encoder_outputs=BaseModelOutput(last_hidden_state=read),
        decoder_input_ids=new,
        past_key_values=cache,
        use_cache=True,
    )
    return (answer.logits.float(), *tensors_of(answer.past_key_values.self_attention_cache))


def _attentions_of(model: PreTrainedModel) -> list[nn.Module]:
    return [module for name, module in model.get_decoder().named_modules() if name.endswith(_ATTENTIONS)]


def _projections_of(attention: Any) -> tuple[nn.Linear, nn.Linear]:
    return (attention.k, attention.v) if hasattr(attention, "k") else (attention.k_proj, attention.v_proj)


def _heads_of(attention: Any) -> int:
    return int(attention.n_heads if hasattr(attention, "n_heads") else attention.num_heads)


def family_of(kind: object) -> Family | None:
    """From the table, or as transformers has it built in; nothing where that is no such model."""
    if not isinstance(kind, str) or kind in FAMILIES:
        return FAMILIES.get(str(kind))
    if kind not in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return None
    return Family(*encoders.built_in(kind, modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING))


def try_unknown(model: PreTrainedModel, capacity: int) -> None:
    """Whether torch reads and writes so much, and each layer of the decoder can be told once of what is read."""
    ids = torch.ones((1, capacity), dtype=torch.long)
    try:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=ids, decoder_input_ids=ids)
            layers = caches_of(model, None)[1]
        told = [projection for attention in _attentions_of(model) for projection in _projections_of(attention)]
        heads = [_heads_of(attention) for attention in _attentions_of(model) for _ in range(2)]
    except StepFailedError:
        raise
    except Exception as error:
        raise StepFailedError(
            ARCHITECTURE_UNSUPPORTED,
            f"{policy.CONFIG}: in torch the model cannot read and write {capacity} tokens as others do: {gist(error)}",
        ) from error
    if not told or [(count, one.out_features // count) for count, one in zip(heads, told, strict=True)] != [*layers]:
        raise StepFailedError(
            ARCHITECTURE_UNSUPPORTED,
            f"{policy.CONFIG}: the decoder's attention to what is read is not as others have it, so it cannot be tried",
        )


def hears(family: Family) -> bool:
    """Whether it reads sounds and no texts."""
    return bool(family.model.main_input_name == speech.FEATURES)


def caches_of(model: PreTrainedModel, heard: tuple[int, int] | None) -> tuple[Cache, Cache]:
    """Of what is written and of what is read, found by asking the model; `heard` are sizes of what it hears, if so."""
    one = torch.zeros((1, 1), dtype=torch.long)
    asked = (
        {speech.FEATURES: torch.zeros(1, *heard, dtype=model.dtype)}
        if heard
        else {"input_ids": one, "attention_mask": one + 1}
    )
    try:
        with torch.inference_mode():
            answer = model(**asked, decoder_input_ids=one, use_cache=True)
    except RuntimeError as error:
        raise unreadable(error) from error
    kept = answer.past_key_values
    written, read = (
        tuple((int(tensor.shape[1]), int(tensor.shape[3])) for tensor in tensors_of(cache))
        for cache in (kept.self_attention_cache, kept.cross_attention_cache)
    )
    return written, read


def refuse_variants(value: dict[str, Any]) -> None:
    """What is another model under a known name."""
    if value.get("share_encoder_decoder_embeddings") is False:
        raise StepFailedError(
            ARCHITECTURE_UNSUPPORTED,
            f"{policy.CONFIG}: share_encoder_decoder_embeddings is false, one vocabulary for both texts is supported",
        )


def settings_of(folder: Path, value: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What the checkpoint says of writing, and the file that says it."""
    if (folder / GENERATION).is_file():
        return GENERATION, policy.read_object(folder, GENERATION)
    return policy.CONFIG, value


def writing_of(file: str, said: dict[str, Any], config: PreTrainedConfig, padding: int) -> Writing:
    """As transformers' own `generate` would begin, and leave out; of what is heard, words and no times."""

    def words(name: str, found: object) -> tuple[int, ...]:
        listed = [] if found is None else found if isinstance(found, list) else [found]
        for word in listed:
            if not isinstance(word, int) or not 0 <= word < config.vocab_size:
                raise StepFailedError(CONFIG_INVALID, f"{file}: {name} {word!r} is no word of it")
        return tuple(listed)

    start = getattr(config, "decoder_start_token_id", None)
    begin = [("decoder_start_token_id", padding if start is None else start)]
    languages = languages_of(file, said)
    if languages:
        begin.append(("lang_to_id", languages.get("en", next(iter(languages.values())))))
        begin.append(("task_to_id", (said.get("task_to_id") or {}).get("transcribe")))
    begin += [(name, said.get(name)) for name in ("no_timestamps_token_id", "forced_bos_token_id")]
    words("lang_to_id", list(languages.values()))
    bad = said.get("bad_words_ids")
    # Of those that are written as several tokens none is left out.
    alone = [
        found[0] for found in (bad if isinstance(bad, list) else ()) if isinstance(found, list) and len(found) == 1
    ]
    return Writing(
        tuple(word for each in begin for word in words(*each)),
        (*words("suppress_tokens", said.get("suppress_tokens")), *words("bad_words_ids", alone)),
        words("begin_suppress_tokens", said.get("begin_suppress_tokens")),
    )


def languages_of(file: str, said: dict[str, Any]) -> dict[str, int]:
    """What a model that hears several is told of the language, by its code."""
    found = said.get("lang_to_id") or {}
    if not isinstance(found, dict) or not isinstance(said.get("task_to_id") or {}, dict):
        raise StepFailedError(CONFIG_INVALID, f"{file}: lang_to_id or task_to_id is no object: repair the file")
    return (
        {str(name).strip("<|>"): number for name, number in found.items()} if said.get("is_multilingual", True) else {}
    )


def most_of(config: PreTrainedConfig, wanted: int | None) -> int:
    """Tokens that can be read, and that can be written."""
    told: int | None = getattr(config, "max_position_embeddings", getattr(config, "max_target_positions", None))
    return max(wanted or 0, _UNTOLD_LENGTH) if told is None else told


def settled(module: nn.Module) -> nn.Module:
    module.eval()
    module.requires_grad_(requires_grad=False)
    return module
