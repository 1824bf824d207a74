"""Random differentiable views of a face, so that guidance fools no single network's view of single pixels.

Every view of row b depends on row b of the picture and on the generator only, and on the number of rows unless the
generator is :class:`SameForAll`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import upload
from ..faces.alignment import template, warp
from ..faces.geometry import TEMPLATE_SIZE
from ..faces.similarity import similarity

LUMINANCE_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""JPEG's luminance quantisation, ITU-T T.81, table K.1."""


@dataclass(frozen=True)
class SameForAll:
    """Draws for the rows of one face that all faces get: each as if it were alone."""

    generator: torch.Generator
    faces: int


Generator = torch.Generator | SameForAll


def _drawn(draw: Callable[..., Tensor], generator: Generator, count: int, *shape: int) -> Tensor:
    """(count, *shape)"""
    if isinstance(generator, torch.Generator):
        return draw((count, *shape), generator=generator)
    rows = draw((count // generator.faces, *shape), generator=generator.generator)
    return rows.repeat(generator.faces, *[1 for _ in shape])


def random_view(images: Tensor, landmarks: Tensor, generator: Generator) -> Tensor:
    """One random view of each picture: moved and mirrored, blurred, recoloured, compressed; in this order.

    images: (B,3,H,W) in [0,1], landmarks: (B,5,2) in pixels, generator: on the CPU. Returns (B,3,H,W).
    """
    to_crop = similarity(landmarks.float().cpu(), template(TEMPLATE_SIZE))
    pixels_per_crop_pixel = torch.linalg.det(to_crop[:, :2, :2]).rsqrt()
    views = move(images, to_crop, generator)
    views = blur(views, pixels_per_crop_pixel, generator)
    views = recolour(views, generator)
    return compress(views, generator)


def move(images: Tensor, to_crop: Tensor, generator: Generator) -> Tensor:
    """Jitter of the alignment: turned by about 3 degrees, scaled by 4 %, shifted by 1.5 of ArcFace's 112 pixels;
    every second face mirrored about its own axis, so that the landmarks stay where they are.

    to_crop: (B,3,3) from the picture's pixels to those of the aligned crop.
    """
    count = len(images)
    angle = _drawn(torch.randn, generator, count) * 0.05
    scale = torch.exp(_drawn(torch.randn, generator, count) * 0.04)
    mirror = 1 - 2 * _drawn(partial(torch.randint, 2), generator, count)
    shift = _drawn(torch.randn, generator, count, 2) * 1.5
    rotation = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), dim=1).view(-1, 2, 2)
    linear = rotation * scale[:, None, None] * torch.stack((mirror, torch.ones(count)), dim=1)[:, None]
    centre = (TEMPLATE_SIZE - 1) / 2
    jitter = torch.eye(3).repeat(count, 1, 1)
    jitter[:, :2, :2] = linear
    jitter[:, :2, 2] = centre - linear.sum(dim=2) * centre + shift
    to_source = torch.linalg.inv(to_crop) @ jitter @ to_crop
    return warp(images, to_source, images.shape[2], images.shape[3], padding="border")


def blur(images: Tensor, unit: Tensor, generator: Generator) -> Tensor:
    """Gaussian blur of 0 to 1 units; unit: (B,) pixels."""
    sigma = (_drawn(torch.rand, generator, len(images)) * unit).clamp(min=1e-3)
    radius = int(torch.ceil(3 * unit.max()))
    offsets = torch.arange(-radius, radius + 1)
    kernels = torch.exp(-offsets.square() / (2 * sigma[:, None].square()))
    kernels = upload(kernels / kernels.sum(dim=1, keepdim=True), images.device, images.dtype)
    kernels = kernels.repeat_interleave(3, dim=0)[:, None]
    channels = images.reshape(1, -1, *images.shape[2:])
    channels = F.conv2d(
        F.pad(channels, (radius, radius, 0, 0), mode="replicate"), kernels[:, :, None], groups=channels.shape[1]
    )
    channels = F.conv2d(
        F.pad(channels, (0, 0, radius, radius), mode="replicate"), kernels[..., None], groups=channels.shape[1]
    )
    return channels.reshape(images.shape)


def recolour(images: Tensor, generator: Generator) -> Tensor:
    """Random white balance, contrast and saturation (each by about 10 %) and brightness (by 0.05)."""

    def around(centre: float, spread: float, *shape: int) -> Tensor:
        draws = _drawn(torch.randn, generator, len(images), *shape, 1, 1)
        return upload(centre + spread * draws, images.device, images.dtype)

    images = images * around(1, 0.05, 3)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * around(1, 0.1, 1)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * around(1, 0.1, 1) + around(0, 0.05, 1)


def compress(images: Tensor, generator: Generator) -> Tensor:
    """JPEG's quantisation at a random quality of 50 to 95, on each colour, with a smooth rounding.

    The smooth rounding c - sin(2 pi c) / (2 pi) has a gradient of mean 1 that vanishes for coefficients near 0, those
    that a real file would lose.
    """
    count, _, height, width = images.shape
    quality = _drawn(torch.rand, generator, count) * 45 + 50
    table = torch.tensor(LUMINANCE_TABLE, dtype=torch.float32) * (2 - quality / 50)[:, None, None]
    table = upload(table.clamp(min=1) / 255, images.device, images.dtype)[:, None, None, None]
    k = torch.arange(8.0)
    dct = torch.cos(torch.pi / 8 * (k + 0.5) * k[:, None]) / 2
    dct[0] /= 2**0.5
    dct = upload(dct, images.device, images.dtype)

    padded = F.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = padded.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)
    coefficients = dct @ blocks @ dct.T / table
    coefficients = coefficients - torch.sin(2 * torch.pi * coefficients) / (2 * torch.pi)
    blocks = dct.T @ (coefficients * table) @ dct
    return blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)[..., :height, :width]
