"""The library's samplers among ComfyUI's own."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...diffprivacy.diffusion.model import Denoiser

SamplerFunction = Callable[[Denoiser, Tensor, Tensor, Callable[[dict], None]], Tensor]
"""``f(denoiser, x, sigmas, callback) -> x``, as in diffprivacy.diffusion.sampling."""


def sampler(function: SamplerFunction) -> comfy.samplers.KSAMPLER:
    """A library sampler as a SAMPLER that any of ComfyUI's sampling nodes runs."""

    def sampler_function(
        denoise: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any, disable: bool | None
    ) -> Tensor:
        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            return denoise(x, sigma * x.new_ones(len(x)), **extra_args)

        return function(denoiser, x, sigmas, callback)

    return comfy.samplers.KSAMPLER(sampler_function)


def run_sampler(model: Any, positive: list, latent: dict, sigmas: Tensor, function: SamplerFunction) -> Tensor:
    """Run a library sampler where ComfyUI's own run: LoRAs, ControlNets, hooks, masks and offloading all apply.

    latent: a LATENT, started from as it is, without noise. function sees latents in the network's units, at CFG 1.
    Returns the samples as in a LATENT, float32.
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
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=0,
    )


def euler() -> comfy.samplers.KSAMPLER:
    """ComfyUI's own Euler sampler."""
    return comfy.samplers.sampler_object("euler")


def guide_model(
    model: Any,
    function: Callable[[dict], Tensor],
    patchers: Sequence[Any] = (),
    memory: Callable[[Sequence[int]], float] = lambda shape: 0.0,
) -> Any:
    """A copy of a MODEL whose predictions, after CFG, pass through a function; it can be interrupted at every step.

    patchers: of the networks that the function uses. They are loaded with the model, before sampling begins: loaded in
    the middle of a step they might push the model off its device. memory: bytes that the function needs for latents
    of a shape; they are free when sampling begins.
    """

    def interruptible(args: dict) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return function(args)

    def prepare(executor: Any, model: Any, shape: Sequence[int], *arguments: Any, **options: Any) -> Any:
        prepared = executor(model, shape, *arguments, **options)
        management, needed = comfy.model_management, memory(shape)
        if not management.is_device_cpu(model.load_device) and needed > management.get_free_memory(model.load_device):
            management.load_models_gpu([model, *prepared[2]], memory_required=needed)
        return prepared

    guided, key = model.clone(), uuid.uuid4().hex
    guided.set_model_sampler_post_cfg_function(interruptible)
    guided.set_additional_models(key, list(patchers))
    guided.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, key, prepare)
    return guided
