"""Gradients of pseudo-words, made equally strong in every direction that matters.

A text encoder answers to few of the directions of its embedding space, and to those very unequally. Steps along raw
gradients, or those of Adam, which scales single coordinates, hardly move along the weaker ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MEMORY = 0.95
"""Decay of the average of the gradients' second moment."""
LEAST = 1e-3
"""Share of the strongest direction's second moment below which a direction counts as noise."""
EVERY_STEP, THEN_EVERY = 10, 5
"""For how many steps the whitening is computed anew each time, and every how many steps after that."""


class Whitening:
    """Multiplies gradients by the inverse square root of their second moment, the full-matrix form of RMSprop.

    As in full-matrix AdaGrad (Duchi et al., 2011) and Shampoo (arXiv 1802.09568), with a running mean. Each text
    encoder's part of the words is whitened on its own. ``benchmarks/msi.py`` compares runs with and without.
    widths: of the parts, whose sum is D.
    """

    def __init__(self, widths: Sequence[int], device: torch.device | str = "cpu"):
        self.widths = list(widths)
        self.moments = [torch.zeros(width, width, device=device) for width in widths]
        self.roots = [torch.eye(width, device=device) for width in widths]
        self.steps = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def __call__(self, gradients: Tensor) -> Tensor:
        """Whitened gradients (N,D) of N words' gradients (N,D), which count in the moment themselves."""
        anew = self.steps < EVERY_STEP or self.steps % THEN_EVERY == 0
        self.steps += 1
        parts = gradients.float().split(self.widths, dim=-1)
        for i, part in enumerate(parts):
            self.moments[i].lerp_(part.T @ part / len(part), 1 - MEMORY)
            if anew:
                self.roots[i] = _inverse_root(self.moments[i])
        return torch.cat([part @ root for part, root in zip(parts, self.roots, strict=True)], dim=-1).to(gradients)

    def state(self) -> dict[str, Tensor]:
        """What :meth:`restore` takes."""
        lists = {"moment": self.moments, "root": self.roots, "steps": [self.steps]}
        return {f"{name}.{i}": tensor for name, tensors in lists.items() for i, tensor in enumerate(tensors)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


def _inverse_root(moment: Tensor) -> Tensor:
    """Its inverse square root (D,D), the smallest eigenvalues raised; computed on the CPU, as MPS knows no eigenvalues."""
    values, vectors = torch.linalg.eigh(moment.cpu())
    raised = values.clamp(min=0) + LEAST * values[-1] + torch.finfo(values.dtype).tiny
    return ((vectors * raised.rsqrt()) @ vectors.T).to(moment.device)
