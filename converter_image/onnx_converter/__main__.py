"""Entry point of the image."""

import os
import sys

if os.environ.get("PYTHONHASHSEED") != "0":
    # Some models of transformers compute in the order of a set of words, and a graph has the order it was traced in.
    os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONHASHSEED": "0"})  # noqa: S606  nothing but ourselves

from onnx_converter.cli import run_as_program

run_as_program()
