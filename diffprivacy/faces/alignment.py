"""Five-point face alignment under autograd: the crops that recognizers read, as functions of the picture.

Transforms are (B,3,3) matrices on homogeneous pixel coordinates (x, y, 1), pixel centres at integers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import upload
from .geometry import ARCFACE_TEMPLATE, TEMPLATE_SIZE
from .similarity import similarity

WITHOUT_GRADIENT = ("mps",)
"""Devices whose grid_sample has no backward pass; the CPU warps for them.

It does for a card, too, whose backward pass adds in an order that varies, where PyTorch is told to be deterministic.
"""


def template(size: int) -> Tensor:
    """The five ArcFace points (5,2) in a crop of size x size pixels."""
    return (torch.from_numpy(ARCFACE_TEMPLATE) + 0.5) * (size / TEMPLATE_SIZE) - 0.5


def warp(images: Tensor, to_source: Tensor, height: int, width: int, padding: str = "zeros") -> Tensor:
    """Bilinear warp: the output's pixel p shows the image at to_source @ p.

    images: (B,C,H,W), to_source: (B,3,3), on any device, padding: "zeros" or "border" beyond the picture.
    Returns (B,C,height,width) on the images' device.
    """
    device = images.device
    if device.type in WITHOUT_GRADIENT or torch.are_deterministic_algorithms_enabled():
        images = images.cpu()
    to_source = upload(to_source, images.device)
    y, x = torch.meshgrid(
        torch.arange(height, dtype=to_source.dtype, device=to_source.device),
        torch.arange(width, dtype=to_source.dtype, device=to_source.device),
        indexing="ij",
    )
    pixels = torch.stack((x, y, torch.ones_like(x)), dim=-1).view(1, -1, 3)
    positions = (pixels @ to_source[:, :2].transpose(1, 2)).view(-1, height, width, 2)
    extent = upload(torch.tensor([images.shape[3] - 1, images.shape[2] - 1]), positions.device, positions.dtype)
    grid = (positions * 2 / extent - 1).to(images.dtype)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=True).to(device)


def align(images: Tensor, landmarks: Tensor, size: int = TEMPLATE_SIZE, points: Tensor | None = None) -> Tensor:
    """Crops of size x size pixels with the five points at ArcFace's places; gradients reach the images.

    images: (B,3,H,W), landmarks: (B,5,2) in pixels. points: (5,2), other places in the crop. Returns (B,3,size,size), black beyond the picture.
    The transforms are computed on the CPU. A picture k times larger than the crop is averaged over k x k samples a pixel: plain bilinear sampling would
    alias, and would send gradients to a fraction of the picture's pixels only.
    """
    target = template(size) if points is None else points
    to_source = torch.linalg.inv(similarity(landmarks.float().cpu(), target))  # Small, and read: no work for a GPU.
    shrink = torch.linalg.det(to_source[:, :2, :2]).sqrt()
    crops = []
    for image, matrix, samples in zip(images, to_source, shrink.round().clamp(min=1).int().tolist(), strict=True):
        subpixel = torch.eye(3) / samples
        subpixel[:2, 2] = (1 / samples - 1) / 2
        subpixel[2, 2] = 1
        fine = warp(image[None], (matrix @ subpixel)[None], size * samples, size * samples)
        crops.append(F.avg_pool2d(fine, samples))
    return torch.cat(crops)
