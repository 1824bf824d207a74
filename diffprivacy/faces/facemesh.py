"""What a face does: 478 points and 52 blendshapes of MediaPipe's face landmarker, as torch modules under autograd.

The weights are those of Google's face_landmarker.task (float16, version 1, Apache-2.0; see facemesh.LICENSE), which
``training/facemesh.py`` converts. The networks: Kartynnik et al., arXiv 1907.06724, and an MLP-Mixer (Tolstikhin et al.,
arXiv 2105.01601) on 146 of the points.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .alignment import template, warp
from .geometry import TEMPLATE_SIZE
from .similarity import similarity

WEIGHTS = Path(__file__).with_name("facemesh.safetensors")
SIDE = 256
"""Pixels of the square crop that the points are read from."""
POINTS, SHAPES = 478, 52
WIDTH = 1.5
"""Side of that crop in sides of the box around the points."""
FIRST_BOX = (56.0, 64.0, 112.0)
"""Middle and side of the box around the points of an upright face in the ArcFace crop, where they are looked for first."""
EYES = ((33, 133, 159, 145, 468), (362, 263, 386, 374, 473))
"""Outer or inner corner at the left and at the right, middle of the upper and of the lower lid, and iris of each eye."""
MOUTH = (78, 308, 13, 14)
"""Left and right corner, middle of the upper and of the lower lip, on the inner side."""
EXPRESSION = (*range(1, 11), *range(19, 52))
"""Blendshapes but the neutral one and those of where the eyes look."""


class _Bottleneck(nn.Sequential):
    """Contract (and halve the resolution where ``stride`` is 2), filter each channel, expand."""

    def __init__(self, before: int, inner: int, after: int, stride: int = 1):
        super().__init__(
            nn.Conv2d(before, inner, stride, stride),
            nn.PReLU(inner),
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner),
            nn.Conv2d(inner, after, 1),
            nn.PReLU(after),
        )
        self.stride, self.wider = stride, after - before

    def forward(self, input: Tensor) -> Tensor:
        contract, act, filter_channels, expand, act_after = self
        shortcut = F.max_pool2d(input, 2) if self.stride == 2 else input
        shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.wider))
        return act_after(shortcut + expand(filter_channels(act(contract(input)))))


class PointNet(nn.Module):
    """Crops (B,3,256,256) in [0,1] to points (B,478,3): x, y in pixels of the crop, z toward the back in the same unit."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.PReLU(16))
        blocks = [_Bottleneck(16, 8, 16) for _ in range(4)]
        for before, inner, after in ((16, 16, 32), (32, 32, 64), (64, 64, 128), *[(128, 64, 128)] * 3):
            blocks.append(_Bottleneck(before, inner, after, 2))
            blocks += [_Bottleneck(after, after // 2, after) for _ in range(4)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(128, 3 * POINTS, 2)

    def forward(self, crops: Tensor) -> Tensor:
        x = self.stem(F.pad(crops, (0, 1, 0, 1)))
        return self.head(self.blocks(x)).view(-1, POINTS, 3)


class _Mixer(nn.Module):
    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.token_norm = nn.LayerNorm(width, bias=False)
        self.tokens = nn.Sequential(nn.Linear(tokens, 384), nn.ReLU(), nn.Linear(384, tokens))
        self.channel_norm = nn.LayerNorm(width, bias=False)
        self.channels = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.token_norm(x).mT).mT
        return x + self.channels(self.channel_norm(x))


class ShapeNet(nn.Module):
    """Points (B,478,2 or more) in any unit to blendshapes (B,52) in [0,1], in MediaPipe's order."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.register_buffer("subset", torch.zeros(146, dtype=torch.int64))
        self.subset: Tensor
        self.reduce = nn.Linear(146, 96)
        self.embed = nn.Linear(2, width)
        self.extra = nn.Parameter(torch.zeros(1, 1, width))
        self.mixers = nn.Sequential(*(_Mixer(97, width) for _ in range(4)))
        self.head = nn.Linear(width, SHAPES)

    def forward(self, points: Tensor) -> Tensor:
        x = points[:, self.subset, :2]
        x = x - x.mean(dim=1, keepdim=True)
        x = x / x.norm(dim=-1, keepdim=True).mean(dim=1, keepdim=True) / 2
        x = self.embed(self.reduce(x.mT).mT)
        x = self.mixers(torch.cat((self.extra.expand(len(x), -1, -1), x), dim=1))
        return torch.sigmoid(self.head(x[:, 0]))


class FaceMesh(nn.Module):
    """Points and blendshapes of faces in images, differentiable by the images."""

    def __init__(self):
        super().__init__()
        self.points, self.shapes = PointNet(), ShapeNet()

    def forward(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """Points (B,478,3) in pixels of the images (B,3,H,W) in [0,1], whose five points are landmarks (B,5,2)."""
        return self.read(images, self.places(images, landmarks))

    @torch.no_grad()
    def places(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """Where to look for the points, as matrices (B,3,3) from pixels of the crops to pixels of the images.

        They are looked for around the five points first, which tells the box around all.
        """
        to_template = similarity(landmarks.float().cpu(), template(TEMPLATE_SIZE))
        first = _places(torch.tensor(FIRST_BOX).expand(len(images), 3), to_template)
        low, high = _moved(self.read(images, first)[..., :2].cpu(), to_template).aminmax(dim=1)
        boxes = torch.cat(((low + high) / 2, (high - low).amax(dim=1, keepdim=True)), dim=1)
        return _places(boxes, to_template)

    def read(self, images: Tensor, places: Tensor) -> Tensor:
        """Points (B,478,3) in pixels of the images, from the crops at the given places."""
        found = self.points(warp(images, places, SIDE, SIDE, "border"))
        places = places.to(found)
        size = torch.linalg.det(places[:, :2, :2]).sqrt()[:, None, None]
        return torch.cat((_moved(found[..., :2], places), found[..., 2:] * size), dim=2)


def _places(boxes: Tensor, to_template: Tensor) -> Tensor:
    """Crops around boxes (B,3), middle and side in pixels of the ArcFace crop."""
    scale = SIDE / (WIDTH * boxes[:, 2])
    to_crop = torch.diag_embed(torch.stack((scale, scale, torch.ones_like(scale)), dim=1))
    to_crop[:, :2, 2] = (SIDE - 1) / 2 - boxes[:, :2] * scale[:, None]
    return torch.linalg.inv(to_crop @ to_template)


def _moved(points: Tensor, matrices: Tensor) -> Tensor:
    return points @ matrices[:, :2, :2].mT + matrices[:, None, :2, 2]


@lru_cache(maxsize=4)
def load_face_mesh(device: str = "cpu") -> FaceMesh:
    """The landmarker of this package in float32 on a device; 7 MB."""
    with torch.inference_mode(False):
        network = FaceMesh()
        network.load_state_dict(load_file(WEIGHTS))
        return network.eval().requires_grad_(False).to(device)
