"""Sampling in the k-diffusion convention x = z + sigma * eps, and the schedules of its noise levels.

Samplers and inversions share the signature ``f(denoiser, x, sigmas, callback=None)``: x (B,C,h,w) in the network's
units, sigmas (N+1,) strictly descending, the same for both directions, with or without a trailing 0. States are
float32 at least (float64 stays float64); the denoiser always receives float32. The callback gets a dict with i, x,
sigma, denoised and steps before the state moves on; what it raises ends the run.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import DiffPrivacyError
from .model import Denoiser, Levels

Callback = Callable[[dict[str, Any]], object]


def sample_euler(denoiser: Denoiser, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    """DDIM with eta 0 (arXiv 2010.02502), which is Euler's method here: x (B,C,h,w) from sigmas[0] to sigmas[-1]."""
    x, sigmas = prepare(x, sigmas)
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        denoised = predict(denoiser, x, sigma, i, sigmas, callback)
        x = x + (x - denoised) / sigma * (lower - sigma)
    return x


def sample_ancestral(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, fresh: Callable[[int], Tensor], callback: Callback | None = None
) -> Tensor:
    """Euler's method with as much new noise in each step as its variance allows: DDPM (Song et al., arXiv 2010.02502,
    eta 1), ComfyUI's `euler_ancestral`. What a weak network draws wrongly it draws anew.

    fresh: unit Gaussian noise (B,C,h,w) for each step but the last, to 0.
    """
    x, sigmas = prepare(x, sigmas)
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        denoised = predict(denoiser, x, sigma, i, sigmas, callback)
        down, up = ancestral_step(sigma, lower)
        x = x + (x - denoised) / sigma * (down - sigma)
        if up > 0:
            x = x + up * fresh(i).to(x)
    return x


def ancestral_step(sigma: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
    """The noise level that a step from sigma to lower goes down to, and that of the noise it then adds."""
    up = lower * (1 - (lower / sigma) ** 2).sqrt()
    return lower**2 / sigma, up


def noise_to(z0: Tensor, sigma: Tensor | float, noise: Tensor) -> Tensor:
    """The clean latent z0 (B,C,h,w) carried to a noise level with unit Gaussian noise of its shape."""
    return z0 + sigma * noise


def ddim_timesteps(steps: int) -> Tensor:
    """Time steps 1 + c i with c = 1000 // steps, ascending (steps,): the uniform grid of the paper's DDIM sampler.

    Raises DiffPrivacyError unless 1 <= steps <= 999.
    """
    if not 1 <= steps <= 999:
        raise DiffPrivacyError(f"The DDIM grid cannot have {steps} steps: choose 1 to 999.")
    return 1 + 1000 // steps * torch.arange(steps)


def strength_steps(steps: int, strength: float) -> int:
    """How many of ``steps`` sampling steps run at a strength in (0, 1]: the last ones.

    ComfyUI's BasicScheduler counts the other way round: give it this number as its steps and the strength as denoise.
    Raises DiffPrivacyError when the strength lies outside (0, 1] or leaves no step.
    """
    kept = int(strength * steps + 1e-6)
    if not 0 < strength <= 1 or kept < 1:
        raise DiffPrivacyError(
            f"The strength {strength} of {steps} steps leaves nothing to sample: "
            "choose a strength above 0 and up to 1, or more steps."
        )
    return kept


def strength_sigmas(sigmas: Tensor, strength: float) -> Tensor:
    """The end of a descending schedule (N+1,) that runs at a strength in (0, 1]: the last int(strength N) steps."""
    return sigmas[-1 - strength_steps(len(sigmas) - 1, strength) :]


def ddim_sigmas(noise_levels: Levels, steps: int, strength: float = 1.0, end: float = 0.0) -> Tensor:
    """Noise levels of the last int(strength * steps) steps of the DDIM grid, descending, and then ``end``.

    They equal ComfyUI's `ddim_uniform` where steps divides 1000. The paper's sampler ends at the first training
    step instead of at 0: pass ``end=float(noise_levels.sigmas[0])`` for that.
    """
    grid = noise_levels.sigmas[ddim_timesteps(steps).to(noise_levels.sigmas.device)].flip(0)
    return strength_sigmas(torch.cat([grid, grid.new_tensor([end])]), strength)


def check_latent(x: Tensor, channels: int | None = None) -> None:
    """Raises DiffPrivacyError unless x is a finite latent (B,C,h,w) or, of a video model, (B,C,1,h,w).

    channels: how many it must have, where given.
    """
    if x.ndim not in (4, 5) or not x.is_floating_point():
        raise DiffPrivacyError(
            f"The latent has the shape {tuple(x.shape)} and type {x.dtype}: give a batch of latents (B,C,h,w)."
        )
    check_frames(x)
    if channels is not None and x.shape[1] != channels:
        raise DiffPrivacyError(
            f"The latent has {x.shape[1]} channels and the model takes {channels}: encode it with the model's own VAE."
        )
    if not x.isfinite().all():
        raise DiffPrivacyError("The latent holds NaN or infinity: run the VAE that made it in float32.")


def check_frames(x: Tensor) -> None:
    """Raises DiffPrivacyError for a video model's latent (B,C,T,h,w) of more than one frame."""
    if x.ndim == 5 and x.shape[2] != 1:
        raise DiffPrivacyError(
            f"The latent is a video of {x.shape[2]} frames, not a batch of images; encode the crops with Crops to Latent."
        )


def check_sigmas(sigmas: Tensor) -> None:
    """Raises DiffPrivacyError unless sigmas (N+1,) are finite, at least two, and descend strictly to 0 or above."""
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise DiffPrivacyError(f"The sigmas have the shape {tuple(sigmas.shape)}: give a list of at least two.")
    if not sigmas.isfinite().all() or sigmas[-1] < 0:
        raise DiffPrivacyError("The sigmas hold NaN, infinity or negative values: take them from a scheduler.")
    for i, (sigma, lower) in enumerate(pairwise(sigmas.tolist())):
        if lower >= sigma:
            raise DiffPrivacyError(
                f"The sigmas do not descend: {lower:.4g} follows {sigma:.4g} at position {i + 1}; "
                "give the same descending sigmas for inversion and for sampling."
            )


def prepare(x: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """The checked state in float32 or higher, and the checked sigmas in the same on the CPU, where nobody waits for them."""
    check_latent(x)
    check_sigmas(sigmas)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x, sigmas.to("cpu", x.dtype)


def predict(
    denoiser: Denoiser, x: Tensor, sigma: Tensor, i: int, sigmas: Tensor, callback: Callback | None = None
) -> Tensor:
    """The network's prediction for the state x at sigma, in x's precision, checked and reported to the callback."""
    denoised = denoiser(x.float(), sigma.float()).to(x)
    if denoised.shape != x.shape:
        raise DiffPrivacyError(
            f"The model returned the shape {tuple(denoised.shape)} for a latent of shape {tuple(x.shape)}: "
            "the latent belongs to another model."
        )
    if not denoised.isfinite().all():
        raise DiffPrivacyError(
            f"The model returned NaN or infinity in step {i + 1} of {len(sigmas) - 1} at sigma {float(sigma):.4g}: "
            "run it in float32 or check its file."
        )
    if callback:
        callback({"i": i, "x": x, "sigma": sigma, "denoised": denoised, "steps": len(sigmas) - 1})
    return denoised
