"""ComfyUI's MODEL, CLIP, VAE and CLIP_VISION as a Backbone; the only module that touches ComfyUI's internals."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import comfy.taesd.taesd
import comfy.utils
import folder_paths
import latent_preview
import torch
from torch import Tensor

from ..diffprivacy.backbone import Denoiser, NoiseLevels
from ..diffprivacy.errors import DiffPrivacyError
from ..diffprivacy.hosts.diffusers import clip_pixels
from ..diffprivacy.hosts.tokenizer import PLACEHOLDER_TOKEN, check_placeholders, isolate_placeholders
from ..diffprivacy.recognizers import Embeddings, FaceMatcher

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
    network = private_copy(vae.first_stage_model)
    patcher = managed(network, vae.device, comfy.model_management.vae_offload_device())

    def decode(latents: Tensor) -> Tensor:
        memory = vae.memory_used_decode(latents.shape, vae.vae_dtype)
        comfy.model_management.load_models_gpu([patcher], memory_required=memory)
        unscaled = latent_format.process_out(latents.to(vae.device)).to(vae.vae_dtype)
        return vae.process_output(network.decode(unscaled).float().clone())

    return decode


def tiny_decoder(latent_format: Any) -> Callable[[Tensor], Tensor] | None:
    """The TAESD of a latent format from models/vae_approx as a differentiable decoder; None if it is not there.

    Its backward pass costs a fraction of the VAE's (METHOD: 0.43 against 7.2 UNet steps at 512 px).
    """
    name = latent_format.taesd_decoder_name
    files = [file for file in folder_paths.get_filename_list("vae_approx") if name and file.startswith(name)]
    if not files:
        return None
    with torch.inference_mode(False):
        network = comfy.taesd.taesd.TAESD(
            None, folder_paths.get_full_path_or_raise("vae_approx", files[0]), latent_format.latent_channels
        ).requires_grad_(False)
    device = comfy.model_management.get_torch_device()
    patcher = managed(network, device, comfy.model_management.vae_offload_device())

    def decode(latents: Tensor) -> Tensor:
        comfy.model_management.load_models_gpu([patcher])
        return (network.decode(latents.to(device, torch.float32)) / 2 + 0.5).clamp(0, 1)

    return decode


class ManagedRecognizer(FaceMatcher):
    """A recognizer that ComfyUI's memory management brings to the GPU when it is used."""

    def __init__(self, recognizer: FaceMatcher):
        super().__init__()
        self.recognizer = recognizer
        self.weights = recognizer.weights
        self.patcher = managed(
            recognizer, comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
        )

    def embed(self, images: Tensor, landmarks: Tensor, mirrored: bool = False) -> Embeddings:
        comfy.model_management.load_models_gpu([self.patcher])
        device = self.patcher.load_device
        embeddings = self.recognizer.embed(images.to(device), landmarks.to(device), mirrored)
        return tuple(embedding.to(images.device) for embedding in embeddings)


def private_copy(network: torch.nn.Module) -> Any:
    """A frozen copy of a network that autograd can use, even of one that was loaded in inference mode."""
    with torch.inference_mode(False):
        return copy.deepcopy(network).requires_grad_(False)


def managed(network: torch.nn.Module, device: torch.device, offload_device: torch.device) -> Any:
    """The network under ComfyUI's memory management; load it with load_models_gpu before use."""
    return comfy.model_patcher.CoreModelPatcher(network, load_device=device, offload_device=offload_device)
