"""The energy of looking different against what people would say: light, colour and quality leave a face the same."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from diffprivacy.demo.showcase import example_photo
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import crop_face, crop_landmarks
from diffprivacy.identity.energies import visual_distance
from diffprivacy.media.images import read_picture
from testing.changes import CHANGES, CROP, changed


@pytest.fixture(scope="module")
def faces() -> tuple[torch.Tensor, torch.Tensor]:
    """Seven people: (7,3,168,168) and their landmarks (7,5,2)."""
    detector = load_detector(None)
    package = find_spec("insightface")
    assert package is not None and package.origin is not None
    group = read_picture(Path(package.origin).parent / "data" / "images" / "t1.jpg").rgb
    photos = example_photo().rgb[:256, 96:352], group
    found = [(photo, face) for photo in photos for face in detector.detect(photo)]
    assert len(found) == 7
    crops = [crop_face(photo, face, **CROP).movedim(-1, 0) for photo, face in found]
    return torch.stack(crops), torch.stack([crop_landmarks(face, **CROP) for _, face in found])


@pytest.fixture(scope="module")
def most_alike(faces) -> float:
    """The energy of the two people who look most alike."""
    images, landmarks = faces
    i, j = torch.triu_indices(len(images), len(images), 1)
    return visual_distance(images[i], landmarks[i], landmarks[j])(images[j]).max().item()


@pytest.mark.parametrize("change", CHANGES)
def test_a_harmless_change_is_far_from_making_another_person(faces, most_alike, change):
    images, landmarks = faces
    alike = visual_distance(images, landmarks, landmarks)(changed(images, change))
    assert alike.min() > 1.25 * most_alike
