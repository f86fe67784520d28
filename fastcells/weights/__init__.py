"""Weights of other libraries' recurrent layers, as layers of fastcells, and ours as ONNX."""
