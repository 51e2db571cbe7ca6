"""Entry point of the image."""

from onnx_converter.cli import run_as_program

run_as_program()
