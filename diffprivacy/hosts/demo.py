"""The embedded demo model as a Backbone without ComfyUI."""

from __future__ import annotations

from .. import demo
from .diffusers import DiffusersBackbone
from .tokenizer import END_TOKEN


def load_demo_backbone() -> DiffusersBackbone:
    """The demo model, in float32 on the CPU; its crops have 128x128 pixels and the margin ``demo.MARGIN``.

    Raises DiffPrivacyError for a missing or damaged weight file.
    """
    return DiffusersBackbone(
        unet=demo.load_unet(),
        autoencoder=demo.load_autoencoder(),
        text_encoders=[demo.load_text_encoder()],
        pad_tokens=[END_TOKEN],
        latent_scale=1.0,
        vision_encoder=demo.load_image_encoder(),
    )
