"""What the original and the graph are both asked: shapes that break graphs, and real text.

Exporters were seen to freeze an axis, drop the mask when it was all ones, or go wrong under left padding, and to be
right on the very shape they were traced with. So no sample has that shape alone. Deterministic: same tokenizer and
bounds, same samples. Refuses nothing; parity.py judges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from onnx_converter import texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

    from onnx_converter.load import Checkpoint

Ids = NDArray[np.int64]

_SEED: Final = 20260726
_LENGTHS: Final = (1, 2, 3, 5, 8, 17, 33, 64)
_BATCHES: Final = (1, 2, 3, 4)
_PADDINGS: Final = ("no", "right", "left", "all-row")
#: Golden requests stay below this, so that the file stays small and a probe stays cheap.
GOLDEN_LENGTH: Final = 128


@dataclass(frozen=True, slots=True)
class Sample:
    """One request, in the order of the graph's inputs."""

    name: str
    is_text: bool
    tensors: dict[str, Ids]

    @property
    def mask(self) -> NDArray[np.bool_]:
        return self.tensors["attention_mask"].astype(bool)


def all_samples(checkpoint: Checkpoint) -> list[Sample]:
    return [*shapes(checkpoint), *batches_of_text(checkpoint)]


def shapes(checkpoint: Checkpoint) -> Iterator[Sample]:
    """Random ids in every batch size, at lengths up to the longest, under every kind of padding."""
    longest = checkpoint.max_sequence_length
    generator = np.random.default_rng(_SEED)
    for batch in _BATCHES:
        for number, length in enumerate(length for length in _LENGTHS if length <= longest):
            yield _random(checkpoint, generator, batch, length, _PADDINGS[(number + batch) % len(_PADDINGS)])
    for batch, length, padding in ((1, longest, "no"), (2, longest, "left"), (2, max(longest - 1, 1), "right")):
        yield _random(checkpoint, generator, batch, length, padding)


def _random(checkpoint: Checkpoint, generator: np.random.Generator, batch: int, length: int, padding: str) -> Sample:
    tokenizer, config = checkpoint.tokenizer, checkpoint.model.config
    usable = np.setdiff1d(np.arange(config.vocab_size), tokenizer.all_special_ids)
    ids = generator.choice(usable, size=(batch, length)).astype(np.int64)
    mask = np.ones((batch, length), dtype=np.int64)
    for row in range(batch):
        # The first row keeps its full length: a batch is never wider than its longest text.
        cut = int(generator.integers(0, length)) if row or batch == 1 else 0
        match padding:
            case "right" if cut:
                mask[row, -cut:] = 0
            case "left":
                mask[row, :cut] = 0
            case "all-row" if row == batch - 1:
                mask[row, :] = 0
            case _:
                pass
    types = np.zeros_like(ids)
    if getattr(config, "type_vocab_size", 1) > 1 and length > 1:
        types[:, length // 2 :] = 1
    named = {
        "input_ids": np.where(mask == 1, ids, tokenizer.pad_token_id),
        "attention_mask": mask,
        "token_type_ids": types * mask,
    }
    name = f"random ids, batch {batch}, length {length}, {padding} padding"
    return Sample(name, is_text=False, tensors={key: named[key] for key in checkpoint.inputs})


def batches_of_text(checkpoint: Checkpoint) -> Iterator[Sample]:
    """Every text alone or in a batch with others, padded on either side."""
    longest = checkpoint.max_sequence_length
    groups: list[tuple[str, ...]] = [(text,) for text in texts.ALL]
    groups += [texts.SHORT[start : start + 4] for start in range(0, len(texts.SHORT), 4)]
    groups += [(texts.MEDIUM[0], texts.SHORT[0]), (texts.MEDIUM[1], texts.SHORT[1], texts.LONG[0])]
    for number, group in enumerate(groups):
        side = "left" if len(group) > 1 and number % 2 else "right"
        name = f"text {number}, batch {len(group)}, {side} padding"
        yield Sample(name, is_text=True, tensors=encode(checkpoint, group, longest, side))


def golden_requests(checkpoint: Checkpoint) -> list[Sample]:
    """One text each, of mixed length."""
    longest = min(checkpoint.max_sequence_length, GOLDEN_LENGTH)
    return [
        Sample(f"text-{number:02}", is_text=True, tensors=encode(checkpoint, (text,), longest, "right"))
        for number, text in enumerate(texts.ALL)
    ]


def encode(checkpoint: Checkpoint, group: Sequence[str], longest: int, side: str) -> dict[str, Ids]:
    tokenizer: PreTrainedTokenizerBase = checkpoint.tokenizer
    tokenizer.padding_side = side
    encoded: Any = tokenizer(list(group), padding=True, truncation=True, max_length=longest, return_tensors="np")
    return {name: np.asarray(encoded[name], dtype=np.int64) for name in checkpoint.inputs}
