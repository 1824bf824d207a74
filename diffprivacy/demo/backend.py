"""The demo model as a DiffusionModel, for use without ComfyUI."""

from __future__ import annotations

import copy
import dataclasses
from itertools import chain
from typing import TYPE_CHECKING

from ..backends.diffusers import DiffusersModel
from ..backends.tokenizer import END_TOKEN
from .load import load_autoencoder, load_image_encoder, load_text_encoder, load_unet

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def load_diffusion_model() -> DiffusersModel:
    """The embedded demo model: 128x128 pixels, 16x16x16 latents, conditioning of width 256, and what sharpens it."""
    model = DiffusersModel(
        unet=load_unet(),
        autoencoder=load_autoencoder(),
        text_encoders=[load_text_encoder()],
        pad_tokens=[END_TOKEN],
        latent_scale=1.0,
        downscale=8,
        vision_encoder=load_image_encoder(),
    )
    return dataclasses.replace(model, weaker=dataclasses.replace(model, unet=_without_middle(model.unet)))


def _without_middle(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The UNet, sharing its weights, without its middle block."""
    shared = {id(tensor): tensor for tensor in chain(unet.parameters(), unet.buffers())}
    weaker = copy.deepcopy(unet, shared)
    setattr(weaker, "mid_block", None)  # noqa: B010
    return weaker
