"""Changes that leave a face the same to people."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

CROP = {"size": 168, "margin": 1.5}
"""As large as ArcFace's crop, pixel for pixel, with room around to move it."""


def grey(images: Tensor) -> Tensor:
    """(N,3,H,W) to (N,1,H,W)."""
    return images.mean(dim=1, keepdim=True)


def _moved(images: Tensor, degrees: float, x: float, y: float) -> Tensor:
    return TF.affine(images, degrees, [x, y], 1, [0, 0], TF.InterpolationMode.BILINEAR)


def _compressed(images: Tensor, quality: int) -> Tensor:
    return torch.stack([TF.jpeg(pixels, quality) for pixels in (images * 255).round().byte()]) / 255


def _halved(images: Tensor) -> Tensor:
    small = F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
    return F.interpolate(small, images.shape[-2:], mode="bicubic")


def ellipse(images: Tensor) -> Tensor:
    """Where the face is, (H,W)."""
    y, x = torch.meshgrid(*(torch.arange(side) - (side - 1) / 2 for side in images.shape[-2:]), indexing="ij")
    return (x / 46) ** 2 + ((y - 8) / 58) ** 2 < 1


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "dimmed": lambda x: 0.3 * x,
    "dimmed by half": lambda x: 0.5 * x,
    "gamma 1/2": lambda x: x**0.5,
    "gamma 2": lambda x: x**2,
    "low contrast": lambda x: 0.5 + 0.4 * (x - 0.5),
    "high contrast": lambda x: 0.5 + 1.5 * (x - 0.5),
    "shaded": lambda x: x * torch.linspace(0.1, 1.0, x.shape[-1]),
    "cut out": lambda x: torch.where(ellipse(x), x, 1.0),
    "warm": lambda x: x * torch.tensor([1, 0.85, 0.6])[:, None, None],
    "cold": lambda x: x * torch.tensor([0.6, 0.85, 1])[:, None, None],
    "grey": lambda x: grey(x).expand_as(x),
    "JPEG 20": lambda x: _compressed(x, 20),
    "blurred": lambda x: TF.gaussian_blur(x, [11, 11], [1.5, 1.5]),
    "half size": _halved,
    "noise": lambda x: x + 0.04 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
    "shifted": lambda x: _moved(x, 0, 1.5, 1),
    "turned": lambda x: _moved(x, 3, 0, 0),
}
"""What leaves a face the same to people; images (N,3,H,W) in [0,1], in which ArcFace's crop is 112 pixels."""


def changed(images: Tensor, change: str) -> Tensor:
    """The images (N,3,H,W) in [0,1] after one of :data:`CHANGES`, in the 256 levels of a file."""
    return (CHANGES[change](images).clamp(0, 1) * 255).round() / 255
