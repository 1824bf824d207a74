"""Steadiness over time: what is drawn in one frame of a video agrees with what is drawn in its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from .model import Denoiser

ABOVE = 0.3
"""Sigma above which neighbours are averaged; below it each frame draws its own details."""
SECONDS = 0.04
"""Reach of the average to both sides; a longer one takes more from expressions than from flicker, which
``benchmarks/video.py`` shows."""


def steadied(denoiser: Denoiser, reach: int, above: float = ABOVE) -> Denoiser:
    """A denoiser for consecutive frames of one face, x (N,C,h,w) from the same noise, whose predictions are averaged
    over time while sigma > above.

    In crops that follow the face what moves is small, so that the average takes little from expressions and most of
    the flicker; it costs nothing beside the network.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = denoiser(x, sigma)
        return moving_average(denoised, reach) if sigma > above else denoised

    return denoise


def radius(rate: float) -> int:
    """Over how many frames to both sides is averaged at ``rate`` frames per second."""
    return max(1, round(SECONDS * rate))


def moving_average(x: Tensor, reach: int) -> Tensor:
    """Triangular average of x (N, ...) over its first dimension, ``reach`` rows to both sides, fewer at the ends."""
    total = torch.zeros_like(x)
    weights = x.new_zeros(len(x), *[1] * (x.ndim - 1))
    for shift in range(-reach, reach + 1):
        here, there = slice(max(0, -shift), len(x) - max(0, shift)), slice(max(0, shift), len(x) + min(0, shift))
        weight = 1 - abs(shift) / (reach + 1)
        if here.stop > here.start:
            total[here] += weight * x[there]
            weights[here] += weight
    return total / weights
