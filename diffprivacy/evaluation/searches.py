"""What searches find that look at something else than one protected face: what is around it, how it is built, or the mean
of several protections.

They learn nothing: the gallery are the originals, or other photos of the same people.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import DiffPrivacyError
from ..faces.alignment import template
from ..faces.geometry import MARGIN, TEMPLATE_SIZE, Face, crop_face, protected_mask
from ..identity.energies import visual_distance
from ..identity.verification import rank1_hits
from .attacks import Attack, unit
from .intervals import Share

HARD = 0.999
"""From which on a mask leaves nothing of the original."""
VIEWS = (1.0, MARGIN)
"""Margins of the crops in which surroundings are looked at."""


def around(picture: Tensor, face: Face) -> Tensor:
    """Two views (2,3,S,S) of a picture (H,W,3) that is grey where protecting leaves nothing of the face.

    The crop that recognizers expect, with the contour, and one of the whole head, with its hair.
    """
    replaced = protected_mask(picture.shape, [face])[..., None] >= HARD
    rest = torch.where(replaced, 0.5, picture)
    return torch.stack([crop_face(rest, face, TEMPLATE_SIZE, margin) for margin in VIEWS]).movedim(-1, 1)


def surroundings(
    protected: np.ndarray, originals: np.ndarray, faces: Sequence[str], people: Sequence[str] | None = None
) -> list[Attack]:
    """Search for the photo of each face by its surroundings, and for other photos of the same person.

    protected, originals: (N,D), what a recognizer sees around each of N faces, :func:`around`, in the protected and in
    the original photo. faces: N names, the same for protections of one face. people: whose face each is; without them, or
    where nobody has two photos, only the same photo is searched for.
    """
    probes, gallery = (unit(vectors - originals.mean(axis=0)) for vectors in (protected, originals))
    same_photo = Share.of(rank1_hits(probes, faces, gallery, faces), faces)
    attacks = [Attack("surroundings, the same photo", same_photo, 1 / len(set(faces)))]
    if people is None:
        return attacks
    photo, person = np.asarray(faces), np.asarray(people)
    others = photo[:, None] != photo[None]
    own = others & (person[:, None] == person[None])
    searched = own.any(axis=1)
    if searched.any():
        cosines = np.where(others, probes @ gallery.T, -np.inf)[searched]
        hits = person[cosines.argmax(axis=1)] == person[searched]
        chance = float((own.sum(axis=1) / others.sum(axis=1).clip(1))[searched].mean())
        attacks.append(Attack("surroundings, another photo", Share.of(hits, list(person[searched])), chance))
    return attacks


def mean_of_each(rows: np.ndarray, people: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The people, sorted, and the mean (P,...) of the rows (N,...) of each.

    Raises DiffPrivacyError where nobody has two rows.
    """
    names, place, counts = np.unique(np.asarray(people), return_inverse=True, return_counts=True)
    if counts.max() < 2:
        raise DiffPrivacyError(
            "Averaging needs two protections of a face or more: name several folders, or make variants.", "attack"
        )
    sums = np.zeros((len(names), *rows.shape[1:]))
    np.add.at(sums, place, rows)
    return list(names), sums / counts.reshape(-1, *[1] * (rows.ndim - 1))


def averaging(what: str, means: np.ndarray, originals: np.ndarray, people: Sequence[str]) -> list[Attack]:
    """Search from both ends of the gallery for P people, each by what several protections of their face say together.

    what: was averaged. means, originals: (P,D).
    """
    shares = {
        end: Share.of(rank1_hits(means, people, originals, people, opposite=end == "farthest"), people)
        for end in ("nearest", "farthest")
    }
    return [Attack(f"averaging {what}, {end}", found, 1 / len(people)) for end, found in shares.items()]


def look(protected: Tensor, originals: Tensor, people: Sequence[str]) -> Attack:
    """Search for faces (N,3,S,S), ArcFace crops in [0,1], by the structure that people tell faces by: without any network.

    See :func:`..identity.energies.visual_distance`.
    """
    names, first = np.unique(np.asarray(people), return_index=True)
    points = template(originals.shape[-1]).expand(len(names), 5, 2)
    alike = visual_distance(originals[torch.from_numpy(first)], points, points)
    nearest = [int(alike(face.expand(len(names), -1, -1, -1)).argmax()) for face in protected]
    return Attack("look", Share.of(names[nearest] == np.asarray(people), people), 1 / len(names))
