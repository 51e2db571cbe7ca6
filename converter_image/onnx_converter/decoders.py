"""Decoder-only language models: which there are, and one graph for prefill and decode.

The graph takes the tokens, a mask over everything so far, and the keys and values of everything before; it answers
with logits and the keys and values for the next call. Positions are counted from the mask, so padding on either side
is right without a further input. Refuses a length beyond what was validated: the table of positions ends there, and
the graph answers a longer text with an error.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache
from typing_extensions import override

from onnx_converter import policy, precision
from onnx_converter.footprint import DEFAULT_LENGTH
from onnx_converter.reasons import ARCHITECTURE_UNSUPPORTED, CONFIG_INVALID, StepFailedError, gist
from onnx_converter.tables import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedConfig, PreTrainedModel

    from onnx_converter.load import Checkpoint


@dataclass(frozen=True, slots=True)
class Family:
    """The classes of a model type."""

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]


FAMILIES: Final = Table[Family](
    {
        "falcon": lambda: Family(transformers.FalconConfig, transformers.FalconForCausalLM),
        "gemma": lambda: Family(transformers.GemmaConfig, transformers.GemmaForCausalLM),
        "gemma2": lambda: Family(transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
        "gemma3_text": lambda: Family(transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
        "gpt2": lambda: Family(transformers.GPT2Config, transformers.GPT2LMHeadModel),
        "gpt_neox": lambda: Family(transformers.GPTNeoXConfig, transformers.GPTNeoXForCausalLM),
        "llama": lambda: Family(transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mistral": lambda: Family(transformers.MistralConfig, transformers.MistralForCausalLM),
        "mixtral": lambda: Family(transformers.MixtralConfig, transformers.MixtralForCausalLM),
        "olmo2": lambda: Family(transformers.Olmo2Config, transformers.Olmo2ForCausalLM),
        "opt": lambda: Family(transformers.OPTConfig, transformers.OPTForCausalLM),
        "phi3": lambda: Family(transformers.Phi3Config, transformers.Phi3ForCausalLM),
        "qwen2": lambda: Family(transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen2_moe": lambda: Family(transformers.Qwen2MoeConfig, transformers.Qwen2MoeForCausalLM),
        "qwen3": lambda: Family(transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "qwen3_moe": lambda: Family(transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
        "starcoder2": lambda: Family(transformers.Starcoder2Config, transformers.Starcoder2ForCausalLM),
    }
)
#: Names of fields in checkpoints older than the classes above, which read them and declare them no more. Left out, a
#: model would be built with another rotation or window, and its graph would be faithful to the wrong model.
OLDER_FIELDS: Final = frozenset(
    {"rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor", "rotary_pct", "rotary_emb_base"}
    # Read by several models whose configuration does not declare it.
    | {"sliding_window_pattern", "n_embed", "head_dim"}
)
INPUTS: Final = ("input_ids", "attention_mask")
LOGITS: Final = "logits"
PAST: Final = "past_key_values"
PRESENT: Final = "present"
#: What configurations call the longest text.
_LENGTHS: Final = ("max_position_embeddings", "max_seq_len", "seq_length")
#: Rotations that change where a text grows beyond the length of the training; up to there they are constant.
_CHANGING: Final = frozenset({"dynamic", "longrope"})

#: Heads and width of each tensor of the cache, key and value of one layer after the other.
Cache = tuple[tuple[int, int], ...]


class Wrapper(nn.Module):
    """The model with named tensors in and out, the cache among them."""

    positions: Tensor

    def __init__(self, model: PreTrainedModel, capacity: int) -> None:
        super().__init__()
        self.model = model
        self.counts = counts(type(model), model.config)
        positions = torch.arange(capacity)
        self.register_buffer("positions", positions if self.counts else torch.zeros_like(positions))

    @override
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        ids, mask, *past = tensors
        counted = (mask.cumsum(-1) - 1).clamp(min=0)[:, mask.shape[1] - ids.shape[1] :]
        # A mask of another length than past and tokens together would be cut, and move the positions without a word:
        # with this they are too high as well.
        surplus = mask.shape[1] - past[0].shape[2] - ids.shape[1]
        counted = counted + surplus * surplus * self.positions.shape[0]
        # Looked up and not used as they are: a position that is too high is an error in every family. One that is given
        # no positions is given the words with nothing added.
        looked_up = self.positions[counted]
        answer = self.model(
            **({"input_ids": ids, "position_ids": looked_up} if self.counts else {"input_ids": ids + looked_up}),
            attention_mask=mask,
            # Without the configuration every layer keeps all that came before, those with a sliding window too.
            past_key_values=kept_of(past, self.model.dtype),
            use_cache=True,
        )
        return (answer.logits.float(), *tensors_of(answer.past_key_values))


def counts(model: type[PreTrainedModel], config: PreTrainedConfig) -> bool:
    """Whether it reads the numbers of positions; with ALiBi the distance of two tokens is all that tells."""
    return "position_ids" in inspect.signature(model.forward).parameters and not getattr(config, "alibi", False)


def kept_of(tensors: Sequence[Tensor], dtype: torch.dtype) -> DynamicCache:
    """As transformers keeps them, of key and value of one layer after the other."""
    tensors = [tensor.to(dtype) for tensor in tensors]
    return DynamicCache(ddp_cache_data=list(zip(tensors[::2], tensors[1::2], strict=True)))


def tensors_of(kept: Any) -> list[Tensor]:
    """Key and value of one layer after the other."""
    return [precision.outward(tensor) for layer in kept.layers for tensor in (layer.keys, layer.values)]


def names_of(prefix: str, cache: Cache) -> tuple[str, ...]:
    """Names of the cache's tensors in the graph, as everybody's exporters name them."""
    return tuple(f"{prefix}.{number // 2}.{('key', 'value')[number % 2]}" for number in range(len(cache)))


def cache_of(model: PreTrainedModel) -> Cache:
    """Found by asking the model: families repeat or share heads before or after they keep them."""
    try:
        with torch.inference_mode():
            kept = model(input_ids=torch.zeros((1, 1), dtype=torch.long), use_cache=True).past_key_values
        tensors = tensors_of(kept)
    except RuntimeError as error:
        raise unreadable(error) from error
    except (AttributeError, TypeError, ValueError) as error:
        raise StepFailedError(
            ARCHITECTURE_UNSUPPORTED,
            f"{policy.CONFIG}: this model keeps something else than keys and values of each layer: {gist(error)}",
        ) from error
    return tuple((int(tensor.shape[1]), int(tensor.shape[3])) for tensor in tensors)


def unreadable(error: RuntimeError) -> StepFailedError:
    """Heads that do not divide, a window of nothing: the weights fit, and no token can be asked."""
    return StepFailedError(
        CONFIG_INVALID, f"{policy.CONFIG} describes a model that cannot read one token: {gist(error)}"
    )


def empty(checkpoint: Checkpoint, batch: int) -> dict[str, NDArray[Any]]:
    """What came before the first token."""
    return {
        name: np.zeros((batch, heads, 0, width), checkpoint.kept)
        for name, (heads, width) in zip(names_of(PAST, checkpoint.cache), checkpoint.cache, strict=True)
    }


def refuse_variants(value: dict[str, Any], config: PreTrainedConfig) -> None:
    """What is another model under a known name."""
    if value.get("alibi") and not hasattr(type(config), "alibi"):
        raise StepFailedError(
            ARCHITECTURE_UNSUPPORTED,
            f"{policy.CONFIG}: alibi is nothing that {config.model_type} has, it would be left out",
        )
    if value.get("use_bidirectional_attention"):
        raise StepFailedError(
            ARCHITECTURE_UNSUPPORTED,
            f"{policy.CONFIG}: use_bidirectional_attention makes this an encoder, which has no tested route here",
        )


def most_of(config: PreTrainedConfig, wanted: int | None) -> int:
    """Tokens that can be read and written together."""
    # Whoever counts no positions may read texts of any length, and has been trained on some.
    told = (getattr(config, name, None) for name in _LENGTHS)
    most = next((length for length in told if isinstance(length, int)), max(wanted or 0, DEFAULT_LENGTH))
    rotation = getattr(config, "rope_parameters", None) or {}
    if rotation.get("rope_type") in _CHANGING:
        most = min(most, int(rotation.get("original_max_position_embeddings") or most))
    return most


def settle_rotation(model: PreTrainedModel) -> None:
    """Keeps the rotation of the first length, the only one up to the capacity; it depends on no number of a request."""
    for module in model.modules():
        if isinstance(kind := getattr(module, "rope_type", None), str) and kind in _CHANGING:
            module.rope_type = "default"


def wrap(model: PreTrainedModel, capacity: int) -> Wrapper:
    wrapper = Wrapper(model, capacity)
    wrapper.eval()
    wrapper.requires_grad_(requires_grad=False)
    return wrapper


def by_token(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    """(batch, heads, tokens, width) as one vector a token: (batch, tokens, heads x width)."""
    batch, heads, tokens, width = tensor.shape
    return tensor.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * width)
