"""Whether every input counts, and whether a language model goes on as the original does.

The graph writes token by token, on the keys and values that it answered itself; the original reads all of it at once.
So one comparison shows that decoding equals one long prefill, that the tokens are those the original would choose, and
that padding on the left changes neither. The numbers are parity.py's to judge.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from onnx_converter import decoders, encoder_decoders, parity, samples
from onnx_converter.encoder_decoders import FREE
from onnx_converter.images import PIXELS
from onnx_converter.reasons import INPUT_IGNORED, StepFailedError
from onnx_converter.samples import Sample
from onnx_converter.speech import FEATURES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from onnx_converter.contest import Candidate, Original
    from onnx_converter.encoder_decoders import Writing
    from onnx_converter.load import Checkpoint

    #: What a side answers to a sample, by name.
    Ask = Callable[[Sample], dict[str, NDArray[np.float32]]]

#: How many tokens the graph writes.
TOKENS: Final = 64
#: Of one answer, as many as all of those together that are written at once: so much memory is planned for logits.
_LONGEST_ANSWER: Final = 256
#: An input whose effect is smaller than this share of its effect on the original is taken to have none.
_DEAF: Final = 0.01


def refuse_deaf(original: Original, candidate: Candidate) -> None:
    """Changes one input at a time; exporters were seen to drop the mask, and to answer as if nothing came before."""
    for base in _bases(original.checkpoint):
        _refuse_deaf(original, candidate, base)


def _bases(checkpoint: Checkpoint) -> Iterator[Sample]:
    if not checkpoint.cross:
        yield samples.plain(checkpoint, batch=1, past=3, length=4)
        return
    # What is read must count, and what it comes to: a decoder that computed that anew would not look at what is given.
    for is_read in (False, True):
        yield samples.answer_of(checkpoint, batch=1, read=4, past=3, length=2, is_read=is_read)


def _refuse_deaf(original: Original, candidate: Candidate, base: Sample) -> None:
    before = _last(original.answer(base)), _last(candidate.answer(original.outputs, base))
    for name, changed in _changes(base):
        moved, found = (
            float(np.abs(_last(answer) - without).max())
            for answer, without in zip(
                (original.answer(changed), candidate.answer(original.outputs, changed)), before, strict=True
            )
        )
        if found < _DEAF * moved:
            raise StepFailedError(
                INPUT_IGNORED,
                f"{name} has no effect on the graph: it moves an answer by {found:.3g}, of the original by {moved:.3g}",
            )


def _last(answer: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """What is answered to the last token, or to the text as a whole; keys and values come after it."""
    first = next(iter(answer.values()))
    return (first[:, -1] if first.ndim == 3 else first).astype(np.float64)  # noqa: PLR2004


def _changes(base: Sample) -> Iterator[tuple[str, Sample]]:
    def other(**tensors: NDArray[Any]) -> Sample:
        return Sample("one input changed", is_text=False, tensors=base.tensors | tensors)

    is_read = any(name.startswith(encoder_decoders.CROSS) for name in base.tensors)
    for name in ("input_ids", FEATURES, PIXELS, "token_type_ids", "decoder_input_ids"):
        # Nobody reads a text that was read.
        if name in base.tensors and not (is_read and name in ("input_ids", FEATURES)):
            yield name, other(**{name: base.tensors[name][..., ::-1]})
    if "attention_mask" in base.tensors:
        mask = base.tensors["attention_mask"].copy()
        mask[:, 0] = 0
        yield "attention_mask", other(attention_mask=mask)
    for prefix in (decoders.PAST, encoder_decoders.CROSS):
        kept = [name for name in base.tensors if name.startswith(prefix)]
        for kind in ("key", "value") if kept else ():
            yield f"every {prefix} {kind}", other(**{name: -base.tensors[name] for name in kept if name.endswith(kind)})


def measure_longest(original: Original, candidate: Candidate) -> Iterator[tuple[Sample, parity.Measurement]]:
    """The longest text piece by piece, by each side on the keys and values that it made itself of the pieces before.

    So it is one long prefill in the memory of a short one; of the original these are in float32 whatever the graph's
    are in, as they would be if it read at once. Nothing where the longest text is short enough for that.
    """
    checkpoint = original.checkpoint
    # Asked once: there is no room to remember it.
    truths = _read(checkpoint, replace(original, answered=None).answer)
    for (piece, truth), (_, answer) in zip(truths, _read(checkpoint, _asked(original, candidate)), strict=True):
        yield piece, parity.measure_generation(piece, truth, answer)


def _read(checkpoint: Checkpoint, ask: Ask) -> Iterator[tuple[Sample, dict[str, NDArray[np.float32]]]]:
    """Each piece, and of its answer the last token's logits and the keys and values that are new."""
    kept: dict[str, NDArray[Any]] = decoders.empty(checkpoint, 1)
    for piece in samples.pieces(checkpoint):
        answer = ask(replace(piece, tensors=piece.tensors | kept))
        # A copy, so that those of all other tokens are gone before the next piece is read.
        last = answer.pop(decoders.LOGITS)[:, -1:].copy()
        kept |= _kept(checkpoint, answer)
        new = piece.tensors[_writes(checkpoint)].shape[1]
        presents = decoders.names_of(decoders.PRESENT, checkpoint.cache)
        yield piece, {decoders.LOGITS: last} | {name: answer[name][:, :, -new:] for name in presents}


def measure_greedy(original: Original, candidate: Candidate) -> parity.Measurement:
    """Prompts of different length continued by the graph, against the original's logits for the same tokens."""
    prompts = samples.prompts(original.checkpoint)
    written, logits = write(original.checkpoint, _asked(original, candidate), prompts, TOKENS)
    steps = logits.shape[1]
    truth = original.answer(written)[decoders.LOGITS][:, -steps:]
    return parity.measure_writing(written, truth, logits)


def measure_whole(original: Original, candidate: Candidate) -> parity.Measurement:
    """One text or sound answered by the checkpoint's own rules, to its end or the longest that is compared at once."""
    checkpoint = original.checkpoint
    written, logits = write_whole(checkpoint, _asked(original, candidate))
    truth = original.answer(written)[decoders.LOGITS][:, -logits.shape[1] :]
    # Words that are left out have a logit that nobody chooses, on either side.
    never, lowest = np.isneginf(logits), truth.min()
    logits[never] = lowest
    return parity.measure_writing(written, np.where(never, lowest, truth), logits)


def write_whole(checkpoint: Checkpoint, ask: Ask) -> tuple[Sample, NDArray[np.float32]]:
    asked, end = samples.whole(checkpoint), checkpoint.tokenizer.eos_token_id
    written, logits = write(checkpoint, ask, asked, _LONGEST_ANSWER, writing=checkpoint.writing, end=end)
    how = "its end" if (likeliest(logits[:, -1]) == end).all() else "the bound"
    return replace(written, name=f"{asked.name}, answered to {how} in {logits.shape[1]} tokens"), logits


def begun(original: Original, candidate: Candidate, text: Sample, most: int) -> Sample:
    """A text to be answered with all tokens but the last of what the graphs answer."""
    written, _ = write(original.checkpoint, _asked(original, candidate), text, most)
    return Sample(text.name, is_text=True, tensors=written.tensors)


def _asked(original: Original, candidate: Candidate) -> Ask:
    return lambda sample: candidate.answer(original.outputs, sample)


def write(
    checkpoint: Checkpoint, ask: Ask, prompts: Sample, most: int, *, writing: Writing = FREE, end: int | None = None
) -> tuple[Sample, NDArray[np.float32]]:
    """Everything that was read, and the logits that chose each token: (batch, tokens, vocabulary).

    What `writing` leaves out is not chosen, and with an `end` nothing is written where all texts have come to it.
    """
    logits: list[NDArray[np.float32]] = []
    written: list[NDArray[np.int64]] = []
    for answered, chosen in spell(checkpoint, ask, prompts, most, writing=writing):
        logits.append(answered)
        written.append(chosen)
        if (chosen == end).all():
            break
    writes = _writes(checkpoint)
    read = np.concatenate([prompts.tensors[writes], *written[:-1]], axis=1)
    mask = _mask(prompts)
    if not checkpoint.cross:
        more = ((0, 0), (0, len(written) - 1))
        mask = {name: np.pad(each, more, constant_values=1) for name, each in mask.items()}
    steps = min(most, checkpoint.max_sequence_length - prompts.tensors[writes].shape[1])
    name = f"{steps} greedy tokens, batch {len(read)}"
    return Sample(name, is_text=True, tensors=prompts.tensors | {writes: read, **mask}), np.concatenate(logits, axis=1)


def likeliest(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.asarray(logits.argmax(axis=-1))


def spell(
    checkpoint: Checkpoint,
    ask: Ask,
    prompts: Sample,
    most: int,
    *,
    writing: Writing = FREE,
    choose: Callable[[NDArray[np.float32]], NDArray[np.int64]] = likeliest,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Token by token, as long as somebody asks for more: the logits that it is chosen by, and it."""
    sample, writes, mask = prompts, _writes(checkpoint), _mask(prompts)
    kept: dict[str, NDArray[Any]] = {}
    for step in range(min(most, checkpoint.max_sequence_length - prompts.tensors[writes].shape[1])):
        answer = ask(sample)
        logits = answer[decoders.LOGITS][:, -1:].copy()
        logits[..., [*writing.never, *(writing.never_first if not step else ())]] = -np.inf
        chosen = choose(logits)
        yield logits, chosen
        if not checkpoint.cross:
            mask = {name: np.pad(each, ((0, 0), (0, 1)), constant_values=1) for name, each in mask.items()}
        kept |= _kept(checkpoint, answer)
        named = f"token {step + 1} of the graph's own"
        new = {writes: chosen, **mask, **kept}
        sample = Sample(named, is_text=True, tensors=prompts.tensors | new)


def _kept(checkpoint: Checkpoint, answer: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """The keys and values of an answer, as what goes on from there is given them; those of what was read come once."""
    presents = (answer[name] for name in decoders.names_of(decoders.PRESENT, checkpoint.cache))
    past = dict(zip(decoders.names_of(decoders.PAST, checkpoint.cache), presents, strict=True))
    crossed = decoders.names_of(encoder_decoders.CROSS, checkpoint.cross)
    return past | {name: answer[name] for name in crossed if name in answer}


def _writes(checkpoint: Checkpoint) -> str:
    return encoder_decoders.WRITTEN if checkpoint.cross else "input_ids"


def _mask(sample: Sample) -> dict[str, NDArray[Any]]:
    """Of what is read beside, or of what is read and written in one; sounds have none."""
    return {name: tensor for name, tensor in sample.tensors.items() if name == "attention_mask"}
