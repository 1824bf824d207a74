"""Faces given by boxes and masks: found inside, else as the box says, each place once; bad boxes are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import Face, protected_mask
from diffprivacy.faces.regions import (
    box_of,
    boxes_of_mask,
    entry_of,
    face_of_mesh,
    faces_in_boxes,
    is_assumed,
    read_boxes,
    union,
    upright_face,
)

EYES = np.array([(203, 100), (247, 102)])
HEAD = (180.0, 60.0, 270.0, 185.0)


@pytest.fixture(scope="module")
def detector():
    return load_detector(None)


@pytest.fixture(scope="module")
def astronaut() -> torch.Tensor:
    return torch.from_numpy(skimage.data.astronaut()).float() / 255


def test_the_points_are_those_of_the_face_in_the_box(detector, astronaut):
    (face,) = faces_in_boxes(astronaut, [HEAD], detector)
    assert np.linalg.norm(face.landmarks[:2] - EYES, axis=1).max() < 8
    assert face.score > 0.5 and not is_assumed(face)


def test_where_no_face_is_found_the_box_is_taken_for_one_that_looks_ahead(detector, astronaut):
    box = (300.0, 300.0, 360.0, 384.0)
    (face,) = faces_in_boxes(torch.full_like(astronaut, 0.5), [box], detector)
    assert is_assumed(face) and face.box == box
    left_eye, right_eye, nose, *mouth = face.landmarks
    assert left_eye[0] < nose[0] < right_eye[0] and left_eye[1] < nose[1] < mouth[0][1]
    mask = protected_mask(astronaut.shape, [face])
    inside = mask[300:384, 300:360]
    assert inside[10:-10, 20:-20].min() == 1
    assert mask[42:, :][:, :200].max() == 0


@pytest.mark.parametrize(("width", "height"), [(80, 112), (30, 42), (100, 40), (20, 90)])
def test_the_mask_reaches_all_sides_of_any_box(width, height):
    box = (200 - width / 2, 200 - height / 2, 200 + width / 2, 200 + height / 2)
    mask = protected_mask((400, 400), [upright_face(box)])
    for x, y in ((box[0], 200), (box[2], 200), (200, box[1]), (200, box[3])):
        assert mask[round(y), round(x)] == 1


def test_two_boxes_of_one_face_are_one_face(detector, astronaut):
    assert len(faces_in_boxes(astronaut, [HEAD, (175.0, 65.0, 275.0, 180.0)], detector)) == 1


def test_each_connected_region_of_a_mask_is_a_box():
    mask = torch.zeros(60, 80)
    mask[10:20, 5:15] = 1
    mask[30:50, 40:70] = 0.9
    mask[50, 70] = 1  # touches by a corner
    mask[0, 0] = 0.4
    assert boxes_of_mask(mask) == [(4.5, 9.5, 14.5, 19.5), (39.5, 29.5, 70.5, 50.5)]
    with pytest.raises(DiffPrivacyError, match="empty"):
        boxes_of_mask(torch.zeros(5, 5))


def test_union_keeps_each_place_once_and_the_surest_face():
    sure = upright_face((10, 10, 50, 66))
    detected = Face(sure.box, sure.landmarks, 0.9)
    other = upright_face((100, 10, 140, 66))
    assert union([other, sure], [detected]) == [detected, other]


def test_boxes_go_out_as_they_came_in():
    entry = {"x": 10, "y": 20, "width": 30, "height": 41}
    assert entry_of(upright_face(box_of(entry)), (100, 100)) == entry
    beyond = upright_face(box_of({"x": -10, "y": 90, "width": 30, "height": 41}))
    assert entry_of(beyond, (100, 100)) == {"x": 0, "y": 90, "width": 20, "height": 10}


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_file_of_boxes_names_pictures_and_frames(tmp_path):
    entry = {"x": 1, "y": 2, "width": 3, "height": 4}
    boxes = read_boxes(write(tmp_path, {"a.jpg": [entry], "b.mp4": {"7": [entry, entry]}}))
    assert boxes.of(Path("some/a.jpg")) == [(0.5, 1.5, 3.5, 5.5)]
    assert boxes.of(Path("b.mp4")) == [] and len(boxes.of(Path("b.mp4"), 7)) == 2
    assert boxes.of(Path("c.jpg")) == []
    boxes.check_frames(Path("b.mp4"), 8)
    with pytest.raises(DiffPrivacyError, match=r"boxes\.json: b\.mp4 has boxes for frame 7.*0 to 6"):
        boxes.check_frames(Path("b.mp4"), 7)
    boxes.check_size(Path("b.mp4"), (50, 50))
    with pytest.raises(DiffPrivacyError, match=r"boxes\.json, a\.jpg: .*outside the image of 1x1"):
        boxes.check_size(Path("a.jpg"), (1, 1))


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    entry = {"x": 1, "y": 2, "width": 3, "height": 4}
    boxes = read_boxes(write(tmp_path, {"mon/a.jpg": [entry], "a.jpg": [entry, entry]}))
    assert len(boxes.of(Path("in/mon/a.jpg"))) == 1 and len(boxes.of(Path("in/tue/a.jpg"))) == 2
    assert boxes.name_of(Path("in/mon/b.jpg")) is None


def test_a_list_without_frames_is_for_all_frames(tmp_path):
    boxes = read_boxes(write(tmp_path, {"b.mp4": [{"x": 1, "y": 2, "width": 3, "height": 4}]}))
    assert boxes.of(Path("b.mp4"), 0) == boxes.of(Path("b.mp4"), 99) == [(0.5, 1.5, 3.5, 5.5)]
    boxes.check_frames(Path("b.mp4"), 1)


@pytest.mark.parametrize(
    "content",
    [
        '{"v.mp4": {"-1": []}}',
        '{"a.jpg": [{"x": 1, "y": 2, "width": 3, "height": 4}], "a.jpg": []}',
        "{",
        "[]",
        '{"a.jpg": 3}',
        '{"a.jpg": [{"x": 1}]}',
        '{"v.mp4": {"first": []}}',
        '{"a.jpg": [[1, 2, 3, 4]]}',
    ],
)
def test_what_holds_no_boxes_is_refused_with_an_example(tmp_path, content):
    with pytest.raises(DiffPrivacyError, match=r'boxes\.json holds no boxes.*"width": 64'):
        read_boxes(write(tmp_path, content))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"x": 600, "y": 10, "width": 20, "height": 20}, "outside the image of 512x512"),
        ({"x": 10, "y": -50, "width": 20, "height": 20}, "outside the image"),
        ({"x": 10, "y": 10, "width": 0, "height": 20}, "has no inside"),
    ],
)
def test_a_box_without_a_place_in_the_picture_is_an_error(detector, astronaut, entry, words):
    with pytest.raises(DiffPrivacyError, match=words):
        faces_in_boxes(astronaut, [box_of(entry)], detector)


def test_a_mesh_of_mediapipe_gives_its_own_five_points():
    points = np.random.default_rng(0).uniform(10, 90, (478, 2))
    face = face_of_mesh(points, 0.8)
    expected = [points[[33, 133]].mean(0), points[[362, 263]].mean(0), points[1], points[61], points[291]]
    np.testing.assert_allclose(face.landmarks, expected, rtol=1e-5)
    assert face.score == 0.8 and face.box[:2] == tuple(points.min(axis=0))
    with pytest.raises(DiffPrivacyError, match="468 points or more"):
        face_of_mesh(points[:68], 0.8)
