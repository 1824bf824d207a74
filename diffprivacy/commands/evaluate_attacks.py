"""``evaluate --attack``: what attackers gain who learn what protecting does, average, or look elsewhere than at the face."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..evaluation.attacks import BATCH, Attack, parrot, undo
from ..evaluation.searches import around, averaging, look, mean_of_each, surroundings
from ..faces.alignment import template
from ..faces.geometry import TEMPLATE_SIZE, crop_face
from ..identity.recognizers import FaceMatcher
from ..media.images import read_picture
from .evaluate_cases import Case

Embed = Callable[[Tensor], Tensor]
ATTACKS = ("parrot", "undo", "averaging", "surroundings", "look")


def attacked(names: Sequence[str], cases: Sequence[Case], judges: Mapping[str, FaceMatcher]) -> dict[str, list[Attack]]:
    """Every attack that is asked for, with every judge as the one that searches; a look needs none.

    Raises DiffPrivacyError for too few people, and for averaging without several protections.
    """
    if not names:
        return {}
    people = [case.comparison.person for case in cases]
    crops = (
        [_crops(cases, path) for path in ("version", "original")] if {"undo", "averaging", "look"} & set(names) else []
    )
    results: dict[str, list[Attack]] = {}
    for judge, recognizer in judges.items():
        of = results.setdefault(judge, [])
        embed = partial(embedded, recognizer)
        versions, originals = (
            np.stack([getattr(case.comparison, which)[judge] for case in cases]) for which in ("version", "original")
        )
        if "parrot" in names:
            of += [parrot(versions, originals, people, "linear map"), parrot(versions, originals, people, "network")]
        if "undo" in names:
            of.append(undo(crops[0], crops[1], people, embed))
        if "averaging" in names:
            of += _averaging(versions, originals, crops[0], people, embed)
        if "surroundings" in names:
            of += _surroundings(cases, people, embed)
    if "look" in names:
        results["no network"] = [look(crops[0], crops[1], people)]
    return results


def _averaging(
    versions: np.ndarray, originals: np.ndarray, crops: Tensor, people: Sequence[str], embed: Embed
) -> list[Attack]:
    who, known = mean_of_each(originals, people)
    means = mean_of_each(versions, people)[1]
    images = torch.from_numpy(mean_of_each(crops.numpy(), people)[1]).float()
    with torch.no_grad():
        of_images = torch.cat([embed(part) for part in images.split(BATCH)]).numpy()
    return averaging("embeddings", means, known, who) + averaging("images", of_images, known, who)


def _surroundings(cases: Sequence[Case], faces: Sequence[str], embed: Embed) -> list[Attack]:
    seen = []
    for path in ("version", "original"):
        with torch.no_grad():
            views = [embed(around(read_picture(getattr(case, path)).rgb, case.face)).flatten() for case in cases]
        seen.append(torch.stack(views).numpy())
    folders = [str(case.original.parent) for case in cases]
    return surroundings(seen[0], seen[1], faces, folders if len(set(folders)) > 1 else None)


def _crops(cases: Sequence[Case], path: str) -> Tensor:
    faces = [crop_face(read_picture(getattr(case, path)).rgb, case.face, TEMPLATE_SIZE, 1.0) for case in cases]
    return torch.stack(faces).movedim(-1, 1)


def embedded(recognizer: FaceMatcher, faces: Tensor) -> Tensor:
    """Unit vectors (B,D) of ArcFace crops, with gradients."""
    parts = recognizer.embed(faces, template(TEMPLATE_SIZE).expand(len(faces), 5, 2))
    return F.normalize(torch.cat([p * w**0.5 for p, w in zip(parts, recognizer.weights, strict=True)], dim=1), dim=1)
