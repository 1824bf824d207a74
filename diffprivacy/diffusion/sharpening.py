"""Sharper predictions of a network that averages: away from what it predicts when it does not see the whole face.

The weaker prediction comes from the same network without its middle block, where every place sees all others: autoguidance
(Karras et al., arXiv 2406.02507) by a network that lacks what skip guidance takes away (Hyung et al., arXiv 2411.18664).
It costs one more evaluation, and no weights.
"""

from __future__ import annotations

from torch import Tensor

from .model import Levels

SHARPNESS = 1.5
LOWEST = 251
"""Time step down to which it acts: below, it would shift colours (an interval as in arXiv 2404.07724)."""


def acts_at(sigma: Tensor, noise_levels: Levels) -> bool:
    """Whether predictions are sharpened at a noise level."""
    return int(noise_levels.timestep(sigma)) >= LOWEST


def sharpening(denoised: Tensor, weaker: Tensor, weight: float = SHARPNESS) -> Tensor:
    """What is added to a prediction (B,C,h,w) so that it goes away from a weaker one.

    Every channel keeps its mean and its spread over the picture, and so the picture its light and colours (rescaled as
    in Lin et al., arXiv 2305.08891).
    """
    mean = denoised.mean((-2, -1), keepdim=True)
    sharp = denoised + weight * (denoised - weaker)
    sharp = sharp - sharp.mean((-2, -1), keepdim=True)
    spread = denoised.std((-2, -1), keepdim=True) / sharp.std((-2, -1), keepdim=True).clamp(min=1e-6)
    return mean + spread * sharp - denoised
