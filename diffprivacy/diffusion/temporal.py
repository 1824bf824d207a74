"""Temporal smoothing: what is generated in one frame of a video agrees with what is generated in its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .model import Denoiser

ABOVE = 0.3
"""Sigma above which neighbours are averaged; below it each frame draws its own details."""
SECONDS = 0.04
"""Reach of the average to both sides; a longer one takes more from expressions than from flicker, which
``benchmarks/video.py`` shows."""


def smoothed(denoiser: Denoiser, weights: Tensor, above: float = ABOVE) -> Denoiser:
    """A denoiser for consecutive frames of one face, x (N,C,h,w) from the same noise, whose predictions are averaged
    over time with ``weights`` (N,N) while sigma > above.

    In crops that follow the face what moves is small, so that the average takes little from expressions and most of
    the flicker; it costs nothing beside the network.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = denoiser(x, sigma)
        return averaged(denoised, weights) if sigma > above else denoised

    return denoise


def smoothing_weights(
    times: Sequence[float], interval: float, shots: Sequence[int] | None = None, seconds: float = SECONDS
) -> Tensor:
    """Weights (N,N) of a triangular average over frames shown at ``times`` (N), in seconds; every row sums to 1.

    interval: usual seconds from a frame to the next. At an even rate the average reaches over ``seconds``, and at
    least one frame, to both sides; a frame that is late has less weight, or none.
    shots: number of the shot, or of the stretch of even light, that each frame belongs to; no average goes beyond it.
    """
    reach = interval * (max(1, round(seconds / interval)) + 1)
    at = torch.tensor(times, dtype=torch.float64)
    weights = (1 - (at[:, None] - at).abs() / reach).clamp(min=0)
    if shots is not None:
        of = torch.tensor(shots)
        weights = weights * (of[:, None] == of)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def averaged(x: Tensor, weights: Tensor) -> Tensor:
    """x (N, ...) averaged over its first dimension with weights (N,N)."""
    return (weights.to(x) @ x.flatten(1)).view_as(x)
