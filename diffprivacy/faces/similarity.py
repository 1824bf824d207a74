"""The similarity transform that carries one set of points onto another."""

from __future__ import annotations

import torch
from torch import Tensor


def similarity(source: Tensor, target: Tensor) -> Tensor:
    """Least-squares similarity (rotation, scale, shift; Umeyama, 1991) from source to target points.

    source: (B,N,2), target: (N,2) or (B,N,2), in pixels. Returns (B,3,3).
    """
    target = target.to(source).expand_as(source)
    source_mean, target_mean = source.mean(dim=1), target.mean(dim=1)
    p, q = source - source_mean[:, None], target - target_mean[:, None]
    power = p.square().sum(dim=(1, 2))
    cosine = (p * q).sum(dim=(1, 2)) / power
    sine = (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]).sum(dim=1) / power
    linear = torch.stack((cosine, -sine, sine, cosine), dim=1).view(-1, 2, 2)
    shift = target_mean[..., None] - linear @ source_mean[..., None]
    bottom = source.new_tensor([[[0.0, 0.0, 1.0]]]).expand(len(source), 1, 3)
    return torch.cat((torch.cat((linear, shift), dim=2), bottom), dim=1)
