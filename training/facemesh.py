"""Convert Google's face_landmarker.task to diffprivacy/faces/facemesh.safetensors.

    pip install tflite
    python -m training.facemesh face_landmarker.task

The file is that which MediaPipe publishes (Apache-2.0, float16, version 1); several packages carry it. Its SHA-256 is checked.
"""

from __future__ import annotations

import argparse
import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffprivacy.faces.facemesh import POINTS, WEIGHTS, FaceMesh

SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
SUBSET = """
0 1 4 5 6 7 8 10 13 14 17 21 33 37 39 40 46 52 53 54 55 58 61 63 65 66 67 70 78 80 81 82 84 87 88 91 93 95 103 105 107
109 127 132 133 136 144 145 146 148 149 150 152 153 154 155 157 158 159 160 161 162 163 168 172 173 176 178 181 185 191
195 197 234 246 249 251 263 267 269 270 276 282 283 284 285 288 291 293 295 296 297 300 308 310 311 312 314 317 318 321
323 324 332 334 336 338 356 361 362 365 373 374 375 377 378 379 380 381 382 384 385 386 387 388 389 390 397 398 400 402
405 409 415 454 466 468 469 470 471 472 473 474 475 476 477
"""
"""Points that MediaPipe's graph (face_blendshapes_graph.cc, Apache-2.0) hands to the network of blendshapes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    task = parser.parse_args().task
    if hashlib.sha256(task.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{task} is another version of face_landmarker.task.")
    network = FaceMesh()
    with zipfile.ZipFile(task) as parts:
        _fill_points(network, _constants(parts.read("face_landmarks_detector.tflite")))
        _fill_shapes(network, _constants(parts.read("face_blendshapes.tflite")))
    state = {name: v.half() if v.is_floating_point() else v for name, v in network.state_dict().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, WEIGHTS)


def _fill_points(network: FaceMesh, constants: list[tuple[str, list[np.ndarray]]]) -> None:
    """Convolutions and activations in the file's order, which is the network's; of three heads the widest."""
    layers = [layer for layer in network.points.modules() if isinstance(layer, nn.Conv2d | nn.PReLU)]
    operations = [
        (kind, values)
        for kind, values in constants
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "PRELU") and not (kind == "CONV_2D" and len(values[0]) == 1)
    ]
    for layer, (kind, values) in zip(layers, operations, strict=True):
        if isinstance(layer, nn.PReLU):
            _set(layer.weight, values[0].reshape(-1))
            continue
        assert layer.bias is not None
        order = (3, 0, 1, 2) if kind == "DEPTHWISE_CONV_2D" else (0, 3, 1, 2)
        _set(layer.weight, values[0].transpose(order))
        _set(layer.bias, values[1])
    assert layers[-1].weight.shape[0] == 3 * POINTS


def _fill_shapes(network: FaceMesh, constants: list[tuple[str, list[np.ndarray]]]) -> None:
    shapes = network.shapes
    shapes.subset.copy_(torch.tensor([int(number) for number in SUBSET.split()]))
    linear = iter(values for kind, values in constants if kind == "CONV_2D")
    norms = iter(values[0] for kind, values in constants if kind == "MUL" and values and values[0].shape == (64,))
    for layer in shapes.modules():
        if isinstance(layer, nn.Linear):
            weight, bias = next(linear)
            _set(layer.weight, weight.reshape(layer.weight.shape))
            _set(layer.bias, bias)
        elif isinstance(layer, nn.LayerNorm):
            _set(layer.weight, next(norms))
    (extra,) = (values[0] for kind, values in constants if kind == "CONCATENATION")
    _set(shapes.extra, extra.reshape(shapes.extra.shape))


def _set(parameter: Tensor, value: np.ndarray) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(value.astype(np.float32)))


def _constants(content: bytes) -> list[tuple[str, list[np.ndarray]]]:
    """Of every operation of a TFLite graph its kind and its constants, which are halves behind a cast."""
    import tflite

    kinds = {number: name for name, number in vars(tflite.BuiltinOperator).items() if isinstance(number, int)}
    model: Any = tflite.Model.GetRootAsModel(content, 0)
    graph = model.Subgraphs(0)
    known: dict[int, np.ndarray] = {}
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        buffer = model.Buffers(tensor.Buffer())
        if buffer.DataLength() and tensor.Type() in (tflite.TensorType.FLOAT16, tflite.TensorType.FLOAT32):
            kind = np.float16 if tensor.Type() == tflite.TensorType.FLOAT16 else np.float32
            known[index] = (
                buffer.DataAsNumpy().view(kind).reshape(tensor.ShapeAsNumpy() if tensor.ShapeLength() else ())
            )

    def operations() -> Iterator[tuple[str, list[np.ndarray]]]:
        for number in range(graph.OperatorsLength()):
            operation = graph.Operators(number)
            code = model.OperatorCodes(operation.OpcodeIndex())
            kind = kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            inputs = [int(i) for i in operation.InputsAsNumpy()]
            if kind == "DEQUANTIZE" and inputs[0] in known:
                known[int(operation.OutputsAsNumpy()[0])] = known[inputs[0]]
            else:
                yield kind, [known[i] for i in inputs if i in known]

    return list(operations())


if __name__ == "__main__":
    main()
