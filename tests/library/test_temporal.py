"""Averaging over the frames of a video."""

import pytest
import torch

from diffprivacy.diffusion.temporal import averaged, smoothed, smoothing_weights


def at_an_even_rate(frames: int, reach: int, rate: float = 25) -> torch.Tensor:
    return smoothing_weights([i / rate for i in range(frames)], 1 / rate, seconds=reach / rate)


@pytest.mark.parametrize("rate", [8, 12, 24, 25, 29.97, 30, 50, 60, 120])
def test_at_an_even_rate_the_average_reaches_as_far_as_it_was_measured(rate):
    """To the nearest frame of 0.04 seconds, and to one at least."""
    weights = smoothing_weights([i / rate for i in range(41)], 1 / rate)[20]
    reach = max(1, round(0.04 * rate))
    expected = torch.tensor([max(0.0, reach + 1 - abs(i - 20)) for i in range(41)])
    assert torch.allclose(weights, expected / expected.sum(), atol=1e-6)


def test_a_frame_that_is_late_is_not_averaged_with_those_before():
    """Two slow frames, then 30 a second."""
    times = [0.0, 5.0, 10.0, *[10 + i / 30 for i in range(1, 6)]]
    weights = smoothing_weights(times, 1 / 30)
    assert torch.equal(weights[:2], torch.eye(8)[:2])
    assert torch.allclose(weights[2, 2:5], torch.tensor([2 / 3, 1 / 3, 0.0]), atol=1e-5)
    assert torch.allclose(weights[5, 3:8], torch.tensor([0, 1 / 4, 1 / 2, 1 / 4, 0]), atol=1e-5)


def test_nothing_is_averaged_over_a_change_of_light():
    weights = smoothing_weights([0.0, 0.04, 0.08, 0.12], 0.04, shots=[0, 0, 1, 1])
    assert torch.allclose(weights[1], torch.tensor([1 / 3, 2 / 3, 0, 0]))
    assert torch.allclose(weights[2], torch.tensor([0, 0, 2 / 3, 1 / 3]))


@pytest.mark.parametrize(("frames", "radius"), [(1, 2), (2, 3), (9, 1), (9, 2)])
def test_average_is_triangular_and_shorter_at_the_ends(frames, radius):
    x = torch.randn(frames, 2, 3, 3, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for i in range(frames):
        weights = torch.tensor([max(0, radius + 1 - abs(i - j)) for j in range(frames)], dtype=x.dtype)
        expected[i] = torch.einsum("n,nchw->chw", weights / weights.sum(), x)
    assert torch.allclose(averaged(x, at_an_even_rate(frames, radius)).double(), expected, atol=1e-6)


def test_what_does_not_change_stays():
    x = torch.randn(1, 4, 2, 2).expand(7, -1, -1, -1)
    assert torch.allclose(averaged(x, at_an_even_rate(7, 2)), x, atol=1e-6)


def test_only_above_the_sigma_are_neighbours_averaged():
    x = torch.randn(5, 4, 2, 2)
    denoiser = smoothed(lambda x, sigma: x * 0.5, at_an_even_rate(5, 1), above=0.3)
    assert torch.equal(denoiser(x, torch.tensor(0.3)), x * 0.5)
    assert torch.equal(denoiser(x, torch.tensor(0.31)), averaged(x * 0.5, at_an_even_rate(5, 1)))
