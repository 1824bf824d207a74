"""What a new face leaves as it was: parts of the face by name, and whatever a mask shows, such as a hand before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import DiffPrivacyError, at_field
from .geometry import HEAD_CENTRE, MASK_RADII, TEMPLATE_SIZE, Face, align_matrix, face_in_crop, protected_mask
from .regions import upright_face

PARTS = ("eyes", "nose", "mouth", "contour")
RADII = {"eyes": (14.0, 9.0), "nose": (12.0, 17.0), "mouth": (23.0, 13.0)}
"""Half width and height of the ellipses around an eye, the nose and the mouth, in template pixels."""
NOSE_RISE = 8.0
"""How far the nose's middle lies above its tip, in template pixels."""
INNER = 0.72
"""Radius, in that of the replaced ellipse, from which on the contour is kept."""
SOFT = 0.25
"""Width of the soft border of a part, in its radii; it lies outside what is kept whole."""
MOST_KEPT = 0.75
"""Share of a face that may be kept: with more the face would be nearly as it was."""


def parse_parts(text: str) -> tuple[str, ...]:
    """Names such as "eyes,mouth"; raises DiffPrivacyError for a name that is none of PARTS. Empty for none."""
    parts = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    if unknown := [part for part in parts if part not in PARTS]:
        raise DiffPrivacyError(f"{unknown[0]!r} is none of {', '.join(PARTS)}.", "keep")
    return parts


def kept_parts(shape: Sequence[int], faces: Sequence[Face], parts: Sequence[str]) -> Tensor:
    """Mask (H,W) in [0,1] of the named parts of all faces in a picture of ``shape`` (H, W, ...)."""
    height, width = shape[:2]
    mask = torch.zeros(height, width)
    for face in faces:
        reach = protected_mask(shape, [face]) > 0
        rows, columns = reach.nonzero(as_tuple=True)
        if len(rows):
            to_template = align_matrix(face, TEMPLATE_SIZE, 1.0)
            points = np.stack((columns.numpy(), rows.numpy()), axis=1) @ to_template[:, :2].T + to_template[:, 2]
            landmarks = face.landmarks @ to_template[:, :2].T + to_template[:, 2]
            kept = np.max([_part(part, points, landmarks) for part in parts], axis=0, initial=0.0)
            mask[rows, columns] = torch.maximum(mask[rows, columns], torch.from_numpy(kept).float())
    return mask


def replaced_part(landmarks: Tensor, size: int, parts: Sequence[str] = ()) -> Tensor:
    """Mask (size,size) in [0,1] of what is replaced in a crop, given by its five points (5,2): the face without the named
    parts.
    """
    face, margin = face_in_crop(landmarks, size)
    mask = protected_mask((size, size), [face], margin)
    return mask * (1 - kept_parts((size, size), [face], parts)) if parts else mask


def keep_original(picture: Tensor, pasted: Tensor, keep: Tensor) -> Tensor:
    """``pasted`` (H,W,3) with ``picture`` where ``keep`` (H,W) is 1, blended where it is between 0 and 1."""
    share = keep[..., None].to(picture)
    return torch.where(share >= 1, picture, torch.where(share > 0, torch.lerp(pasted, picture, share), pasted))


def check_kept(keep: Tensor, faces: Sequence[Face], margin: float, name: str) -> None:
    """Raises DiffPrivacyError, beginning with ``name``, where a mask (H,W) would keep nearly all of a face."""
    for number, face in enumerate(faces):
        mask = protected_mask(keep.shape, [face], margin)
        share = float((mask * keep).sum() / mask.sum().clamp_min(1e-6))
        if share > MOST_KEPT:
            raise DiffPrivacyError(
                f"{name}: {share:.0%} of face {number} would be kept, so that it would stay as it is; keep less of it."
            )


def check_parts(parts: Sequence[str], margin: float, name: str) -> None:
    """Raises DiffPrivacyError, beginning with ``name``, for parts that are nearly the whole of a face."""
    face = upright_face((150.0, 150.0, 250.0, 250.0))
    with at_field("keep"):
        check_kept(kept_parts((400, 400), [face], parts), [face], margin, name)


def _part(part: str, points: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """How much of each point (N,2) in template pixels belongs to a part, in [0,1]."""
    left_eye, right_eye, nose, *mouth = landmarks
    if part == "contour":
        radius = np.hypot(*((points - HEAD_CENTRE) / MASK_RADII).T)
        return np.clip((radius - INNER) / (SOFT * INNER) + 1, 0, 1)
    middles = {"eyes": [left_eye, right_eye], "nose": [nose - (0, NOSE_RISE)], "mouth": [np.mean(mouth, axis=0)]}
    radii = [np.hypot(*((points - middle) / RADII[part]).T) for middle in middles[part]]
    return np.clip((1 + SOFT - np.min(radii, axis=0)) / SOFT, 0, 1)
