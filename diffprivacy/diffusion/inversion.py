"""From a clean latent up to the noise map that samples back to it; all take the descending sigmas of the replay.

A trailing sigma of 0 has no noise for a network to see, so the first step of :func:`invert_ddim` and
:func:`invert_belm` shows it the clean latent as if at the lowest positive sigma of the schedule.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..errors import DiffPrivacyError
from .model import Denoiser
from .sampling import Callback, predict, prepare

HALF_TOLERANCE = 1e-4
"""Where fixed-point inversion stops for networks in half precision, whose rounding is no finer."""
FAILED = 3e-2
"""Relative residual of a fixed-point step above which it has not converged."""
JUDGED_FROM = 5
"""Iterations below which an approximation was asked for, whose residual is not judged."""
FEW_STEPS = 16
"""Steps below which BELM is the surer inversion: fixed points of long steps may not be reached."""
WITHOUT_FLOAT64 = ("mps",)
"""Devices without float64."""


def invert_ddim(denoiser: Denoiser, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    """DDIM inversion (arXiv 2105.05233), Euler upward: x (B,C,h,w) from sigmas[-1] to sigmas[0], N evaluations.

    Inexact: each step uses the slope at its start, the replay the slope at its end.
    """
    x, sigmas = prepare(x, sigmas)
    for i, (sigma, higher) in enumerate(pairwise(sigmas.flip(0))):
        level = sigma if sigma > 0 else higher
        denoised = predict(denoiser, x, level, i, sigmas, callback)
        x = x + (x - denoised) / level * (higher - sigma)
    return x


def invert_fixed_point(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    callback: Callback | None = None,
    iterations: int = 20,
    tolerance: float = 1e-6,
) -> Tensor:
    """Exact inverse of :func:`sample_euler` by fixed-point iteration (AIDI, arXiv 2309.04907), x (B,C,h,w).

    Each step solves z = x + (sigma_{i+1} - sigma_i) d(z, sigma_{i+1}) from the DDIM step along the last solution's
    slope, which needs no evaluation of its own; Anderson acceleration of depth 1, per sample. A step ends when the
    residual's rms, relative to sqrt(1 + sigma^2), is at most ``tolerance`` or no longer falls (the network's
    rounding), at the latest after ``iterations`` evaluations. The step from a trailing 0 converges most slowly and
    is where a high limit pays. For networks in half precision a tolerance of HALF_TOLERANCE saves evaluations.
    Raises DiffPrivacyError where a residual stays above FAILED, as with few steps or models distilled to few, unless
    ``iterations`` asks for an approximation.
    """
    x, sigmas = prepare(x, sigmas)
    slope = torch.zeros_like(x)
    for i, (sigma, higher) in enumerate(pairwise(sigmas.flip(0))):
        step = higher - sigma
        z = x + step * slope
        image = residual = torch.zeros_like(x)
        error = torch.inf
        for k in range(iterations):
            denoised = predict(denoiser, z, higher, i, sigmas, callback if k == 0 else None)
            image_before, residual_before, error_before = image, residual, error
            image = x + (z - denoised) / higher * step
            residual = image - z
            error = float(_rms(residual).max() / (1 + higher**2) ** 0.5)
            z = image
            if error <= tolerance or error >= error_before:
                break
            if k > 0:
                change = residual - residual_before
                weight = _dot(residual, change) / _dot(change, change).clamp_min(torch.finfo(x.dtype).tiny)
                z = image - weight * (image - image_before)
        if error > max(FAILED, tolerance) and iterations >= JUDGED_FROM:
            raise DiffPrivacyError(
                f"The fixed point at sigma {float(higher):.4g} was not found (relative residual {error:.2g}): use the "
                "method belm, or more steps."
            )
        slope = (z - x) / step
        x = z
    return x


def suited_method(steps: int) -> str:
    """ "belm" for schedules of few steps, else "fixed point"."""
    return "belm" if 2 <= steps < FEW_STEPS else "fixed point"


def tolerance_for(dtype: torch.dtype) -> float:
    """Where fixed-point inversion stops for a network that computes in this precision."""
    return 1e-6 if dtype.itemsize >= 4 else HALF_TOLERANCE


def invert_belm(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, callback: Callback | None = None
) -> tuple[Tensor, Tensor]:
    """O-BELM (arXiv 2410.07273) upward: the latent x (B,C,h,w) to the states at sigmas[0] and sigmas[1], float64.

    N evaluations, the first a DDIM step; :func:`sample_belm` returns from the two states exactly. Computed in float64
    (on the CPU where x's device has none), as errors grow with the squared ratio of two steps. For the same reason it wants schedules whose
    steps shrink towards the picture, as those of all of ComfyUI's schedulers but `linear_quadratic` do: there states
    stored in float32 return within about 1e-5, elsewhere they may be far off.
    Raises DiffPrivacyError for fewer than two steps or a state that overflows.
    """
    denoiser, (x,) = _exact(denoiser, x)
    x, sigmas = prepare(x, sigmas)
    levels = _belm_levels(sigmas)
    level = levels[0] if levels[0] > 0 else levels[1]
    before = x
    x = x + (x - predict(denoiser, x, level, 0, sigmas, callback)) / level * (levels[1] - levels[0])
    for i in range(1, len(levels) - 1):
        below, above = levels[i] - levels[i - 1], levels[i + 1] - levels[i]
        ratio = (below / above) ** 2
        slope = (x - predict(denoiser, x, levels[i], i, sigmas, callback)) / levels[i]
        x, before = before / ratio + (1 - 1 / ratio) * x + above * (below + above) / below * slope, x
        if not x.float().isfinite().all():
            raise DiffPrivacyError(
                f"BELM overflowed at sigma {float(levels[i + 1]):.4g}: "
                "use sigmas with smoother steps, or the method fixed_point."
            )
    return x, before


def sample_belm(
    denoiser: Denoiser, states: tuple[Tensor, Tensor], sigmas: Tensor, callback: Callback | None = None
) -> Tensor:
    """O-BELM (arXiv 2410.07273) downward: the states (B,C,h,w) at sigmas[0] and sigmas[1] to the latent at sigmas[-1].

    N - 1 evaluations, computed in float64, returned in float32. Raises DiffPrivacyError for fewer than two steps.
    """
    device = states[0].device
    denoiser, (above_x, x) = _exact(denoiser, *states)
    above_x, sigmas = prepare(above_x, sigmas)
    x, sigmas = prepare(x, sigmas)
    levels = _belm_levels(sigmas)
    for i in range(len(levels) - 2, 0, -1):
        below, above = levels[i] - levels[i - 1], levels[i + 1] - levels[i]
        ratio = (below / above) ** 2
        slope = (x - predict(denoiser, x, levels[i], len(levels) - 2 - i, sigmas, callback)) / levels[i]
        x, above_x = ratio * above_x + (1 - ratio) * x - below * (below + above) / above * slope, x
    return x.float().to(device)


def _exact(denoiser: Denoiser, *states: Tensor) -> tuple[Denoiser, list[Tensor]]:
    """States in float64, on the CPU where their device has none, and the denoiser that still computes there."""
    device = states[0].device
    if device.type not in WITHOUT_FLOAT64:
        return denoiser, [state.double() for state in states]
    return lambda x, sigma: denoiser(x.to(device), sigma.to(device)), [state.cpu().double() for state in states]


def _belm_levels(sigmas: Tensor) -> Tensor:
    if len(sigmas) < 3:
        raise DiffPrivacyError("The sigmas hold a single step and BELM spans two: use more steps or fixed_point.")
    return sigmas.flip(0)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(dim=tuple(range(1, x.ndim))).sqrt()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=tuple(range(1, a.ndim)), keepdim=True)
