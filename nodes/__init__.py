"""The pack's nodes."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from . import (
    crops,
    demo,
    faces,
    frames,
    guidance,
    latents,
    msi,
    noise,
    personas,
    pictures,
    prompts,
    recognizers,
    recovery,
    regions,
    report,
    schedule,
    video,
)
from .errors import naming_sockets


class DiffPrivacyExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        modules = (
            demo,
            faces,
            regions,
            crops,
            latents,
            frames,
            video,
            pictures,
            schedule,
            prompts,
            noise,
            recognizers,
            guidance,
            personas,
            msi,
            recovery,
            report,
        )
        return [naming_sockets(node) for module in modules for node in module.NODES]
