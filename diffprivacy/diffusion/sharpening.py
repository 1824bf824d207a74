"""Sharper predictions of a network that averages: away from what it predicts for spoilt pictures.

The embedded network was trained with spoilt views, too, whose captions call them blurred or deformed. So it knows what it
is to avoid: classifier-free guidance by a negative prompt (Ho and Salimans, arXiv 2207.12598), as users of Stable Diffusion
know it. It costs one more evaluation.
"""

from __future__ import annotations

from torch import Tensor

SHARPNESS = 1.0


def sharpening(denoised: Tensor, spoilt: Tensor, weight: float = SHARPNESS) -> Tensor:
    """What is added to a prediction (B,C,h,w) so that it goes away from that of spoilt pictures."""
    return weight * (denoised - spoilt)
