"""Judging versions of a picture against the original: is the face found, and do machines take it for the same person?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from ..errors import DiffPrivacyError
from ..faces.attributes import Attributes
from ..faces.detectors import Detector
from ..faces.geometry import Face, crop_face, crop_landmarks
from ..identity.embedding import embed_face
from ..identity.energies import visual_distance
from ..identity.recognizers import FaceMatcher
from ..identity.verification import pair_cosines
from ..media.images import read_picture
from .fidelity import psnr, ssim
from .utility import Looks, as_jpeg, changes, looks

NEAR = 0.5
"""How far the middle of a face may move, in widths of its box, and still be that face."""


@dataclass(frozen=True)
class FaceComparison:
    """What became of one face in a version of its picture.

    person: whose face it is; original, version: each judge's embedding (D,); found: whether the detector finds a face in its place, None without
    one; nme: mean distance of the five points from the original's, in distances of its eyes, NaN where none is found;
    psnr in dB and ssim: of the ArcFace crop; similarity: of the structure, in [0,1], see energy.visual_distance.
    utility: what changed but the identity, see :data:`.utility.MEASURES`; empty where no face is found.
    """

    person: str
    original: Mapping[str, np.ndarray]
    version: Mapping[str, np.ndarray]
    found: bool | None
    nme: float
    psnr: float
    ssim: float
    similarity: float
    utility: Mapping[str, float] = field(default_factory=dict)

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
    attributes: Attributes | None = None,
) -> list[FaceComparison]:
    """Every given face of ``original`` (H,W,3) in [0,1], of the people named, against its place in ``version`` (H,W,3).

    Judges align the version's face by the points that the detector finds in it, as an onlooker would, and by the
    original's where it finds none. attributes: estimates age and sex, for their change.
    Raises DiffPrivacyError for pictures of different sizes.
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
                _changes(original, face, version, face if detector is None else again, attributes),
            )
        )
    return results


def jpeg_changes(
    original: Tensor, faces: Sequence[Face], detector: Detector | None, attributes: Attributes | None = None
) -> list[Mapping[str, float]]:
    """What the measures of :mod:`.utility` say of each face in a JPEG of the same image (H,W,3): their noise floor."""
    version = as_jpeg(original)
    there = detector.detect(version) if detector else faces
    return [_changes(original, face, version, _in_its_place(face, there), attributes) for face in faces]


def _changes(
    original: Tensor, face: Face, version: Tensor, again: Face | None, attributes: Attributes | None
) -> dict[str, float]:
    if again is None:
        return {}
    return changes(looks(original, face, attributes), looks(version, again, attributes))


@dataclass(frozen=True)
class CleanPhotos:
    """Photos of people that were not protected.

    pairs: each judge's cosines of all pairs of one person and of two. changes: of the first two photos of each person,
    what the measures of :mod:`.utility` say: their noise floor.
    """

    pairs: dict[str, tuple[np.ndarray, np.ndarray]]
    changes: list[tuple[str, Mapping[str, float]]]


def clean_photos(
    photos: Iterable[Path],
    judges: Mapping[str, FaceMatcher],
    detector: Detector,
    attributes: Attributes | None = None,
) -> CleanPhotos:
    """Compare photos in folders named after the people.

    The largest face of each photo counts; photos without one are left out. Raises DiffPrivacyError when no two photos
    are of one person.
    """
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in judges}
    people: list[str] = []
    first: dict[str, list[Looks]] = {}
    for photo in photos:
        picture = read_picture(photo).rgb
        if faces := detector.detect(picture):
            face, person = max(faces, key=lambda found: found.area), photo.parent.name
            people.append(person)
            for name, recognizer in judges.items():
                vectors[name].append(embed_face(recognizer, picture, face))
            if len(of := first.setdefault(person, [])) < 2:
                of.append(looks(picture, face, attributes))
    if len(set(people)) == len(people):
        raise DiffPrivacyError("Clean pairs need two photos of one person: keep each person's photos in one folder.")
    pairs = {name: pair_cosines(np.stack(rows), people) for name, rows in vectors.items()}
    return CleanPhotos(pairs, [(person, changes(*of)) for person, of in first.items() if len(of) == 2])


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
