"""Which distance of two faces agrees with people's eyes? Prints a table of candidates for the energy of that name.

    DIFFPRIVACY_DATA=... python -m benchmarks.visual_distance [--sheet sheet.png]

A proxy, not a study with people: versions of one photo that anybody calls the same face (:data:`CHANGES`) should all be
nearer than the faces of other people, and another photo of the person nearer more often than not. A recognizer would do
well by it, and cannot be taken: hiding keeps what recognizers see. LPIPS is left out, its backbone is a download.

Faces are those of lfw250 (10 people) and celebahq512 (one person a photo), by YuNet; other people are of the same set.
Every candidate reads the same part of the ArcFace crop. AUC is the chance that the pair of other people is the farther.
*Pattern*: as far as gradient ascent brings the same face within +-4/255 a pixel, which people hardly see, in shares of
the median distance of other people.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffprivacy.alignment import template, warp
from diffprivacy.energy import _structural_similarity, visual_distance
from diffprivacy.faces import TEMPLATE_SIZE

CROP = {"size": 168, "margin": 1.5}
"""As large as ArcFace's crop, pixel for pixel, with room around to move it."""
EDGE = 16
"""Left and right columns of the ArcFace crop that no candidate reads, as the energy does not."""
Distance = Callable[[Tensor, Tensor], Tensor]
"""Of aligned faces (N,3,112,112) in [0,1], in pairs: (N,)."""


def _grey(images: Tensor) -> Tensor:
    return images.mean(dim=1, keepdim=True)


def _blurred(images: Tensor, sigma: float, radius: int = 5) -> Tensor:
    offsets = torch.arange(-radius, radius + 1.0)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).repeat(images.shape[1], 1, 1)
    for shape in ((-1, 1, 2 * radius + 1, 1), (-1, 1, 1, 2 * radius + 1)):
        padding = (radius, radius, 0, 0) if shape[-1] > 1 else (0, 0, radius, radius)
        padded = F.pad(images, padding, mode="reflect")
        images = F.conv2d(padded, kernel.reshape(shape), groups=images.shape[1])
    return images


def _moved(images: Tensor, degrees: float, shift: tuple[float, float]) -> Tensor:
    centre = torch.tensor([(images.shape[-1] - 1) / 2] * 2)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = torch.eye(3)
    matrix[:2, :2] = torch.tensor([[cosine, -sine], [sine, cosine]])
    matrix[:2, 2] = centre + torch.tensor(shift) - matrix[:2, :2] @ centre
    return warp(images, matrix.expand(len(images), -1, -1), *images.shape[-2:], padding="border")


def _jpeg(images: Tensor, quality: int) -> Tensor:
    from PIL import Image

    results = []
    for image in (images * 255).round().byte().movedim(1, -1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        results.append(torch.from_numpy(np.array(Image.open(file))))
    return torch.stack(results).movedim(-1, 1).float() / 255


def _noisy(images: Tensor, deviation: float) -> Tensor:
    return images + deviation * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def _resized(images: Tensor, factor: float) -> Tensor:
    small = F.interpolate(images, scale_factor=factor, mode="bilinear", antialias=True)
    return F.interpolate(small, images.shape[-2:], mode="bicubic")


def _shaded(images: Tensor) -> Tensor:
    return images * torch.linspace(0.4, 1, images.shape[-1])


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "dimmed": lambda x: 0.3 * x,
    "brightened": lambda x: x**0.5,
    "darkened": lambda x: x**2,
    "flat": lambda x: 0.5 + 0.4 * (x - 0.5),
    "hard": lambda x: 0.5 + 1.5 * (x - 0.5),
    "shaded": _shaded,
    "warm": lambda x: x * torch.tensor([1, 0.85, 0.6])[:, None, None],
    "cold": lambda x: x * torch.tensor([0.6, 0.85, 1])[:, None, None],
    "grey": lambda x: _grey(x).expand_as(x),
    "JPEG 20": lambda x: _jpeg(x, 20),
    "blurred": lambda x: _blurred(x, 1.5),
    "half size": lambda x: _resized(x, 0.5),
    "noise": lambda x: _noisy(x, 0.04),
    "shifted": lambda x: _moved(x, 0, (1.5, 1.0)),
    "turned": lambda x: _moved(x, 3, (0, 0)),
}
"""What leaves a face what it is: pictures (N,3,H,W) in [0,1] to the same, an ArcFace crop being 112 of their pixels."""


def changed(images: Tensor, change: str) -> Tensor:
    """The pictures (N,3,H,W) in [0,1] after one of :data:`CHANGES`, in the 256 levels of a file."""
    return (CHANGES[change](images).clamp(0, 1) * 255).round() / 255


def _inner(images: Tensor, pool: int = 1) -> Tensor:
    return F.avg_pool2d(images, pool)[..., EDGE // pool : -EDGE // pool]


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    return (_inner(a) - _inner(b)).square().mean(dim=(1, 2, 3))


def normalised_squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Of the grey faces, each with mean 0 and deviation 1."""
    a, b = (_inner(_grey(x)) for x in (a, b))
    a, b = ((x - x.mean(dim=(1, 2, 3), keepdim=True)) / (x.std(dim=(1, 2, 3), keepdim=True) + 1e-3) for x in (a, b))
    return (a - b).square().mean(dim=(1, 2, 3))


def ssim_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - SSIM of the grey faces at full size (Wang et al., 2004)."""
    a, b = (_inner(_grey(x)) for x in (a, b))
    moments = [_blurred(x, 1.5)[..., 5:-5, 5:-5] for x in (a, b, a * a, b * b, a * b)]
    mean_a, mean_b, aa, bb, ab = moments
    light = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    structure = (2 * (ab - mean_a * mean_b) + 0.03**2) / (aa - mean_a**2 + bb - mean_b**2 + 0.03**2)
    return 1 - (light * structure).mean(dim=(1, 2, 3))


def structure_distance(size: int) -> Distance:
    """1 - the energy, of faces averaged down to another size."""

    def distance(a: Tensor, b: Tensor) -> Tensor:
        a, b = (_inner(_grey(x), TEMPLATE_SIZE // size) for x in (a, b))
        return 1 - _structural_similarity(a, b).clamp(min=0).square().mean(dim=(1, 2, 3))

    return distance


def ours(a: Tensor, b: Tensor) -> Tensor:
    points = template(TEMPLATE_SIZE).expand(len(a), -1, -1)
    return 1 - visual_distance(a, points, points)(b)


CANDIDATES: dict[str, Distance] = {
    "squared error of pixels": squared_error,
    "squared error, light and contrast normalised": normalised_squared_error,
    "1 - SSIM at 112": ssim_distance,
    "structure at 112": structure_distance(112),
    "structure at 56": structure_distance(56),
    "structure at 28: the energy": ours,
    "structure at 14": structure_distance(14),
}
