"""Published recognizers as weights of ``diffprivacy.demo.recognizers``: MobileFace V2's ONNX file and dlib's network.

dlib's file, dlib_face_recognition_resnet_model_v1.dat, comes with the package face_recognition_models.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from diffprivacy.demo.recognizers import DlibResNet, MobileFace


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


def dlib_weights(path: str | Path) -> dict[str, Tensor]:
    """State dict of DlibResNet from dlib's file, without a centre: layers in the order in which they are applied.

    Every convolution's tensor holds its filters, then its biases; the normalisation behind it holds gains, then offsets.
    """
    content = Path(path).read_bytes()
    state: dict[str, Tensor] = {}
    position = 0
    for name, layer in DlibResNet().named_modules():
        if isinstance(layer, nn.Conv2d):
            values, position = _dlib_tensor(content, b"con_4", position)
            affine, position = _dlib_tensor(content, b"affine_", position)
            gain, offset = affine.chunk(2)
            filters, bias = values.split([layer.weight.numel(), layer.out_channels])
            state[f"{name}.weight"] = filters.view_as(layer.weight) * gain.view(-1, 1, 1, 1)
            state[f"{name}.bias"] = bias * gain + offset
    start = content.index(_DLIB_HEAD, position) + len(_DLIB_HEAD)
    head = torch.frombuffer(bytearray(content[start : start + 4 * 256 * 128]), dtype=torch.float32)
    state["head.weight"] = head.view(256, 128).T.contiguous()
    return state


_DLIB_HEAD = b"\x02\x02\x00\x01\x01\x80\x01\x01\x01\x01"
"""The sizes 256, 128, 1, 1 of the last layer's tensor, as dlib writes integers: a byte that counts, then the bytes."""


def _dlib_tensor(content: bytes, tag: bytes, position: int) -> tuple[Tensor, int]:
    """The first tensor behind a layer's tag, flat, and where it ends."""
    position = content.index(tag, position) + len(tag)
    count = 1
    for place in range(5):  # A version, then four sizes.
        width = content[position]
        value = int.from_bytes(content[position + 1 : position + 1 + width], "little")
        count *= value if place else 1
        position += 1 + width
    end = position + 4 * count
    return torch.frombuffer(bytearray(content[position:end]), dtype=torch.float32), end
