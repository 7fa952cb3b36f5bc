"""Weights of an ONNX graph in fewer bits: bfloat16 in the file, or int8 in the file and in the matrix products."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

WEIGHT_TYPES = ("float32", "bfloat16", "int8")
"""Values of `export onnx --dtype`."""
SMALLEST = 1024
"""Numbers of the smallest weight that is stored in bfloat16: biases and constants stay as they are."""


def reduce_weights(graph: Path, dtype: str) -> None:
    """Store the weights of a graph in another type, in place.

    Args:
        graph: an ONNX file with its weights in float32, in the file or in `graph.data`.
        dtype: `"float32"` changes nothing; `"bfloat16"` halves the file and computes in float32; `"int8"` quantizes the weights
            of matrix products (a scale for each output) and of look-ups, and their inputs at run time.
    """
    if dtype == "bfloat16":
        _store_bfloat16(graph)
    elif dtype == "int8":
        _quantize(graph)


def _store_bfloat16(graph: Path) -> None:
    import ml_dtypes
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(graph))
    casts = []
    for weight in list(model.graph.initializer):
        values = numpy_helper.to_array(weight)
        if weight.data_type != onnx.TensorProto.FLOAT or values.size < SMALLEST:
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(values.astype(ml_dtypes.bfloat16), f"{name}.bfloat16"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.bfloat16"], [name], f"{name}.cast", to=onnx.TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(casts + nodes)  # casts first: a node may only read what comes before it
    _save(model, graph)


def _quantize(graph: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = graph.with_name("float32.onnx")
    model = onnx.load(str(graph))
    # Shapes that torch wrote for intermediate results contradict the quantizer's own, and it infers what it needs.
    del model.graph.value_info[:]
    _separate(model.graph)
    _save(model, whole)
    graph.unlink()
    graph.with_name(f"{graph.name}.data").unlink(missing_ok=True)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a preprocessing that the traced graph does not need
    try:
        quantize_dynamic(str(whole), str(graph), per_channel=True, weight_type=QuantType.QInt8)
    finally:
        root.setLevel(level)
    for left in (whole, whole.with_name(f"{whole.name}.data")):
        left.unlink(missing_ok=True)
    _save(onnx.load(str(graph)), graph)


def _separate(graph: Any) -> None:
    """Give each matrix product a weight of its own: the quantizer transposes it in place, also for a look-up that shares it."""
    weights = {weight.name: weight for weight in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        if node.op_type == "Gemm" and node.input[1] in weights and readers[node.input[1]] > 1:
            copied = graph.initializer.add()
            copied.CopyFrom(weights[node.input[1]])
            copied.name = f"{node.input[1]}.{node.name}"
            node.input[1] = copied.name


def _save(model: Any, graph: Path) -> None:
    """Write a graph with its large weights in `graph.data`, as the exporter does."""
    import onnx

    data = graph.with_name(f"{graph.name}.data")
    data.unlink(missing_ok=True)
    onnx.save_model(model, str(graph), save_as_external_data=True, location=data.name, size_threshold=SMALLEST)


__all__ = ["WEIGHT_TYPES", "reduce_weights"]
