"""What faces differ by, as a recognizer sees it: personas are drawn as random mixtures of many people."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ..faces.alignment import template
from ..faces.geometry import TEMPLATE_SIZE
from ..identity.recognizers import FaceMatcher

SHEET = Path(__file__).with_name("faces.webp")
PEOPLE = 128
ROWS = 8
AT_ONCE = 16
"""Faces that are embedded together, to bound the memory."""


def differences(recognizer: FaceMatcher) -> tuple[np.ndarray, ...]:
    """Embeddings of PEOPLE people less their mean, (N,D) for each network of the recognizer.

    A random direction is no face's; random sums of these are spread as faces are.
    """
    if recognizer not in _differences:
        points = template(TEMPLATE_SIZE)
        parts = [recognizer.reference(crops, points.expand(len(crops), -1, -1)) for crops in people().split(AT_ONCE)]
        networks = (torch.cat(vectors).cpu().double() for vectors in zip(*parts, strict=True))
        _differences[recognizer] = tuple((vectors - vectors.mean(0)).numpy() for vectors in networks)
    return _differences[recognizer]


_differences: WeakKeyDictionary[FaceMatcher, tuple[np.ndarray, ...]] = WeakKeyDictionary()


def people() -> Tensor:
    """Their ArcFace crops (N,3,112,112) in [0,1]."""
    from PIL import Image

    with Image.open(SHEET) as image:
        sheet = torch.from_numpy(np.array(image.convert("RGB"))).float() / 255
    crops = sheet.unflatten(1, (-1, TEMPLATE_SIZE)).unflatten(0, (ROWS, TEMPLATE_SIZE))
    return crops.permute(0, 2, 4, 1, 3).flatten(0, 1).contiguous()
