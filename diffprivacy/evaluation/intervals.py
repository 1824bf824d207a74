"""Means and shares with their intervals, from drawing the people anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
"""How often the people are drawn anew for an interval."""


@dataclass(frozen=True)
class Mean:
    """A mean over ``count`` faces or pairs, and its 95 % interval over people."""

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray, people: Sequence[str]) -> Mean:
        """The mean of values, each of one person.

        The interval is the bootstrap's (Efron and Tibshirani 1993, chapter 13): as many people as there are, drawn with
        replacement, each with all faces.
        """
        names, place = np.unique(np.asarray(people), return_inverse=True)
        sums = np.bincount(place, weights=np.asarray(values, float))
        counts = np.bincount(place)
        drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
        low, high = np.percentile((drawn @ sums) / (drawn @ counts), [2.5, 97.5])
        return cls(float(sums.sum() / counts.sum()), float(low), float(high), int(counts.sum()))


@dataclass(frozen=True)
class Share(Mean):
    """A share in [0,1] of ``count`` faces or pairs, and its 95 % interval over people."""

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray, people: Sequence[str]) -> Share:
        """The share of hits, each of one person, with the bootstrap's interval.

        Where nobody or everybody is hit, no draw differs: there the rule of three gives the bound, 3 / people.
        """
        mean = Mean.of(values, people)
        reach = min(1.0, 3 / len(set(people)))
        low, high = {0.0: (0.0, reach), 1.0: (1 - reach, 1.0)}.get(mean.value, (mean.low, mean.high))
        return cls(mean.value, low, high, mean.count)

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} %"
