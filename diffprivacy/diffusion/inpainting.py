"""Sampling that changes only a part of each latent, as ComfyUI's noise masks do."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .model import Denoiser
from .sampling import noise_to

SHARE = 0.25
"""How much of a latent pixel must lie in a mask for it to be sampled anew: of a soft border all but its outer part."""


def latent_mask(masks: Tensor, size: Sequence[int]) -> Tensor:
    """The noise mask (B,1,h,w) of latents of ``size`` (h, w) for masks (B,H,W) in [0,1] of their images: 1 or 0."""
    return (F.interpolate(masks[:, None].float(), tuple(size), mode="area") > SHARE).float()


def inpainting(denoiser: Denoiser, latents: Tensor, noise: Tensor, mask: Tensor) -> Denoiser:
    """A denoiser that, outside a mask (B,1,h,w), sees the latents (B,C,h,w) under their noise (B,C,h,w) and predicts the
    latents themselves.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen = mask * x + (1 - mask) * noise_to(latents, sigma, noise)
        return mask * denoiser(seen, sigma) + (1 - mask) * latents

    return denoise
