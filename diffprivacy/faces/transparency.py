"""Faces in pictures with transparency, which show on one background what they hide on another."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ..media.images import Picture
from .detectors import Detector
from .geometry import Face, protected_mask, sort_faces
from .tiling import keep_best


def detect_faces(detector: Detector, picture: Picture) -> list[Face]:
    """The faces of a picture, from left to right: in its colours and, where it is transparent, over black and white."""
    found = detector.detect(picture.rgb)
    if picture.alpha is None or bool((picture.alpha == 1).all()):
        return found
    over = [face for background in (0.0, 1.0) for face in detector.detect(_over(picture, background))]
    return sort_faces(keep_best([*found, *over]))


def flattened(picture: Picture, faces: Sequence[Face], margin: float) -> Picture:
    """The picture without the transparency inside the faces' masks, which may draw a face by itself.

    Where it varies inside a mask, the colours become those over a background, white under dark and black under bright
    ones, and opaque. Where it is the same all over the mask it draws nothing, and stays.
    """
    if picture.alpha is None:
        return picture
    rgb, alpha = picture.rgb.clone(), picture.alpha.clone()
    for face in faces:
        inside = protected_mask(alpha.shape, [face], margin) > 0
        opacity = picture.alpha[inside]
        if len(opacity) == 0 or bool((opacity == opacity[0]).all()):
            continue
        seen = (picture.rgb[inside].mean(dim=-1) * opacity).sum() / opacity.sum()
        rgb[inside] = _over(picture, 1.0 if seen < 0.5 else 0.0)[inside]
        alpha[inside] = 1
    return dataclasses.replace(picture, rgb=rgb, alpha=alpha)


def _over(picture: Picture, background: float) -> Tensor:
    """The colours (H,W,3) over black (0) or white (1)."""
    return torch.lerp(torch.full_like(picture.rgb, background), picture.rgb, picture.alpha[..., None])  # pyright: ignore[reportOptionalSubscript]
