"""What to do when a device has no room for a gradient: take fewer latents at once."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from .guidance import Gradient

LOG = logging.getLogger(__name__)


def halving(gradient_of: Callable[[int], Callable[..., Tensor]], chunk: int | None = None) -> Gradient:
    """A gradient that takes half as many latents at once whenever the device runs out of memory, and says so.

    gradient_of: chunk -> ``gradient(z0, seed)``. chunk: latents taken at once at first; all by default.
    Raises torch.OutOfMemoryError when there is no room for one.
    """
    fits = chunk

    def gradient(z0: Tensor, seed: int) -> Tensor:
        nonlocal fits
        size = min(fits or len(z0), len(z0))
        while True:
            try:
                return gradient_of(size)(z0, seed)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            fits = size = size // 2
            LOG.warning("Out of memory while guiding: going on with %d image(s) at once.", size)

    return gradient
