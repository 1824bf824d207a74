"""Noise levels of flow models in the library's convention."""

from __future__ import annotations

import math

import pytest
import torch

from diffprivacy.diffusion.conditioning import LAST, EmbeddingSchedule, percent_range
from diffprivacy.diffusion.inversion import invert_belm, invert_fixed_point, sample_belm
from diffprivacy.diffusion.model import FlowLevels
from diffprivacy.diffusion.sampling import sample_euler
from diffprivacy.errors import DiffPrivacyError
from testing.analytic import Mixture

SCALES = [1.0, 3.0, 7.54]


def schedule(scale: float, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow times, from the first below 1, and the same as sigmas."""
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[1:]
    times = scale * u / (1 + (scale - 1) * u)
    return times, times / (1 - times)


@pytest.mark.parametrize("scale", SCALES)
def test_time_steps_and_sigmas_are_each_others_inverse(scale):
    levels = FlowLevels(scale)
    steps = torch.arange(len(levels))
    assert torch.equal(levels.timestep(levels.sigma(steps)), steps)
    assert levels.sigmas[0] == 0
    assert levels.sigmas[-1].isinf()
    assert int(levels.timestep(torch.tensor(math.inf))) == LAST


@pytest.mark.parametrize("steps", [4, 8, 20])
def test_a_schedules_stages_are_where_comfyui_switches(steps):
    """At the sigmas of ComfyUI's `simple`, some of which lie in the middle between two time steps."""
    levels = FlowLevels(3.0)
    times, sigmas = schedule(3.0, steps)
    u = times / (3 - 2 * times)
    stages = EmbeddingSchedule.switch(["early", "late"], at=[400])
    boundary = percent_range(401, LAST)[1]
    for fraction, sigma in zip(u[:-1], sigmas[:-1], strict=True):
        (name,) = stages.mix_at(int(levels.timestep(sigma)))
        assert (name == "early") == (1 - float(fraction) <= boundary)


@pytest.mark.parametrize("scale", SCALES)
def test_euler_in_flow_time_is_euler_here(scale):
    mixture = Mixture()
    times, sigmas = schedule(scale, 8)
    denoise = mixture.denoiser()
    x = torch.randn(2, *mixture.draw(1).shape[1:], generator=torch.Generator().manual_seed(1)).double() * sigmas[0]
    flow = x * (1 - times[0])
    for time, sigma, lower in zip(times[:-1], sigmas[:-1], times[1:], strict=True):
        clean = denoise((flow / (1 - time)).float(), sigma.float()).double()
        flow = flow + (flow - clean) / time * (lower - time)
    torch.testing.assert_close(sample_euler(denoise, x, sigmas), flow, rtol=1e-4, atol=1e-4)


class Distilled:
    """A model made for few steps: it predicts where the exact path of the mixture ends."""

    def __init__(self, mixture: Mixture):
        self.denoise = mixture.denoiser()

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        levels = torch.cat([torch.logspace(math.log10(float(sigma)), -2, 40), torch.zeros(1)])
        return sample_euler(self.denoise, x, levels) if sigma > 0.011 else self.denoise(x, sigma)


def test_a_distilled_model_is_inverted_by_belm_and_refused_by_the_fixed_point():
    mixture = Mixture()
    model, z0 = Distilled(mixture), mixture.draw(2)
    sigmas = schedule(3.0, 8)[1].float()
    back = sample_belm(model, invert_belm(model, z0, sigmas), sigmas)
    assert (back - z0).square().mean().sqrt() < 1e-4
    with pytest.raises(DiffPrivacyError, match=r"was not found .*: use the method belm, or more steps"):
        invert_fixed_point(model, z0, sigmas)
