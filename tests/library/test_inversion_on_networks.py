"""Exact inversion through real networks: Stable Diffusion's kind, in float32 and float16, eps and v, one and two texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffprivacy.backends.diffusers import DiffusersModel, load_diffusion_model
from diffprivacy.diffusion.inversion import invert_belm, invert_ddim, invert_fixed_point, sample_belm
from diffprivacy.diffusion.sampling import ddim_sigmas, sample_euler

STEPS = 25


def round_trip(
    diffusion_model: DiffusersModel, z0: Tensor, method: str, iterations: int = 5, steps: int = STEPS
) -> float:
    """RMSE of a latent after inversion and replay, the key kept in float32."""
    conditioning = diffusion_model.text_conditioning("a photo of a face")
    sigmas = ddim_sigmas(diffusion_model.noise_levels, steps)

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return diffusion_model.denoise(x, sigma, conditioning)

    if method == "belm":
        high, low = invert_belm(denoiser, z0, sigmas)
        back = sample_belm(denoiser, (high.float(), low.float()), sigmas)
    elif method == "ddim":
        back = sample_euler(denoiser, invert_ddim(denoiser, z0, sigmas), sigmas)
    else:
        back = sample_euler(denoiser, invert_fixed_point(denoiser, z0, sigmas, iterations=iterations), sigmas)
    return float((back - z0).square().mean().sqrt())


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> DiffusersModel:
    return load_diffusion_model(tiny_checkpoint)


def latent(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


def test_exact_on_the_tiny_checkpoint(tiny):
    z0 = latent(1, 4, 4, 8)
    errors = {
        method: round_trip(tiny, z0, method, iterations=10, steps=10) for method in ("fixed_point", "belm", "ddim")
    }
    assert errors.pop("ddim") > 1e-2
    assert max(errors.values()) < 1e-4


@pytest.mark.parametrize("method", ["fixed_point", "belm"])
def test_half_precision_costs_at_most_a_hundredfold(folders, method):
    half = load_diffusion_model(folders["sd2"]).to("cpu", torch.float16)
    assert round_trip(half, latent(1, 4, 4, 4), method, steps=10) < 1e-2


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
@pytest.mark.parametrize("method", ["fixed_point", "belm"])
def test_exact_with_v_prediction_and_with_two_text_encoders(folders, kind, method):
    assert round_trip(load_diffusion_model(folders[kind]), latent(2, 4, 8, 6), method, iterations=20) < 1e-4
