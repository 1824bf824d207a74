"""Crops as latents of any model, one for each crop."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.v0_0_2 import io

from ..diffprivacy.diffusion.inpainting import latent_mask
from ..diffprivacy.errors import DiffPrivacyError
from .faces import CATEGORY


class CropsToLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyCropsToLatent",
            display_name="Crops to Latent",
            category=CATEGORY,
            description="Encodes crops one by one, so that every model has a latent for each, and limits the sampler to the "
            "face. VAE Encode makes one video of them with Qwen-Image, Wan and other models whose VAE knows time, and all faces "
            "but the first are lost.",
            search_aliases=["vae encode", "encode crops", "noise mask", "inpaint", "qwen image", "wan"],
            inputs=[
                io.Image.Input("crops", tooltip="From Crop Faces."),
                io.Vae.Input("vae"),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="From Crop Faces: the sampler regenerates only this part of each crop, and sees the original around "
                    "it, so that the new face joins hair and neck.",
                ),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, crops, vae, mask=None) -> io.NodeOutput:
        samples = torch.cat([vae.encode(crop[None, ..., :3]) for crop in crops])
        latent: dict[str, Any] = {"samples": samples}
        if mask is not None:
            if len(mask) not in (1, len(crops)):
                raise DiffPrivacyError(
                    f"{len(mask)} masks for {len(crops)} crops; connect those of Crop Faces.", "mask"
                )
            cells = latent_mask(mask.reshape(-1, *mask.shape[-2:]), samples.shape[-2:])
            latent["noise_mask"] = cells.reshape(len(mask), *[1] * (samples.ndim - 3), *cells.shape[-2:])
        return io.NodeOutput(latent)


NODES = [CropsToLatent]
