"""What a recognizer sees in two different people, and the aims of guidance that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.noise import NoiseKey
from .verification import Scores


def check_number(name: str, value: object, lowest: float) -> None:
    """Raises ValueError unless a value is a number from ``lowest`` to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= 1:
        raise ValueError(f"{name} is {value!r}, no number from {lowest} to 1")


@dataclass(frozen=True)
class Strangers:
    """Mean and standard deviation of a recognizer's cosines between different people.

    pairs: how many were measured; source names the photos.
    """

    mean: float
    std: float
    pairs: int
    source: str

    def __post_init__(self) -> None:
        check_number("mean", self.mean, -1)
        check_number("std", self.std, 0)

    @classmethod
    def of(cls, different: Sequence[float] | Scores, source: str) -> Strangers:
        """Measured on the cosines of pairs of two people."""
        return cls(float(np.mean(different)), float(np.std(different)), len(different), source)

    def at(self, deviations: float) -> float:
        """The cosine so many standard deviations above the mean: 0 is a stranger, 3 is where acceptance begins."""
        return self.mean + deviations * self.std


ASSUMED = Strangers(0.02, 0.1, 0, "assumed: nothing is kept beside the recognizer")
"""About what ArcFace models measure on LFW."""


AWAY = 0.3
"""Standard deviations above strangers around which aims are drawn: guidance goes as much too far. At 0 a search for the farthest
face finds more people than chance does."""
SPREAD = 0.55
"""Of the aims, in standard deviations of strangers: what the end of sampling adds makes the rest."""
DECOY = 3.0
"""Standard deviations above strangers up to which anonymized faces are pulled toward their decoys."""
DECOY_WEIGHT = 0.5


def drawn_aims(strangers: Sequence[Strangers], noise: Tensor, deviations: float = 0.0) -> tuple[Tensor, ...]:
    """A stranger's cosine for each network and each row of the private noise (B,...): tensors (B,).

    They are spread so that the faces come to lie as strangers do, shifted by ``deviations`` standard deviations: were
    all brought to one cosine, whoever ranks a gallery by nearness to it would find the person.
    """
    normals = torch.stack([NoiseKey.of(row).normal((len(strangers),), "aims") for row in noise])
    return tuple(
        kind.mean + kind.std * (deviations + SPREAD * column) for kind, column in zip(strangers, normals.T, strict=True)
    )


def drawn_decoys(reference: Sequence[Tensor], noise: Tensor) -> tuple[Tensor, ...]:
    """A stranger for each row of the private noise (B,...), in each network's embedding: random unit vectors (B,D).

    reference: embeddings (F,D) of each network, for their length D. In so many dimensions a random direction is nearly
    at a right angle to everybody.
    """
    keys = [NoiseKey.of(row) for row in noise]
    return tuple(
        F.normalize(torch.stack([key.normal((vectors.shape[1],), "decoy", k) for key in keys])).to(vectors)
        for k, vectors in enumerate(reference)
    )
