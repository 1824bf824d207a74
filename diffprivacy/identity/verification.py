"""Verification on pairs of faces, and re-identification in a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DiffPrivacyError

Scores = Sequence[float] | np.ndarray
"""Cosines of pairs of faces, (N,)."""


@dataclass(frozen=True)
class OperatingPoint:
    """The lowest threshold whose false accept rate is at most far; tar is the share of same pairs it accepts."""

    far: float
    threshold: float
    tar: float


def pair_cosines(embeddings: ArrayLike, people: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all pairs of one person, and of all pairs of two people.

    embeddings: (N,D) unit vectors, people: the N names.
    """
    vectors = np.asarray(embeddings, dtype=np.float64)
    names = np.asarray(people)
    first, second = np.triu_indices(len(names), k=1)
    cosines = (vectors @ vectors.T)[first, second]
    same = names[first] == names[second]
    return cosines[same], cosines[~same]


def operating_point(same: Scores, different: Scores, far: float) -> OperatingPoint:
    """Threshold and TAR at a false accept rate, read off the pairs' ROC curve; a pair is accepted at >= threshold.

    Raises DiffPrivacyError when the different pairs are too few to measure this rate.
    """
    if len(different) * far < 1:
        raise DiffPrivacyError(
            f"FAR {far:g} needs at least {int(np.ceil(1 / far))} pairs of different people, got {len(different)}: "
            "add photos or ask for a higher rate."
        )
    accepted_different, accepted_same, thresholds = roc(same, different)
    best = np.flatnonzero(accepted_different <= far)[-1]
    return OperatingPoint(far, float(thresholds[best]), float(accepted_same[best]))


def accept_rate(cosines: Scores, threshold: float) -> float:
    """Share of pairs accepted at a threshold, which should come from clean pairs: the TAR of protected photos."""
    return float(np.mean(np.asarray(cosines) >= threshold))


def rank1(
    probes: ArrayLike,
    probe_people: Sequence[str],
    gallery: ArrayLike,
    gallery_people: Sequence[str],
    opposite: bool = False,
) -> float:
    """Share of probes whose nearest face in the gallery is the same person: re-identification rank-1.

    As :func:`rank1_hits`.
    """
    return float(np.mean(rank1_hits(probes, probe_people, gallery, gallery_people, opposite)))


def rank1_hits(
    probes: ArrayLike,
    probe_people: Sequence[str],
    gallery: ArrayLike,
    gallery_people: Sequence[str],
    opposite: bool = False,
) -> np.ndarray:
    """Of each probe, whether its nearest face in the gallery is the same person, (N,) bool.

    probes: (N,D), gallery: (M,D) unit vectors, in two disjoint sets of photos. opposite: the farthest face instead of
    the nearest, which finds those that guidance drove beyond strangers.
    """
    cosines = np.asarray(probes) @ np.asarray(gallery).T
    found = cosines.argmin(axis=1) if opposite else cosines.argmax(axis=1)
    return np.asarray(gallery_people)[found] == np.asarray(probe_people)


def strangers_cosine(
    probes: ArrayLike, probe_people: Sequence[str], gallery: ArrayLike, gallery_people: Sequence[str]
) -> float:
    """Mean cosine of probes (N,D) to other people's faces in the gallery (M,D); NaN where there is nobody else."""
    others = np.asarray(probe_people)[:, None] != np.asarray(gallery_people)[None]
    cosines = (np.asarray(probes) @ np.asarray(gallery).T)[others]
    return float(cosines.mean()) if others.any() else float("nan")


def link_auc(embeddings: ArrayLike, people: Sequence[str]) -> float:
    """How surely two protections of one person are told from those of two people: 0.5 is chance, 1 always.

    embeddings: (N,D) unit vectors of protected faces; the area under the ROC curve of their cosines, NaN where no two
    are of one person, or nobody else is there.
    """
    from sklearn.metrics import roc_auc_score

    same, different = pair_cosines(embeddings, people)
    if not len(same) or not len(different):
        return float("nan")
    labels = np.concatenate((np.ones(len(same)), np.zeros(len(different))))
    return float(roc_auc_score(labels, np.concatenate((same, different))))


def roc(same: Scores, different: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False accept rates, true accept rates and thresholds of the ROC curve, a point for each cosine."""
    from sklearn.metrics import roc_curve

    labels = np.concatenate((np.ones(len(same)), np.zeros(len(different))))
    return roc_curve(labels, np.concatenate((same, different)), drop_intermediate=False)
