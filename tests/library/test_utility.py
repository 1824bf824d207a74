"""What protecting costs: every measure against a known answer or an independent computation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import skimage.color
import skimage.data
import skimage.transform
import torch
from onnx import TensorProto, helper, numpy_helper
from scipy.spatial.transform import Rotation

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.evaluation.comparison import clean_photos, jpeg_changes, judge
from diffprivacy.evaluation.utility import (
    EYES,
    MEASURES,
    MOUTH,
    changes,
    gaze,
    landmark_error,
    light_direction,
    looks,
    opening,
    rotation_angle,
    typology_angle,
    utility_table,
)
from diffprivacy.faces.attributes import load_attributes
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.facemesh import load_face_mesh
from diffprivacy.identity.energies import latent_gradient
from diffprivacy.identity.expression import keep_expression
from diffprivacy.media.images import Picture, write_picture

PIXELS = skimage.data.astronaut()[:256, 96:352]


@pytest.fixture(scope="module")
def detector():
    return load_detector(None)


@pytest.fixture(scope="module")
def astronaut() -> torch.Tensor:
    return torch.from_numpy(PIXELS.astype(np.float32) / 255)


@pytest.fixture(scope="module")
def face(astronaut, detector):
    (found,) = detector.detect(astronaut)
    return found


@pytest.fixture(scope="module")
def before(astronaut, face):
    return looks(astronaut, face)


def test_points_and_blendshapes_are_those_of_mediapipe(before):
    """What MediaPipe 1.2.3 itself says of this photo: irises, nose, mouth's corners and lips, and a broad smile."""
    theirs = [
        (107.1, 101.3),
        (150.3, 103.4),
        (127.4, 130.8),
        (106.0, 139.3),
        (148.8, 140.7),
        (127.2, 143.2),
        (126.7, 149.8),
    ]
    assert before.points[[468, 473, 1, 61, 291, 13, 14], :2] == pytest.approx(np.array(theirs), abs=1.0)
    assert before.shapes[[44, 45, 48, 49]] == pytest.approx([0.899, 0.904, 0.566, 0.560], abs=0.05)
    assert before.shapes[0] < 0.01


def test_points_follow_the_image_under_autograd(astronaut, face):
    images = astronaut.movedim(-1, 0)[None].clone().requires_grad_()
    load_face_mesh()(images, torch.from_numpy(face.landmarks)[None])[0, 13].sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_an_energy_keeps_the_expression(astronaut, face):
    """None for the same face; some for one whose mouth is twisted, which a step down its gradient takes back."""
    image, landmarks = astronaut.movedim(-1, 0)[None], torch.from_numpy(face.landmarks)[None]
    energy = keep_expression(image, landmarks)
    assert energy(image).item() == pytest.approx(0, abs=1e-4)
    pixels = skimage.transform.swirl(astronaut.numpy(), (127, 146), strength=2, radius=60)
    twisted = torch.from_numpy(pixels.astype(np.float32)).movedim(-1, 0)[None]
    before, slope = energy(twisted).item(), latent_gradient(energy, lambda images: images)(twisted)
    assert before > 0.2
    assert slope.isfinite().all()
    assert energy(twisted - 0.1 * slope / slope.norm()).item() < 0.8 * before
    two = energy(torch.cat((image, twisted)))
    assert two.tolist() == pytest.approx([0, before], abs=1e-3), "two variants of one face"


def test_equal_images_differ_in_nothing(before):
    measured = {name: value for name, value in changes(before, before).items() if name not in ("age", "sex")}
    assert measured == pytest.approx(dict.fromkeys(measured, 0), abs=1e-3)


def test_a_turned_photo_turns_the_head_by_its_angle_and_leaves_the_expression(astronaut, face, detector, before):
    turned = skimage.transform.rotate(astronaut.numpy(), 15, mode="edge")
    (found,) = detector.detect(torch.from_numpy(turned.astype(np.float32)))
    measured = changes(before, looks(torch.from_numpy(turned.astype(np.float32)), found))
    assert measured["head pose"] == pytest.approx(15, abs=2)
    assert measured["landmarks"] < 0.03 and measured["expression"] < 0.03


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_a_head_is_turned_by_the_angle_about_any_axis(before, axis):
    other = 3 * Rotation.from_euler(axis, 20, degrees=True).apply(before.points) + 7
    assert rotation_angle(before.points, other) == pytest.approx(20, abs=1e-3)


def test_landmark_error_is_what_the_best_similarity_leaves(before):
    random = np.random.default_rng(0)
    other = 1.5 * Rotation.from_euler("z", 30, degrees=True).apply(before.points) + 40
    assert landmark_error(before.points, other) == pytest.approx(0, abs=1e-4)
    other[:, :2] += random.normal(0, 5, (len(other), 2))
    fitted = skimage.transform.SimilarityTransform.from_estimate(other[:, :2], before.points[:, :2])
    left = np.linalg.norm(fitted(other[:, :2]) - before.points[:, :2], axis=1).mean()
    eyes = np.linalg.norm(before.points[33, :2] - before.points[263, :2])
    assert landmark_error(before.points, other) == pytest.approx(left / eyes, rel=0.01)


def test_lids_lips_and_irises_that_move_are_measured_in_widths(before):
    points = np.zeros_like(before.points)
    left, right, upper, lower, iris = EYES[0]
    points[left], points[right], points[upper], points[lower] = (0, 0, 0), (20, 0, 0), (10, -3, 0), (10, 3, 0)
    points[iris] = (12, 1, 0)
    assert opening(points, EYES[0]) == pytest.approx(6 / 20)
    assert gaze(points, EYES[0]) == pytest.approx([2 / 20, 1 / 20])
    moved = before.points.copy()
    corners = [np.linalg.norm(moved[eye[0], :2] - moved[eye[1], :2]) for eye in EYES]
    for eye, width in zip(EYES, corners, strict=True):
        moved[eye[4], 0] += 0.1 * width
    mouth = np.linalg.norm(moved[MOUTH[0]] - moved[MOUTH[1]])
    lips = moved[MOUTH[3]] - moved[MOUTH[2]]
    moved[MOUTH[3]] += 0.3 * mouth * lips / np.linalg.norm(lips)
    measured = changes(before, replace(before, points=moved))
    assert measured["gaze"] == pytest.approx(0.1, rel=0.01)
    assert measured["mouth's opening"] == pytest.approx(0.3, rel=0.01)
    assert measured["eyes' opening"] == 0


@pytest.mark.parametrize(("lightness", "yellow", "angle"), [(70, 20, 45), (50, 15, 0), (40, 10, -45)])
def test_skin_of_a_known_colour_has_its_angle(lightness, yellow, angle):
    colour = skimage.color.lab2rgb(np.broadcast_to([float(lightness), 10.0, float(yellow)], (112, 112, 3)))
    assert typology_angle(colour) == pytest.approx(angle, abs=0.5)


@pytest.mark.parametrize("light", [(0.0, 0.0, 1.0), (0.5, -0.3, 0.81), (-0.4, -0.4, 0.82)])
def test_the_light_on_an_ellipsoid_is_found(light):
    """A ball of a head under a distant light (Lambert's law) and some from all around."""
    (x0, y0), axes = (56, 72), np.array((42, 52, 42))
    y, x = np.mgrid[:112, :112]
    across, down = (x - x0) / axes[0], (y - y0) / axes[1]
    depth = np.sqrt(np.clip(1 - across**2 - down**2, 0, None))
    normals = np.stack((across, down, depth), axis=2) / axes
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    shaded = 0.2 + 0.6 * np.clip(normals @ light, 0, None)
    found = light_direction(np.repeat(shaded[..., None] ** (1 / 2.2), 3, axis=2))
    assert np.degrees(np.arccos(found @ light / np.linalg.norm(light))) < 4


def test_a_side_that_is_darkened_turns_the_light_away_from_it(astronaut, face, before):
    shade = torch.linspace(0.3, 1.0, 60)
    darker = astronaut.clone()
    darker[:, 100:160] *= shade[None, :, None]
    darker[:, :100] *= 0.3
    measured = looks(darker, face)
    assert measured.light[0] > before.light[0] + 0.2
    assert changes(before, measured)["light direction"] > 10
    assert changes(before, measured)["skin tone"] > 5


def test_a_jpeg_is_less_of_a_change_than_another_face(astronaut, face, detector, tmp_path):
    (floor,) = jpeg_changes(astronaut, [face], detector)
    blurred = torch.from_numpy(skimage.filters.gaussian(astronaut.numpy(), 6, channel_axis=2).astype(np.float32))
    (blur,) = judge(astronaut, blurred, [face], ["her"], {})
    assert 0 < floor["expression"] < 0.03 and floor["head pose"] < 1.5 and floor["skin tone"] < 2
    assert all(blur.utility[name] > floor[name] for name in ("landmarks", "expression", "gaze"))
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_picture(tmp_path / name, Picture(astronaut))
    ((person, same),) = clean_photos(sorted(tmp_path.glob("*/*")), {}, detector).changes
    assert person == "a" and same["expression"] == 0


def test_the_table_says_what_a_row_needs():
    rows = utility_table({"protected": [("a", {"gaze": 0.1}), ("b", {"gaze": 0.3}), ("c", {})]}).splitlines()
    assert rows[0] == "|  | unit | protected |" and len(rows) == 2 + len(MEASURES)
    assert "| gaze | eye widths | 0.200 |" in rows
    assert "| age | years | needs genderage.onnx (--attributes) |" in rows


def genderage(path: Path) -> Path:
    """A network of age and sex: female, and 40 years plus the mean of the input."""
    weights = {"weights": np.array([[0.0, 0, 0.5]]), "bias": np.array([[1.0, 0, 0.4]])}
    nodes = [
        helper.make_node("ReduceMean", ["data"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean"], ["row"], axes=[1]),
        helper.make_node("MatMul", ["row", "weights"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["fc1"]),
    ]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    data = helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 96, 96])
    out = helper.make_tensor_value_info("fc1", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph(nodes, "genderage", [data], [out], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8), path)
    return path


def test_age_changes_with_a_network_that_sees_brightness(astronaut, face, tmp_path):
    network = load_attributes(genderage(tmp_path / "genderage.onnx"))
    bright, dark = (looks(image, face, network) for image in (torch.ones_like(astronaut), torch.zeros_like(astronaut)))
    assert changes(bright, dark)["age"] == pytest.approx(100, abs=2)
    assert changes(bright, dark)["sex"] == 0


@pytest.mark.parametrize(("name", "why"), [("missing.onnx", "There is no file"), ("text.onnx", "is damaged")])
def test_a_file_that_knows_no_age_is_refused(tmp_path, name, why):
    (tmp_path / "text.onnx").write_text("nothing")
    with pytest.raises(DiffPrivacyError, match=f"{why}.*genderage.onnx|{name}.*{why}.*genderage.onnx"):
        load_attributes(tmp_path / name)
