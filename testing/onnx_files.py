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


def hostile(model: onnx.ModelProto, how: str) -> bytes:
    """A model that somebody damaged."""
    graph = model.graph
    kernel, linear = graph.initializer[:2]
    if how == "short weights":
        kernel.raw_data = kernel.raw_data[:-3]
    elif how == "wrong shape":
        linear.dims[0] += 1
    elif how == "unknown type":
        kernel.data_type = 77
    elif how == "unknown operator":
        graph.node[0].op_type = "Sabotage"
    elif how == "missing weights":
        del graph.initializer[:]
    elif how == "no weights named":
        del graph.node[0].input[1:]
    elif how == "empty constant":
        graph.node.insert(0, helper.make_node("Constant", [], ["nothing"]))
    elif how == "cycle":
        graph.node[0].input[0] = graph.node[1].output[0]
    elif how == "output of nothing":
        graph.node[-1].output[0] = "elsewhere"
    elif how == "no version":
        del model.opset_import[:]
    elif how == "huge input":
        for dim in graph.input[0].type.tensor_type.shape.dim[2:]:
            dim.dim_value = 10**6
    elif how == "weights of another file":
        kernel.data_location = TensorProto.EXTERNAL
        kernel.external_data.add(key="location", value="../../../etc/hostname")
    elif how == "division by zero":
        graph.node.insert(0, helper.make_node("Div", ["data", "zero"], ["divided"]))
        graph.node[1].input[0] = "divided"
        graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    return model.SerializeToString()
