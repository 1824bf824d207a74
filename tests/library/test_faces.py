"""Alignment, masks and pasting: the crop is where it should be, the mask protects, and nothing else changes."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from skimage.transform import estimate_transform

from diffprivacy.faces import geometry as faces
from diffprivacy.faces.geometry import (
    ARCFACE_TEMPLATE,
    MARGIN,
    Face,
    align_matrix,
    crop_face,
    crop_landmarks,
    face_mask,
    head_centre,
    paste_faces,
    protected_mask,
    sort_faces,
)

RED, GREEN = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])


def placed(x: float, y: float, width: float = 60.0, degrees: float = 0.0, landmarks=ARCFACE_TEMPLATE) -> Face:
    """A face like the template, the middle of its 112-pixel square at (x, y), that square ``width`` wide."""
    angle, scale = np.radians(degrees), width / 112
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = ((landmarks - 55.5) @ rotation.T + (x, y)).astype(np.float32)
    return Face((x - width / 2, y - width / 2, x + width / 2, y + width / 2), points, 1.0)


def smooth_picture(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 3, width), indexing="ij")
    return torch.stack((x.sin(), (x + y).cos(), (y - x).sin()), dim=-1) / 2 + 0.5


def noise_picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


angles = st.floats(-180, 180)
places = st.floats(-20, 180)
widths = st.floats(12, 200)


@given(x=places, y=places, width=widths, degrees=angles, size=st.integers(16, 1024), margin=st.floats(1, 3))
def test_alignment_undoes_any_similarity(x, y, width, degrees, size, margin):
    face = placed(x, y, width, degrees)
    matrix = align_matrix(face, size, margin)
    expected = (ARCFACE_TEMPLATE - 55.5) * size / (112 * margin) + (size - 1) / 2
    np.testing.assert_allclose(apply(matrix, face.landmarks), expected, atol=0.01 * size / 112)
    np.testing.assert_allclose(apply(matrix, np.array([[x, y]])), [[(size - 1) / 2] * 2], atol=0.01 * size / 112)


def test_landmarks_in_the_crop_are_where_the_crop_shows_them():
    face = placed(100, 90, 40, 30)
    picture = torch.zeros(200, 200, 3)
    for x, y in face.landmarks.round().astype(int):
        picture[y - 1 : y + 2, x - 1 : x + 2] = 1
    crop = crop_face(picture, face, 256, 1.2)
    for x, y in crop_landmarks(face, 256, 1.2).round().int().tolist():
        assert crop[y, x].min() > 0.7


def test_arcface_crop_is_size_112_and_margin_1():
    face = Face((0, 0, 112, 112), ARCFACE_TEMPLATE, 1.0)
    np.testing.assert_allclose(align_matrix(face, 112, 1.0), [[1, 0, 0], [0, 1, 0]], atol=1e-6)


@given(seed=st.integers(0, 2**32 - 1))
def test_alignment_is_the_least_squares_similarity(seed):
    landmarks = ARCFACE_TEMPLATE + np.random.default_rng(seed).normal(0, 6, (5, 2)).astype(np.float32)
    umeyama = estimate_transform("similarity", landmarks.astype(float), ARCFACE_TEMPLATE.astype(float)).params[:2]
    np.testing.assert_allclose(align_matrix(Face((0, 0, 1, 1), landmarks, 1.0), 112, 1.0), umeyama, atol=1e-6)


def test_crop_at_the_same_scale_is_a_cutting():
    picture = noise_picture(200, 220)
    crop = crop_face(picture, placed(55.5 + 30, 55.5 + 41, width=112), 112, 1.0)
    assert torch.allclose(crop, picture[41:153, 30:142], atol=1e-4)


def test_crop_beyond_the_border_is_mirrored():
    picture = noise_picture(150, 140)
    crop = crop_face(picture, placed(55.5 - 40, 55.5 + 70, width=112), 112, 1.0)
    padded = np.pad(picture.numpy(), ((0, 112), (112, 0), (0, 0)), mode="symmetric")
    np.testing.assert_allclose(crop.numpy(), padded[70:182, 72:184], atol=1e-4)


def test_shrinking_does_not_alias():
    y, x = torch.meshgrid(torch.arange(900), torch.arange(900), indexing="ij")
    checkerboard = ((x + y) % 2).float()[..., None].expand(-1, -1, 3)
    crop = crop_face(checkerboard, placed(450, 450, width=800, degrees=10), 64, 1.0)
    assert (crop - 0.5).abs().max() < 0.05


@settings(max_examples=40)
@given(x=places, y=places, width=st.floats(20, 150), degrees=angles, margin=st.floats(1.0, 2.5))
def test_pasting_an_unchanged_crop_changes_nothing_visible(x, y, width, degrees, margin):
    picture = smooth_picture(150, 170)
    face = placed(x, y, width, degrees)
    pasted = paste_faces(picture, crop_face(picture, face, 256, margin)[None], [face], margin)
    outside = protected_mask(picture.shape, [face], margin) == 0
    assert torch.equal(pasted[outside], picture[outside])
    inside_border = torch.zeros(150, 170, dtype=torch.bool)
    inside_border[4:-4, 4:-4] = True  # a crop mirrors the picture at its border, which bends the gradient there
    assert (pasted - picture)[inside_border].abs().max() < 0.01


@settings(max_examples=40)
@given(
    x=places, y=places, width=st.floats(12, 150), degrees=angles, margin=st.floats(1.0, 2.5), size=st.integers(32, 300)
)
def test_pasting_replaces_what_the_mask_says_and_nothing_else(x, y, width, degrees, margin, size):
    picture = noise_picture(150, 170)
    face = placed(x, y, width, degrees)
    before = picture.clone()
    pasted = paste_faces(picture, RED.expand(1, size, size, 3), [face], margin)
    mask = protected_mask(picture.shape, [face], margin)
    assert torch.equal(picture, before)
    assert torch.equal(pasted[mask == 0], picture[mask == 0])
    blended = torch.lerp(picture, RED, mask[..., None])
    assert torch.allclose(pasted, blended, atol=1e-4)


def test_outside_the_mask_even_odd_values_keep_their_bits():
    picture = noise_picture(150, 170) * 3 - 1
    picture[0, 0, 0] = float("inf")
    face = placed(90, 80)
    pasted = paste_faces(picture, RED.expand(1, 64, 64, 3), [face])
    outside = protected_mask(picture.shape, [face]) == 0
    assert torch.equal(pasted[outside], picture[outside])
    assert not torch.equal(pasted, picture)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (placed(80, 80, 60), placed(112, 84, 60)),
        (placed(80, 80, 120), placed(120, 130, 40)),
        (placed(80, 80, 60, 30), placed(80, 112, 60, -20)),
    ],
    ids=["cheek to cheek", "child in front", "one above the other"],
)
def test_overlapping_faces_each_keep_their_own_core(one, other):
    picture = noise_picture(180, 190)
    crops = torch.stack((RED.expand(64, 64, 3), GREEN.expand(64, 64, 3)))
    pasted = paste_faces(picture, crops, [one, other])
    swapped = paste_faces(picture, crops.flip(0), [other, one])
    assert torch.allclose(pasted, swapped, atol=1e-5)
    for face, colour in ((one, RED), (other, GREEN)):
        for x, y in face.landmarks.round().astype(int)[:3]:
            assert torch.allclose(pasted[y, x], colour, atol=0.1)
    union = protected_mask(picture.shape, [one, other])
    assert torch.equal(pasted[union == 0], picture[union == 0])
    # Where either face is replaced completely, nothing of the original shines through: red and green, no blue.
    assert pasted[union == 1][:, 2].abs().max() < 1e-5
    assert torch.allclose(pasted[union == 1].sum(dim=1), torch.tensor(1.0), atol=1e-4)


def test_a_large_picture_is_pasted_in_strips_without_a_seam(monkeypatch):
    picture = noise_picture(180, 190)
    crops = torch.stack((smooth_picture(64, 64), noise_picture(64, 64, 1)))
    found = [placed(80, 80, 120, 20), placed(120, 130, 60)]
    whole = paste_faces(picture, crops, found)
    monkeypatch.setattr(faces, "STRIP", 1000)
    assert torch.allclose(paste_faces(picture, crops, found), whole, atol=1e-5)


def test_number_of_crops_must_match():
    with pytest.raises(ValueError):
        paste_faces(noise_picture(90, 90), RED.expand(1, 32, 32, 3), [placed(30, 30), placed(60, 60)])


@pytest.mark.parametrize("margin", [1.0, 1.4, MARGIN, 3.0])
def test_mask_covers_the_face_and_ends_before_the_border(margin):
    face = placed(100, 100, 112)
    mask = face_mask(face, 256, margin)
    assert mask.shape == (256, 256)
    border = torch.cat((mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    assert border.max() < 0.01
    assert mask.min() == 0
    assert mask.max() == 1
    brows_to_lip = np.array([[34, 42], [78, 42], [20, 60], [90, 60], [56, 95], [41, 92], [70, 92]]) + 100 - 55.5
    for x, y in apply(align_matrix(face, 256, margin), brows_to_lip).round().astype(int):
        assert mask[y, x] == 1


@settings(max_examples=30)
@given(width=st.floats(60, 120), degrees=angles, margin=st.floats(1.0, 2.5), nose=st.floats(-15, 15))
def test_mask_in_the_picture_is_the_mask_in_the_crop(width, degrees, margin, nose):
    landmarks = ARCFACE_TEMPLATE.copy()
    landmarks[2, 0] += nose
    face = placed(200, 200, width, degrees, landmarks)
    picture_mask = protected_mask((400, 400), [face], margin)
    seen = crop_face(picture_mask[..., None].expand(-1, -1, 3), face, 96, margin)[..., 0]
    assert (seen - face_mask(face, 96, margin)).abs().max() < 0.1


def test_mask_of_a_turned_head_reaches_behind_it():
    looks_left = ARCFACE_TEMPLATE.copy()
    looks_left[2, 0] -= 10
    ahead, left = placed(100, 100, 112), placed(100, 100, 112, landmarks=looks_left)
    assert head_centre(left)[0] - head_centre(ahead)[0] > 8
    ear = np.array([[112.0, 64.0]]) + 100 - 55.5
    x, y = ear.round().astype(int)[0]
    assert protected_mask((250, 250), [left])[y, x] == 1
    assert protected_mask((250, 250), [ahead])[y, x] < 0.5


def test_mask_of_many_faces_is_their_union():
    faces = [placed(40, 50), placed(80, 60, 40, 20), placed(150, 150, 90)]
    union = protected_mask((200, 210), faces)
    single = torch.stack([protected_mask((200, 210), [face]) for face in faces])
    assert torch.equal(union, single.amax(dim=0))
    assert protected_mask((200, 210), []).max() == 0


@given(boxes=st.lists(st.tuples(*[st.integers(0, 50)] * 4), min_size=1, max_size=8))
def test_faces_count_from_left_to_right_then_down(boxes):
    assume(all(box for box in boxes))
    faces = [Face((x, y, x + w, y + h), ARCFACE_TEMPLATE, 0.5) for x, y, w, h in boxes]
    centres = [((f.box[0] + f.box[2]) / 2, (f.box[1] + f.box[3]) / 2) for f in sort_faces(faces)]
    assert centres == sorted(centres)


def test_what_the_mask_leaves_cannot_be_recognized(data_dir):
    """With grey instead of the face, a photo is no more like its person than like anybody else."""
    from skimage.io import imread

    from diffprivacy.faces.detectors import load_detector
    from diffprivacy.identity.recognizers import load_recognizer

    detector = load_detector(data_dir / "detectors" / "yunet_n.onnx")
    recognizer = load_recognizer(data_dir / "recognizers" / "mobilefacenet_ms1m.onnx")
    embeddings, hidden = [], []
    for file in sorted((data_dir / "photos" / "lfw250").glob("*/*_0001.jpg")):
        picture = torch.from_numpy(imread(file)).float() / 255
        faces = detector.detect(picture)
        person = max(faces, key=lambda face: face.area)
        grey = paste_faces(picture, torch.full((len(faces), 8, 8, 3), 0.5), faces)
        landmarks = torch.from_numpy(person.landmarks)[None].expand(2, -1, -1)
        (pair,) = recognizer.embed(torch.stack((picture, grey)).movedim(-1, 1), landmarks)
        embeddings.append(pair[0])
        hidden.append(pair[1])
    cosines = torch.stack(embeddings) @ torch.stack(hidden).T
    own, others = cosines.diagonal(), cosines[~torch.eye(len(cosines), dtype=torch.bool)]
    assert len(own) == 10
    assert own.max() < 0.301  # the threshold at a false accept rate of 1e-3
    assert (own.mean() - others.mean()).abs() < 0.05
