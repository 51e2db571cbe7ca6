"""Every case of cases.py on this machine's device; without one they are skipped, and counted as skipped."""

from __future__ import annotations

import math
from pathlib import Path

import onnxruntime
import pytest
import torch

from device.cases import Bench
from onnx_converter.spec import Provider

MISSING = [
    name
    for name, is_there in {
        "a CUDA device": torch.cuda.is_available(),
        "onnxruntime-gpu": str(Provider.CUDA) in onnxruntime.get_available_providers(),
    }.items()
    if not is_there
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}")
NAMES = sorted(Bench(Path(), Provider.CUDA, end=0, seconds=0).cases())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("cases"), Provider.CUDA, end=math.inf, seconds=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_device_answers_like_the_original_or_is_refused_with_a_reason(name: str, bench: Bench) -> None:
    row = bench.cases()[name]()
    assert row.is_good, row.told
