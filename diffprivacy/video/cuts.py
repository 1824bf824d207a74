"""Where another shot begins, which is not where light flashes or fades."""

from __future__ import annotations

from collections import deque

import torch.nn.functional as F
from torch import Tensor

JUMP = 0.1
"""Mean change of a small picture of the frame, in [0,1], from which two frames look different."""
SAME_SCENE = 0.9
"""Correlation of brightness from which they differ in light alone."""
FLASH = 0.5
"""Seconds within which what was there before is there again after a flash."""


class CutFinder:
    """Finds the cuts of a video whose frames it is given one after the other.

    jumps: numbers of the frames that look different from the one before. cuts: those that begin another shot, as far
    as is known by now.
    """

    def __init__(self) -> None:
        self.jumps: list[int] = []
        self.cuts: set[int] = set()
        self._recent: deque[tuple[float, Tensor]] = deque()
        self._doubtful: deque[tuple[float, int, Tensor]] = deque()
        self._count = 0

    def add(self, picture: Tensor, time: float) -> None:
        """picture: the next frame (H,W,3) in [0,1], shown at ``time`` in seconds."""
        small = F.adaptive_avg_pool2d(picture.movedim(-1, 0), (18, 32))
        while len(self._recent) > 1 and time - self._recent[0][0] > FLASH:
            self._recent.popleft()
        while self._doubtful and time - self._doubtful[0][0] > FLASH:
            self._doubtful.popleft()
        if self._recent and _jumps(before := self._recent[-1][1], small):
            self.jumps.append(self._count)
            if not any(_is_same(known, small) for _, known in self._recent):
                self.cuts.add(self._count)
                self._doubtful.append((time, self._count, before))
        self.cuts -= {cut for _, cut, before in self._doubtful if _is_same(before, small)}
        self._recent.append((time, small))
        self._count += 1


def _jumps(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().mean() > JUMP)


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two small pictures show one scene, in another light perhaps."""
    return not _jumps(one, other) or _correlation(one, other) >= SAME_SCENE


def _correlation(one: Tensor, other: Tensor) -> float:
    """Of brightness, over the picture; 0 where there is nothing to see."""
    a, b = (small.mean(dim=0).flatten() - small.mean() for small in (one, other))
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-3))
