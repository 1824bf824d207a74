"""Averaging over the frames of a video."""

import pytest
import torch

from diffprivacy.diffusion.temporal import moving_average, steadied


@pytest.mark.parametrize(("frames", "radius"), [(1, 2), (2, 3), (9, 1), (9, 2)])
def test_average_is_triangular_and_shorter_at_the_ends(frames, radius):
    x = torch.randn(frames, 2, 3, 3, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for i in range(frames):
        weights = torch.tensor([max(0, radius + 1 - abs(i - j)) for j in range(frames)], dtype=x.dtype)
        expected[i] = torch.einsum("n,nchw->chw", weights / weights.sum(), x)
    assert torch.allclose(moving_average(x, radius), expected)


def test_what_does_not_change_stays():
    x = torch.randn(1, 4, 2, 2).expand(7, -1, -1, -1)
    assert torch.allclose(moving_average(x, 2), x)


def test_only_above_the_sigma_are_neighbours_averaged():
    x = torch.randn(5, 4, 2, 2)
    denoiser = steadied(lambda x, sigma: x * 0.5, reach=1, above=0.3)
    assert torch.equal(denoiser(x, torch.tensor(0.3)), x * 0.5)
    assert torch.equal(denoiser(x, torch.tensor(0.31)), moving_average(x * 0.5, 1))
