"""A face that cannot be made new is covered by one colour. Blur and mosaic keep what recognizers need; this keeps none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .geometry import MARGIN, Face, paste_faces, protected_mask


def cover_faces(picture: Tensor, faces: Sequence[Face], margin: float = MARGIN) -> Tensor:
    """``picture`` (H,W,3) in [0,1] with each face's ellipse in its own mean colour, without a soft border."""
    for face in faces:
        colour = mean_colour(picture, face, margin).expand(2, 2, 3)
        picture = paste_faces(picture, [colour], [face], margin, opaque=True)
    return picture


def mean_colour(picture: Tensor, face: Face, margin: float = MARGIN) -> Tensor:
    """The skin's mean colour (3,), taken in linear light over what is replaced of the face."""
    mask = protected_mask(picture.shape, [face], margin)
    rows, columns = (mask > 0.5).nonzero(as_tuple=True)
    if not len(rows):
        return torch.full((3,), 0.5).to(picture)
    return picture[rows, columns].clamp(0, 1).pow(2.2).mean(dim=0).pow(1 / 2.2)
