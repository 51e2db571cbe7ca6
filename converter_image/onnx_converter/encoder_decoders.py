"""Models that read one text and write another: which there are, and the two graphs of each.

The encoder's graph takes a text and its mask, and answers with the keys and values of it for each layer of the decoder:
what never changes while a text is written is computed once. The decoder's graph takes those, the mask, the new tokens
and the keys and values of the tokens before them, and is the same for the first token and every later one. Refuses
lengths beyond what was validated, as decoders.py does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from typing_extensions import override

from onnx_converter import policy, precision
from onnx_converter.decoders import DEFAULT_LENGTH, Cache, Family, kept_of, tensors_of
from onnx_converter.reasons import ARCHITECTURE_UNSUPPORTED, CONFIG_INVALID, SPEC_IMPOSSIBLE, StepFailedError, gist

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

FAMILIES: Final[dict[str, Family]] = {
    "bart": Family(transformers.BartConfig, transformers.BartForConditionalGeneration),
    "marian": Family(transformers.MarianConfig, transformers.MarianMTModel),
    "mbart": Family(transformers.MBartConfig, transformers.MBartForConditionalGeneration),
    "pegasus": Family(transformers.PegasusConfig, transformers.PegasusForConditionalGeneration),
    "t5": Family(transformers.T5Config, transformers.T5ForConditionalGeneration),
}
#: Fields that a configuration class reads and does not declare: whether T5 scales what its head reads, and the token
#: that every answer begins with.
UNDECLARED: Final = frozenset({"tie_word_embeddings", "scale_decoder_outputs", "decoder_start_token_id"})
INPUTS: Final = ("input_ids", "attention_mask", "decoder_input_ids")
#: Keys and values of the text that is read.
CROSS: Final = "cross_key_values"
ENCODER: Final = "encoder.onnx"
DECODER: Final = "decoder.onnx"
#: How its modules call attention to the text that is read, and their projections of it.
_ATTENTIONS: Final = ("encoder_attn", "EncDecAttention")
#: The longest text of a model whose positions are relative, so that no table ends it.
_UNTOLD_LENGTH: Final = 512


class Whole(nn.Module):
    """The original as transformers runs it, with named tensors in and out: what the two graphs must answer together.

    Given keys and values of the text that is read, it is the decoder alone.
    """

    def __init__(self, model: PreTrainedModel, layers: int) -> None:
        super().__init__()
        self.model = model
        self.layers = layers

    @override
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        ids, mask, new, *cached = tensors
        past, cross = cached[: 2 * self.layers], cached[2 * self.layers :]
        if cross:
            return _decode(self.model, mask, new, past, cross)
        cache = EncoderDecoderCache(kept_of(past, self.model.dtype), DynamicCache())
        answer = self.model(
            input_ids=ids, attention_mask=mask, decoder_input_ids=new, past_key_values=cache, use_cache=True
        )
        kept = answer.past_key_values
        return (answer.logits.float(), *tensors_of(kept.self_attention_cache), *tensors_of(kept.cross_attention_cache))


class Encoder(nn.Module):
    """From a text to its keys and values in every layer of the decoder."""

    within: Tensor

    def __init__(self, model: PreTrainedModel, capacity: int) -> None:
        super().__init__()
        self.encoder = model.get_encoder()
        self.attentions = nn.ModuleList(_attentions_of(model))
        self.register_buffer("within", torch.zeros(capacity, dtype=torch.long))

    @override
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        ids, mask = tensors
        # Looked up and added as nothing: a longer text is an error of the graph, as positions may be relative.
        ids = ids + self.within[torch.arange(ids.shape[1])]
        hidden = self.encoder(input_ids=ids, attention_mask=mask)[0]
        return tuple(
            precision.outward(projection(hidden).unflatten(-1, (_heads_of(attention), -1)).transpose(1, 2))
            for attention in self.attentions
            for projection in _projections_of(attention)
        )


class Decoder(nn.Module):
    """The next tokens, of the keys and values of the text that is read and of what was written so far."""

    within: Tensor

    def __init__(self, model: PreTrainedModel, capacity: int, layers: int) -> None:
        super().__init__()
        self.model = model
        self.layers = layers
        self.register_buffer("within", torch.zeros(capacity, dtype=torch.long))

    @override
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        new, mask, *cached = tensors
        past, cross = cached[: 2 * self.layers], cached[2 * self.layers :]
        # A mask of another length than what was read would be cut or stretched without a word: so it ends the table.
        surplus = _count(mask[0] > 0) - _count(cross[0][0, 0, :, 0].isnan())
        places = torch.arange(new.shape[1]) + past[0].shape[2] + surplus * surplus * self.within.shape[0]
        return _decode(self.model, mask, new + self.within[places], past, cross)


def _count(row: Tensor) -> Tensor:
    """Of values that are there: lengths that must be equal are one number to the exporter, whatever is sent later."""
    return (row | ~row).sum()


def _decode(
    model: PreTrainedModel, mask: Tensor, new: Tensor, past: list[Tensor], cross: list[Tensor]
) -> tuple[Tensor, ...]:
    cache = EncoderDecoderCache(kept_of(past, model.dtype), DynamicCache())
    # Given to the constructor, their length would be looked at, and frozen in the graph.
    cache.cross_attention_cache = kept_of(cross, model.dtype)
    cache.is_updated = dict.fromkeys(range(len(cross) // 2), True)
    # What the encoder made is in the keys and values; of this only the length is looked at.
    width = int(model.config.hidden_size)
    read = torch.zeros(mask.shape[0], mask.shape[1], width, dtype=model.dtype, device=model.device)
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


def caches_of(model: PreTrainedModel) -> tuple[Cache, Cache]:
    """Of what is written and of what is read, found by asking the model."""
    one = torch.zeros((1, 1), dtype=torch.long)
    try:
        with torch.inference_mode():
            answer = model(input_ids=one, attention_mask=one + 1, decoder_input_ids=one, use_cache=True)
    except RuntimeError as error:
        raise StepFailedError(
            CONFIG_INVALID, f"{policy.CONFIG} describes a model that cannot read one token: {gist(error)}"
        ) from error
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


def start_of(config: PreTrainedConfig, padding: int) -> int:
    """The token that an answer begins with."""
    start = getattr(config, "decoder_start_token_id", None)
    start = padding if start is None else start
    if not isinstance(start, int) or not 0 <= start < config.vocab_size:
        raise StepFailedError(CONFIG_INVALID, f"{policy.CONFIG}: decoder_start_token_id {start!r} is no word of it")
    return start


def capacity_of(config: PreTrainedConfig, wanted: int | None, shortest: int) -> int:
    """The longest text, of those that are read and of those that are written."""
    told = getattr(config, "max_position_embeddings", None)
    if told is not None and told < shortest:
        raise StepFailedError(
            CONFIG_INVALID,
            f"{policy.CONFIG} gives the model {told} positions, fewer than the {shortest} of a text: repair the file",
        )
    if wanted is None:
        return min(told or _UNTOLD_LENGTH, DEFAULT_LENGTH)
    if wanted < shortest:
        raise StepFailedError(
            SPEC_IMPOSSIBLE, f"maxSequenceLength {wanted} leaves no room for an answer: use {shortest} or more"
        )
    if told is not None and wanted > told:
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"maxSequenceLength {wanted} exceeds the {told} positions of the checkpoint: use at most {told}",
        )
    return wanted


def settled(module: nn.Module) -> nn.Module:
    module.eval()
    module.requires_grad_(requires_grad=False)
    return module
