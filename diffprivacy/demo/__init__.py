"""The embedded demo model: a small latent-diffusion model of faces at 128x128 pixels, with every part of the method."""

from .load import (
    CROP,
    IMAGE_SIZE,
    LATENT_CHANNELS,
    MARGIN,
    config,
    load_autoencoder,
    load_image_encoder,
    load_msi,
    load_recognizer,
    load_text_encoder,
    load_unet,
    recognizer_digest,
    weights,
)

__all__ = [
    "CROP",
    "IMAGE_SIZE",
    "LATENT_CHANNELS",
    "MARGIN",
    "config",
    "load_autoencoder",
    "load_image_encoder",
    "load_msi",
    "load_recognizer",
    "load_text_encoder",
    "load_unet",
    "recognizer_digest",
    "weights",
]
