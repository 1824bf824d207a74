"""Noise that nobody can guess, for the stock sampler."""

from __future__ import annotations

import secrets

import torch
from comfy_api.v0_0_2 import io

from ..diffprivacy.diffusion.noise import NoiseKey

CATEGORY = "Diff-Privacy/noise"


class FreshNoise:
    """ComfyUI's NOISE: other numbers at every call, under a key that is forgotten with them."""

    @property
    def seed(self) -> int:
        """For samplers that add noise of their own, which torch's generators make of 32 of its bits."""
        return secrets.randbits(64)

    def generate_noise(self, input_latent: dict) -> torch.Tensor:
        """Unit Gaussian noise of a LATENT's shape and type, on the CPU; rows of one ``batch_index`` get the same."""
        key, samples = NoiseKey(), input_latent["samples"]
        if not samples.is_nested:
            return _noise(key, samples, input_latent.get("batch_index"))
        parts = [
            _noise(key.derive(i), part, input_latent.get("batch_index")) for i, part in enumerate(samples.unbind())
        ]
        return type(samples)(parts)


def _noise(key: NoiseKey, samples: torch.Tensor, batch_index: list[int] | None) -> torch.Tensor:
    rows = range(len(samples)) if batch_index is None else batch_index
    return torch.stack([key.normal(samples.shape[1:], "row", int(row)) for row in rows]).to(samples.dtype)


class PrivateNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyPrivateNoise",
            display_name="Private Noise",
            category=CATEGORY,
            description="Noise for SamplerCustomAdvanced that nobody can guess: 256 bits of the operating system's "
            "entropy, fresh at every run, saved nowhere. A seed has 32 bits that count, few enough to try them all.",
            search_aliases=["random noise", "noise without seed", "secure noise", "anonymize", "face privacy"],
            not_idempotent=True,
            outputs=[io.Noise.Output(tooltip="Every sampler it is connected to gets noise of its own.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(FreshNoise())

    @classmethod
    def fingerprint_inputs(cls) -> str:
        """Another one at every run, so that no result is taken from an earlier run; it has no part in the noise."""
        return secrets.token_hex(16)


NODES = [PrivateNoise]
