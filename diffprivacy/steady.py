"""Steadiness over time: what is drawn in one frame of a video agrees with what is drawn in its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from .backbone import Denoiser

ABOVE = 0.3
"""Sigma above which neighbours are averaged; below it each frame draws its own details."""
SECONDS = 0.08
"""Reach of the average to both sides."""


def steadied(denoiser: Denoiser, radius: int, above: float = ABOVE) -> Denoiser:
    """A denoiser for consecutive frames of one face, x (N,C,h,w) from the same noise, whose predictions are averaged
    over time while sigma > above.

    In crops that follow the face what moves is small, so that the average keeps expressions and removes flicker; it
    costs nothing beside the network.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = denoiser(x, sigma)
        return moving_average(denoised, radius) if sigma > above else denoised

    return denoise


def moving_average(x: Tensor, radius: int) -> Tensor:
    """Triangular average of x (N, ...) over its first dimension, radius rows to both sides, fewer at the ends."""
    total = torch.zeros_like(x)
    weights = x.new_zeros(len(x), *[1] * (x.ndim - 1))
    for shift in range(-radius, radius + 1):
        here, there = slice(max(0, -shift), len(x) - max(0, shift)), slice(max(0, shift), len(x) + min(0, shift))
        weight = 1 - abs(shift) / (radius + 1)
        if here.stop > here.start:
            total[here] += weight * x[there]
            weights[here] += weight
    return total / weights
