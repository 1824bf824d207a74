"""Where ComfyUI's noise levels become the library's, x = z + sigma eps, and back.

Stable Diffusion and Cosmos are in that convention already. A flow model has x_t = (1 - t) z + t n eps at flow time t, with
n its noise scale: x = x_t / (1 - t) and sigma = n t / (1 - t).
"""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor

from ...diffprivacy.diffusion.model import FlowLevels, Levels, NoiseLevels
from ...diffprivacy.errors import DiffPrivacyError

IN_SIGMA = (comfy.model_sampling.EPS, comfy.model_sampling.COSMOS_RFLOW)


class Border:
    """The border for a model's ``model_sampling``; raises DiffPrivacyError where there is none."""

    def __init__(self, sampling: Any):
        self.flow = isinstance(sampling, comfy.model_sampling.CONST)
        other = isinstance(sampling, comfy.model_sampling.IMG_TO_IMG_FLOW | comfy.model_sampling.ModelSamplingAV)
        if other or not (self.flow or isinstance(sampling, IN_SIGMA)) or not hasattr(sampling, "sigmas"):
            raise DiffPrivacyError(
                f"{type(sampling).__bases__[-1].__name__} is no model that makes images from Gaussian noise; "
                "load a Stable Diffusion, SDXL, SD3, Flux, Qwen-Image, Z-Image or similar checkpoint.",
                "model",
            )
        self._sampling = sampling
        self.noise_scale = float(getattr(sampling, "noise_scale", 1.0)) if self.flow else 1.0

    @classmethod
    def of(cls, model: Any) -> Border:
        """Of a MODEL."""
        return cls(model.get_model_object("model_sampling"))

    @property
    def levels(self) -> Levels:
        """The training noise levels. A flow model's shift is one factor, which half of the way tells."""
        if not self.flow:
            return NoiseLevels(self._sampling.sigmas.detach().clone().cpu())
        half = float(self._sampling.percent_to_sigma(0.5))
        return FlowLevels(self.noise_scale * half / (1 - half))

    def sigma(self, level: Tensor) -> Tensor:
        """The library's sigma of ComfyUI's; infinite at flow time 1."""
        return self.noise_scale * level / (1 - level) if self.flow else level

    def level(self, sigma: Tensor) -> Tensor:
        """ComfyUI's sigma of the library's."""
        return sigma / (self.noise_scale + sigma) if self.flow else sigma

    def signal(self, level: Tensor) -> Tensor:
        """By what ComfyUI's x at its sigma is the library's x times this."""
        return 1 - level if self.flow else torch.ones_like(level)

    def check_start(self, sigmas: Tensor) -> None:
        """Raises DiffPrivacyError for ComfyUI's sigmas that begin where nothing of a LATENT is left."""
        if self.flow and float(sigmas[0]) >= 1:
            steps = len(sigmas) - 1
            raise DiffPrivacyError(
                "They begin at flow time 1, where nothing of the latent is left and nothing can be brought back; "
                f"take {steps} steps with a denoise of at most {steps / (steps + 1):.2f}, or leave out the first sigma.",
                "sigmas",
            )
