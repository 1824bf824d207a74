"""Previews show where faces are, and not whose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import Face
from diffprivacy.faces.preview import CARRIED, CHOSEN, COVER, FOUND, draw_faces, draw_people
from diffprivacy.identity.recognizers import load_recognizer
from diffprivacy.media.images import read_picture

POINTS = np.array([[38, 40], [62, 40], [50, 52], [41, 65], [59, 65]], np.float32)
FACES = [
    Face((30.0, 25.0, 70.0, 80.0), POINTS, 0.9),
    Face((110.0, 25.0, 150.0, 80.0), POINTS + np.float32([80, 0]), 0.9),
]


def levels(drawn: torch.Tensor) -> np.ndarray:
    return (drawn.numpy() * 255).round().astype(int)


@pytest.mark.parametrize("draw", ["faces", "people"])
def test_nothing_of_a_face_is_left(draw):
    """Two images that differ in their faces alone, by as much as can be, have the same preview there."""
    image = torch.full((120, 190, 3), 0.5)
    other = image.clone()
    for face in FACES:
        left, top, right, bottom = (int(v) for v in face.box)
        other[top + 1 : bottom, left + 1 : right] = torch.rand(bottom - top - 1, right - left - 1, 3).round()
    if draw == "faces":
        a, b = (levels(draw_faces(i, FACES, FACES[:1])) for i in (image, other))
        frames = (CHOSEN, FOUND)
    else:
        a, b = (levels(draw_people(i, FACES, [3, 1], [True, False])) for i in (image, other))
        frames = (CHOSEN, CARRIED)
    for face, color in zip(FACES, frames, strict=True):
        left, top, right, bottom = (int(v) for v in face.box)
        inside = a[top + 5 : bottom - 5, left + 5 : right - 5]
        assert np.array_equal(inside, b[top + 5 : bottom - 5, left + 5 : right - 5])
        colors = {tuple(pixel) for pixel in inside.reshape(-1, 3).tolist()}
        assert COVER in colors
        assert color in colors, "its number"


def test_the_rest_is_too_coarse_to_hold_a_face_that_was_not_found():
    """16 pixels are left: an image with detail is the same as one whose pixels were averaged over such blocks."""
    image = torch.rand(160, 80, 3)
    blocks = image.unflatten(0, (16, 10)).unflatten(2, (8, 10)).mean(dim=(1, 3))
    averaged = blocks.repeat_interleave(10, dim=0).repeat_interleave(10, dim=1)
    assert np.abs(levels(draw_faces(image, [], [])) - levels(draw_faces(averaged, [], []))).max() <= 1


def test_recognizers_do_not_match_a_face_that_was_not_found(data_dir):
    detector = load_detector(data_dir / "detectors" / "yunet_n.onnx")
    recognizer = load_recognizer(data_dir / "recognizers" / "mobilefacenet_ms1m.onnx")
    photos = [read_picture(file).rgb for file in sorted((data_dir / "photos" / "celebahq512").glob("*"))[:12]]

    def embeddings(images: list[torch.Tensor]) -> torch.Tensor:
        batch = zip(images, photos, strict=True)
        found = [(image, max(detector.detect(photo), key=lambda face: face.area)) for image, photo in batch]
        rows = [recognizer.reference(i.movedim(-1, 0)[None], torch.from_numpy(f.landmarks)[None])[0] for i, f in found]
        return torch.cat(rows)

    cosines = (embeddings(photos) * embeddings([draw_faces(photo, [], []) for photo in photos])).sum(dim=1)
    assert float(cosines.mean()) < 0.2
    assert int((cosines > 0.301).sum()) <= 1, "the threshold at FAR 1e-3"
