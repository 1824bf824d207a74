"""Which of the faces in a picture are to be protected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..errors import DiffPrivacyError, NoFaceError
from .geometry import Face

Embeddings = Sequence[Tensor]
"""Unit vectors (n,D) of n pictures of a face, one tensor for each recognition network."""


def select_faces(faces: Sequence[Face], which: str = "all", mask: Tensor | None = None) -> list[Face]:
    """The faces that ``which`` names: "all", "largest", or numbers such as "0,2" that count from the left.

    mask (H,W) of the picture: only faces whose box has its middle where the mask is above one half; numbers still
    count all faces, and the largest is that of those in the mask. Raises NoFaceError if nothing is left, and
    DiffPrivacyError for numbers that no face has.
    """
    if not faces:
        raise NoFaceError("No face was found in the picture, so nothing in it would be protected.")
    chosen = [face for face in faces if mask is None or _in_mask(face, mask)]
    if not chosen:
        raise NoFaceError("mask: no face has its middle in it, so nothing would be protected.")
    word = which.strip().lower()
    if word == "all":
        return chosen
    if word == "largest":
        return [max(chosen, key=lambda face: face.area)]
    numbers = _numbers(which, len(faces))
    numbered = [face for number, face in enumerate(faces) if number in numbers and face in chosen]
    if not numbered:
        raise NoFaceError(f"faces: {which!r} names no face in the mask, so nothing would be protected.")
    return numbered


def select_person(
    faces: Sequence[Face],
    embed: Callable[[Face], Embeddings],
    references: Embeddings,
    threshold: float,
    keep: Literal["only", "all but"],
) -> list[Face]:
    """The faces of one person only, or all but that person's.

    embed gives the embeddings of a face (n = 1), references those of one or more pictures of the person. A face is
    the person's if its cosine to any reference, averaged over the networks, is at least ``threshold``. Raises
    NoFaceError if no face is left.
    """
    likeness = [_likeness(embed(face), references) for face in faces]
    chosen = [face for face, cosine in zip(faces, likeness, strict=True) if (cosine >= threshold) == (keep == "only")]
    if not chosen:
        most = max(likeness, default=-1.0)
        reason = f"no face is like the person's (cosine {most:.2f} at most)" if keep == "only" else "every face is"
        raise NoFaceError(f"person: {reason}, threshold {threshold:.2f}, so nothing would be protected.")
    return chosen


def _in_mask(face: Face, mask: Tensor) -> bool:
    x, y = face.centre
    row = min(max(round(y), 0), mask.shape[0] - 1)
    column = min(max(round(x), 0), mask.shape[1] - 1)
    return bool(mask[row, column] > 0.5)


def _numbers(which: str, count: int) -> set[int]:
    try:
        numbers = {int(number) for number in which.split(",")}
    except ValueError as error:
        raise DiffPrivacyError(f"faces: {which!r} is none of all, largest, or numbers such as 0,2.") from error
    if unknown := sorted(number for number in numbers if not 0 <= number < count):
        raise DiffPrivacyError(
            f"faces: there is no face {unknown[0]}; the picture has {count}, numbered 0 to {count - 1} from the left."
        )
    return numbers


def _likeness(embeddings: Embeddings, references: Embeddings) -> float:
    cosines = [known @ vector[0] for vector, known in zip(embeddings, references, strict=True)]
    return torch.stack(cosines).mean(dim=0).max().item()
