"""What both sides are asked is what breaks graphs: every kind of it is really among the samples."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from checkpoints import ANSWER_LENGTH, DECODER_LENGTH, TINY_LENGTH, tiny, tiny_decoder, tiny_encoder_decoder
from onnx_converter import load, samples
from onnx_converter.spec import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from onnx_converter.load import Checkpoint
    from onnx_converter.samples import Sample
    from unit.converter.steps import Line

#: Kinds of masks by the rows that show them.
ROWS: dict[str, Callable[[list[int]], object]] = {
    "no": all,
    "right": lambda row: row[0] and not row[-1] and row == sorted(row, reverse=True),
    "left": lambda row: not row[0] and row[-1] and row == sorted(row),
    "both": lambda row: not row[0] and not row[-1] and any(row),
    "holes": lambda row: "10" in (shown := "".join(map(str, row)).strip("0")) and "01" in shown,
    "all-row": lambda row: not any(row),
}
ENCODERS = ("no", "right", "left", "both", "holes", "all-row")
DECODERS = ("no", "right", "left", "holes", "all-row")
PASTS = (0, 1, 2, 17)

ASKED: dict[str, tuple[Callable[[Path], Path], str, int, tuple[str, ...], tuple[int, ...]]] = {
    "an encoder": (tiny, "input_ids", TINY_LENGTH, ENCODERS, ()),
    "a decoder": (tiny_decoder, "input_ids", DECODER_LENGTH, DECODERS, (*PASTS, DECODER_LENGTH - 1)),
    "an encoder-decoder": (
        tiny_encoder_decoder,
        "decoder_input_ids",
        ANSWER_LENGTH,
        ENCODERS,
        (*PASTS, ANSWER_LENGTH - 1),
    ),
}


def past_of(sample: Sample) -> int:
    return next((value.shape[2] for name, value in sample.tensors.items() if name.startswith("past")), 0)


def special_share(checkpoint: Checkpoint, sample: Sample, name: str) -> float:
    return float(np.isin(sample.tensors[name], checkpoint.tokenizer.all_special_ids).mean())


@pytest.mark.parametrize("case", ASKED, ids=lambda case: case.replace(" ", "-"))
def test_every_size_mask_past_and_special_token_is_asked(case: str, tmp_path: Path) -> None:
    make, writes, longest, masks, pasts = ASKED[case]
    checkpoint = load.load(make(tmp_path / "model"), Task.AUTO, longest)
    made = [sample for sample in samples.all_samples(checkpoint) if not sample.is_text]
    rows = [row for sample in made for row in sample.tensors["attention_mask"].tolist()]
    for kind in masks:
        assert any(map(ROWS[kind], rows)), kind
    assert {len(sample.tensors[writes]) for sample in made} == {1, 2, 3, 4}
    lengths = {sample.tensors[writes].shape[1] for sample in made}
    assert {1, 3, 33} <= lengths
    assert max(past_of(sample) + sample.tensors[writes].shape[1] for sample in made) == longest
    assert max(len(row) for row in rows) == longest
    assert {past_of(sample) for sample in made} >= set(pasts)
    for batch in (1, 2, 3, 4):
        found = [one for one in made if one.name.startswith(f"random and special ids, batch {batch},")]
        for name in {writes, "input_ids"}:
            assert max(special_share(checkpoint, one, name) for one in found) > 0, (batch, name)


def test_a_decoder_reads_a_long_text_at_once(tmp_path: Path) -> None:
    checkpoint = load.load(tiny_decoder(tmp_path / "model", max_position_embeddings=600), Task.AUTO, None)
    (read,) = (one for one in samples.all_samples(checkpoint) if one.is_last_only)
    assert (read.tensors["input_ids"].shape, past_of(read)) == ((1, 512), 0)


@pytest.mark.parametrize(("longest", "ends"), [(512, []), (600, [256, 512, 600]), (5000, [*range(256, 4097, 256)])])
def test_what_is_too_long_to_be_read_at_once_is_read_in_pieces(longest: int, ends: list[int], tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "model", max_position_embeddings=longest)
    pieces = list(samples.pieces(load.load(folder, Task.AUTO, longest)))
    assert [piece.tensors["attention_mask"].shape for piece in pieces] == [(1, end) for end in ends]
    assert sum(piece.tensors["input_ids"].shape[1] for piece in pieces) == max(ends, default=0)


@pytest.mark.parametrize("name", ["bart", "whisper"])
def test_what_is_too_long_to_be_written_at_once_is_written_in_pieces_beside_one_that_is_read(
    name: str, tmp_path: Path
) -> None:
    more = {"max_target_positions": 300} if name == "whisper" else {"max_position_embeddings": 300}
    folder = tiny_encoder_decoder(tmp_path / "model", name, **more)
    pieces = list(samples.pieces(load.load(folder, Task.AUTO, None)))
    assert [(piece.after, piece.tensors["decoder_input_ids"].shape) for piece in pieces] == [
        (0, (1, 256)),
        (256, (1, 44)),
    ]
    first, last = (dict(piece.tensors) for piece in pieces)
    assert all((first.pop(key) == last.pop(key)).all() for key in [*first] if key != "decoder_input_ids")


def test_no_more_than_one_sample_is_held_while_a_graph_is_judged(
    tmp_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = line.fetch(tiny_decoder(tmp_path / "model")).details["digest"]
    line.convert(digest)
    every, held = samples.all_samples, list[int]()
    made: list[weakref.ref[NDArray[Any]]] = []

    def watched(checkpoint: Checkpoint) -> Iterator[Sample]:
        for sample in every(checkpoint):
            made.append(weakref.ref(sample.tensors["attention_mask"]))
            yield sample
            held.append(sum(one() is not None for one in made))

    monkeypatch.setattr(samples, "all_samples", watched)
    assert line.validate(digest).summary.reason == "Validated"
    assert set(held) == {1}
