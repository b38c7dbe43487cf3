"""Deployed networks as integers: in one file of packed codes, or as ONNX."""
