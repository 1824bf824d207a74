"""Judging versions of a picture against the original: is the face found, and do machines take it for the same person?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..errors import DiffPrivacyError
from ..faces.detectors import Detector
from ..faces.geometry import Face, crop_face, crop_landmarks
from ..identity.embedding import embed_face
from ..identity.energies import visual_distance
from ..identity.recognizers import FaceMatcher
from ..identity.verification import pair_cosines
from ..media.images import read_picture
from .fidelity import psnr, ssim

NEAR = 0.5
"""How far the middle of a face may move, in widths of its box, and still be that face."""


@dataclass(frozen=True)
class FaceComparison:
    """What became of one face in a version of its picture.

    person: whose face it is; original, version: each judge's embedding (D,); found: whether the detector finds a face in its place, None without
    one; nme: mean distance of the five points from the original's, in distances of its eyes, NaN where none is found;
    psnr in dB and ssim: of the ArcFace crop; similarity: of the structure, in [0,1], see energy.visual_distance.
    """

    person: str
    original: Mapping[str, np.ndarray]
    version: Mapping[str, np.ndarray]
    found: bool | None
    nme: float
    psnr: float
    ssim: float
    similarity: float

    def cosine(self, judge: str) -> float:
        """Cosine between the face in the original and in the version."""
        return float(self.original[judge] @ self.version[judge])


def judge(
    original: Tensor,
    version: Tensor,
    faces: Sequence[Face],
    people: Sequence[str],
    judges: Mapping[str, FaceMatcher],
    detector: Detector | None = None,
) -> list[FaceComparison]:
    """Every given face of ``original`` (H,W,3) in [0,1], of the people named, against its place in ``version`` (H,W,3).

    Judges align the version's face by the points that the detector finds in it, as an onlooker would, and by the
    original's where it finds none. Raises DiffPrivacyError for pictures of different sizes.
    """
    if original.shape != version.shape:
        raise DiffPrivacyError(
            f"The original is {original.shape[1]}x{original.shape[0]} pixels and the other image "
            f"{version.shape[1]}x{version.shape[0]}: compare versions of one image."
        )
    there = detector.detect(version) if detector else []
    results = []
    for face, person in zip(faces, people, strict=True):
        again = _in_its_place(face, there)
        before, after = (crop_face(picture, face, 112, 1.0) for picture in (original, version))
        points = crop_landmarks(face, 112, 1.0)[None]
        similar = visual_distance(before.movedim(-1, 0)[None], points, points)(after.movedim(-1, 0)[None])
        results.append(
            FaceComparison(
                person,
                {name: embed_face(recognizer, original, face) for name, recognizer in judges.items()},
                {name: embed_face(recognizer, version, again or face) for name, recognizer in judges.items()},
                None if detector is None else again is not None,
                float("nan") if again is None else _nme(face, again),
                psnr(after, before),
                ssim(after, before),
                float(similar.sqrt()),
            )
        )
    return results


def clean_pairs(
    photos: Iterable[Path], judges: Mapping[str, FaceMatcher], detector: Detector
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each judge's cosines of all pairs of one person and of two, from photos in folders named after the people.

    The largest face of each photo counts; photos without one are left out. Raises DiffPrivacyError when no two photos
    are of one person.
    """
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in judges}
    people = []
    for photo in photos:
        picture = read_picture(photo).rgb
        if faces := detector.detect(picture):
            face = max(faces, key=lambda found: found.area)
            people.append(photo.parent.name)
            for name, recognizer in judges.items():
                vectors[name].append(embed_face(recognizer, picture, face))
    if len(set(people)) == len(people):
        raise DiffPrivacyError("Clean pairs need two photos of one person: keep each person's photos in one folder.")
    return {name: pair_cosines(np.stack(rows), people) for name, rows in vectors.items()}


def _in_its_place(face: Face, there: Iterable[Face]) -> Face | None:
    """The nearest of the faces that are there, if it is near enough to be the same."""
    nearest = min(there, key=lambda other: _distance(face, other), default=None)
    width = face.box[2] - face.box[0]
    return nearest if nearest is not None and _distance(face, nearest) <= NEAR * width else None


def _distance(a: Face, b: Face) -> float:
    return float(np.hypot(*np.subtract(a.centre, b.centre)))


def _nme(face: Face, again: Face) -> float:
    eyes = np.linalg.norm(face.landmarks[0] - face.landmarks[1])
    return float(np.linalg.norm(face.landmarks - again.landmarks, axis=1).mean() / eyes)
