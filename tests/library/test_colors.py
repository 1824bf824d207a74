"""New faces take the colours of their border: no seam on a plain background, and the face keeps its contrast."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffprivacy.faces.colors import GAMMA, match_colors
from diffprivacy.faces.geometry import ARCFACE_TEMPLATE, MARGIN, Face, crop_face, crop_landmarks, paste_faces

FACE = Face((60, 50, 140, 160), (ARCFACE_TEMPLATE - 56 + 100).astype(np.float32), 1.0)
BACKGROUND = torch.tensor([0.55, 0.6, 0.65])
SIZE = 128


@pytest.fixture(scope="module")
def portrait() -> torch.Tensor:
    """A textured face (200,200,3) before a plain background."""
    picture = BACKGROUND.expand(200, 200, 3).clone()
    y, x = torch.meshgrid(torch.arange(200.0), torch.arange(200.0), indexing="ij")
    skin = 0.5 + 0.2 * torch.stack((x / 9, y / 7, x / 5), dim=-1).sin()
    inside = torch.hypot((x - 100) / 38, (y - 108) / 50) < 1
    return torch.where(inside[..., None], skin, picture)


def pasted(picture: torch.Tensor, crop: torch.Tensor) -> torch.Tensor:
    return paste_faces(picture, [crop.movedim(0, -1)], [FACE], MARGIN)


def crop_of(picture: torch.Tensor) -> torch.Tensor:
    return crop_face(picture, FACE, SIZE, MARGIN).movedim(-1, 0)


POINTS = crop_landmarks(FACE, SIZE, MARGIN)


def test_a_cast_leaves_no_seam_on_a_plain_background(portrait):
    """A face that comes back with another light and tint, and with its background."""
    original = crop_of(portrait)
    cast = (original.pow(GAMMA) * torch.tensor([1.2, 1.1, 0.9])[:, None, None] + 0.02).pow(1 / GAMMA)
    y, x = torch.meshgrid(torch.arange(200.0), torch.arange(200.0), indexing="ij")
    plain = torch.hypot((x - 100) / 44, (y - 108) / 56) > 1

    def seam(crop: torch.Tensor) -> float:
        return 255 * float((pasted(portrait, crop) - portrait)[plain].abs().max())

    assert seam(cast) > 8
    assert seam(match_colors(cast, original, POINTS)) < 1
    assert seam(match_colors(original, original, POINTS)) < 0.5


def test_a_plain_background_does_not_flatten_the_face(portrait):
    original = crop_of(portrait)
    noisy = (original + 0.1 * torch.randn(original.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    middle = (..., slice(48, 80), slice(48, 80))
    matched = match_colors(noisy, original, POINTS)
    assert (matched[middle].std(dim=(1, 2)) > 0.65 * noisy[middle].std(dim=(1, 2))).all()
    assert matched.min() >= 0 and matched.max() <= 1


def test_mean_and_spread_become_the_originals():
    original = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    changed = (0.85 * original.pow(GAMMA) + 0.05).pow(1 / GAMMA)
    torch.testing.assert_close(
        match_colors(changed, original, POINTS).pow(GAMMA), original.pow(GAMMA), atol=0.01, rtol=0
    )
