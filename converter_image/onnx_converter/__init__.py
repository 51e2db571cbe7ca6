"""Turns a checkpoint into a validated, served ONNX model, one step at a time; see `python -m onnx_converter --help`."""
