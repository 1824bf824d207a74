"""Guided faces are drawn with the sharpened model; whatever is inverted or replayed is not."""

from __future__ import annotations

import dataclasses
from unittest.mock import patch

import torch

from diffprivacy.diffusion.model import NoiseLevels
from diffprivacy.diffusion.sharpening import LOWEST, acts_at, sharpening
from diffprivacy.identity.energies import Energy
from diffprivacy.presets import PRESETS
from diffprivacy.regeneration import Regeneration, latent_shape, regenerate_crops

LEVELS = NoiseLevels.scaled_linear()


def test_predictions_go_away_from_the_weaker_ones_and_keep_light_and_colour():
    generator = torch.Generator().manual_seed(0)
    fine, coarse = torch.randn(2, 2, 4, 8, 8, generator=generator)
    sharp = fine + coarse + sharpening(fine + coarse, coarse + 3)
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(moment(sharp, (2, 3)), moment(fine + coarse, (2, 3)))
    for part, more in ((fine, 1), (coarse, -1)):
        before, after = ((x * (part - part.mean((2, 3), keepdim=True))).mean() for x in (fine + coarse, sharp))
        assert more * (after - before) > 0
    assert acts_at(LEVELS.sigma(LOWEST), LEVELS)
    assert not acts_at(LEVELS.sigma(LOWEST - 1), LEVELS)


def test_only_guided_regeneration_asks_the_weaker_model(demo_model):
    model = demo_model
    assert model.weaker is not None
    ours, theirs = (dict(net.named_parameters()) for net in (model.unet, model.weaker.unet))
    assert all(theirs[name] is ours[name] for name in theirs)
    assert {name for name in ours if name not in theirs} == {name for name in ours if name.startswith("mid_block")}
    crops, landmarks = torch.rand(1, 3, 64, 64), torch.zeros(1, 5, 2)
    noise = torch.randn(1, *latent_shape(model, 64))
    preset = dataclasses.replace(PRESETS["anonymize"]["default"], steps=4)
    for energy, asked in ((None, False), (lambda *_: Energy(lambda seen, _: seen.images.sum((1, 2, 3))), True)):
        with patch.object(model.weaker, "denoise", wraps=model.weaker.denoise) as weaker:
            regenerate_crops(crops, landmarks, noise, model, Regeneration(preset, energy))
        assert weaker.called == asked
