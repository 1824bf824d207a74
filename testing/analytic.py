"""Denoisers with a closed form, the published equations in float64, and noise schedules: what samplers are held against."""

import math
from itertools import pairwise

import numpy as np
import torch

from diffprivacy.diffusion.model import NoiseLevels

LEVELS = NoiseLevels.scaled_linear()

BETAS = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=np.float64) ** 2
ABAR = np.cumprod(1 - BETAS)
"""abar of SD 1.5, computed apart from the library."""


class Mixture:
    """Noise predictor of a Gaussian mixture, exact: eps(x, t) for x = sqrt(abar_t) z + sqrt(1 - abar_t) eps.

    Components have random means and one diagonal covariance whose standard deviations range from ``thin`` to 1.
    """

    def __init__(self, shape=(4, 8, 8), thin=0.3, components=6, seed=0):
        random = torch.Generator().manual_seed(seed)
        self.means = 0.7 * torch.randn(components, *shape, generator=random, dtype=torch.float64)
        exponent = torch.rand(shape, generator=random, dtype=torch.float64)
        self.variance = thin ** (2 * exponent)
        self.random = random
        self.evaluations = 0

    def draw(self, count):
        """Clean latents (count,C,h,w) float32."""
        which = torch.randint(len(self.means), (count,), generator=self.random)
        noise = torch.randn(count, *self.means.shape[1:], generator=self.random, dtype=torch.float64)
        return (self.means[which] + self.variance.sqrt() * noise).float()

    def eps(self, x, t):
        """The expected noise, in x's own precision."""
        self.evaluations += 1
        signal, noise = math.sqrt(ABAR[t]), math.sqrt(1 - ABAR[t])
        offset = x[:, None] - signal * self.means.to(x)
        total = (signal**2 * self.variance + noise**2).to(x)
        weights = torch.softmax(-0.5 * (offset.square() / total).sum(dim=(2, 3, 4)), dim=1)
        return noise * torch.einsum("bk,bkchw->bchw", weights, offset) / total

    def denoiser(self, prediction="eps"):
        """The same network as a backend wraps it: float32, k-diffusion convention, epsilon or v prediction."""

        def denoise(x, sigma):
            assert x.dtype == torch.float32
            assert sigma.shape == ()
            t = int(LEVELS.timestep(sigma))
            scaled = x / (1 + sigma**2).sqrt()
            eps = self.eps(scaled, t)
            if prediction == "eps":
                return x - sigma * eps
            signal, noise = math.sqrt(ABAR[t]), math.sqrt(1 - ABAR[t])
            v = (eps - noise * scaled) / signal
            return x / (1 + sigma**2) - v * sigma / (1 + sigma**2).sqrt()

        return denoise


def vp_ddim_sample(eps, x, grid, final=1.0):
    """DDIM, eta 0, float64: x at the last time step of the ascending grid down to abar = final."""
    before = [final, *ABAR[grid[:-1]]]
    for t, previous in reversed(list(zip(grid, before, strict=True))):
        noise = eps(x, t)
        z0 = (x - math.sqrt(1 - ABAR[t]) * noise) / math.sqrt(ABAR[t])
        x = math.sqrt(previous) * z0 + math.sqrt(1 - previous) * noise
    return x


def vp_ddim_invert(eps, z0, grid):
    """DDIM inversion, float64: the clean latent up the ascending grid, its first noise predicted at grid[0]."""
    noise = eps(math.sqrt(ABAR[grid[0]]) * z0, grid[0])
    x = math.sqrt(ABAR[grid[0]]) * z0 + math.sqrt(1 - ABAR[grid[0]]) * noise
    for t, following in pairwise(grid):
        noise = eps(x, t)
        clean = (x - math.sqrt(1 - ABAR[t]) * noise) / math.sqrt(ABAR[t])
        x = math.sqrt(ABAR[following]) * clean + math.sqrt(1 - ABAR[following]) * noise
    return x


def paper_grid(steps, strength):
    return [1 + 1000 // steps * i for i in range(int(strength * steps))]


def relative_error(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def rmse(a, b):
    return float((a.double() - b.double()).square().mean().sqrt())


def simple(steps):
    """ComfyUI's `simple` scheduler."""
    picks = [-(1 + int(i * 1000 / steps)) for i in range(steps)]
    return torch.cat([LEVELS.sigmas[picks], torch.zeros(1)])


def karras(steps, rho=7.0):
    """Karras et al. (2022), equation 5, and 0."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = (float(LEVELS.sigmas[i]) ** (1 / rho) for i in (0, -1))
    return torch.cat([((high + ramp * (low - high)) ** rho).float(), torch.zeros(1)])
