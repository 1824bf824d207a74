"""Two small face recognizers of different architecture: ArcFace crops (B,3,112,112) in [-1,1] to unit vectors (B,256).

MobileFace V2 by becauseofAI (https://github.com/becauseofAI/MobileFace, MIT licence), converted from its ONNX file, and
a residual network distilled from it. The first guides the demo, the second judges it.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn import functional as F

EMBEDDING = 256


def _convolution(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after, eps=1e-3),
    ]


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
    """Pre-activated pair of 3x3 convolutions; the first may halve the size and change the width."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.PReLU(after),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.skip = nn.Conv2d(before, after, stride, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


class FaceResNet(nn.Module):
    """A narrow ArcFace ResNet: 3x3 convolutions, and a spatially weighted sum as its pooling."""

    def __init__(self, widths: tuple[int, ...] = (24, 40, 72, 112)):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.PReLU()]
        for before, after in itertools.pairwise(widths):
            layers += [_Residual(before, after, 2), _Residual(after, after, 1)]
        self.trunk = nn.Sequential(*layers)
        self.pool = nn.Conv2d(widths[-1], 2 * widths[-1], 7, groups=widths[-1])
        self.head = nn.Linear(2 * widths[-1], EMBEDDING)

    def forward(self, crops: Tensor) -> Tensor:
        return F.normalize(self.head(self.pool(self.trunk(crops)).flatten(1)).float(), dim=1)
