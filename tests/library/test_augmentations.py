"""Random views of faces: moved, recoloured, compressed and blurred, each as little as it says."""

import torch
import torch.nn.functional as F

from diffprivacy.faces.alignment import template
from diffprivacy.faces.similarity import similarity
from diffprivacy.identity.augmentations import blur, compress, move, recolour


def test_mirrored_and_moved_faces_keep_their_landmarks():
    spots = torch.zeros(64, 3, 96, 96)
    points = (template(80) + 8).expand(64, -1, -1)
    x, y = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="xy")
    for point in points[0]:
        spots += torch.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / 8)
    views = move(spots, similarity(points, template(112)), torch.Generator().manual_seed(0))
    overlap = (views * spots).sum(dim=(1, 2, 3)) / spots.square().sum(dim=(1, 2, 3))
    assert overlap.min() > 0.3
    assert views.std(dim=0).max() > 0.1
    ramp = (x / 96).expand(64, 3, -1, -1)
    moved = move(ramp, similarity(points, template(112)), torch.Generator().manual_seed(0))
    falling = (moved[:, 0, 48, 68] < moved[:, 0, 48, 28]).float().mean()
    assert 0.3 < falling < 0.7


def test_colours_and_compression_change_little():
    coarse = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(coarse, size=48, mode="bicubic").clamp(0, 1)
    generator = torch.Generator().manual_seed(0)
    assert 0.02 < (recolour(images, generator) - images).abs().mean() < 0.12
    noisy = images + 0.02 * torch.randn(images.shape, generator=generator)
    assert 0.002 < (compress(noisy, generator) - noisy).abs().mean() < 0.04
    assert compress(images[..., :21, :35], generator).shape == (32, 3, 21, 35)


def test_blur_takes_detail_only():
    noise = torch.randn(32, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    left = blur(noise, torch.full((32,), 3.0), torch.Generator().manual_seed(1)).std(dim=(1, 2, 3))
    assert left.max() < 1.02
    assert left.mean() < 0.4
    constant = torch.full((4, 3, 21, 35), 0.3)
    torch.testing.assert_close(blur(constant, torch.full((4,), 3.0), torch.Generator()), constant)
