"""Which of the faces in a picture are to be protected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..errors import DiffPrivacyError, NoFaceError
from .geometry import Face


def select_faces(faces: Sequence[Face], which: str = "all", mask: Tensor | None = None) -> list[Face]:
    """The faces that ``which`` names: "all", "largest", or numbers such as "0,2" that count from the left.

    mask (H,W) of the picture: only faces whose box has its middle where the mask is above one half; numbers still
    count all faces, and the largest is that of those in the mask. Raises NoFaceError if nothing is left, and
    DiffPrivacyError for numbers that no face has.
    """
    if not faces:
        raise NoFaceError("No face was found in the image, so nothing in it would be protected.")
    chosen = [face for face in faces if mask is None or _in_mask(face, mask)]
    if not chosen:
        raise NoFaceError("No face has its middle in it, so nothing would be protected.", "mask")
    numbers = parse_selection(which)
    if numbers == "all":
        return chosen
    if numbers == "largest":
        return [max(chosen, key=lambda face: face.area)]
    if unknown := sorted(numbers - set(range(len(faces)))):
        raise DiffPrivacyError(
            f"There is no face {unknown[0]}; the image has {len(faces)}, numbered 0 to {len(faces) - 1} from the left.",
            "faces",
        )
    numbered = [face for number, face in enumerate(faces) if number in numbers and face in chosen]
    if not numbered:
        raise NoFaceError(f"{which!r} names no face in the mask, so nothing would be protected.", "faces")
    return numbered


def parse_selection(which: str) -> Literal["all", "largest"] | set[int]:
    """What "all", "largest", or numbers such as "0,2" ask for; raises DiffPrivacyError for anything else."""
    word = which.strip().lower()
    if word == "all" or word == "largest":
        return word
    try:
        return {int(number) for number in word.split(",")}
    except ValueError as error:
        raise DiffPrivacyError(f"{which!r} is none of all, largest, or numbers such as 0,2.", "faces") from error


def select_person(
    faces: Sequence[Face],
    embeddings: np.ndarray,
    known: np.ndarray,
    threshold: float,
    keep: Literal["only", "all but"],
) -> list[Face]:
    """The faces of one person only, or all but that person's.

    embeddings: unit vectors (N,D) of the faces, known: (n,D) of photos of the person. A face is the person's if its
    cosine to any of these is at least ``threshold``. Raises NoFaceError if no face is left.
    """
    cosines = (embeddings @ known.T).max(axis=1)
    chosen = [face for face, cosine in zip(faces, cosines, strict=True) if (cosine >= threshold) == (keep == "only")]
    if not chosen:
        reason = f"no face is like the person's (cosine {cosines.max():.2f} at most)"
        if keep == "all but":
            reason = "every face is"
        raise NoFaceError(f"{reason}, threshold {threshold:.2f}, so nothing would be protected.", "person")
    return chosen


def fitted_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (N,h,w), or a single one (h,w), resized to the height and width of an image: (N,H,W), by interpolation."""
    batch = masks.reshape(-1, 1, *masks.shape[-2:]).cpu().float()
    return F.interpolate(batch, tuple(size), mode="bilinear")[:, 0]


def _in_mask(face: Face, mask: Tensor) -> bool:
    x, y = face.centre
    row = min(max(round(y), 0), mask.shape[0] - 1)
    column = min(max(round(x), 0), mask.shape[1] - 1)
    return bool(mask[row, column] > 0.5)
