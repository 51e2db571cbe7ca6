"""Every case of cases.py on this machine's device; without one they are skipped, and counted as skipped."""

from __future__ import annotations

import math
from importlib.util import find_spec
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
#: onnxruntime-gpu names TensorRT whether or not its libraries are there.
needs_tensorrt = pytest.mark.skipif(find_spec("tensorrt") is None, reason="needs the libraries of TensorRT")


def cases(provider: Provider) -> list[str]:
    return sorted(Bench(Path(), provider, end=0, seconds=0).cases())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cases")


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        *((Provider.CUDA, name) for name in cases(Provider.CUDA)),
        *(pytest.param(Provider.TENSORRT, name, marks=needs_tensorrt) for name in cases(Provider.TENSORRT)),
    ],
)
def test_the_device_answers_like_the_original_or_is_refused_with_a_reason(
    provider: Provider, name: str, root: Path
) -> None:
    row = Bench(root / provider, provider, end=math.inf, seconds=0).cases()[name]()
    assert row.is_good, row.told
