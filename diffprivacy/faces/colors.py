"""Colours of a new face matched to the original's where they meet: mean and spread in a ring, in linear light."""

from __future__ import annotations

from torch import Tensor

from .geometry import face_in_crop, face_mask

GAMMA = 2.2
GRAIN = 0.01
"""Spread of a plain surface, in linear light."""
MOST_SPREAD = 1.25
"""By how much contrast may grow or shrink: on a plain background the spread says nothing about the face."""


def match_colors(new: Tensor, original: Tensor, landmarks: Tensor) -> Tensor:
    """A new crop (3,S,S) in [0,1] with the colours that the original crop (3,S,S) has at the mask's soft border.

    Each channel's mean and spread there become the original's, in linear light (Reinhard et al., Color Transfer between
    Images, 2001, do that in a decorrelated space). The whole crop is changed alike, so that the face fits its border.
    landmarks: the five points (5,2) in pixels of the crop.
    """
    ring = _ring(landmarks, new.shape[-1]).to(new)
    light, aim = (image.to(new).clamp(0, 1).pow(GAMMA) for image in (new, original))
    mean, spread = _mean_and_spread(light, ring)
    aim_mean, aim_spread = _mean_and_spread(aim, ring)
    gain = ((aim_spread + GRAIN) / (spread + GRAIN)).clamp(1 / MOST_SPREAD, MOST_SPREAD)
    return ((light - mean) * gain + aim_mean).clamp(0, 1).pow(1 / GAMMA)


def _mean_and_spread(image: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation (3,1,1) of each channel."""
    total = weights.sum().clamp_min(1e-6)
    mean = (image * weights).sum(dim=(1, 2), keepdim=True) / total
    variance = ((image - mean).square() * weights).sum(dim=(1, 2), keepdim=True) / total
    return mean, variance.sqrt()


def _ring(landmarks: Tensor, size: int) -> Tensor:
    """How much each pixel (S,S) of a crop belongs to the soft border of its face's mask, 1 in the border's middle."""
    face, margin = face_in_crop(landmarks, size)
    mask = face_mask(face, size, margin)
    return 4 * mask * (1 - mask)
