"""The texts that int8-static and gptq measure on what goes into layers.

Refuses a file that is no list of texts: measured on nonsense a graph looks like any other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from onnx_converter import encoder_decoders, generation, held, samples, texts
from onnx_converter.contest import Candidate
from onnx_converter.heads import outputs_of, parts_of
from onnx_converter.held import CALIBRATION
from onnx_converter.reasons import DATASET_INVALID, StepFailedError
from onnx_converter.samples import Sample
from onnx_converter.spec import Provider

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from onnx_converter.load import Checkpoint
    from onnx_converter.spec import Dataset

MOST_TEXTS: Final = 1024
#: Tokens of a text: ranges come from the words, and hardly from how many there are.
_LONGEST: Final = 128
#: Tokens of an answer that the model writes itself.
_ANSWER: Final = 16


def read(calibration: Dataset | None, root: Path) -> Sequence[str]:
    """The texts below `root`; those of the image where none are declared."""
    if calibration is None:
        return texts.ALL
    found = held.texts(calibration, root, CALIBRATION)
    if not 0 < len(found) <= MOST_TEXTS:
        raise StepFailedError(
            DATASET_INVALID,
            f"{CALIBRATION}: {calibration.file} holds {len(found)} texts, it must be 1 to {MOST_TEXTS}, one a line",
        )
    return found


def requests(
    checkpoint: Checkpoint, read_texts: Sequence[str], graphs: Sequence[Path] = ()
) -> Iterable[dict[str, NDArray[Any]]]:
    """What the last of the graphs is asked, which are run one after the other: one text, or generated sound or image,
    each, since all activations of many at once would be too many. To be read as often as anyone likes.
    """
    if len(graphs) > 1:
        return Answering(checkpoint, read_texts, graphs)
    names = [spec.name for spec in parts_of(checkpoint)[0].inputs]
    return [{name: one.tensors[name] for name in names} for one, _ in _asked(checkpoint, read_texts)]


def _asked(checkpoint: Checkpoint, read_texts: Sequence[str]) -> Iterator[tuple[Sample, Sequence[str]]]:
    """What is read, heard or seen, and what might be answered: to a text itself, to sounds the texts in turn."""
    if checkpoint.sight:
        yield from ((sample, ()) for sample in samples.images_one_by_one(checkpoint.sight))
        return
    if checkpoint.speech:
        sounds = list(samples.answers_to_sounds(checkpoint))
        yield from ((sound, read_texts[number :: len(sounds)]) for number, sound in enumerate(sounds))
        return
    for text in read_texts:
        yield (
            Sample(text, is_text=True, tensors=samples.encode(checkpoint, (text,), _longest(checkpoint), "right")),
            [text],
        )


def _longest(checkpoint: Checkpoint) -> int:
    return min(checkpoint.max_sequence_length, _LONGEST)


@dataclass(frozen=True, slots=True)
class Answering:
    """What a decoder is asked: given what the encoder before it makes of a text or sound, to write what the model
    itself answers, and texts of people's.

    Each is written at once, which tells of later steps as of the first: a layer is given the same of a token whatever
    of the text before it is in the past. Read anew each time, since of a long sound the keys and values are as large as
    the weights; what the model answers is written the first time, and kept.
    """

    checkpoint: Checkpoint
    texts: Sequence[str]
    graphs: Sequence[Path]
    _written: list[NDArray[np.int64]] = field(default_factory=list)

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        encoder = Candidate.load(self.graphs[:1], Provider.CPU)
        decoder = None if self._written else Candidate.load(self.graphs[1:], Provider.CPU)
        told, asked = parts_of(self.checkpoint)
        cross = [spec.name for spec in told.outputs]
        answers: list[NDArray[np.int64]] = []
        for number, (sample, people) in enumerate(_asked(self.checkpoint, self.texts)):
            known = sample.tensors | encoder.answer(cross, sample)
            answers.append(
                self._written[number] if decoder is None else self._answer(decoder, replace(sample, tensors=known))
            )
            begun = sample.tensors[encoder_decoders.WRITTEN]
            for written in (answers[-1], *(self._continued(begun, text) for text in people)):
                known[encoder_decoders.WRITTEN] = written
                yield {spec.name: known[spec.name] for spec in asked.inputs}
        self._written[:] = answers

    def _answer(self, decoder: Candidate, read: Sample) -> NDArray[np.int64]:
        """(1, tokens): what the model itself answers to what was read."""
        checkpoint = self.checkpoint
        written, _ = generation.write(
            checkpoint,
            partial(decoder.answer, outputs_of(checkpoint)),
            read,
            _ANSWER,
            writing=checkpoint.writing,
            end=checkpoint.tokenizer.eos_token_id,
        )
        return written.tensors[encoder_decoders.WRITTEN]

    def _continued(self, begun: NDArray[np.int64], text: str) -> NDArray[np.int64]:
        """(1, tokens): an answer of a text."""
        ids: list[int] = self.checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"]
        return np.concatenate([begun, np.array([ids], np.int64)], axis=1)[:, : _longest(self.checkpoint)]
