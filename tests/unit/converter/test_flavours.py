"""Both flavours of the converter's image hold the same, but for the provider: what is tested in one is in the other."""

from __future__ import annotations

import re
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[3] / "requirements"


def locked(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ]+)", (REQUIREMENTS / name).read_text(), re.MULTILINE))


def test_both_flavours_are_locked_to_the_same_versions() -> None:
    cpu, cuda = locked("converter.txt"), locked("converter-cuda.txt")
    assert {name: version for name, version in cpu.items() if name in cuda} == {
        name: version for name, version in cuda.items() if name in cpu
    }
    assert cpu.keys() - cuda.keys() == {"onnxruntime"}
    assert cpu["onnxruntime"] == cuda["onnxruntime-gpu"], "so that both quantise to the same bytes"
