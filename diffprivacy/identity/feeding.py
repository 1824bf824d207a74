"""How a recognizer wants its crops: in which range of values and order of channels.

A graph that begins with plain arithmetic says its range. Others are tried on embedded photos of eight people (official
portraits of members of the United States Congress, in the public domain): fed right, a network sees one person in a photo, its mirror
image and a darker, shifted copy, and different people in different photos. Fed 0..255 in place of [-1, 1], or the other way
round, it sees much the same person in all of them. Recognizers hardly mind swapped channels, so that RGB holds unless
BGR is clearly better.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DiffPrivacyError

log = logging.getLogger(__name__)

Channels = Literal["RGB", "BGR"]
PHOTOS = Path(__file__).with_name("faces.webp")
RANGES = {"-1 to 1": (2.0, -1.0), "0 to 255": (255.0, 0.0), "-127.5 to 127.5": (255.0, -127.5), "0 to 1": (1.0, 0.0)}
"""Scale and offset on crops in [0,1]; the first is the usual one."""
CLEARLY = 1.3
"""How many times the separation of the usual range or order another must have to be the better one."""
ENOUGH = 4.0
"""Separation from which faces are told apart; recognizers fed right had 5 to 12, fed wrong 2 to 4, and 6 where a range was off by its middle only."""


@dataclass(frozen=True)
class Feeding:
    """A network is fed scale * x + offset, x in [0,1]. reason: why, in words."""

    scale: float
    offset: float
    channels: Channels
    reason: str


def find_feeding(
    network: nn.Module, size: int, known: tuple[float, float] | None, channels: Channels | None, name: str
) -> Feeding:
    """How a network on crops of size x size pixels is fed. known: the range's scale and offset where the graph says it.
    channels: their order where the user says it.

    Raises DiffPrivacyError, with the network's name, where it tells nobody apart, however it is fed. A user who states the
    channels knows better: then that is a warning, as it is where the other order is clearly better.
    """
    ranges = {f"{known[1]:g} to {sum(known):g}": known} if known else RANGES
    order: Channels = channels or "RGB"
    other: Channels = "BGR" if order == "RGB" else "RGB"
    tried = _tried(network, size, ranges, order)
    if channels is None and max(tried.values()) < ENOUGH:
        swapped = _tried(network, size, ranges, other)
        if max(swapped.values()) >= ENOUGH:
            order, other, tried = other, order, swapped
    words = _best(tried)
    there = _separation(network, size, *ranges[words], other)
    if channels is None and there > CLEARLY * tried[words]:
        order, other, tried, there = other, order, tried | {words: there}, tried[words]
    if tried[words] < ENOUGH:
        _refuse(name, tried[words], channels)
    elif there > CLEARLY * tried[words]:
        log.warning("%s tells people apart better when it is fed %s; choose that order for it", name, other)
    how = f"as its separation is {tried[words]:.1f}, {other} {there:.1f}"
    others = "".join(f", {each} {value:.1f}" for each, value in tried.items() if each != words)
    source = "the graph says" if known else "by experiment"
    return Feeding(*ranges[words], order, f"{words}, {order}: {source}, {how}{others}")


def _tried(
    network: nn.Module, size: int, ranges: dict[str, tuple[float, float]], channels: Channels
) -> dict[str, float]:
    return {words: _separation(network, size, *pair, channels) for words, pair in ranges.items()}


def _best(tried: dict[str, float]) -> str:
    """The range with the greatest separation; the first where no other is clearly better."""
    usual = next(iter(tried))
    best = max(tried, key=tried.__getitem__)
    return best if tried[best] >= max(ENOUGH, CLEARLY * tried[usual]) else usual


def _refuse(name: str, reached: float, channels: Channels | None) -> None:
    fault = (
        f"{name} tells nobody apart, however it is fed (separation {reached:.1f}, recognizers have {ENOUGH:g} and more): it "
        "is no face recognizer, or wants crops that are aligned in another way"
    )
    if channels is None:
        raise DiffPrivacyError(
            f"{fault}. Choose another; if you know better, state the order of its channels, `--recognizer FILE:RGB` or "
            "`channels` of Load Face Recognizer, and it is used all the same."
        )
    log.warning("%s. It is used, as the order of its channels is stated", fault)


def _separation(network: nn.Module, size: int, scale: float, offset: float, channels: Channels) -> float:
    """How far the cosines within people lie from those between people, in their root mean variance; 0 for none."""
    views = _views(size)
    crops = views.flatten(0, 1) if channels == "RGB" else views.flatten(0, 1).flip(1)
    with torch.inference_mode(False), torch.no_grad():
        vectors = F.normalize(network(crops * scale + offset)).unflatten(0, views.shape[:2])
    within = (vectors[:, :1] * vectors[:, 1:]).sum(dim=-1)
    first, second = torch.triu_indices(len(vectors), len(vectors), 1)
    between = (vectors[first, 0] * vectors[second, 0]).sum(dim=-1)
    spread = ((within.var() + between.var()) / 2).sqrt().clamp_min(1e-6)
    return float(torch.nan_to_num((within.mean() - between.mean()) / spread))


@cache
def _views(size: int) -> Tensor:
    """Of each of the eight people three views (8,3,3,size,size) in [0,1]: plain, mirrored, darker and shifted."""
    from PIL import Image

    with Image.open(PHOTOS) as image:
        strip = torch.from_numpy(np.array(image.convert("RGB"))).float() / 255
    with torch.inference_mode(False):
        faces = torch.stack(strip.movedim(-1, 0).split(strip.shape[0], dim=2))
        shifted = F.pad(faces, (3, 0, 0, 2), mode="replicate")[..., 2:, :-3] * 0.7
        views = torch.stack((faces, faces.flip(-1), shifted), dim=1)
        return F.interpolate(views.flatten(0, 1), size=(size, size), mode="bilinear", antialias=True).unflatten(
            0, (-1, 3)
        )
