"""ComfyUI's MODEL, CLIP, VAE and CLIP_VISION as a Backbone; the only module that touches ComfyUI's internals."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ..diffprivacy.backbone import Denoiser, NoiseLevels
from ..diffprivacy.errors import DiffPrivacyError
from ..diffprivacy.hosts.diffusers import clip_pixels
from ..diffprivacy.hosts.tokenizer import PLACEHOLDER_TOKEN, check_placeholders, isolate_placeholders

SamplerFunction = Callable[[Denoiser, Tensor, Tensor, Callable[[dict], None]], Tensor]
"""``f(denoiser, x, sigmas, callback) -> x``, as in diffprivacy.sampling."""


def noise_levels(model: Any) -> NoiseLevels:
    """The training noise levels of a MODEL; raises DiffPrivacyError for flow models (SD3, Flux)."""
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.EPS) or not hasattr(sampling, "sigmas"):
        raise DiffPrivacyError(
            "Socket `model`: this checkpoint is a flow model (SD3, Flux or alike), which has no noise map to invert; "
            "load a Stable Diffusion 1.x, 2.x or XL checkpoint."
        )
    return NoiseLevels(sampling.sigmas.detach().clone().cpu())


def run_sampler(
    model: Any,
    positive: list,
    latent: dict,
    sigmas: Tensor,
    function: SamplerFunction,
    negative: list | None = None,
    cfg: float = 1.0,
) -> Tensor:
    """Run a library sampler where ComfyUI's own run: LoRAs, ControlNets, hooks, masks and offloading all apply.

    latent: a LATENT, started from as it is, without noise. function sees latents in the network's units.
    Returns the samples as in a LATENT, float32.
    """

    def sampler_function(denoise, x, sigmas, extra_args, callback, disable):
        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            return denoise(x, sigma * x.new_ones(len(x)), **extra_args)

        return function(denoiser, x, sigmas, callback)

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive if negative is None else negative)
    guider.set_cfg(cfg)
    samples = latent["samples"]
    return guider.sample(
        torch.zeros_like(samples),
        samples,
        comfy.samplers.KSAMPLER(sampler_function),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=0,
    )


class ComfyBackbone:
    """See :class:`diffprivacy.backbone.Backbone`; conditioning is ComfyUI's CONDITIONING."""

    def __init__(self, model: Any = None, clip: Any = None, vae: Any = None, clip_vision: Any = None):
        self.model = model
        self.clip = clip
        self.vae = vae
        self.clip_vision = clip_vision

    @property
    def noise_levels(self) -> NoiseLevels:
        return noise_levels(self.model)

    @property
    def latent_channels(self) -> int:
        return self._latent_format.latent_channels

    @property
    def downscale(self) -> int:
        return self.vae.spacial_compression_encode()

    @property
    def _latent_format(self) -> Any:
        return self.model.get_model_object("latent_format")

    def denoise(self, x: Tensor, sigma: Tensor, conditioning: list) -> Tensor:
        def once(denoiser: Denoiser, x: Tensor, sigmas: Tensor, callback: Any) -> Tensor:
            return denoiser(x, sigmas[0])

        latent = {"samples": self._latent_format.process_out(x)}
        sigmas = torch.stack([torch.as_tensor(sigma), torch.zeros(())])
        return self._latent_format.process_in(run_sampler(self.model, conditioning, latent, sigmas, once))

    def encode(self, images: Tensor) -> Tensor:
        return self._latent_format.process_in(self.vae.encode(images.movedim(1, -1)))

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(self._latent_format.process_out(latents)).movedim(-1, 1)

    def differentiable_decoder(self) -> Callable[[Tensor], Tensor]:
        return differentiable_decoder(self.vae, self._latent_format)

    def text_conditioning(self, prompt: str, pseudo_words: Tensor | None = None) -> list:
        prompt = isolate_placeholders(prompt)
        tokens = self.clip.tokenize(prompt)
        if pseudo_words is not None:
            check_placeholders(prompt, len(pseudo_words))
            widths = [
                getattr(self.clip.cond_stage_model, f"clip_{name}").transformer.get_input_embeddings().weight.shape[1]
                for name in sorted(tokens, key="lhg".index)
            ]
            for name, words in zip(sorted(tokens, key="lhg".index), pseudo_words.split(widths, dim=-1), strict=True):
                tokens[name] = _place_words(tokens[name], words)
        return self.clip.encode_from_tokens_scheduled(tokens)

    def image_features(self, images: Tensor, levels: Sequence[int]) -> list[Tensor]:
        encoder = self.clip_vision
        comfy.model_management.load_model_gpu(encoder.patcher)
        pixels = clip_pixels(images.to(encoder.load_device), encoder.image_size)
        states = encoder.model(pixel_values=pixels, intermediate_output="all")[1]
        return [states[:, level - 1].float().cpu() for level in levels]


def _place_words(batches: list[list[tuple]], words: Tensor) -> list[list[tuple]]:
    """ComfyUI's tokens with each placeholder's id replaced by the next row of words (n, D)."""
    rows = iter(words)
    return [
        [(next(rows), *rest) if token == PLACEHOLDER_TOKEN else (token, *rest) for token, *rest in batch]
        for batch in batches
    ]


def differentiable_decoder(vae: Any, latent_format: Any) -> Callable[[Tensor], Tensor]:
    """A decoder latents (network units) -> images (B,3,H,W) in [0,1] that carries gradients inside a prompt.

    ComfyUI executes prompts in inference mode, where weights loaded cannot be saved for backward: the decoder is a
    private copy made outside that mode, under ComfyUI's memory management, freed when the function is.
    """
    with torch.inference_mode(False):
        network = copy.deepcopy(vae.first_stage_model).requires_grad_(False)
    patcher = comfy.model_patcher.CoreModelPatcher(
        network, load_device=vae.device, offload_device=comfy.model_management.vae_offload_device()
    )

    def decode(latents: Tensor) -> Tensor:
        shape = latents.shape
        comfy.model_management.load_models_gpu([patcher], memory_required=vae.memory_used_decode(shape, vae.vae_dtype))
        unscaled = latent_format.process_out(latents.to(vae.device)).to(vae.vae_dtype)
        return vae.process_output(network.decode(unscaled).float().clone())

    return decode
