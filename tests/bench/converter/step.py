"""One step in a process of its own, and what it took: seconds, and memory above what its imports take.

python -m bench.converter.step convert --checkpoint …
"""

from __future__ import annotations

import importlib
import io
import json
import sys
import time

from onnx_converter import cli, memory
from onnx_converter.limits import limit_libraries

#: Those of the steps, and two that the exporter imports when it is first used.
IMPORTS = ("onnx_converter.convert", "onnx_converter.validate", "onnxscript", "torch.onnx._internal.exporter._compat")


def main() -> None:
    limit_libraries()
    for name in IMPORTS:
        importlib.import_module(name)
    step = memory.Memory()
    said = io.StringIO()
    began = time.perf_counter()
    step.watch(lambda: cli.main(sys.argv[1:], said))
    seconds = time.perf_counter() - began
    print(json.dumps({"ended": json.loads(said.getvalue().splitlines()[-1]), "seconds": seconds, "peak": step.peak}))


if __name__ == "__main__":
    main()
