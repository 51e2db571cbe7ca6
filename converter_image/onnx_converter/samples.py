"""What the original and the graph are both asked: shapes that break graphs, and real text.

Exporters were seen to freeze an axis, drop the mask when it was all ones, or go wrong under left padding, and to be
right on the very shape they were traced with. So no sample has that shape alone. Deterministic: same tokenizer and
bounds, same samples. Refuses nothing; parity.py judges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from onnx_converter import decoders, encoder_decoders, images, texts
from onnx_converter.footprint import LOGITS_READ
from onnx_converter.speech import FEATURES, generated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

    from onnx_converter.images import Sight
    from onnx_converter.load import Checkpoint

Ids = NDArray[np.int64]

_SEED: Final = 20260726
_LENGTHS: Final = (1, 2, 3, 5, 8, 17, 33, 64)
_BATCHES: Final = (1, 2, 3, 4)
_PADDINGS: Final = ("no", "right", "left", "all-row")
#: More of them, that no tokenizer makes and a client may.
_SCATTERED: Final = ("holes", "both")
_SCATTERED_LENGTH: Final = 17
#: For decoders: what came before, new tokens, and kinds of mask.
_PASTS: Final = (0, 1, 2, 17)
_STEPS: Final = (1, 3, 2, 8, 33)
_MASKS: Final = ("no", "right", "left", "holes", "all-row")
#: After so many every other id is a special one, in each batch size.
_SPECIAL_PAST: Final = 1
#: Of a mask with holes, the share that stays.
_KEPT: Final = 0.7
#: A prefill is no longer than this, since every token has a logit for each word; the past may be.
_LONGEST_PREFILL: Final = 256
#: Of one whose last token alone is compared: all of its logits lie in memory as answered, in no more than 64 MB, which
#: footprint.py plans for. Of a Llama of 135 M 2048 tokens took 30 s of a processor in torch and 14 s in the graph.
_LONGEST_READ: Final = 512
#: Of a text that is read in pieces as long as a prefill: twice the default length, of which that Llama takes 20 s on
#: both sides together. Each token takes a whole pass of both, and a text may be asked for that is 64 times as long.
_LONGEST_IN_PIECES: Final = 4096
#: Tokens that are read where the longest text is written.
_READ_BESIDE: Final = 7
_LONGEST_PROMPT: Final = 16
#: Golden requests stay below this, so that the file stays small and a probe stays cheap.
GOLDEN_LENGTH: Final = 128
#: For decoders, whose answers are thousands of times as large.
GOLDEN_TOKENS: Final = 8
GOLDEN_PROMPTS: Final = 8
#: Sounds in one batch.
_SOUNDS: Final = 4
#: Of features of a golden request, in each whole number.
_STEP: Final = np.float32(32)


@dataclass(frozen=True, slots=True)
class Sample:
    """One request, in the order of the graph's inputs."""

    name: str
    is_text: bool
    tensors: dict[str, NDArray[Any]]
    #: Whether of all new tokens only the last one's logits are compared, beside the keys and values of all.
    is_last_only: bool = False
    #: Of a piece of a text, how many tokens came before: each side goes on from keys and values that it made itself of
    #: them, and the tensors hold none.
    after: int | None = None

    @property
    def mask(self) -> NDArray[np.bool_]:
        return self.tensors["attention_mask"].astype(bool)

    def outline(self) -> Sample:
        """The same with nothing in tensors of the same shapes, which take no memory."""
        blank = {name: np.broadcast_to(values.dtype.type(0), values.shape) for name, values in self.tensors.items()}
        return replace(self, tensors=blank)


def all_samples(checkpoint: Checkpoint) -> Iterator[Sample]:
    """One at a time: the keys and values that some hold of a long past are as large as those of the longest text."""
    if checkpoint.sight:
        yield from images_one_by_one(checkpoint.sight)
        yield from batches_of_images(checkpoint.sight)
    elif checkpoint.cross:
        yield from answers(checkpoint)
        yield from (answers_to_sounds if checkpoint.speech else answers_to_text)(checkpoint)
    elif checkpoint.cache:
        yield from continuations(checkpoint)
        yield from prefills_of_text(checkpoint)
    else:
        yield from shapes(checkpoint)
        yield from batches_of_text(checkpoint)


def shapes(checkpoint: Checkpoint) -> Iterator[Sample]:
    """Random ids in every batch size, at lengths up to the longest, under every kind of padding."""
    longest = checkpoint.max_sequence_length
    generator = np.random.default_rng(_SEED)
    for batch in _BATCHES:
        for number, length in enumerate(length for length in _LENGTHS if length <= longest):
            yield _random(checkpoint, generator, batch, length, _PADDINGS[(number + batch) % len(_PADDINGS)])
    for batch, length, padding in ((1, longest, "no"), (2, longest, "left"), (2, max(longest - 1, 1), "right")):
        yield _random(checkpoint, generator, batch, length, padding)
    for batch in _BATCHES:
        for padding in (*_SCATTERED, "no"):
            # One oddity at a time: of a few special tokens and nothing else, eight bits make too much.
            yield _random(
                checkpoint, generator, batch, min(longest, _SCATTERED_LENGTH), padding, has_special=padding == "no"
            )


def _random(
    checkpoint: Checkpoint,
    generator: np.random.Generator,
    batch: int,
    length: int,
    padding: str,
    *,
    has_special: bool = False,
) -> Sample:
    tokenizer, config = checkpoint.tokenizer, checkpoint.model.config
    usable = np.setdiff1d(np.arange(config.vocab_size), tokenizer.all_special_ids)
    ids = generator.choice(usable, size=(batch, length)).astype(np.int64)
    if has_special:
        ids = _with_special(checkpoint, generator, ids)
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
            case "holes":
                mask[row, :-1] = generator.random(length - 1) < _KEPT
            case "both":
                # Never all of it: that is the padding of a whole row.
                mask[row, : cut // 2] = 0
                mask[row, length - (cut - cut // 2) :] = 0
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
    name = f"{_named(has_special)}, batch {batch}, length {length}, {padding} padding"
    return Sample(name, is_text=False, tensors={key: named[key] for key in checkpoint.inputs if key in named})


def _with_special(checkpoint: Checkpoint, generator: np.random.Generator, ids: Ids) -> Ids:
    """Every other one means more than itself: ends, masks, padding where nothing is masked."""
    words = checkpoint.model.config.vocab_size
    if special := [number for number in checkpoint.tokenizer.all_special_ids if number < words]:
        ids[:, ::2] = generator.choice(special, ids[:, ::2].shape)
    return ids


def _named(has_special: bool) -> str:  # noqa: FBT001
    return "random and special ids" if has_special else "random ids"


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


def continuations(checkpoint: Checkpoint) -> Iterator[Sample]:
    """Random ids after a random past, one and many, up to the longest, under every kind of mask.

    At once, as many are read as memory is planned for, 512 or less: of the last one the logits are compared.
    """
    longest = checkpoint.max_sequence_length
    cases = [
        (batch, past, _STEPS[(number + batch) % len(_STEPS)], _MASKS[(number + 2 * batch) % len(_MASKS)])
        for batch in _BATCHES
        for number, past in enumerate(_PASTS)
    ]
    cases += [(1, longest - 1, 1, "no"), (2, longest - 3, 3, "left"), (1, 0, min(longest, _LONGEST_PREFILL), "no")]
    for number, (batch, past, length, padding) in enumerate(cases):
        if past + length <= longest:
            yield after_past(
                checkpoint,
                batch=batch,
                past=past,
                length=length,
                padding=padding,
                seed=_SEED + number,
                has_special=past == _SPECIAL_PAST,
            )
    length = _at_once(checkpoint)
    if length > _LONGEST_PREFILL:
        read = after_past(checkpoint, batch=1, past=0, length=length)
        yield replace(read, name=f"{read.name}, the last token", is_last_only=True)


def _at_once(checkpoint: Checkpoint) -> int:
    """Tokens of the longest prefill, or of the longest answer that is asked about at once."""
    most = _LONGEST_PREFILL
    if not checkpoint.cross:
        most = max(most, min(_LONGEST_READ, LOGITS_READ // checkpoint.model.config.vocab_size))
    return min(checkpoint.max_sequence_length, most)


def pieces(checkpoint: Checkpoint) -> Iterator[Sample]:
    """Of random ids as long as the longest text, one after the other, each without what came before it; of a model that
    reads one text or sound and writes another, of what it writes.

    None where all of it is read at once.
    """
    longest = min(checkpoint.max_sequence_length, _LONGEST_IN_PIECES)
    if not checkpoint.cache or longest <= _at_once(checkpoint):
        return
    ids = np.random.default_rng(_SEED).integers(0, checkpoint.model.config.vocab_size, (1, longest))
    beside = answer_of(checkpoint, batch=1, read=_READ_BESIDE, past=0, length=1).tensors if checkpoint.cross else None
    for start in range(0, longest, _LONGEST_PREFILL):
        piece = ids[:, start : start + _LONGEST_PREFILL]
        end = start + piece.shape[1]
        tensors = (
            beside | {encoder_decoders.WRITTEN: piece}
            if beside
            else {"input_ids": piece, "attention_mask": np.ones((1, end), dtype=np.int64)}
        )
        name = f"random ids, batch 1, tokens {start + 1} to {end} of {longest} in pieces, the last token"
        yield Sample(name, is_text=False, tensors=tensors, after=start)


def after_past(
    checkpoint: Checkpoint,
    *,
    batch: int,
    past: int,
    length: int,
    padding: str = "no",
    seed: int = _SEED,
    has_special: bool = False,
) -> Sample:
    """So many random tokens after keys and values of as many as are said to be past."""
    generator = np.random.default_rng(seed)
    total = past + length
    mask = np.ones((batch, total), dtype=np.int64)
    for row in range(batch):
        cut = int(generator.integers(0, total)) if row or batch == 1 else 0
        match padding:
            case "right" if cut:
                mask[row, -min(cut, length - 1) or total :] = 0
            case "left":
                mask[row, :cut] = 0
            case "holes":
                mask[row, :-1] = generator.random(total - 1) < _KEPT
            case "all-row" if row == batch - 1 > 0:
                mask[row, :] = 0
            case _:
                pass
    ids = generator.integers(0, checkpoint.model.config.vocab_size, (batch, length))
    tensors: dict[str, NDArray[Any]] = {
        "input_ids": _with_special(checkpoint, generator, ids) if has_special else ids,
        "attention_mask": mask,
    }
    for name, (heads, width) in zip(decoders.names_of(decoders.PAST, checkpoint.cache), checkpoint.cache, strict=True):
        tensors[name] = _standard_normal(generator, checkpoint, (batch, heads, past, width))
    name = f"{_named(has_special)}, batch {batch}, past {past}, length {length}, {padding} padding"
    return Sample(name, is_text=False, tensors=tensors)


def _standard_normal(
    generator: np.random.Generator, checkpoint: Checkpoint, shape: tuple[int, ...]
) -> NDArray[np.floating[Any]]:
    # Rounded before both sides see it: what the graph cannot be told is none of its faults.
    return generator.standard_normal(shape, dtype=np.float32).astype(checkpoint.kept)


def answers(checkpoint: Checkpoint) -> Iterator[Sample]:
    """Random ids to read and to write, after a random past, up to the longest, under every kind of padding."""
    longest, paddings = checkpoint.max_sequence_length, (*_PADDINGS, *_SCATTERED)
    cases = [
        (batch, _LENGTHS[(number + 2 * batch) % len(_LENGTHS)], past, _STEPS[(number + batch) % len(_STEPS)])
        for batch in _BATCHES
        for number, past in enumerate(_PASTS)
    ]
    cases += [(1, longest, longest - 1, 1), (2, longest - 1, longest - 3, 3), (1, 2, 0, min(longest, _LONGEST_PREFILL))]
    for number, (batch, read, past, length) in enumerate(cases):
        if read <= longest and past + length <= longest:
            padding = paddings[(number + batch) % len(paddings)]
            yield answer_of(
                checkpoint,
                batch=batch,
                read=read,
                past=past,
                length=length,
                padding=padding,
                seed=_SEED + number,
                # Half a minute of sound takes as long to read as a text of a thousand words.
                is_read=checkpoint.speech is not None and past in _PASTS[1:],
                has_special=past == _SPECIAL_PAST,
            )


def answer_of(
    checkpoint: Checkpoint,
    *,
    batch: int,
    read: int,
    past: int,
    length: int,
    padding: str = "no",
    seed: int = _SEED,
    is_read: bool = False,
    has_special: bool = False,
) -> Sample:
    """So many random tokens to write, after so many that are written, of a text that is yet to be read or `is_read`."""
    generator = np.random.default_rng(seed)
    if (heard := checkpoint.speech) is not None:
        # A sound is of one length.
        given: dict[str, NDArray[Any]] = {FEATURES: generator.standard_normal((batch, *heard.shape), dtype=np.float32)}
        read, named = heard.positions, ""
    else:
        asked = _random(checkpoint, generator, batch, read, padding, has_special=has_special)
        given, named = asked.tensors, f", {padding} padding"
    ids = generator.integers(0, checkpoint.model.config.vocab_size, (batch, length))
    tensors: dict[str, NDArray[Any]] = {
        "decoder_input_ids": _with_special(checkpoint, generator, ids) if has_special else ids
    }
    cached = [(decoders.PAST, checkpoint.cache, past)]
    cached += [(encoder_decoders.CROSS, checkpoint.cross, read)] if is_read else []
    for prefix, cache, tokens in cached:
        for name, (heads, width) in zip(decoders.names_of(prefix, cache), cache, strict=True):
            tensors[name] = _standard_normal(generator, checkpoint, (batch, heads, tokens, width))
    name = f"{_named(has_special)}, batch {batch}, read {read}, past {past}, length {length}{named}"
    return Sample(name, is_text=False, tensors=given | tensors)


def answers_to_text(checkpoint: Checkpoint) -> Iterator[Sample]:
    """Texts in batches, padded on either side, and their own beginnings as answers."""
    for sample in prefills_of_text(checkpoint):
        ids = sample.tensors["input_ids"][:, : _LONGEST_PROMPT - 1]
        begun = np.concatenate([sample.tensors["decoder_input_ids"], ids], axis=1)
        yield Sample(sample.name, is_text=True, tensors=sample.tensors | {"decoder_input_ids": begun})


def answers_to_sounds(checkpoint: Checkpoint) -> Iterator[Sample]:
    """Every generated sound, answered as speech is; a batch of them is what is written on from."""
    assert checkpoint.speech is not None  # noqa: S101  only those that hear are asked
    for name, sound in generated(checkpoint.speech.most_samples).items():
        yield Sample(name, is_text=True, tensors=hear(checkpoint, [sound]))


def images_one_by_one(sight: Sight) -> Iterator[Sample]:
    """Every generated image; those that could be pictures are answered as pictures are."""
    for is_picture, made in ((False, images.extremes(sight.shape)), (True, images.pictures(sight.shape))):
        for name, image in made.items():
            yield Sample(name, is_text=is_picture, tensors={images.PIXELS: sight.pixels(image[np.newaxis])})


def batches_of_images(sight: Sight) -> Iterator[Sample]:
    """Pictures beside what nobody takes, and numbers that no image becomes, in every batch size."""
    made = [*images.pictures(sight.shape).values(), *images.extremes(sight.shape).values()]
    for batch in _BATCHES:
        if batch > 1:
            together = np.stack(made[batch % 3 :: len(made) // batch][:batch])
            yield Sample(f"images, batch {batch}", is_text=True, tensors={images.PIXELS: sight.pixels(together)})
        yield _random_image(sight, batch)


def _random_image(sight: Sight, batch: int) -> Sample:
    pixels = np.random.default_rng(_SEED + batch).standard_normal((batch, *sight.shape), dtype=np.float32)
    return Sample(f"random pixels, batch {batch}", is_text=False, tensors={images.PIXELS: 2 * pixels})


def hear(checkpoint: Checkpoint, sounds: Sequence[NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """Sounds to be answered."""
    assert checkpoint.speech is not None  # noqa: S101  only those that hear are asked
    return {FEATURES: checkpoint.speech.features(sounds)} | begun(checkpoint, len(sounds))


def begun(checkpoint: Checkpoint, batch: int) -> dict[str, NDArray[Any]]:
    """The beginning of an answer."""
    begin = np.tile(np.array(checkpoint.writing.begin, np.int64), (batch, 1))
    return {encoder_decoders.WRITTEN: begin} | decoders.empty(checkpoint, batch)


def plain(checkpoint: Checkpoint, batch: int, past: int, length: int) -> Sample:
    """A request of this shape without padding, and without a past where there is none to give.

    Of a model that reads one text and writes another: to read so many tokens and begin to write, or to write so many
    more where as many as are past were read and written. A sound is of one length, an image of one size.
    """
    if checkpoint.sight:
        return _random_image(checkpoint.sight, batch)
    if checkpoint.cross:
        read, new = (past, length) if past or checkpoint.speech else (length, 1)
        return answer_of(checkpoint, batch=batch, read=read, past=past, length=new, is_read=past > 0)
    if checkpoint.cache:
        return after_past(checkpoint, batch=batch, past=past, length=length)
    return _random(checkpoint, np.random.default_rng(_SEED), batch, length, "no")


def prefills_of_text(checkpoint: Checkpoint) -> Iterator[Sample]:
    """Texts in batches, padded on either side."""
    longest = min(checkpoint.max_sequence_length, _LONGEST_PREFILL)
    groups = [texts.SHORT[start : start + 4] for start in range(0, len(texts.SHORT), 4)]
    groups += [texts.MEDIUM[:2], (texts.MEDIUM[3],), (texts.LONG[0],), (texts.MEDIUM[2], texts.SHORT[1])]
    for number, group in enumerate(groups):
        side = "left" if number % 2 else "right"
        name = f"text {number}, batch {len(group)}, {side} padding"
        yield Sample(name, is_text=True, tensors=encode(checkpoint, group, longest, side))


def prompts(checkpoint: Checkpoint) -> Sample:
    """Texts of different length that the model is to continue or to answer, padded as a client pads them."""
    if checkpoint.speech:
        made = list(generated(checkpoint.speech.most_samples).values())
        return Sample("prompts", is_text=True, tensors=hear(checkpoint, made[:_SOUNDS]))
    longest = min(_LONGEST_PROMPT, checkpoint.max_sequence_length // 4)
    group = (texts.SHORT[0], texts.MEDIUM[0], texts.SHORT[9], texts.SHORT[15])
    side = "right" if checkpoint.cross else "left"
    return Sample("prompts", is_text=True, tensors=encode(checkpoint, group, longest, side))


def whole(checkpoint: Checkpoint) -> Sample:
    """One text or sound that is answered to the end."""
    if checkpoint.speech:
        name, sound = next(iter(generated(checkpoint.speech.most_samples).items()))
        return Sample(name, is_text=True, tensors=hear(checkpoint, [sound]))
    tensors = encode(checkpoint, (texts.MEDIUM[0],), checkpoint.max_sequence_length, "right")
    return Sample("a text", is_text=True, tensors=tensors)


def golden_requests(checkpoint: Checkpoint) -> list[Sample]:
    """One text each, of mixed length, or one sound or picture."""
    if checkpoint.sight:
        return [sample for sample in images_one_by_one(checkpoint.sight) if sample.is_text]
    if checkpoint.speech:
        made = generated(checkpoint.speech.most_samples)
        # In steps that a file has room for.
        asked = [(name, hear(checkpoint, [sound])) for name, sound in made.items()]
        return [
            Sample(name, is_text=True, tensors=tensors | {FEATURES: (tensors[FEATURES] * _STEP).round() / _STEP})
            for name, tensors in asked
        ]
    longest = min(checkpoint.max_sequence_length, GOLDEN_LENGTH)
    if checkpoint.cache and not checkpoint.cross:
        longest = GOLDEN_TOKENS
    return [
        Sample(f"text-{number:02}", is_text=True, tensors=encode(checkpoint, (text,), longest, "right"))
        for number, text in enumerate(texts.MEDIUM[:GOLDEN_PROMPTS] if checkpoint.cache else texts.ALL)
    ]


def encode(checkpoint: Checkpoint, group: Sequence[str], longest: int, side: str) -> dict[str, NDArray[Any]]:
    tokenizer: PreTrainedTokenizerBase = checkpoint.tokenizer
    tokenizer.padding_side = side
    encoded: Any = tokenizer(
        list(group),
        padding=True,
        truncation=True,
        max_length=longest,
        return_attention_mask=True,
        return_tensors="np",
    )
    ids = {name: np.asarray(encoded[name], dtype=np.int64) for name in checkpoint.inputs if name in encoded}
    return ids | (begun(checkpoint, len(group)) if checkpoint.cross else decoders.empty(checkpoint, len(group)))
