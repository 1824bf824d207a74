"""How close an image is to its original."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..errors import DiffPrivacyError


def psnr(picture: Tensor, original: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures (H,W,3) in [0,1]; infinite for equal ones."""
    from skimage.metrics import mean_squared_error

    error = mean_squared_error(*_pictures(picture, original))
    return float(-10 * np.log10(error)) if error else float("inf")


def ssim(picture: Tensor, original: Tensor) -> float:
    """Structural similarity of pictures (H,W,3) in [0,1] with the settings of Wang et al. (2004): 1 for equal ones."""
    from skimage.metrics import structural_similarity

    settings: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    value: Any = structural_similarity(*_pictures(picture, original), data_range=1.0, channel_axis=2, **settings)
    return float(value)


def _pictures(picture: Tensor, original: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if picture.shape != original.shape:
        raise DiffPrivacyError(
            f"Fidelity compares images of one size, got {tuple(picture.shape)} and {tuple(original.shape)}: resize one."
        )
    return picture.detach().cpu().double().numpy(), original.detach().cpu().double().numpy()
