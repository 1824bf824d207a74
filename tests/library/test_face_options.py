"""Options of ``anonymize`` about faces: boxes of missed ones, parts that stay, a cover for what cannot be made new."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyrage
import pytest
import skimage.data
import torch
from PIL import Image

from diffprivacy import demo
from diffprivacy.cli import main
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import protected_mask
from diffprivacy.faces.keeping import kept_parts
from diffprivacy.faces.regions import box_of, upright_face

pytestmark = pytest.mark.usefixtures("models_loaded_once")
QUICK = ["--steps", "2", "--strength", "0.5", "--unguided"]
MISSED = {"x": 380, "y": 300, "width": 80, "height": 110}


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(path)
    return path


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).float() / 255


def test_a_face_given_by_a_box_is_protected_beside_those_found(photo, tmp_path, capsys):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"astronaut.png": [MISSED]}))
    assert main(["anonymize", str(photo), "-o", str(tmp_path / "out"), "--boxes", str(boxes), *QUICK]) == 0
    assert f"--boxes: {photo}: in 1 of 1 boxes no face is found" in capsys.readouterr().err
    before, after = pixels(photo), pixels(tmp_path / "out" / "astronaut.png")
    faces = [*load_detector(None).detect(before), upright_face(box_of(MISSED))]
    changed = (before != after).any(dim=-1)
    for face in faces:
        assert changed[protected_mask(before.shape, [face]) == 1].float().mean() > 0.5
    assert not changed[protected_mask(before.shape, faces) == 0].any()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"astronaut.png": [{"x": 900, "y": 0, "width": 9, "height": 9}]}, ["astronaut.png", "outside"]),
        ({"astronaut.png": {"3": [MISSED]}}, ["frame 3"]),
        ([], ["holds no boxes"]),
    ],
)
def test_bad_boxes_are_one_error_and_nothing_is_written(photo, tmp_path, capsys, content, words):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps(content))
    assert main(["anonymize", str(photo), "-o", str(tmp_path / "out"), "--boxes", str(boxes), *QUICK]) == 1
    message = capsys.readouterr().err.strip()
    assert all(word in message for word in ["--boxes: ", "boxes.json", *words])
    assert not (tmp_path / "out").exists()


def test_kept_eyes_keep_their_pixels(photo, tmp_path):
    assert main(["anonymize", str(photo), "-o", str(tmp_path), "--keep", "eyes", "--no-disclosure", *QUICK]) == 0
    assert b"iTXt" not in (tmp_path / "astronaut.png").read_bytes()
    before, after = pixels(photo), pixels(tmp_path / "astronaut.png")
    faces = load_detector(None).detect(before)
    kept = kept_parts(before.shape, faces, ["eyes"])
    assert torch.equal(before[kept == 1], after[kept == 1])
    new = (protected_mask(before.shape, faces) == 1) & (kept == 0)
    assert (before[new] != after[new]).any(dim=-1).float().mean() > 0.8


def test_matched_colours_change_the_new_face_alone_and_recovery_stays_exact(photo, tmp_path):
    owner, seed = pyrage.x25519.Identity.generate(), ["--seed", "1"]
    (tmp_path / "owner.txt").write_text(str(owner))
    key = str(tmp_path / "owner.txt")
    sealed = ["--seal-to", str(owner.to_public()), "--fidelity", "lossless"]
    assert main(["anonymize", str(photo), "-o", str(tmp_path / "plain"), *seed, *QUICK]) == 0
    assert main(["anonymize", str(photo), "-o", str(tmp_path / "out"), *seed, *QUICK, "--match-colors", *sealed]) == 0
    before, plain, after = (
        pixels(file) for file in (photo, tmp_path / "plain" / "astronaut.png", tmp_path / "out" / "astronaut.png")
    )
    mask = protected_mask(before.shape, load_detector(None).detect(before), demo.MARGIN)
    assert torch.equal(before[mask == 0], after[mask == 0])
    assert (plain != after)[mask == 1].any(dim=-1).float().mean() > 0.5
    assert main(["recover", str(tmp_path / "out"), "-o", str(tmp_path / "back"), "--identity-file", key]) == 0
    assert torch.equal(pixels(tmp_path / "back" / "astronaut.png"), before)


def test_a_face_that_cannot_be_made_new_is_covered_when_asked(photo, tmp_path, capsys):
    command = ["anonymize", str(photo), "-o", str(tmp_path), *QUICK]
    with patch("diffprivacy.pipeline.regenerate_crops", side_effect=torch.OutOfMemoryError("no memory left")):
        assert main([*command, "--if-impossible", "cover"]) == 0
    assert "face 0 is covered" in (message := capsys.readouterr().err) and "no memory left" in message
    before, after = pixels(photo), pixels(tmp_path / "astronaut.png")
    faces = load_detector(None).detect(before)
    mask = protected_mask(before.shape, faces, demo.MARGIN)
    assert after[mask > 0].unique(dim=0).shape[0] == 1
    assert b"iTXt" not in (tmp_path / "astronaut.png").read_bytes(), "no model made a part of it"
    assert torch.equal(before[mask == 0], after[mask == 0])


def test_a_result_that_is_no_image_is_an_error_and_nothing_is_written(photo, tmp_path, capsys):
    nothing = torch.full((1, 3, 128, 128), torch.nan)
    with patch("diffprivacy.pipeline.regenerate_crops", return_value=nothing):
        assert main(["anonymize", str(photo), "-o", str(tmp_path / "out"), *QUICK]) == 1
    assert "face 0 is no image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "words"), [("--keep", "ears", "none of eyes"), ("--min-score", "2", "not between 0 and 1")]
)
def test_wrong_values_are_refused(photo, tmp_path, capsys, option, value, words):
    with pytest.raises(SystemExit) as caught:
        main(["anonymize", str(photo), "-o", str(tmp_path), option, value])
    assert caught.value.code == 2 and words in capsys.readouterr().err
