"""A model in the forms that other programs read: ONNX, vectors, and an index of them."""
