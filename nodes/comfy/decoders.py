"""Decoders that carry gradients inside a prompt."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.taesd.taehv
import comfy.taesd.taesd
import comfy.utils
import folder_paths
import torch
from comfy.ldm.modules.diffusionmodules.model import ResnetBlock
from torch import Tensor

from .memory import Resident, checkpoint_layer, load, private_copy

BACKWARD = 1.5
"""Memory of a decoding with its backward pass, its residual blocks checkpointed, against one without."""


@dataclass(frozen=True)
class Decoder:
    """Latents (network units) (B,C,h,w), or (B,C,1,h,w) of a video model -> images (B,3,H,W) in [0,1], differentiable.

    patcher: what sampling must load beside the model. memory: bytes that a gradient through latents of a shape needs.
    downscale: pixels per latent along each side. local: what lies far away has no say in a pixel.
    """

    decode: Callable[[Tensor], Tensor]
    patcher: Resident
    memory: Callable[[Sequence[int]], float]
    downscale: int = 8
    local: bool = False

    def __call__(self, latents: Tensor) -> Tensor:
        load([self.patcher], self.memory(latents.shape))
        images = self.decode(latents)
        return images[:, :, 0] if images.ndim == 5 else images


def differentiable_decoder(vae: Any, latent_format: Any) -> Decoder:
    """A VAE's decoder that carries gradients inside a prompt.

    ComfyUI executes prompts in inference mode, where weights loaded cannot be saved for backward: the decoder is a
    private copy made outside that mode, freed when the result is. Its residual blocks are computed again in the
    backward pass, which more than halves the memory for a quarter more time.
    """
    network = private_copy(vae.first_stage_model, without=("encoder", "taesd_encoder", "quant_conv"))
    _together(network)
    with torch.inference_mode(False):
        network.to(vae.vae_dtype)  # Layers made lazily have the file's precision.
        latent_format = copy.deepcopy(latent_format)  # Its tensors may be inference tensors.
    for layer in network.modules():
        if isinstance(layer, ResnetBlock):
            checkpoint_layer(layer)

    def decode(latents: Tensor) -> Tensor:
        unscaled = latent_format.process_out(latents.to(vae.device)).to(vae.vae_dtype)
        return vae.process_output(network.decode(unscaled).float().clone())

    def memory(shape: Sequence[int]) -> float:
        return BACKWARD * vae.memory_used_decode(shape, vae.vae_dtype)

    return Decoder(decode, Resident(network, vae.device, comfy.model_management.vae_offload_device()), memory)


def tiny_decoder_files() -> list[str]:
    """What models/vae_approx holds."""
    return folder_paths.get_filename_list("vae_approx")


TINY_MEMORY = 2000
"""Bytes that TAESD's gradient in float32 needs for each pixel."""
VIDEO = "light"
"""How the names of the tiny decoders of video models begin that read latents in the network's units."""


def tiny_decoder(latent_format: Any, device: torch.device) -> Decoder | None:
    """The tiny decoder of a latent format from models/vae_approx (TAESD, TAEHV); None if it is not there.

    Its backward pass costs a fraction of the VAE's: 0.43 against 7.2 steps of SD 1.5's UNet at 512 px.
    """
    name = latent_format.taesd_decoder_name
    files = [file for file in tiny_decoder_files() if name and file.startswith(name)]
    if not files:
        return None
    path = folder_paths.get_full_path_or_raise("vae_approx", files[0])
    channels, downscale = latent_format.latent_channels, latent_format.spacial_downscale_ratio
    video = latent_format.latent_dimensions == 3
    if video and not name.startswith(VIDEO):
        return None
    with torch.inference_mode(False):
        if video:
            whole = comfy.sd.VAE(comfy.utils.load_torch_file(path), dtype=torch.float32).first_stage_model
            network = private_copy(whole, ("encoder",))
            _together(network)
        else:
            network = comfy.taesd.taesd.TAESD(None, path, channels).requires_grad_(False)

    def decode(latents: Tensor) -> Tensor:
        images = network.decode(latents.to(device, torch.float32))
        return (images if video else images / 2 + 0.5).clamp(0, 1)

    def memory(shape: Sequence[int]) -> float:
        return TINY_MEMORY * shape[0] * downscale**2 * shape[-2] * shape[-1]

    resident = Resident(network, device, comfy.model_management.vae_offload_device())
    normalizes = any(isinstance(layer, torch.nn.GroupNorm) for layer in network.modules())
    return Decoder(decode, resident, memory, downscale, local=not normalizes)


def _together(network: Any) -> None:
    """Let a TAEHV decode all frames at once: one after the other it remembers without gradients."""
    if isinstance(network, comfy.taesd.taehv.TAEHV):
        network.parallel = True
        network.show_progress_bar = False
