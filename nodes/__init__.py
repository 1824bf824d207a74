"""The pack's graph blocks."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from . import host  # noqa: F401


class DiffPrivacyExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return []
