"""Exports of a model to formats that other programs read: ONNX, vectors and an approximate index."""
