"""Sharper predictions of a network that averages: away from what it predicts when it does not see the whole face.

The weaker prediction comes from the same network without its middle block, where every place sees all others: autoguidance
(Karras et al., arXiv 2406.02507) by a network that lacks what skip guidance takes away (Hyung et al., arXiv 2411.18664).
It costs one more evaluation, and no weights.
"""

from __future__ import annotations

from torch import Tensor

from .model import Denoiser, Levels

SHARPNESS = 1.0
LOWEST = 251
"""Time step down to which it acts: below, it would shift colours (an interval as in arXiv 2404.07724)."""


def acts_at(sigma: Tensor, noise_levels: Levels) -> bool:
    """Whether predictions are sharpened at a noise level."""
    return int(noise_levels.timestep(sigma)) >= LOWEST


def sharpening(denoised: Tensor, weaker: Tensor, weight: float = SHARPNESS) -> Tensor:
    """What is added to a prediction (B,C,h,w): ``weight`` times its difference to a weaker one.

    The difference has no mean over the picture, so that light and colour stay.
    """
    difference = denoised - weaker
    return weight * (difference - difference.mean((-2, -1), keepdim=True))


def sharpened(denoiser: Denoiser, weaker: Denoiser, noise_levels: Levels, weight: float = SHARPNESS) -> Denoiser:
    """A denoiser whose predictions go away from a weaker one's."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = denoiser(x, sigma)
        if not acts_at(sigma, noise_levels):
            return denoised
        return denoised + sharpening(denoised, weaker(x, sigma), weight)

    return denoise
