"""The two embedded face recognizers, by other people, on other photos, with another loss.

MobileFace V2 by becauseofAI (https://github.com/becauseofAI/MobileFace, MIT licence) guides: ArcFace crops
(B,3,112,112) in [-1,1] to unit vectors (B,256). dlib's network (public domain) judges, and never guides.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

EMBEDDING = 256


def _convolution(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after, eps=1e-3),
    ]


def fold_normalization(network: nn.Module) -> None:
    """Put a frozen network's batch normalization into the convolutions before it: the same function, in less time."""
    for part in network.modules():
        if isinstance(part, nn.Sequential):
            for i, (before, after) in enumerate(pairwise(list(part))):
                if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                    part[i], part[i + 1] = fuse_conv_bn_eval(before, after), nn.Identity()


class _InvertedResidual(nn.Module):
    """Expand, filter each channel, contract (Sandler et al., MobileNetV2, arXiv 1801.04381)."""

    def __init__(self, before: int, expanded: int, after: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(before, expanded, 1),
            nn.ReLU6(),
            *_convolution(expanded, expanded, 3, stride, groups=expanded),
            nn.ReLU6(),
            *_convolution(expanded, after, 1),
        )
        self.shortcut = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


class MobileFace(nn.Module):
    """MobileFace V2: inverted residuals and a fully connected embedding."""

    def __init__(self):
        super().__init__()
        stages = [(32, 96, 32), (32, 96, 32), (32, 96, 64), (64, 192, 128)]
        blocks: list[nn.Module] = []
        for before, expanded, after in stages:
            inner = 3 * after
            blocks.append(_InvertedResidual(before, expanded, after, 2))
            blocks += [_InvertedResidual(after, inner, after, 1) for _ in range(2)]
        self.trunk = nn.Sequential(*_convolution(3, 32, 3, 2), nn.ReLU6(), *blocks)
        self.head = nn.Linear(128 * 4 * 4, EMBEDDING, bias=False)
        self.norm = nn.BatchNorm1d(EMBEDDING, eps=1e-3)

    def forward(self, crops: Tensor) -> Tensor:
        return F.normalize(self.norm(self.head(self.trunk(crops).flatten(1))), dim=1)


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which averages when the size halves; the smaller of both is padded."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, padding=2 - stride)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.AvgPool2d(2) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.second(F.relu(self.first(x))), self.shortcut(x)]
        channels, height, width = (max(branch.shape[i] for branch in branches) for i in (1, 2, 3))
        padded = [F.pad(b, (0, width - b.shape[3], 0, height - b.shape[2], 0, channels - b.shape[1])) for b in branches]
        return F.relu(padded[0] + padded[1])


class DlibResNet(nn.Module):
    """dlib's face recognition network (Davis King, 2017, public domain): RGB crops (B,3,150,150) in [0,255] to (B,128).

    A residual network after He et al. (arXiv 1512.03385), trained on about three million photos with a metric loss, its
    normalisation folded into the convolutions. dlib compares its descriptors by distance; ``centre``, their mean over
    portraits of many people, is subtracted here, so that the cosine of two strangers is near zero.
    """

    POINTS = ((47.7, 47.2), (100.3, 46.9), (74.2, 77.2), (52.6, 107.9), (96.1, 107.7))
    """Where dlib's crops show ArcFace's five points: its eyes' corners, which it aligns, have these as their middles."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, 2)
        widths = [32] * 3 + [64] * 4 + [128] * 3 + [256] * 4
        strides = [1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 2, 1, 1, 2]
        self.blocks = nn.Sequential(
            *(_Residual(a, b, s) for a, b, s in zip([32, *widths], widths, strides, strict=False))
        )
        self.head = nn.Linear(256, 128, bias=False)
        self.register_buffer("mean", torch.tensor([122.782, 117.001, 104.298]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("centre", torch.zeros(128))
        self.mean: Tensor
        self.centre: Tensor

    def descriptor(self, crops: Tensor) -> Tensor:
        """What dlib computes, (B,128), not centred."""
        x = F.max_pool2d(F.relu(self.stem((crops - self.mean) / 256)), 3, 2)
        return self.head(self.blocks(x).mean((2, 3)))

    def forward(self, crops: Tensor) -> Tensor:
        return self.descriptor(crops) - self.centre
