"""Guided faces are drawn with the sharpened model; whatever is inverted or replayed is not."""

from __future__ import annotations

import dataclasses
from unittest.mock import patch

import torch

from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.diffusion.model import NoiseLevels
from diffprivacy.diffusion.sharpening import LOWEST, sharpened
from diffprivacy.identity.energies import Energy
from diffprivacy.presets import PRESETS
from diffprivacy.regeneration import Regeneration, latent_shape, regenerate_crops

LEVELS = NoiseLevels.scaled_linear()


def test_predictions_go_away_from_the_weaker_ones_and_keep_their_mean():
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    denoiser = sharpened(lambda x, _: x, lambda x, _: 0.5 * x + 3, LEVELS, 2.0)
    sharp = denoiser(x, LEVELS.sigma(LOWEST))
    torch.testing.assert_close(sharp.mean((2, 3)), x.mean((2, 3)))
    torch.testing.assert_close(sharp - sharp.mean((2, 3), keepdim=True), 2 * (x - x.mean((2, 3), keepdim=True)))
    assert torch.equal(denoiser(x, LEVELS.sigma(LOWEST - 1)), x)


def test_only_guided_regeneration_asks_the_weaker_model():
    model = load_diffusion_model()
    assert model.weaker is not None
    ours, theirs = (dict(net.named_parameters()) for net in (model.unet, model.weaker.unet))
    assert all(theirs[name] is ours[name] for name in theirs)
    assert {name for name in ours if name not in theirs} == {name for name in ours if name.startswith("mid_block")}
    crops, landmarks = torch.rand(1, 3, 64, 64), torch.zeros(1, 5, 2)
    noise = torch.randn(1, *latent_shape(model, 64))
    preset = dataclasses.replace(PRESETS["anonymize"]["default"], steps=4)
    for energy, asked in ((None, False), (lambda *_: Energy(lambda images, _: images.sum((1, 2, 3))), True)):
        with patch.object(model.weaker, "denoise", wraps=model.weaker.denoise) as weaker:
            regenerate_crops(crops, landmarks, noise, model, Regeneration(preset, energy))
        assert weaker.called == asked
