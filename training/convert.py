"""MobileFace V2's published ONNX file as weights of ``recognizers.MobileFace``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from diffprivacy.demo.recognizers import MobileFace


def mobileface_weights(path: str | Path) -> dict[str, Tensor]:
    """State dict of MobileFace from mobileface_v2.onnx, whose nodes come in the order of the module's layers."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in ("Conv", "BatchNormalization", "Gemm")]
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm1d, nn.Linear)
    layers = [(name, layer) for name, layer in MobileFace().named_modules() if isinstance(layer, kinds)]
    parameters = ("weight", "bias", "running_mean", "running_var")
    state: dict[str, Tensor] = {}
    offset = torch.zeros(0)
    for node, (prefix, layer) in zip(nodes, layers, strict=True):
        values = dict(zip(parameters, [tensors[i] for i in node.input[1:]], strict=False))
        if isinstance(layer, nn.Conv2d):
            offset = values.pop("bias", torch.zeros(layer.out_channels))
        if isinstance(layer, nn.BatchNorm2d):  # The first convolution's bias goes into the mean behind it.
            values["running_mean"] = values["running_mean"] - offset
        state |= {f"{prefix}.{name}": value for name, value in values.items()}
    state["trunk.0.weight"] *= 127.5 / 128  # The file scales pixels by 1/128, the module is fed [-1,1].
    counters = {name: t for name, t in MobileFace().state_dict().items() if name.endswith("num_batches_tracked")}
    return state | counters
