"""Encoders: which there are, what this converter must know of each, and how long their texts may be.

An architecture that is not in the table is looked up among those that transformers has built in, and tried: the gate
alone says whether it came out right. Refuses what transformers has not built in, since its code would have to come
from the checkpoint, and what takes no text.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from onnx_converter import policy
from onnx_converter.decoders import Family
from onnx_converter.footprint import DEFAULT_LENGTH
from onnx_converter.reasons import ARCHITECTURE_UNSUPPORTED, CONFIG_INVALID, StepFailedError, gist
from onnx_converter.tables import Table

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Architecture:
    """What this converter must know of a model type beyond what transformers tells."""

    config: type[PreTrainedConfig]
    encoder: type[PreTrainedModel]
    sequence: type[PreTrainedModel] | None
    token: type[PreTrainedModel] | None
    #: The class whose first answer is one vector for a text, without modules of sentence-transformers.
    embedder: type[PreTrainedModel] | None = None
    #: RoBERTa and its like begin to count positions after the padding id.
    offsets_positions: bool = False
    #: Fields that the configuration class reads and does not declare. Left out, another model would be built, and its
    #: graph would be faithful to the wrong one.
    undeclared: frozenset[str] = frozenset()
    #: Whether config.json may name another padding than the tokenizer, as it is always behind a mask.
    pads_with_any: bool = False
    is_known: bool = True


def _clip() -> Architecture:
    return Architecture(
        transformers.CLIPTextConfig,
        transformers.CLIPTextModel,
        None,
        None,
        embedder=transformers.CLIPTextModelWithProjection,
        # Checkpoints name the padding of the configuration's default, and pad with the end of the text.
        pads_with_any=True,
    )


ARCHITECTURES: Final = Table[Architecture](
    {
        "albert": lambda: Architecture(
            transformers.AlbertConfig,
            transformers.AlbertModel,
            transformers.AlbertForSequenceClassification,
            transformers.AlbertForTokenClassification,
        ),
        "bert": lambda: Architecture(
            transformers.BertConfig,
            transformers.BertModel,
            transformers.BertForSequenceClassification,
            transformers.BertForTokenClassification,
        ),
        # Of both towers the one for texts.
        "clip": _clip,
        "clip_text_model": _clip,
        "deberta-v2": lambda: Architecture(
            transformers.DebertaV2Config,
            transformers.DebertaV2Model,
            transformers.DebertaV2ForSequenceClassification,
            transformers.DebertaV2ForTokenClassification,
            undeclared=frozenset(
                {"position_buckets", "norm_rel_ebd", "share_att_key", "conv_kernel_size", "conv_groups", "conv_act"}
                | {"embedding_size", "attention_head_size", "pooler_hidden_size"}
            ),
        ),
        "distilbert": lambda: Architecture(
            transformers.DistilBertConfig,
            transformers.DistilBertModel,
            transformers.DistilBertForSequenceClassification,
            transformers.DistilBertForTokenClassification,
        ),
        "electra": lambda: Architecture(
            transformers.ElectraConfig,
            transformers.ElectraModel,
            transformers.ElectraForSequenceClassification,
            transformers.ElectraForTokenClassification,
        ),
        "modernbert": lambda: Architecture(
            transformers.ModernBertConfig,
            transformers.ModernBertModel,
            transformers.ModernBertForSequenceClassification,
            transformers.ModernBertForTokenClassification,
            undeclared=frozenset(
                {"global_attn_every_n_layers", "global_rope_theta", "local_rope_theta", "rope_scaling"}
            ),
        ),
        "mpnet": lambda: Architecture(
            transformers.MPNetConfig,
            transformers.MPNetModel,
            transformers.MPNetForSequenceClassification,
            transformers.MPNetForTokenClassification,
            offsets_positions=True,
        ),
        "roberta": lambda: Architecture(
            transformers.RobertaConfig,
            transformers.RobertaModel,
            transformers.RobertaForSequenceClassification,
            transformers.RobertaForTokenClassification,
            offsets_positions=True,
        ),
        "xlm-roberta": lambda: Architecture(
            transformers.XLMRobertaConfig,
            transformers.XLMRobertaModel,
            transformers.XLMRobertaForSequenceClassification,
            transformers.XLMRobertaForTokenClassification,
            offsets_positions=True,
        ),
    }
)
#: The longest text of an architecture that says nothing about it.
_UNTOLD_LENGTH: Final = 512


def architecture_of(kind: object) -> Architecture:
    """From the table, or as transformers has it built in."""
    if isinstance(kind, str) and (known := ARCHITECTURES.get(kind)) is not None:
        return known
    config, encoder = built_in(kind, modeling_auto.MODEL_MAPPING)
    return Architecture(
        config,
        encoder,
        _class_in(modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, config),
        _class_in(modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, config),
        is_known=False,
    )


def generator_of(kind: object) -> Family:
    """A language model that is in no table, as transformers has it built in."""
    config, model = built_in(kind, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING)
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise _unsupported(kind, "takes no past_key_values")
    return Family(config, model)


def built_in(
    kind: object, mapping: Any, taken: str = "input_ids"
) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """The classes of a model type, by transformers' own tables alone; nothing is loaded and nothing downloaded."""
    if not isinstance(kind, str):
        raise StepFailedError(CONFIG_INVALID, f"{policy.CONFIG}: model_type {kind!r} is no word: repair the file")
    if kind not in CONFIG_MAPPING_NAMES:
        raise _unsupported(
            kind,
            f"is not built into transformers {transformers.__version__}, and code of the checkpoint's own is never run",
        )
    try:
        config: type[PreTrainedConfig] = CONFIG_MAPPING[kind]
        model = _class_in(mapping, config)
        takes = model.main_input_name if model is not None else None
    except (ImportError, ValueError, AttributeError) as error:
        raise _unsupported(kind, f"needs what is not installed: {gist(error)}") from error
    if model is None:
        raise _unsupported(kind, "has no class for this in transformers")
    if takes != taken:
        raise _unsupported(kind, f"takes {takes}, and {taken} would be given")
    # A part that no model is called after is settings in a group of their own.
    if any(getattr(part, "model_type", "any") for part in config.sub_configs.values()):
        raise _unsupported(kind, "is made of several models, of which none is known to be meant")
    needed = {taken, "attention_mask"} if taken == "input_ids" else {taken}
    if missing := needed - inspect.signature(model.forward).parameters.keys():
        raise _unsupported(kind, f"takes no {min(missing)}")
    return config, model


def _class_in(mapping: Any, config: type[PreTrainedConfig]) -> type[PreTrainedModel] | None:
    found: Any = mapping.get(config, None)
    kind: type[PreTrainedModel] | None = found[0] if isinstance(found, list | tuple) else found
    return kind


def _unsupported(kind: object, why: str) -> StepFailedError:
    return StepFailedError(
        ARCHITECTURE_UNSUPPORTED,
        f"{policy.CONFIG}: model_type {kind!r} {why}; there are tested routes for {', '.join(ARCHITECTURES)}, for "
        "decoders, and for what takes images",
    )


def settings_of(value: dict[str, Any], tower: str = "text_config") -> dict[str, Any]:
    """What the configuration class reads: the whole config.json, or of two towers the part of one."""
    if value.get("model_type") not in ("clip", "siglip"):
        return value
    # transformers lets the second of these win, which old checkpoints have.
    parts = [value.get(name) or {} for name in (tower, f"{tower}_dict")]
    if not all(isinstance(part, dict) for part in parts):
        raise StepFailedError(CONFIG_INVALID, f"{policy.CONFIG}: {tower} is no object: repair the file")
    return parts[0] | parts[1] | {"projection_dim": value.get("projection_dim", 512)}


def most_of(architecture: Architecture, model: PreTrainedModel, wanted: int | None, padding: int) -> int:
    """Tokens that can be read."""
    told = getattr(model.config, "max_position_embeddings", None)
    most = told if isinstance(told, int) and told > 0 else _UNTOLD_LENGTH
    if architecture.offsets_positions:
        most -= int(model.base_model.embeddings.position_embeddings.padding_idx) + 1
    if not architecture.is_known:
        most = _tried(model, min(most, max(wanted or 0, DEFAULT_LENGTH)), padding)
    return most


def _tried(model: PreTrainedModel, most: int, padding: int) -> int:
    """So many tokens, or as many fewer as positions are lost where they are counted from after the padding id."""
    for length in (most, most - padding - 1):
        ids = torch.full((1, max(length, 1)), 0 if padding else 1)
        try:
            with torch.inference_mode():
                model(input_ids=ids, attention_mask=torch.ones_like(ids))
        except Exception as error:  # noqa: BLE001  what a class that nobody here knows may raise
            why = gist(error)
        else:
            return length
    raise StepFailedError(
        ARCHITECTURE_UNSUPPORTED, f"{policy.CONFIG}: the model cannot read {most} tokens in torch: {why}"
    )


def is_embedder(architecture: Architecture, name: str, value: dict[str, Any]) -> bool:
    """Whether the checkpoint holds what makes one vector of a text."""
    kind = architecture.embedder
    return kind is not None and (name == kind.__name__ or value.get("model_type") == "clip")
