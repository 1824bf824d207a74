"""The demo model as a Backbone, for use without ComfyUI."""

from __future__ import annotations

from ..backends.diffusers import DiffusersBackbone
from ..backends.tokenizer import END_TOKEN
from .load import load_autoencoder, load_image_encoder, load_text_encoder, load_unet


def load_backbone() -> DiffusersBackbone:
    """The embedded demo model: 128x128 pixels, 16x16x16 latents, conditioning of width 256."""
    return DiffusersBackbone(
        unet=load_unet(),
        autoencoder=load_autoencoder(),
        text_encoders=[load_text_encoder()],
        pad_tokens=[END_TOKEN],
        latent_scale=1.0,
        downscale=8,
        vision_encoder=load_image_encoder(),
    )
