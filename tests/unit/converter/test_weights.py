"""Safetensors headers, whatever is written into them."""

from __future__ import annotations

import io
import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from onnx_converter import weights
from onnx_converter.reasons import StepFailedError

if TYPE_CHECKING:
    from pathlib import Path

GOOD = save({"a": np.ones((2, 3), np.float32), "b": np.zeros(5, np.int64), "c": np.ones((0, 4), np.float16)})


def read(data: bytes) -> weights.Header:
    return weights.read_header(io.BufferedReader(io.BytesIO(data)), "model.safetensors")


def with_header(header: object, body: bytes = b"\0" * 64) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype: Any = "F32", shape: Any = (16,), begin: Any = 0, end: Any = 64) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_file_of_the_library_is_read_as_the_library_reads_it() -> None:
    found = {tensor.name: tensor.shape for tensor in read(GOOD).tensors}
    assert found == {name: tensor.shape for name, tensor in load(GOOD).items()}


LIES: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "truncated"),
    "half a length": (b"\1\0\0", "truncated"),
    "a header longer than the file": (struct.pack("<Q", 500) + b"{}", "truncated"),
    "a header of 16 exabytes": (b"\xff" * 16, "announces a header"),
    "a header that is no JSON": (with_header(b"{tensors}"), "no JSON"),
    "a header that is a list": (with_header([]), "no JSON object"),
    "a header nested without end": (with_header(b"[" * 100_000), "no JSON"),
    "no tensor": (with_header({"__metadata__": {}}), "no tensor"),
    "a name twice": (with_header(b'{"a":1,"a":2}'), "twice"),
    "a tensor that is a number": (with_header({"a": 1}), "no object"),
    "an unknown dtype": (with_header({"a": entry("Q4")}), "dtype"),
    "a dtype that is a list": (with_header({"a": entry([])}), "dtype"),
    "a negative size": (with_header({"a": entry(shape=[-16])}), "impossible"),
    "a size that is true": (with_header({"a": entry(shape=[True, 16])}), "impossible"),
    "a size that is a fraction": (with_header({"a": entry(shape=[16.0])}), "impossible"),
    "a negative offset": (with_header({"a": entry(begin=-64, end=0)}), "impossible"),
    "an end before the beginning": (with_header({"a": entry(begin=64, end=0)}), "lies"),
    "a product beyond 64 bit": (with_header({"a": entry(shape=[1 << 40, 1 << 40])}), "lies"),
    "a gap at the start": (with_header({"a": entry(shape=[8], begin=32)}), "unused"),
    "a gap between": (with_header({"a": entry(shape=[4], end=16), "b": entry(shape=[4], begin=48)}), "gap"),
    "an overlap": (with_header({"a": entry(shape=[12], end=48), "b": entry(shape=[8], begin=32)}), "overlapping"),
    "an end after the file": (with_header({"a": entry(shape=[32], end=128)}), "truncated"),
    "bytes left over": (with_header({"a": entry(shape=[8], end=32)}), "after its last"),
}


#: By the words; where a header itself is wrong there is one reason.
REASONS = {
    "truncated": "WeightsTruncated",
    "lies": "WeightsCorrupt",
    "unused": "TensorsOverlap",
    "gap": "TensorsOverlap",
    "overlapping": "TensorsOverlap",
    "after its last": "TrailingBytes",
}


@pytest.mark.parametrize("case", LIES, ids=lambda case: case.replace(" ", "-"))
def test_a_header_that_does_not_describe_its_file_is_refused_in_words(case: str) -> None:
    data, words = LIES[case]
    with pytest.raises(StepFailedError, match=words) as caught:
        read(data)
    assert caught.value.reason.name == REASONS.get(words, "HeaderInvalid")
    assert "model.safetensors" in caught.value.message


@given(place=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255))
def test_no_changed_byte_makes_the_reader_crash(place: int, value: int) -> None:
    data = bytearray(GOOD)
    data[place] = value
    try:
        read(bytes(data))
    except StepFailedError as error:
        assert error.reason.name in (*REASONS.values(), "HeaderInvalid")  # noqa: PT017  any is fine, a crash is not


@given(st.binary(max_size=300))
def test_no_bytes_at_all_make_the_reader_crash(data: bytes) -> None:
    with pytest.raises(StepFailedError):
        read(data)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_weight_that_is_not_finite_is_found_in_every_dtype(tmp_path: Path, dtype: Any, value: float) -> None:
    tensor = np.full((40, 50), -2.5, dtype)
    (tmp_path / "w.safetensors").write_bytes(save({"fine": tensor, "spoilt": tensor}))
    weights.check(tmp_path, "w.safetensors")
    spoilt = tensor.copy()
    spoilt[39, 49] = value
    (tmp_path / "w.safetensors").write_bytes(save({"fine": tensor, "spoilt": spoilt}))
    with pytest.raises(StepFailedError, match="'spoilt'"):
        weights.check(tmp_path, "w.safetensors")


def test_bfloat16_is_looked_through_as_well(tmp_path: Path) -> None:
    numbers = np.array([1.0, -3.0, 1e30, np.inf], np.float32)
    halves = (numbers.view(np.uint32) >> 16).astype("<u2").tobytes()
    header = {"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}
    (tmp_path / "w.safetensors").write_bytes(with_header(header, halves))
    with pytest.raises(StepFailedError, match="NaN or infinity"):
        weights.check(tmp_path, "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(with_header(header, halves[:6] + halves[:2]))
    weights.check(tmp_path, "w.safetensors")
