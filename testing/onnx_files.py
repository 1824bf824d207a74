"""Recognizers as ONNX files, small and seeded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_onnx(
    path: Path,
    size: int = 32,
    length: int = 64,
    before: tuple[tuple[str, float], ...] = (),
    batch: int | str = "N",
    activation: str = "Relu",
    outputs: int = 1,
    constant_nodes: bool = False,
    height: int | None = None,
) -> Path:
    """A seeded network of an ArcFace model's operators: arithmetic as listed, convolution, activation, linear layer."""
    random = np.random.default_rng(0)
    weights = {
        "kernel": random.normal(size=(8, 3, 4, 4)) / 7,
        "linear": random.normal(size=(8 * (size // 4) * ((height or size) // 4), length)) / 20,
    }
    nodes, value = [], "data"
    for i, (operator, constant) in enumerate(before):
        if constant_nodes:
            value_of = numpy_helper.from_array(np.array(constant, np.float32))
            nodes.append(helper.make_node("Constant", [], [f"constant{i}"], value=value_of))
        else:
            weights[f"constant{i}"] = np.array([constant])
        nodes.append(helper.make_node(operator, [value, f"constant{i}"], [f"before{i}"]))
        value = f"before{i}"
    nodes += [
        helper.make_node("Conv", [value, "kernel"], ["maps"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node(activation, ["maps"], ["active"]),
    ]
    if isinstance(batch, int):
        weights["shape"] = np.array([batch, -1])
        nodes.append(helper.make_node("Reshape", ["active", "shape"], ["flat"]))
    else:
        nodes.append(helper.make_node("Flatten", ["active"], ["flat"]))
    names = [f"embedding{i}" for i in range(outputs)]
    nodes += [helper.make_node("Gemm", ["flat", "linear"], [name]) for name in names]
    graph = helper.make_graph(
        nodes,
        "recognizer",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [batch, 3, height or size, size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, length]) for name in names],
        [
            numpy_helper.from_array(array.astype(np.int64 if name == "shape" else np.float32), name)
            for name, array in weights.items()
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path
