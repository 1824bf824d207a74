"""The pack's graph blocks."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from . import demo, faces, frames, guidance, msi, pictures, recovery, report, schedule


class DiffPrivacyExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        modules = (demo, faces, frames, pictures, schedule, guidance, msi, recovery, report)
        return [node for module in modules for node in module.NODES]
