"""Muon: momentum whose update is orthogonalised (https://kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

POLAR = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
)
"""Coefficients of the first steps of Polar Express (arXiv 2505.16932)."""


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; a convolution counts as the matrix (out, in * kernel).

    Updates have the root mean square of AdamW's (arXiv 2502.16982), so both take the same learning rate. Matrices of one
    shape are worked on together.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                alike[parameter.shape[0], parameter[0].numel()].append(parameter)
            for (rows, columns), parameters in alike.items():
                self._move(parameters, group, 0.2 * max(rows, columns) ** 0.5)

    def _move(self, parameters: list[nn.Parameter], group: dict[str, Any], scale: float) -> None:
        momentum, weights = group["momentum"], [parameter.data for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        buffers = [self.state[p].setdefault("exp_avg", torch.zeros_like(p.data)) for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        looked_ahead = torch._foreach_lerp(gradients, buffers, momentum)
        updates = orthogonal(torch.stack([update.flatten(1) for update in looked_ahead]))
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        moves = [update.view_as(p) for update, p in zip(updates, weights, strict=True)]
        torch._foreach_add_(weights, moves, alpha=-group["lr"] * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest matrices (B,M,N) with equal singular values: POLAR, iterated on the smaller Gram matrix."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (1.01 * x.norm(dim=(1, 2), keepdim=True) + 1e-12)
    gram = x @ x.mT
    identity = torch.eye(gram.shape[-1], device=x.device).expand_as(gram)
    product = identity
    for a, b, c in POLAR:
        factor = torch.baddbmm(a * identity + b * gram, gram, gram, alpha=c)
        product = factor @ product
        gram = factor @ gram @ factor
    x = product @ x
    return x.mT if tall else x
