"""What to do when a device has no room: take fewer pictures at once."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from .guidance import Gradient

LOG = logging.getLogger(__name__)
SMALLER = "a smaller image takes less"


def halving(
    gradient_of: Callable[[int], Callable[..., Tensor]], chunk: int | None = None, remedy: str = SMALLER
) -> Gradient:
    """A gradient that takes half as many latents at once whenever the device runs out of memory, and says so.

    gradient_of: chunk -> ``gradient(z0, seed)``. chunk: latents taken at once at first; all by default.
    Raises torch.OutOfMemoryError, with the remedy, when there is no room for one.
    """
    fits = chunk

    def gradient(z0: Tensor, seed: int) -> Tensor:
        nonlocal fits
        size = min(fits or len(z0), len(z0))
        result, used = _halved(lambda size: gradient_of(size)(z0, seed), size, remedy)
        if used < size:
            fits = used
        return result

    return gradient


def in_parts(function: Callable[..., Tensor], at_once: int) -> Callable[..., Tensor]:
    """A function of a batch (B,...), and what else it takes, that is given so many rows at once, fewer where memory
    runs out.

    Raises torch.OutOfMemoryError, with the remedy, when there is no room for one row.
    """
    fits = at_once

    def whole(x: Tensor, *rest: Tensor) -> Tensor:
        nonlocal fits
        size = min(fits, len(x))
        result, used = _halved(lambda size: torch.cat([function(part, *rest) for part in x.split(size)]), size)
        if used < size:
            fits = used
        return result

    return whole


def _halved(attempt: Callable[[int], Tensor], size: int, remedy: str = SMALLER) -> tuple[Tensor, int]:
    """What an attempt gives at a size, or at the first half of it for which there is room, and that size."""
    while True:
        try:
            return attempt(size), size
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise torch.OutOfMemoryError(f"Out of memory with one image at a time: {remedy}.") from error
        size //= 2
        LOG.warning("Out of memory: going on with %d image(s) at once.", size)
