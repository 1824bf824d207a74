"""Guided faces are drawn away from spoilt ones; whatever is inverted or replayed is not."""

from __future__ import annotations

import dataclasses
from unittest.mock import patch

import pytest
import torch

from diffprivacy.diffusion.sharpening import sharpening
from diffprivacy.identity.energies import Energy
from diffprivacy.presets import PRESETS
from diffprivacy.regeneration import Regeneration, latent_shape, regenerate_crops


def test_predictions_go_away_from_the_spoilt_ones():
    denoised, spoilt = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sharp = denoised + sharpening(denoised, spoilt, 0.5)
    torch.testing.assert_close(sharp - spoilt, 1.5 * (denoised - spoilt))


@pytest.mark.parametrize(
    ("energy", "asked"), [(None, False), (Energy(lambda seen, _: seen.images.sum((1, 2, 3))), True)]
)
def test_only_guided_regeneration_asks_what_is_spoilt(demo_model, energy, asked):
    crops, landmarks = torch.rand(1, 3, 64, 64), torch.zeros(1, 5, 2)
    noise = torch.randn(1, *latent_shape(demo_model, 64))
    preset = dataclasses.replace(PRESETS["anonymize"]["default"], steps=4)
    with patch.object(
        type(demo_model), "text_conditioning", autospec=True, side_effect=type(demo_model).text_conditioning
    ) as texts:
        regenerate_crops(crops, landmarks, noise, demo_model, Regeneration(preset, energy and (lambda *_: energy)))
    assert any(call.args[1] == "blurred, deformed" for call in texts.call_args_list) == asked


def test_the_words_for_spoilt_pictures_blur_a_face(demo_model):
    """The embedded network knows them: what it predicts under them has less detail."""
    noise = torch.randn(4, *latent_shape(demo_model, 128), generator=torch.Generator().manual_seed(1))
    sigma = demo_model.noise_levels.sigma(torch.tensor(600))
    plain, spoilt = (
        demo_model.decode(demo_model.denoise(noise * sigma, sigma, demo_model.text_conditioning(text)))
        for text in ("", demo_model.spoilt)
    )
    assert spoilt.diff(dim=-1).square().mean() < 0.9 * plain.diff(dim=-1).square().mean()
