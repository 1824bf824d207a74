"""The portraits: reading, held-out split, augmentation."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffprivacy.faces.geometry import ARCFACE_TEMPLATE

HELD_OUT = 200
SIZE = 128
LUMA = (0.299, 0.587, 0.114)
COLOUR_RESIDUAL = 7 / 255
"""Chroma that luminance cannot explain, above which a picture is in colour rather than a toned monochrome."""


def read_portraits(tar: str | Path) -> Tensor:
    """All pictures of a tar, (N,3,128,128) uint8 RGB, in the order of their names."""
    from PIL import Image

    pictures: dict[str, np.ndarray] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                pictures[member.name] = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
    return torch.from_numpy(np.stack([pictures[name] for name in sorted(pictures)])).permute(0, 3, 1, 2).contiguous()


def split(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Training pictures and the held-out ones; the same split whatever the seed of a run."""
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    return pictures[order[HELD_OUT:]], pictures[order[:HELD_OUT]]


def luminance(images: Tensor) -> Tensor:
    """(B,1,H,W) of (B,3,H,W)."""
    return (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def in_colour(images: Tensor) -> Tensor:
    """Which of images (B,3,H,W) in [0,1] are truly in colour, (B,) bool: sepia and blue prints are not."""
    y = luminance(images)
    chroma = (images[:, ::2] - y).flatten(2)
    y = y.flatten(1)
    design = torch.stack([torch.ones_like(y), y, y**2], dim=2)
    gram = design.mT @ design + 1e-3 * torch.eye(3, device=y.device)
    fit = design @ torch.linalg.solve(gram, design.mT @ chroma.mT)
    residual = (chroma.mT - fit).square().mean(1).sum(1).sqrt()
    return residual > COLOUR_RESIDUAL


class Augmenter:
    """Random views of portraits; grey ones are hand-tinted at random, so that colours are plausible."""

    def __init__(self, generator: torch.Generator, tint: float = 0.6, grey: float = 0.15):
        self.generator, self.device, self.tint, self.grey = generator, generator.device, tint, grey
        y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
        face = ((x / 0.42) ** 2 + ((y + 0.05) / 0.62) ** 2).sqrt()
        self.skin_mask = torch.sigmoid((1 - face) * 8).to(self.device)[None, None]
        self.ramp = torch.stack([x, y]).to(self.device)

    def uniform(self, count: int, low: float, high: float) -> Tensor:
        """(count,1,1,1) uniform numbers."""
        return torch.empty(count, 1, 1, 1, device=self.device).uniform_(low, high, generator=self.generator)

    def chance(self, count: int, probability: float) -> Tensor:
        return self.uniform(count, 0, 1) < probability

    def __call__(self, images: Tensor, colour: Tensor) -> tuple[Tensor, Tensor]:
        """Views in [0,1] of images (B,3,128,128) in [0,1] and which of them are in colour; colour (B,) bool."""
        b = len(images)
        images = torch.where(self.chance(b, 0.5), images.flip(-1), images)
        y = luminance(images)
        tinted = ~colour.view(b, 1, 1, 1) & self.chance(b, self.tint)
        drained = colour.view(b, 1, 1, 1) & self.chance(b, self.grey)
        saturated = y + (images - y) * self.uniform(b, 0.7, 1.25)
        images = torch.where(colour.view(b, 1, 1, 1) & ~drained, saturated, y.expand_as(images))
        images = torch.where(tinted, self.tinted(y), images)
        return self.moved(self.lit(images)), (tinted | (colour.view(b, 1, 1, 1) & ~drained)).flatten()

    def tinted(self, y: Tensor) -> Tensor:
        """Luminance (B,1,H,W) with the chroma of skin inside the face and another hue around it."""
        b = len(y)
        warm = self.uniform(b, 0.5, 1.0)
        red, blue = warm * self.uniform(b, 0.22, 0.34), -warm * self.uniform(b, 0.18, 0.38)
        around_red, around_blue = self.uniform(b, -0.18, 0.18), self.uniform(b, -0.18, 0.25)
        room = y * (1 - y) * 2.4
        mask = self.skin_mask
        chroma_red = room * (mask * red + (1 - mask) * around_red)
        chroma_blue = room * (mask * blue + (1 - mask) * around_blue)
        chroma_green = -(LUMA[0] * chroma_red + LUMA[2] * chroma_blue) / LUMA[1]
        return (y + torch.cat([chroma_red, chroma_green, chroma_blue], 1)).clamp(0, 1)

    def lit(self, images: Tensor) -> Tensor:
        """Random gamma, contrast, gain and a gentle gradient of light."""
        b = len(images)
        images = images.clamp(1e-4, 1) ** self.uniform(b, -0.25, 0.25).exp()
        slope_x, slope_y = self.uniform(b, -0.12, 0.12), self.uniform(b, -0.12, 0.12)
        light = self.uniform(b, 0.88, 1.12) * (1 + slope_x * self.ramp[0] + slope_y * self.ramp[1])
        mean = images.mean((1, 2, 3), keepdim=True)
        return ((mean + (images - mean) * self.uniform(b, 0.88, 1.12)) * light).clamp(0, 1)

    def moved(self, images: Tensor) -> Tensor:
        """Shifted by up to 3 px, scaled by up to 4 %, turned by up to 3 degrees."""
        b = len(images)
        scale = self.uniform(b, -0.04, 0.04).exp().flatten()
        angle = self.uniform(b, -0.05, 0.05).flatten()
        shift_x, shift_y = self.uniform(b, -0.047, 0.047).flatten(), self.uniform(b, -0.047, 0.047).flatten()
        cos, sin = scale * angle.cos(), scale * angle.sin()
        theta = torch.stack([torch.stack([cos, -sin, shift_x], 1), torch.stack([sin, cos, shift_y], 1)], 1)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False).clamp(0, 1)


def five_points(count: int) -> Tensor:
    """ArcFace's five points in portraits, (count,5,2) in pixels: they are aligned to its template with a margin."""
    return ((torch.from_numpy(ARCFACE_TEMPLATE) - 56) * SIZE / (112 * 1.45) + 64).expand(count, -1, -1)


def arcface_crop(images: Tensor) -> Tensor:
    """The 112x112 ArcFace crop (B,3,112,112) of portraits (B,3,128,128); differentiable.

    The portraits show ArcFace's five points p at (p - 56) * 128 / (112 * 1.45) + 64: its crop with a margin of 1.45.
    """
    p = torch.arange(112, device=images.device, dtype=images.dtype)
    x = (p - 56) * SIZE / (112 * 1.45) + 64
    centre = (SIZE - 1) / 2
    rows, columns = torch.meshgrid((x - centre) / centre, (x - centre) / centre, indexing="ij")
    grid = torch.stack([columns, rows], -1)[None].expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=True)
