"""What a judge makes of all faces of a version, with intervals from drawing the people anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..identity.verification import link_auc, rank1_hits, strangers_cosine
from .comparison import FaceComparison
from .intervals import Share


@dataclass(frozen=True)
class Verdict:
    """cosine: mean to the original; others: mean to other people's originals, NaN where there is nobody else.

    tar: accepted as the same person; nearest, farthest: whose nearest or farthest original is their own; linked: pairs
    of two protections of one person that are accepted as one; link: how surely such pairs are told from others' (AUC),
    NaN where there are none. None stands for what the faces or thresholds do not tell.
    """

    cosine: float
    others: float
    tar: Share | None
    nearest: Share | None
    farthest: Share | None
    linked: Share | None
    link: float


def verdict(faces: Sequence[FaceComparison], judge: str, threshold: float | None) -> Verdict:
    """What a judge makes of the faces of one version, at its threshold for the same person."""
    cosines = np.array([face.cosine(judge) for face in faces])
    people = [face.person for face in faces]
    versions, originals = (
        np.stack([getattr(face, which)[judge] for face in faces]) for which in ("version", "original")
    )
    compared = versions, people, originals, people
    several = len(set(people)) > 1
    nearest, farthest = (
        Share.of(rank1_hits(*compared, opposite=end), people) if several else None for end in (False, True)
    )
    linked, tar = None, None
    if threshold is not None:
        tar = Share.of(cosines >= threshold, people)
        linked = _linked(versions, people, threshold)
    others, link = strangers_cosine(*compared), link_auc(versions, people)
    return Verdict(float(cosines.mean()), others, tar, nearest, farthest, linked, link)


def found(faces: Sequence[FaceComparison]) -> Share | None:
    """The share of faces in whose place the detector finds a face; None without a detector."""
    seen = [face for face in faces if face.found is not None]
    return Share.of([bool(face.found) for face in seen], [face.person for face in seen]) if seen else None


def _linked(versions: np.ndarray, people: Sequence[str], threshold: float) -> Share | None:
    names = np.asarray(people)
    first, second = np.triu_indices(len(names), k=1)
    same = names[first] == names[second]
    if not same.any():
        return None
    cosines = (versions @ versions.T)[first, second][same]
    return Share.of(cosines >= threshold, list(names[first][same]))
