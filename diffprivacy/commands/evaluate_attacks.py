"""``evaluate --attack``: what those gain who learn what protecting does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..evaluation.attacks import Attack, parrot, undo
from ..faces.alignment import template
from ..faces.geometry import TEMPLATE_SIZE, crop_face
from ..identity.recognizers import FaceMatcher
from ..media.images import read_picture
from .evaluate_cases import Case

ATTACKS = ("parrot", "undo")


def attacked(names: Sequence[str], cases: Sequence[Case], judges: Mapping[str, FaceMatcher]) -> dict[str, list[Attack]]:
    """Every attack that is asked for, with every judge as the one that searches.

    Raises DiffPrivacyError for too few people.
    """
    if not names:
        return {}
    people = [case.comparison.person for case in cases]
    crops = [_crops(cases, path) for path in ("version", "original")] if "undo" in names else []
    results: dict[str, list[Attack]] = {}
    for judge, recognizer in judges.items():
        of = results.setdefault(judge, [])
        if "parrot" in names:
            versions, originals = (
                np.stack([getattr(case.comparison, which)[judge] for case in cases])
                for which in ("version", "original")
            )
            of += [parrot(versions, originals, people, "linear map"), parrot(versions, originals, people, "network")]
        if "undo" in names:
            of.append(undo(crops[0], crops[1], people, lambda faces, by=recognizer: _embedded(by, faces)))
    return results


def _crops(cases: Sequence[Case], path: str) -> Tensor:
    faces = [crop_face(read_picture(getattr(case, path)).rgb, case.face, TEMPLATE_SIZE, 1.0) for case in cases]
    return torch.stack(faces).movedim(-1, 1)


def _embedded(recognizer: FaceMatcher, faces: Tensor) -> Tensor:
    """Unit vectors (B,D) of ArcFace crops, with gradients."""
    parts = recognizer.embed(faces, template(TEMPLATE_SIZE).expand(len(faces), 5, 2))
    return F.normalize(torch.cat([p * w**0.5 for p, w in zip(parts, recognizer.weights, strict=True)], dim=1), dim=1)
