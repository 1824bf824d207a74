"""Faces of videos that are given by hand, kept in part, covered, or only doubtfully detected."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch

from diffprivacy import demo
from diffprivacy.cli import main
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import protected_mask
from diffprivacy.faces.keeping import kept_parts
from diffprivacy.faces.regions import box_of, upright_face
from diffprivacy.media.disclosure import SOURCE_TYPE
from diffprivacy.media.images import values
from diffprivacy.video import protect, regeneration
from testing.videos import pixels, write_source

pytestmark = pytest.mark.usefixtures("models_loaded_once")
QUICK = ["--steps", "2", "--strength", "0.5", "--unguided"]
FRAMES = 8
BOX = {"x": 150, "y": 180, "width": 50, "height": 60}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A face at one place."""
    frame = np.ascontiguousarray(skimage.data.astronaut()[0:240, 100:340])
    return write_source(tmp_path_factory.mktemp("clips") / "clip.mp4", [frame] * FRAMES, options={"crf": "1"})


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of four frames; the faces of the second run out of memory."""
    monkeypatch.setattr(protect, "PIECE_FRAMES", (4, 4))
    monkeypatch.setattr(protect, "CONTEXT", 0)
    regenerate, calls = regeneration.regenerate_crops, []

    def sometimes(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no memory left")
        return regenerate(*arguments, **options)

    monkeypatch.setattr(regeneration, "regenerate_crops", sometimes)


def mask_of(frame: np.ndarray) -> np.ndarray:
    (face,) = load_detector(None).detect(values(frame))
    return protected_mask(frame.shape, [face], demo.MARGIN).numpy() == 1


def change(before: np.ndarray, after: np.ndarray, where: np.ndarray) -> float:
    """Mean difference in levels of 255."""
    return float(np.abs(before.astype(float) - after)[where].mean())


def test_faces_that_cannot_be_made_new_are_covered_and_the_rest_of_the_film_is_made(clip, tmp_path, capsys, failing):
    assert main(["anonymize", str(clip), "-o", str(tmp_path), *QUICK]) == 0
    printed = capsys.readouterr()
    assert "person 0 is covered from 0:00.2 to 0:00.3, as it cannot be made new: no memory left" in printed.err
    assert "covered: person 0 from 0:00.2 to 0:00.3" in printed.out
    before, after = pixels(clip), pixels(tmp_path / "clip.mp4")
    inside = mask_of(before[0])
    for number, frame in enumerate(after):
        assert change(before[number], frame, inside) > 4
        flat = frame[inside].astype(float).std(axis=0).max() < 3
        assert flat == (number >= 4)
    assert SOURCE_TYPE.encode() in (tmp_path / "clip.mp4").read_bytes()


def test_a_person_who_would_stay_recognized_is_covered_and_the_film_not_marked_as_made_by_a_model(
    clip, tmp_path, capsys
):
    assert main(["anonymize", str(clip), "-o", str(tmp_path), "--steps", "10", "--strength", "0.1"]) == 0
    said = capsys.readouterr()
    assert "still takes the new face of person 0 for theirs: choose a higher strength" in said.err
    assert "covered: person 0 from 0:00.0" in said.out
    before, after = pixels(clip), pixels(tmp_path / "clip.mp4")
    inside = mask_of(before[0])
    assert max(frame[inside].astype(float).std(axis=0).max() for frame in after) < 3
    assert SOURCE_TYPE.encode() not in (tmp_path / "clip.mp4").read_bytes()


def test_a_summary_counts_and_names_what_is_covered(clip, tmp_path, capsys, failing):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(clip.read_bytes())
    assert main(["anonymize", str(folder), "-o", str(tmp_path / "out"), *QUICK]) == 0
    said = capsys.readouterr().out
    assert "1 face covered, not made new" in said
    assert "2 protected, 1 with covered faces" in said
    assert f"  covered: {folder / 'a.mp4'}: person 0 from 0:00.2 to 0:00.3" in said


def test_programs_read_who_is_covered_and_in_which_frames(clip, tmp_path, capsys, failing):
    assert main(["anonymize", str(clip), "-o", str(tmp_path), *QUICK, "--json"]) == 0
    film, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert film["covered"] == [0]
    assert film["covered frames"] == [{"person": 0, "first": 4, "last": 7}]
    assert summary["summary"]["faces covered"] == 1


def test_an_error_is_one_when_asked_for_and_nothing_is_written(clip, tmp_path, capsys, failing):
    assert main(["anonymize", str(clip), "-o", str(tmp_path / "out"), *QUICK, "--if-impossible", "error"]) == 1
    assert "memory ran out" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_kept_eyes_stay_in_every_frame(clip, tmp_path):
    assert main(["anonymize", str(clip), "-o", str(tmp_path), *QUICK, "--keep", "eyes"]) == 0
    before, after = pixels(clip), pixels(tmp_path / "clip.mp4")
    (face,) = load_detector(None).detect(values(before[0]))
    eyes = kept_parts(before[0].shape, [face], ["eyes"]).numpy() == 1
    for one, other in zip(before, after, strict=True):
        assert change(one, other, eyes) < 2
        assert change(one, other, mask_of(before[0]) & ~eyes) > 4


def test_nearly_a_whole_face_is_not_kept(clip, tmp_path, capsys):
    command = ["anonymize", str(clip), "-o", str(tmp_path / "out"), *QUICK]
    assert main([*command, "--keep", "eyes,nose,mouth,contour"]) == 1
    assert "--keep: clip.mp4: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_box_in_a_frame_protects_that_frame_and_boxes_of_two_frames_those_between(clip, tmp_path, capsys):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"clip.mp4": {"1": [BOX], "4": [BOX]}}))
    assert main(["anonymize", str(clip), "-o", str(tmp_path / "out"), *QUICK, "--boxes", str(boxes)]) == 0
    assert "in 2 of 2 boxes no face is found" in capsys.readouterr().err
    before, after = pixels(clip), pixels(tmp_path / "out" / "clip.mp4")
    place = protected_mask(before[0].shape, [upright_face(box_of(BOX))], demo.MARGIN).numpy() == 1
    changed = [change(one, other, place) > 4 for one, other in zip(before, after, strict=True)]
    assert changed == [1 <= number <= 4 for number in range(FRAMES)]


def test_a_dry_run_lists_given_faces_and_names_that_are_no_input(clip, tmp_path, capsys):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"clip.mp4": {"4": [BOX], "1": [BOX]}, "clop.mp4": {}}))
    command = ["anonymize", str(clip), "-o", str(tmp_path / "out"), "--boxes", str(boxes), "--dry-run"]
    assert main(command) == 0
    printed = capsys.readouterr()
    given = [f"  frame {frame}: face given at 150,180, 50x60 pixels" for frame in (1, 4)]
    assert printed.out.splitlines()[1:3] == given
    assert "has boxes for clop.mp4, which is no input" in printed.err
    assert main([*command, "--json"]) == 0
    film, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert film["faces given"] == [{"frame": frame} | BOX for frame in (1, 4)]
    boxes.write_text(json.dumps({"clip.mp4": [BOX]}))
    assert main(command) == 0
    assert "  every frame: face given at 150,180" in capsys.readouterr().out
    boxes.write_text(json.dumps({"clip.mp4": {"1": [BOX | {"x": 900}]}}))
    assert main(command) == 1
    assert "outside the image of 240x240" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ({"99": [BOX]}, "has boxes for frame 99, but its frames are 0 to 7"),
        ({"1": [BOX | {"x": 900}]}, "outside the image of 240x240"),
    ],
)
def test_boxes_that_a_video_has_no_room_for_are_one_error(clip, tmp_path, capsys, frames, words):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"clip.mp4": frames, "clop.mp4": {}}))
    assert main(["anonymize", str(clip), "-o", str(tmp_path / "out"), *QUICK, "--boxes", str(boxes)]) == 1
    message = capsys.readouterr().err
    assert f"--boxes: {boxes}" in message and words in message
    assert "has boxes for clop.mp4, which is no input" in message
    assert not (tmp_path / "out").exists()
