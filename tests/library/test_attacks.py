"""Attacks on protections whose strength is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.evaluation.attacks import parrot, undo
from diffprivacy.evaluation.searches import around, averaging, look, mean_of_each, surroundings
from diffprivacy.faces.geometry import ARCFACE_TEMPLATE, Face, protected_mask

PEOPLE = [f"person {i}" for i in range(120)]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal((len(PEOPLE), 16))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("learner", ["linear map", "network"])
def test_a_rotation_of_embeddings_is_learned_and_new_ones_are_not(vectors, learner):
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))[0]
    broken = parrot(vectors @ rotation, vectors, PEOPLE, learner)
    assert broken.found.value > 0.9 and broken.chance == pytest.approx(1 / 60)
    strangers = np.random.default_rng(2).standard_normal(vectors.shape)
    held = parrot(strangers / np.linalg.norm(strangers, axis=1, keepdims=True), vectors, PEOPLE, learner)
    assert held.found.value < 6 / 120, "two expected by chance; six are three standard deviations more"


def small(images: Tensor) -> Tensor:
    return F.normalize((F.avg_pool2d(images, 4) - 0.5).flatten(1), dim=1)


def test_a_negative_is_undone_and_noise_is_not():
    """Forty people are patterns of light and dark, searched for among twenty."""
    random, people = torch.Generator().manual_seed(0), PEOPLE[:40]
    faces = F.interpolate(torch.rand(40, 3, 4, 4, generator=random), scale_factor=4)
    broken = undo(1 - faces, faces, people, small, steps=100)
    assert broken.found.value > 0.8 and broken.chance == pytest.approx(1 / 20)
    held = undo(torch.rand(40, 3, 16, 16, generator=random), faces, people, small, steps=20)
    assert held.found.value < 8 / 40, "two expected by chance; eight are four standard deviations more"


def test_few_people_are_refused(vectors):
    with pytest.raises(DiffPrivacyError, match="need 20 people, not 19"):
        parrot(vectors[:19], vectors[:19], PEOPLE[:19], "linear map")


def test_what_is_around_a_face_finds_its_photo_and_no_other():
    """Forty photos of noise, each with a face of new noise; what is behind the mask plays no part."""
    random = torch.Generator().manual_seed(0)
    photos = torch.rand(40, 64, 64, 3, generator=random)
    face = Face((20, 20, 44, 44), ARCFACE_TEMPLATE * (24 / 112) + 20, 1.0)
    replaced = protected_mask((64, 64), [face])[..., None] >= 0.999
    protected = torch.where(replaced, torch.rand(40, 64, 64, 3, generator=random), photos)
    assert 0.05 < replaced.float().mean() < 0.5
    seen, known = (np.stack([around(photo, face).flatten().numpy() for photo in of]) for of in (protected, photos))
    assert np.array_equal(seen, known)
    (same,) = surroundings(seen, known, PEOPLE[:40])
    assert (same.found.value, same.chance) == (1, 1 / 40)
    persons = [f"person {i // 4}" for i in range(40)]
    _, another = surroundings(seen, known, PEOPLE[:40], persons)
    assert another.found.value < 14 / 40, (
        "3 of the 39 others are of the person: three expected, 14 are six deviations more"
    )
    assert another.chance == pytest.approx(3 / 39)
    hair = np.repeat(known[::4], 4, axis=0) + 0.1 * known
    assert surroundings(hair, hair, PEOPLE[:40], persons)[1].found.value == 1


def test_the_mean_of_many_protections_finds_what_one_does_not(vectors):
    """Fifty protections, each as much noise as hides the person in one."""
    people, known = PEOPLE[:60] * 50, np.tile(vectors[:60], (50, 1))
    protections = known + np.random.default_rng(1).standard_normal(known.shape)
    who, means = mean_of_each(protections, people)
    originals = mean_of_each(known, people)[1]
    nearest, farthest = averaging("embeddings", means, originals, who)
    assert (
        nearest.found.value > 0.9 > 0.3 > averaging("one", protections[:60], vectors[:60], PEOPLE[:60])[0].found.value
    )
    assert averaging("embeddings", -means, originals, who)[1].found.value == nearest.found.value
    assert nearest.chance == farthest.chance == 1 / 60
    with pytest.raises(DiffPrivacyError, match="two protections"):
        mean_of_each(vectors, PEOPLE)


def test_a_face_that_looks_the_same_is_found_in_other_light_and_another_is_not():
    random = torch.Generator().manual_seed(0)
    faces, others = (F.interpolate(torch.rand(12, 3, 28, 28, generator=random), scale_factor=4) for _ in "ab")
    assert look(0.2 + 0.5 * faces, faces, PEOPLE[:12]).found.value == 1
    held = look(others, faces, PEOPLE[:12])
    assert held.found.value < 7 / 12 and held.chance == 1 / 12, "one expected; seven are six deviations more"
