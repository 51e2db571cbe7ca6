"""How much memory a conversion takes at its peak, told from headers before any of it is taken.

Standard library only, since the operator asks as well: it requests this much for the Jobs, and starts none that the
class has no room for. Refuses, inside of a Job, to begin where the container's limit is lower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from onnx_converter import policy, weights
from onnx_converter.digest import open_regular
from onnx_converter.reasons import MEMORY_TOO_SMALL, StepFailedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

MEBIBYTE: Final = 1 << 20
#: Python with torch, transformers, onnxruntime, and what its exporter takes of any model.
_LIBRARIES: Final = 592 * MEBIBYTE
#: How many times the weights in fp32: the original, a session of the graph, and the files of both while they are read.
_TIMES: Final = {
    "none": 3.6,
    # The original is in fp32 all the same, and on the CPU a session turns its weights into that, too.
    "float16": 3.6,
    "bfloat16": 3.6,
    "int8-dynamic": 2.2,
    "int8-static": 2.2,
    "int8-weight-only": 2.4,
    "int4-weight-only": 2.0,
    # What there is no room for is refused by itself and told, all but float32.
    "auto": 3.6,
}
#: The same of the one quantizer that takes more than all that is compared after it.
_QUANTIZING: Final = {"int8-static": 3.8}
#: Numbers for each word of the vocabulary while answers of 256 tokens are compared, beyond what a session took.
_ANSWERED: Final = 512
#: Times the attention to one sound or image: four sounds or eight images are attended to at once, by the original and
#: by the graph.
_ATTENDED: Final = 48
#: Times the keys and values of the longest text: two of them are asked together, by the original and by the graph, and
#: each side is given what is past and answers it with what is new.
_REMEMBERED_TEXTS: Final = 10
#: Logits of the most tokens that a language model reads at once, which both sides answer.
LOGITS_READ: Final = 16_000_000
#: Tokens of the longest text unless a longer one is asked for: memory grows with it.
DEFAULT_LENGTH: Final = 2048
#: What configurations call how many layers there are, heads in one, heads that are kept of one, and widths.
_LAYERS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS: Final = ("num_attention_heads", "n_head", "n_heads")
_KEPT_HEADS: Final = ("num_key_value_heads", "num_kv_heads")
_WIDTHS: Final = ("hidden_size", "n_embd", "d_model")
#: And the longest text, which is no longer than any may ask for.
_LENGTHS: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_LONGEST: Final = 131_072
#: What a sound or an image goes through first, what its positions are called beside that, and how wide each head is.
_POSITIONS: Final = {
    ".encoder.conv1.weight": ".encoder.embed_positions.weight",
    ".embeddings.patch_embedding.weight": ".embeddings.position_embedding.weight",
    ".embeddings.patch_embeddings.projection.weight": ".embeddings.position_embeddings",
}
_HEAD: Final = 64
_FP32: Final = 4
#: Of answers of the original, what is kept for the next scheme that is judged beside it.
REMEMBERED: Final = 64 * MEBIBYTE
#: What gptq takes besides: moments of 256 MiB and what becomes of one of them, and of a model of two graphs sessions of
#: both while the decoder is measured.
_MOMENTS: Final = 640 * MEBIBYTE
#: Of address space, what one program may take that a model has written.
PROGRAM: Final = 256 * MEBIBYTE


@dataclass(frozen=True, slots=True)
class Sizes:
    """What headers tell of a model."""

    #: Numbers in all tensors.
    parameters: int
    #: Rows of the tallest matrix.
    vocabulary: int
    #: Of a model that hears or sees: how much each position heeds each other, by every head of one layer.
    attention: int = 0
    #: Of a decoder-only language model: keys and values that are kept of each token.
    cache: int = 0
    #: Of the same, tokens of the longest text; 0 where config.json does not tell.
    positions: int = 0


def sizes_of(folder: Path) -> Sizes:
    """Of a checkpoint that was checked; reads no weights."""
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in policy.shards_of(folder, frozenset(policy.list_folder(folder))):
        with open_regular(folder / shard) as stream:
            shapes |= {f".{tensor.name}": tensor.shape for tensor in weights.read_header(stream, shard).tensors}
    parameters = sum(map(math.prod, shapes.values()))
    cache, positions = _cache(policy.read_object(folder, policy.CONFIG))
    return Sizes(
        parameters,
        max((shape[0] for shape in shapes.values() if len(shape) == 2), default=0),  # noqa: PLR2004  a matrix
        _attention(shapes),
        # Each comes from a row of weights; a configuration that says more is refused before it is built.
        min(cache, parameters),
        positions,
    )


def _attention(shapes: Mapping[str, tuple[int, ...]]) -> int:
    found = (
        shapes.get(name.removesuffix(first) + positions, ())
        for name in shapes
        for first, positions in _POSITIONS.items()
        if name.endswith(first)
    )
    return max((math.prod(shape[:-1]) ** 2 * math.ceil(shape[-1] / _HEAD) for shape in found if shape), default=0)


def _cache(config: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers that are kept of a token, and tokens of the longest text, as config.json tells them; else 0."""

    def number(*names: str) -> int:
        return next((found for name in names if type(found := config.get(name)) is int and found > 0), 0)

    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else ""
    is_generator = isinstance(name, str) and name.endswith(policy.GENERATORS) and not config.get("is_encoder_decoder")
    heads = number(*_HEADS)
    if not is_generator or not heads:
        return 0, 0
    kept = number(*_KEPT_HEADS) or heads
    if config.get("new_decoder_architecture"):
        # A Falcon of this kind repeats them before they are kept.
        kept = heads
    elif config.get("multi_query"):
        kept = 1
    width = number("head_dim") or number(*_WIDTHS) // heads
    return 2 * number(*_LAYERS) * kept * width, min(number(*_LENGTHS), _LONGEST)


def peak(sizes: Sizes, scheme: str, algorithm: str | None = None, length: int | None = None) -> int:
    """Bytes; of convert and validate whichever takes more. `length` is the longest text that is asked for."""
    moments = _MOMENTS if algorithm == "gptq" else 0
    compared = _TIMES[scheme] * sizes.parameters + _ATTENDED * sizes.attention
    compared += _remembered(sizes, length) + (2 * LOGITS_READ if sizes.cache else 0)
    numbers = max(compared, _QUANTIZING.get(scheme, 0) * sizes.parameters) + _ANSWERED * sizes.vocabulary
    return _LIBRARIES + round(_FP32 * numbers) + moments + (REMEMBERED if scheme == "auto" else 0)


def _remembered(sizes: Sizes, length: int | None) -> int:
    """Numbers that grow with the longest text."""
    # More than there are is refused in words of its own.
    return _REMEMBERED_TEXTS * sizes.cache * min(length or DEFAULT_LENGTH, sizes.positions or _LONGEST)


def shorter(sizes: Sizes, length: int | None, needed: int) -> str:
    """A further way out, where texts take more than a quarter of what is needed."""
    is_long = 4 * _FP32 * _remembered(sizes, length) > needed
    return ", or ask for a smaller maxSequenceLength" if is_long else ""


def told(size: int) -> str:
    """A quantity of Kubernetes."""
    return f"{math.ceil(size / MEBIBYTE)}Mi"


def refuse_too_little(
    folder: Path,
    schemes: Iterable[str],
    length: int | None,
    limit: int | None,
    *,
    algorithm: str | None = None,
    besides: int = 0,
) -> None:
    """`limit` is the container's, in bytes; None where it has none. `besides` is what is taken for something else."""
    sizes = sizes_of(folder)
    needed, scheme = max((peak(sizes, scheme, algorithm, length) + besides, scheme) for scheme in schemes)
    if limit is not None and needed > limit:
        raise StepFailedError(
            MEMORY_TOO_SMALL,
            f"this checkpoint takes about {told(needed)} of memory with scheme {scheme}, and the container may use "
            f"{limit // MEBIBYTE}Mi: raise jobs.resources.limits.memory of the class"
            f"{shorter(sizes, length, needed)}",
        )
