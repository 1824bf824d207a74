"""Energy guidance: changes the predicted clean latent so that the next Euler step lowers an energy of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DiffPrivacyError
from .model import Denoiser, Levels

Gradient = Callable[[Tensor, int], Tensor]
"""``gradient(z0, seed) -> dE/dz0``, both (B,C,h,w); what is random in the energy is drawn from the seed."""

RULES = ("paper", "normalized")
SAME = 1e-4
"""Sigmas closer than this share of each other are one noise level: samplers recompute sigmas with rounding."""
INFINITE = 1e20
"""Stands for the infinite noise level at which a flow model begins; the formulas have their limits there."""
TIME_STEPS = 1000
SPAN = 20
"""Training time steps that a scale is for: those of one step of the paper's 50."""


@dataclass(frozen=True)
class Guidance:
    """How strongly, by which rule and when an energy guides.

    rule: "paper" or "normalized", see :func:`guide_denoised`.
    scale: a number, or a function of the training time step; 0 turns the guidance off. Under the normalized rule it is
    for 20 training time steps, so that few steps guide nearly as far as many; under the paper's it is for each step.
    interval: lowest and highest training time step at which it guides, both inclusive.
    every: guide at every k-th step of the schedule only, counted from its first.
    repeats: a normalized step that covers more than 20 time steps is made in up to this many, each with a gradient of
    its own.
    """

    rule: str = "normalized"
    scale: float | Callable[[int], float] = 0.03
    interval: tuple[int, int] = (0, 999)
    every: int = 1
    repeats: int = 4

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise DiffPrivacyError(f"The guidance rule '{self.rule}' is unknown: choose {' or '.join(RULES)}.")
        if self.every < 1:
            raise DiffPrivacyError(f"Guidance at every {self.every}-th step is impossible: choose 1 or more.")

    def scale_at(self, sigma: Tensor, sigmas: Tensor, noise_levels: Levels) -> float:
        """Scale at sigma within the descending schedule sigmas (N+1,); 0 where nothing guides."""
        timestep = int(noise_levels.timestep(sigma))
        low, high = self.interval
        if not low <= timestep <= high or step_index(sigma, sigmas) % self.every:
            return 0.0
        return self.scale(timestep) if callable(self.scale) else self.scale

    def scaled(self, factor: float) -> Guidance:
        """The same guidance, stronger by a factor."""
        scale = self.scale
        return dataclasses.replace(self, scale=(lambda t: factor * scale(t)) if callable(scale) else factor * scale)

    def spans(self, sigma: Tensor, sigmas: Tensor, noise_levels: Levels) -> float:
        """Training time steps from sigma to the next guided step or the interval's end, divided by 20."""
        after = step_index(sigma, sigmas) + self.every
        following = sigmas[after] if after < len(sigmas) else sigmas.new_zeros(())
        end = max(int(noise_levels.timestep(following)) if following > 0 else -1, self.interval[0] - 1)
        return (int(noise_levels.timestep(sigma)) - end) / SPAN


def step_index(sigma: Tensor, sigmas: Tensor) -> int:
    """Index i of the step of descending sigmas with sigmas[i] >= sigma > sigmas[i+1]; -1 above the first."""
    return int((sigmas.to(sigma) >= sigma * (1 - SAME)).sum()) - 1


def step_of(sigma: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """The noise levels between which the step goes that sigma belongs to, of a descending schedule (N+1,).

    A sampler that looks once more from between two levels still makes the whole step. Above the schedule sigma itself
    begins the step, below it the step ends at 0.
    """
    i = step_index(sigma, sigmas)
    upper = sigmas[i].to(sigma) if i >= 0 else sigma
    return upper, sigmas[i + 1].to(sigma) if i + 1 < len(sigmas) else torch.zeros_like(sigma)


def guide_denoised(
    denoised: Tensor, gradient: Tensor, sigma: Tensor, sigma_prev: Tensor, rule: str, scale: float
) -> Tensor:
    """The prediction z0 (B,C,h,w) moved against the gradient dE/dz0 (B,C,h,w), for the step sigma -> sigma_prev.

    An Euler (DDIM) step with the result equals the plain step followed, in the variance-preserving form
    x / sqrt(1 + sigma^2), by

    paper: x_prev -= scale * gradient (arXiv 2309.05330);
    normalized: x_prev -= scale * gradient / rms(gradient), with the rms of each sample; a vanishing gradient moves
    nothing. This is MPGD's z0 -= rho * gradient, rho = scale / (rms sqrt(abar_prev)), which keeps the predicted noise
    (arXiv 2311.16424).

    Euler takes over the share (sigma - sigma_prev) / sigma of a change of z0, hence the divisor.
    """
    sigma = sigma.clamp(max=INFINITE)
    if rule == "normalized":
        rms = gradient.square().mean(dim=tuple(range(1, gradient.ndim)), keepdim=True).sqrt()
        gradient = torch.where(rms > 0, gradient / rms, 0)
    return denoised - scale * (1 + sigma_prev**2) ** 0.5 * sigma / (sigma - sigma_prev) * gradient


def guide(
    denoised: Tensor, gradient: Gradient, sigma: Tensor, sigmas: Tensor, guidance: Guidance, noise_levels: Levels
) -> Tensor:
    """The guided prediction at sigma within the descending schedule sigmas (N+1,); ``denoised`` itself when off.

    The gradient's seed follows from the time step: every step sees other views, and every run, with whatever backend,
    the same. Raises DiffPrivacyError when the energy's gradient is not finite.
    """
    scale = guidance.scale_at(sigma, sigmas, noise_levels)
    if scale == 0:
        return denoised
    timestep = int(noise_levels.timestep(sigma))
    upper, lower = step_of(sigma, sigmas)
    repeats = 1
    if guidance.rule == "normalized":
        spans = guidance.spans(upper, sigmas, noise_levels)
        repeats = max(1, min(guidance.repeats, round(spans)))
        scale *= spans / repeats
    finite = []
    for i in range(repeats):
        slope = gradient(denoised, timestep + TIME_STEPS * i).to(denoised)
        finite.append(slope.isfinite().all())
        denoised = guide_denoised(denoised, slope, upper, lower, guidance.rule, scale)
    if not torch.stack(finite).all():  # The one time in a guided step that a card is waited for.
        raise DiffPrivacyError(
            f"The energy's gradient holds NaN or infinity at sigma {float(sigma):.4g}: "
            "check that its recognizer and VAE run in float32 on an image with a face."
        )
    return denoised


def guided(
    denoiser: Denoiser,
    gradient: Gradient,
    sigmas: Tensor,
    guidance: Guidance,
    noise_levels: Levels,
    ancestral: bool = False,
) -> Denoiser:
    """A denoiser whose predictions descend an energy while sampling down sigmas (N+1,); exact for Euler steps.

    Where the guidance is off the gradient is not evaluated and the predictions are the denoiser's own.
    ancestral: for :func:`.sampling.sample_ancestral`, whose steps take over more of a prediction than Euler's.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        strength = guidance.scaled(euler_share(*step_of(sigma, sigmas))) if ancestral else guidance
        return guide(denoiser(x, sigma), gradient, sigma, sigmas, strength, noise_levels)

    return denoise


def euler_share(sigma: Tensor, lower: Tensor) -> float:
    """How much of a change of z0 Euler takes over in a step, divided by what an ancestral step does."""
    return float(sigma / (sigma + lower))
