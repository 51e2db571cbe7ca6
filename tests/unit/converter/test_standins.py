"""The libraries that stand in for CUDA let torch start, and refuse to run in words."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Without importing torch: that is what the test is about.
_SPEC = importlib.util.find_spec("torch")
LIBRARIES = Path(str(_SPEC.origin)).parent / "lib" if _SPEC else Path()
STANDIN = LIBRARIES / "libnccl.so.2"

pytestmark = pytest.mark.skipif(not STANDIN.exists(), reason="torch has its real CUDA libraries here")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_torch_computes_on_the_cpu_and_says_that_there_is_no_device() -> None:
    done = python(
        "import torch\n"
        "assert not torch.cuda.is_available()\n"
        "a = torch.eye(3) * 2\n"
        "assert torch.linalg.svd(a).S.tolist() == [2, 2, 2]\n"
        "try: torch.zeros(1).cuda()\n"
        "except RuntimeError as error: print(error)\n"
    )
    assert done.returncode == 0, done.stderr
    assert "Found no NVIDIA driver" in done.stdout


def test_a_function_of_a_library_that_was_left_out_names_itself_and_ends_the_process() -> None:
    done = python(f"import ctypes; ctypes.CDLL({str(STANDIN)!r}).ncclSend()")
    assert done.returncode == -signal.SIGABRT
    assert "ncclSend of libnccl.so.2 was called, but this image leaves CUDA out" in done.stderr
