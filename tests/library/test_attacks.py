"""Attacks that learn, on protections whose strength is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.evaluation.attacks import parrot, undo

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
