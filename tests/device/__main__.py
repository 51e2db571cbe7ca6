"""`python tests/device`: every case on a device, a row each, without pytest."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / name) for name in ("converter_image", "tests")]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--provider", default="CUDAExecutionProvider", help="CPUExecutionProvider tries the cases")
    options.add_argument("--seconds", type=float, default=200.0, help="after these no case begins")
    options.add_argument("--benchmark", type=float, default=3.0, help="seconds for the latencies of each model")
    chosen = options.parse_args()
    # The exporter is talkative, and what counts here are the rows.
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    from onnx_converter.limits import limit_libraries  # noqa: PLC0415  before torch is imported

    limit_libraries()
    import onnxruntime  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from device.cases import Bench  # noqa: PLC0415
    from onnx_converter.spec import Provider  # noqa: PLC0415

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none that torch knows"
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, device: {device}", flush=True)
    print(f"providers: {onnxruntime.get_available_providers()}", flush=True)
    began = time.monotonic()
    bad = 0
    root = Path(tempfile.mkdtemp(prefix="cases-"))
    for row in Bench(root, Provider(chosen.provider), began + chosen.seconds, chosen.benchmark).rows():
        bad += not row.is_good
        print(f"{'ok ' if row.is_good else 'BAD'} {row.name:32} {row.seconds:5.1f} s  {row.told}", flush=True)
        for cell in row.cells:
            print(f"      {cell}", flush=True)
    print(f"{bad} bad, {time.monotonic() - began:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
