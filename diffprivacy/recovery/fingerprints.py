"""Short fingerprints of weights and of pictures, to tell whether recovery has what protection had."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from torch import nn

from ..media.images import Picture, levels

SAMPLES = 64
"""Values looked at in each tensor."""


def weights_fingerprint(modules: Iterable[nn.Module]) -> str:
    """SHA-256 of a fixed sample of all weights, in half precision: the same on every device, in float32 and float16."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                sample = tensor.flatten()[:: max(1, tensor.numel() // SAMPLES)][:SAMPLES]
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
                digest.update(sample.detach().half().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def picture_fingerprint(picture: Picture) -> str:
    """SHA-256 of the pixels as a file holds them: a copy saved losslessly by another program has the same."""
    pixels = levels(picture.rgb, picture.bit_depth)
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype.str}".encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()[:32]
