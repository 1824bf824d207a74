"""Faces that only transparency draws are found, protected and not left in the alpha channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor

from diffprivacy import demo
from diffprivacy.cli import main
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import protected_mask
from diffprivacy.faces.transparency import detect_faces, flattened
from diffprivacy.media.images import Picture, read_picture

PHOTO = skimage.data.astronaut()[:240, 100:340]
GREY = PHOTO.mean(axis=2).astype(np.uint8)


def drawn_in(colour: int, alpha: np.ndarray) -> Picture:
    """An ordinary photo and beside it an even colour whose opacity draws."""
    rgb = np.concatenate([PHOTO, np.full_like(PHOTO, colour)], axis=1)
    opacity = np.concatenate([np.full_like(GREY, 255), alpha], axis=1)
    return Picture(torch.from_numpy(rgb).float() / 255, torch.from_numpy(opacity).float() / 255)


INKS = {"black ink": drawn_in(0, 255 - GREY), "white light": drawn_in(255, GREY)}


def shown(picture: Picture, background: float) -> Tensor:
    assert picture.alpha is not None
    return background + picture.alpha[..., None] * (picture.rgb - background)


@pytest.mark.parametrize("name", INKS)
def test_a_face_that_opacity_draws_is_found_and_flattened(name):
    picture, detector = INKS[name], load_detector(None)
    assert len(detector.detect(picture.rgb)) == 1
    faces = detect_faces(detector, picture)
    assert len(faces) == 2
    flat = flattened(picture, faces, demo.MARGIN)
    assert flat.alpha is not None and picture.alpha is not None
    inside = protected_mask(flat.alpha.shape, faces, demo.MARGIN) > 0
    assert (flat.alpha[inside] == 1).all()
    assert torch.equal(flat.rgb[~inside], picture.rgb[~inside])
    assert torch.equal(flat.alpha[~inside], picture.alpha[~inside])
    background = 1.0 if name == "black ink" else 0.0
    assert torch.allclose(flat.rgb[inside], shown(picture, background)[inside], atol=1e-6)


def test_pictures_without_transparency_stay_as_they_are():
    rgb = torch.from_numpy(PHOTO).float() / 255
    detector = load_detector(None)
    for alpha in (None, torch.ones(240, 240), torch.full((240, 240), 0.5)):
        picture = Picture(rgb, alpha)
        faces = detect_faces(detector, picture)
        assert len(faces) == 1
        flat = flattened(picture, faces, demo.MARGIN)
        assert torch.equal(flat.rgb, rgb)
        assert flat.alpha is None if alpha is None else torch.equal(flat.alpha, alpha)


def test_colours_under_full_transparency_are_looked_at_too():
    """Who makes the file opaque again sees them."""
    picture = Picture(torch.from_numpy(PHOTO).float() / 255, torch.zeros(240, 240))
    assert len(detect_faces(load_detector(None), picture)) == 1


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_the_command_protects_a_face_in_the_alpha_channel(tmp_path: Path, kind):
    """Black all over but for its opacity; of a palette, its 16 steps of black."""
    if kind == "P":
        image = Image.fromarray((255 - GREY) // 16).convert("P")
        image.putpalette(bytes(768))
        image.save(tmp_path / "ink.png", transparency=bytes(range(0, 256, 17)))
    else:
        ink = np.zeros_like(GREY)
        channels = {"RGBA": (ink, ink, ink, 255 - GREY), "LA": (ink, 255 - GREY)}[kind]
        Image.fromarray(np.dstack(channels), mode=kind).save(tmp_path / "ink.png")
    command = [
        "anonymize",
        str(tmp_path / "ink.png"),
        "-o",
        str(tmp_path / "out"),
        "--steps",
        "4",
        "--strength",
        "0.6",
        "--unguided",
    ]
    assert main(command) == 0
    before, after = read_picture(tmp_path / "ink.png"), read_picture(tmp_path / "out" / "ink.png")
    (face,) = detect_faces(load_detector(None), before)
    inside = protected_mask(before.rgb.shape, [face], demo.MARGIN) == 1
    assert after.alpha is not None
    assert (after.alpha[inside] == 1).all()
    changed = (shown(after, 1.0) - shown(before, 1.0))[inside].abs().mean()
    assert changed > 4 / 255
