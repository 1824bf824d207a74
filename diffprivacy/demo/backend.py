"""The demo model as a DiffusionModel, for use without ComfyUI."""

from __future__ import annotations

from ..backends.diffusers import DiffusersModel
from ..backends.tokenizer import END_TOKEN
from .load import (
    FINGERPRINTS,
    NEWEST,
    SPOILT,
    Version,
    load_autoencoder,
    load_image_encoder,
    load_text_encoder,
    load_unet,
)


def load_diffusion_model(version: Version = NEWEST) -> DiffusersModel:
    """The embedded demo model: 128x128 pixels, 16x16x16 latents, conditioning of width 256.

    version: of the UNet; the first one recovers what it protected.
    """
    return DiffusersModel(
        unet=load_unet(version),
        autoencoder=load_autoencoder(),
        text_encoders=[load_text_encoder()],
        pad_tokens=[END_TOKEN],
        latent_scale=1.0,
        downscale=8,
        vision_encoder=load_image_encoder(),
        spoilt=SPOILT,
        fingerprint=FINGERPRINTS.get(version),
    )
