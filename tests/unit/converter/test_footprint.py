"""What a conversion takes at its peak is told from headers alone, and where there is less it does not begin."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from checkpoints import (
    DECODER_LENGTH,
    DECODERS,
    change_json,
    tiny,
    tiny_clip,
    tiny_decoder,
    tiny_encoder_decoder,
    tiny_vision,
)
from onnx_converter import footprint, limits, load
from onnx_converter.footprint import MEBIBYTE, Sizes
from onnx_converter.reasons import MEMORY_TOO_SMALL, PERMANENT_CODES
from onnx_converter.spec import Scheme, Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from unit.converter.steps import Line


def test_headers_tell_how_many_numbers_there_are_and_how_many_words(tmp_path: Path, line: Line) -> None:
    fetched = line.fetch(tiny(tmp_path / "model")).details
    sizes = footprint.sizes_of(line.checkpoint(fetched["digest"]))
    assert (fetched["parameters"], fetched["vocabulary"]) == (sizes.parameters, sizes.vocabulary) == (23520, 124)


@pytest.mark.parametrize("scheme", Scheme)
def test_more_numbers_and_more_words_take_more(scheme: Scheme) -> None:
    nothing, numbers, words = (footprint.peak(Sizes(*one), scheme) for one in ((0, 0), (10**8, 0), (0, 10**5)))
    assert 256 * MEBIBYTE < nothing < 2048 * MEBIBYTE, "the libraries alone"
    assert numbers - nothing > 4 * 10**8, "the original, at least"
    assert words > nothing


LARGEST = Sizes(134_515_008, 49_152, cache=11_520, positions=2048)
#: Of Llamas, a BERT, a Marian, a Whisper and ViTs with random weights: what headers tell, and bytes with the imports,
#: of the larger step.
MEASURED = {
    "32 M, none": (Sizes(31_171_968, 32_000, cache=3_072, positions=2048), "none", 1_449_000_000),
    "135 M, none": (LARGEST, "none", 2_948_000_000),
    "135 M, int8-dynamic": (LARGEST, "int8-dynamic", 2_403_000_000),
    "135 M, int8-static": (LARGEST, "int8-static", 2_450_000_000),
    "109 M that read, int8-static": (Sizes(109_482_240, 30_522), "int8-static", 2_290_000_000),
    "135 M, int4": (LARGEST, "int4-weight-only", 2_447_000_000),
    "75 M that translate, int8-dynamic": (Sizes(73_944_309, 58_101), "int8-dynamic", 1_260_000_000),
    "75 M that translate, int8": (Sizes(73_944_309, 58_101), "int8-weight-only", 1_338_000_000),
    "18 M that hear half a minute, none": (Sizes(17_946_240, 1_536, 6 * 1500**2), "none", 3_163_000_000),
    "86 M that see 197 patches, none": (Sizes(86_389_248, 3_072, 12 * 197**2), "none", 1_528_000_000),
    "11 M that see 1025 patches, none": (Sizes(11_415_552, 1_536, 6 * 1025**2), "none", 1_727_000_000),
}


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: case.replace(" ", "-"))
def test_what_is_planned_is_no_less_than_was_measured_and_at_most_a_third_more(case: str) -> None:
    sizes, scheme, measured = MEASURED[case]
    assert measured <= footprint.peak(sizes, scheme) <= 4 * measured // 3


@pytest.mark.parametrize(("length", "measured"), [(4096, 1_466_000_000), (16_384, 3_129_000_000)])
def test_so_is_what_is_planned_for_the_texts_that_a_llama_of_19_m_with_8_whole_heads_is_asked_for(
    length: int, measured: int
) -> None:
    planned = footprint.peak(Sizes(18_682_368, 16_000, cache=4_096, positions=32_768), "none", length=length)
    assert measured <= planned <= 4 * measured // 3


def test_what_is_planned_for_gptq_is_no_less_than_was_measured_of_a_t5_of_60_m() -> None:
    planned = footprint.peak(Sizes(60_506_240, 32_128), "int4-weight-only", "gptq")
    assert 1_785_000_000 <= planned <= 4 * 1_785_000_000 // 3


ATTENDING: dict[str, tuple[Callable[[Path], Path], int]] = {
    "a whisper": (lambda folder: tiny_encoder_decoder(folder, "whisper"), 50),
    "clip's tower": (tiny_vision, 17),
    "a whole clip": (tiny_clip, 17),
    "siglip's tower": (lambda folder: tiny_vision(folder, "siglip_vision_model"), 16),
    "a vit that classifies": (lambda folder: tiny_vision(folder, "vit", "classifier"), 17),
    "a clip for texts": (lambda folder: tiny(folder, "clip_text_model"), 0),
}


@pytest.mark.parametrize("case", ATTENDING, ids=lambda case: case.replace(" ", "-"))
def test_the_headers_of_a_model_that_hears_or_sees_tell_how_far(case: str, tmp_path: Path) -> None:
    make, positions = ATTENDING[case]
    assert footprint.sizes_of(make(tmp_path / "model")).attention == positions**2, "one head of 64, or less"


@pytest.mark.parametrize("name", [*DECODERS, "bloom", "granite", "mpt"], ids=lambda name: name.replace(" ", "-"))
def test_the_configuration_tells_what_is_kept_of_each_token(name: str, tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "model", name)
    loaded = load.load(folder, Task.TEXT_GENERATION, None)
    sizes = footprint.sizes_of(folder)
    assert sizes.cache == sum(heads * width for heads, width in loaded.cache) > 0
    assert not sizes.positions or sizes.positions >= loaded.max_sequence_length


def with_config(folder: Path, **changes: object) -> Path:
    change_json(tiny_decoder(folder) / "config.json", **changes)
    return folder


KEEPING_NOTHING: dict[str, Callable[[Path], Path]] = {
    "an encoder": tiny,
    "a model that translates": lambda folder: tiny_encoder_decoder(folder, "marian"),
    "a model that hears": lambda folder: tiny_encoder_decoder(folder, "whisper"),
    "a state of one size": lambda folder: tiny_decoder(folder, "mamba"),
    "no numbers": lambda folder: with_config(folder, num_attention_heads="4"),
    "no list of names": lambda folder: with_config(folder, architectures={"a": 1}),
}


@pytest.mark.parametrize("case", KEEPING_NOTHING, ids=lambda case: case.replace(" ", "-"))
def test_of_what_keeps_no_keys_and_values_none_are_planned(case: str, tmp_path: Path) -> None:
    sizes = footprint.sizes_of(KEEPING_NOTHING[case](tmp_path / "model"))
    assert (sizes.cache, sizes.positions) == (0, 0)
    assert footprint.peak(sizes, "none", length=131_072) == footprint.peak(sizes, "none")


def test_a_configuration_that_lies_plans_no_more_than_the_weights_could_keep(tmp_path: Path) -> None:
    lies = {"num_hidden_layers": 10**30, "max_position_embeddings": 10**30}
    sizes = footprint.sizes_of(with_config(tmp_path / "model", **lies))
    assert (sizes.cache, sizes.positions) == (sizes.parameters, 131_072)


def test_a_longer_text_is_planned_for_and_a_shorter_one_is_a_way_out(tmp_path: Path, line: Line) -> None:
    fetched = line.fetch(tiny_decoder(tmp_path / "model")).details
    sizes = footprint.sizes_of(line.checkpoint(fetched["digest"]))
    assert (fetched["cache"], fetched["positions"]) == (sizes.cache, sizes.positions) == (64, DECODER_LENGTH)
    assert footprint.peak(sizes, "none") == footprint.peak(sizes, "none", length=DECODER_LENGTH)
    large = Sizes(10**9, 32_000, cache=2**18, positions=131_072)
    usual, long = (footprint.peak(large, "none", length=length) for length in (None, 32_768))
    assert usual == footprint.peak(large, "none", length=2048)
    assert long - usual > 4 * 2**18 * (32_768 - 2048)
    assert "maxSequenceLength" in footprint.shorter(large, 32_768, long)
    assert not footprint.shorter(replace(large, cache=64), 32_768, long)


@pytest.mark.parametrize("step", ["convert", "validate"])
def test_a_container_with_less_is_told_so_before_anything_is_loaded(
    step: str, tmp_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = line.fetch(tiny(tmp_path / "model")).details["digest"]
    if step == "validate":
        line.convert(digest)
    monkeypatch.setattr(limits, "memory_of", lambda: 64 * MEBIBYTE)
    ended = line.convert(digest) if step == "convert" else line.validate(digest)
    assert (ended.summary.reason, ended.code) == (MEMORY_TOO_SMALL.name, MEMORY_TOO_SMALL.exit_code)
    assert ended.code in PERMANENT_CODES
    needed = footprint.told(footprint.peak(footprint.sizes_of(line.checkpoint(digest)), "none"))
    for part in (needed, "64Mi", "jobs.resources.limits.memory"):
        assert part in ended.summary.message
    assert "CheckpointLoaded" not in [found["event"] for found in ended.lines]


def test_a_container_with_room_for_plain_rounding_alone_is_told_what_gptq_takes(
    tmp_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = line.fetch(tiny(tmp_path / "model")).details["digest"]
    sizes = footprint.sizes_of(line.checkpoint(digest))
    plain, needed = (footprint.peak(sizes, "int4-weight-only", algorithm) for algorithm in ("rtn", "gptq"))
    monkeypatch.setattr(limits, "memory_of", lambda: plain)
    ended = line.convert(digest, scheme="int4-weight-only", algorithm="gptq")
    assert ended.summary.reason == MEMORY_TOO_SMALL.name
    assert footprint.told(needed) in ended.summary.message


LIMITS = {
    "a limit": ("268435456\n", None, 268435456),
    "none": ("max\n", None, None),
    "a limit of the older interface": (None, "134217728\n", 134217728),
    "none of the older interface": (None, "9223372036854771712\n", None),
    "no cgroup at all": (None, None, None),
}


@pytest.mark.parametrize("case", LIMITS, ids=lambda case: case.replace(" ", "-"))
def test_the_limit_is_the_one_of_the_cgroup(case: str, tmp_path: Path) -> None:
    v2, v1, expected = LIMITS[case]
    for name, text in (("v2", v2), ("v1", v1)):
        if text is not None:
            (tmp_path / name).write_text(text)
    assert limits.memory_of(tmp_path / "v2", tmp_path / "v1") == expected
