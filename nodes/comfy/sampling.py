"""The library's samplers among ComfyUI's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...diffprivacy.diffusion.model import Denoiser
from .border import Border

SamplerFunction = Callable[[Denoiser, Tensor, Tensor, Callable[[dict], None]], Tensor]
"""``f(denoiser, x, sigmas, callback) -> x``, as in diffprivacy.diffusion.sampling."""


def sampler(function: SamplerFunction) -> comfy.samplers.KSAMPLER:
    """A library sampler as a SAMPLER that any of ComfyUI's sampling nodes runs, in the library's convention."""

    def sampler_function(
        denoise: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any, disable: bool | None
    ) -> Tensor:
        border = Border(denoise.inner_model.inner_model.model_sampling)

        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            level = border.level(sigma)
            return denoise(x * border.signal(level), level * x.new_ones(len(x)), **extra_args)

        start, end = border.signal(sigmas[0]), border.signal(sigmas[-1])
        return function(denoiser, x / start, border.sigma(sigmas), callback) * end

    return comfy.samplers.KSAMPLER(sampler_function)


def run_sampler(
    model: Any, positive: list, latent: dict, sigmas: Tensor, function: SamplerFunction, shown: bool = True
) -> Tensor:
    """Run a library sampler where ComfyUI's own run: LoRAs, ControlNets, hooks, masks and offloading all apply.

    latent: a LATENT, started from as it is, without noise. function sees latents in the network's units, at CFG 1.
    shown: with a progress bar and previews. Returns the samples as in a LATENT, float32.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive)
    guider.set_cfg(1.0)
    samples = latent["samples"]
    return guider.sample(
        torch.zeros_like(samples),
        samples,
        sampler(function),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1) if shown else None,
        disable_pbar=not (shown and comfy.utils.PROGRESS_BAR_ENABLED),
        seed=0,
    )


def euler() -> comfy.samplers.KSAMPLER:
    """ComfyUI's own Euler sampler."""
    return comfy.samplers.sampler_object("euler")
