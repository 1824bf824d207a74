"""Detectors find every face, once, of any size and whichever way up; what is no detector is refused by name."""

import subprocess
import sys
from pathlib import Path

import cv2
import insightface
import numpy as np
import onnx
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.faces import detectors
from diffprivacy.faces.detectors import BUILT_IN, OnnxDetector, load_detector
from diffprivacy.faces.geometry import ARCFACE_TEMPLATE, Face
from diffprivacy.faces.tiling import Network, find_faces, keep_best, scan_views
from testing.onnx_files import hostile, write_onnx

NETWORKS = ["scrfd_500m_bnkps", None]
"""None is the built-in one."""
EYES = {
    "group": [
        ((86, 328), (128, 308)),
        ((290, 210), (320, 193)),
        ((491, 319), (538, 332)),
        ((758, 397), (807, 402)),
        ((918, 117), (942, 113)),
        ((1148, 326), (1194, 324)),
    ],
    "astronaut": [((203, 100), (247, 102))],
}
"""Where people see the eyes, left to right."""


def photo(name: str) -> torch.Tensor:
    if name == "group":
        path = Path(insightface.__file__).parent / "data" / "images" / "t1.jpg"
        pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    else:
        pixels = getattr(skimage.data, name)()
    return torch.from_numpy(pixels).float() / 255


def resized(picture: torch.Tensor, scale: float) -> torch.Tensor:
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return torch.from_numpy(cv2.resize(picture.numpy(), None, fx=scale, fy=scale, interpolation=kind)).clamp(0, 1)


def assert_finds_the_people(faces: list[Face], name: str, closeness: float = 0.1, scale: float = 1.0, shift=(0, 0)):
    """One face for every pair of eyes, in their order, the eyes where people see them (closeness in box widths)."""
    assert len(faces) == len(EYES[name])
    for face, eyes in zip(faces, EYES[name], strict=True):
        x0, y0, x1, y1 = face.box
        distance = np.linalg.norm(face.landmarks[:2] - (np.array(eyes) * scale + shift), axis=1).max()
        assert distance < closeness * (x1 - x0)
        assert np.all((face.landmarks > (x0, y0)) & (face.landmarks < (x1, y1)))
        assert 0 < face.score <= 1
        assert face.landmarks.shape == (5, 2) and face.landmarks.dtype == np.float32


@pytest.fixture(autouse=True)
def found_anew(monkeypatch: pytest.MonkeyPatch):
    """Nothing is known from an earlier search."""
    monkeypatch.setattr(detectors, "find_faces", find_faces)


@pytest.fixture(scope="module")
def builtin():
    return load_detector(None)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    if request.param is None:
        return load_detector(None)
    return load_detector(request.getfixturevalue("data_dir") / "detectors" / f"{request.param}.onnx")


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_a_turned_face_beside_an_upright_one_is_found_as_well_as_that(network, quarter_turns):
    upright = photo("astronaut")[:256, 96:352]
    found = network.detect(torch.cat((upright, upright.rot90(quarter_turns)), dim=1))
    assert len(found) == 2
    turned = found[1].landmarks - (256, 0)
    for _ in range(quarter_turns):
        turned = np.column_stack((255 - turned[:, 1], turned[:, 0]))
    np.testing.assert_allclose(turned, found[0].landmarks, atol=9)


def test_faces_lean_at_any_angle_among_others(builtin):
    """Eight faces on one picture, each turned by 45 degrees more than the one before."""
    face = photo("astronaut")[20:220, 125:325].numpy()
    rows = []
    for degrees in range(0, 360, 45):
        turn = cv2.getRotationMatrix2D((100, 100), degrees, 0.8)
        rows.append(cv2.warpAffine(face, turn, (200, 200), borderMode=cv2.BORDER_REFLECT))
    picture = np.concatenate([np.concatenate(rows[i : i + 4], axis=1) for i in (0, 4)])
    found = builtin.detect(torch.from_numpy(picture))
    assert len(found) == 8
    for face in found:
        column, row = np.array(face.centre).astype(int) // 200
        x, y = face.landmarks[1] - face.landmarks[0]
        leans = np.degrees(np.arctan2(-y, x)) - 45 * (row * 4 + column)
        assert abs((leans + 180) % 360 - 180) < 30


def test_a_lower_score_adds_faces_and_a_size_leaves_out_smaller_ones(builtin):
    picture = resized(photo("group"), 0.5)[:, :325]  # the three on the left
    everybody = builtin.detect(picture)
    beside = torch.cat((picture, torch.zeros(len(picture), 200, 3)), dim=1)
    beside[:154, -154:] = resized(photo("astronaut"), 0.3)  # the face is 35 pixels high
    assert len(builtin.detect(beside)) == 4
    assert len(builtin.detect(beside, min_size=45)) == 3
    scores = sorted(face.score for face in everybody)
    assert len(builtin.detect(picture, min_score=scores[1])) == len(scores) - 1
    doubtful = resized(photo("astronaut"), 0.1)  # the face is 9 pixels wide
    assert builtin.detect(doubtful) == []
    assert all(face.score >= 0.1 for face in builtin.detect(doubtful, min_score=0.1, min_size=4))


def test_builtin_gives_the_same_answer_twice(builtin):
    picture = photo("astronaut")
    (first,), (second,) = builtin.detect(picture), builtin.detect(picture)
    assert first.box == second.box
    np.testing.assert_array_equal(first.landmarks, second.landmarks)


@pytest.mark.parametrize("name", ["coffee", "rocket", "chelsea"])
def test_builtin_finds_nobody_where_there_is_nobody(builtin, name):
    assert builtin.detect(photo(name)) == []


def test_memory_of_a_huge_picture_stays_within_a_few_copies_of_its_pixels():
    """A photo of 12 megapixels needs three bytes for each pixel, and as many again where it is turned."""
    script = """
import resource, torch
from diffprivacy.faces.detectors import load_detector
detector = load_detector(None)
detector.detect(torch.rand(64, 64, 3))
picture = torch.full((2917, 4375, 3), 0.5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
detector.detect(picture, min_size=400)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (2917 * 4375))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 12


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (40, 3)])
def test_tiny_pictures_have_no_faces(builtin, height, width):
    assert builtin.detect(torch.rand(height, width, 3)) == []


def test_networks_find_everybody_and_nobody_else(network):
    for name in ("group", "astronaut"):
        assert_finds_the_people(network.detect(photo(name)), name)


def test_networks_find_nobody_where_there_is_nobody(network):
    assert network.detect(photo("coffee")) == []
    assert network.detect(torch.rand(1, 1, 3)) == []


def test_networks_find_small_faces_in_a_large_picture(network):
    """Faces of 20 pixels (90 in the photo) in a corner of a megapixel."""
    scale = 20 / 90
    picture = torch.full((900, 1200, 3), 0.4)
    small = resized(photo("astronaut"), scale)
    top, left = 750, 1050
    picture[top : top + small.shape[0], left : left + small.shape[1]] = small
    assert_finds_the_people(network.detect(picture), "astronaut", 0.2, scale=scale, shift=(left, top))


def test_networks_find_a_close_up_that_fills_the_frame(network):
    close_up = photo("astronaut")[60:180, 180:272]
    assert_finds_the_people(network.detect(close_up), "astronaut", shift=(-180, -60))
    large = resized(close_up, 8)
    shift = np.array((-180, -60)) * 8.0
    assert_finds_the_people(network.detect(large), "astronaut", scale=8, shift=shift)


def test_networks_find_a_face_cut_by_the_border(network):
    cut = photo("astronaut")[:, 215:]  # through one eye
    (face,) = network.detect(cut)
    assert face.box[0] < 8 and 40 < face.box[2] < 75


@pytest.mark.parametrize("quarter_turns", [1, 2])
def test_networks_find_faces_of_lying_pictures_the_right_way_up(network, quarter_turns):
    (face,) = network.detect(photo("astronaut").rot90(quarter_turns))
    down = face.landmarks[3:].mean(axis=0) - face.landmarks[:2].mean(axis=0)
    expected = np.array({1: (1, 0), 2: (0, -1)}[quarter_turns])
    assert down @ expected / np.linalg.norm(down) > 0.9


def test_sideways_faces_are_cropped_upright_by_scrfd(data_dir):
    detector = load_detector(data_dir / "detectors" / "scrfd_500m_bnkps.onnx")
    picture = photo("astronaut").numpy()
    for degrees in (-40, 45):
        turn = cv2.getRotationMatrix2D((225, 115), degrees, 1)
        tilted = cv2.warpAffine(picture, turn, (512, 512), borderMode=cv2.BORDER_REFLECT)
        (face,) = detector.detect(torch.from_numpy(tilted))
        x, y = face.landmarks[1] - face.landmarks[0]
        assert abs(np.degrees(np.arctan2(-y, x)) - degrees) < 12


def bright_square(pixels: np.ndarray) -> list[Face]:
    """A stand-in for a network: finds one bright square if it is of a size that networks find, whole or cut."""
    rows, columns = np.nonzero(pixels[..., 1] > 127)
    if not len(rows):
        return []
    x0, y0, x1, y1 = columns.min() - 0.5, rows.min() - 0.5, columns.max() + 0.5, rows.max() + 0.5
    if not 10 <= max(x1 - x0, y1 - y0) <= 440:
        return []
    points = ARCFACE_TEMPLATE / 112 * (x1 - x0, y1 - y0) + (x0, y0)
    return [Face((x0, y0, x1, y1), points.astype(np.float32), 0.9)]


def stand_in(scan) -> Network:
    return Network(scan, 640, lowest=0.3, enough=0.5, sure=0.8)


@settings(max_examples=60)
@given(height=st.integers(60, 3000), width=st.integers(60, 3000), data=st.data())
def test_every_face_is_seen_whole_in_some_view(height, width, data):
    smallest = min(20, min(height, width) // 2)
    side = data.draw(st.integers(smallest, min(height, width)))
    left, top = data.draw(st.integers(0, width - side)), data.draw(st.integers(0, height - side))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top : top + side, left : left + side] = 255
    found = keep_best(scan_views(pixels, stand_in(bright_square), 1.6))
    assert len(found) == 1
    expected = (left - 0.5, top - 0.5, left + side - 0.5, top + side - 0.5)
    np.testing.assert_allclose(found[0].box, expected, atol=1 + max(height, width) * 1.5 / 640)


def test_the_surest_way_up_holds():
    """Found lying with a low score, upright with a high one: the upright landmarks count."""

    def scan(pixels: np.ndarray) -> list[Face]:
        (face,) = bright_square(pixels)
        upright = (
            pixels[..., 0].max() > 0 and np.nonzero(pixels[..., 0])[0].mean() < np.nonzero(pixels[..., 1])[0].mean()
        )
        return [Face(face.box, face.landmarks, 0.9 if upright else 0.6)]

    picture = torch.zeros(200, 300, 3)
    picture[50:150, 100:200, 1] = 1
    picture[95:105, 105:110, 0] = 1  # the forehead is at the left: turned a quarter
    (face,) = find_faces(picture, stand_in(scan), min_score=0.5, min_size=20)
    assert face.score == 0.9
    eyes, mouth = face.landmarks[:2].mean(axis=0), face.landmarks[3:].mean(axis=0)
    assert mouth[0] - eyes[0] > 30 and abs(mouth[1] - eyes[1]) < 5


def test_what_goes_wrong_in_a_detector_is_not_a_picture_without_faces():
    def out_of_memory(pixels: np.ndarray) -> list[Face]:
        raise MemoryError("out of memory")

    with pytest.raises(MemoryError):
        OnnxDetector(stand_in(out_of_memory)).detect(torch.rand(50, 50, 3))


def onnx_file(path: Path, outputs: int) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 64, 64])
    names = [f"out{i}" for i in range(outputs)]
    nodes = [helper.make_node("Flatten", ["x"], [name]) for name in names]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 12288]) for name in names]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], values)), str(path))
    return path


@pytest.mark.parametrize("outputs", [9, 15])
@pytest.mark.parametrize("how", ["unknown operator", "short weights", "missing weights", "no version"])
def test_a_hostile_file_is_one_error_that_names_it(tmp_path, outputs, how):
    """Of SCRFD's form, as far as its outputs tell."""
    path = write_onnx(tmp_path / "any.onnx", length=4, outputs=outputs)
    path.write_bytes(hostile(onnx.load(path), how))
    assert_refused(path, "damaged, or no face detector")


@pytest.mark.parametrize("how", ["unknown operator", "missing weights", "cycle"])
def test_a_hostile_yunet_is_one_error_that_names_it(tmp_path, how):
    path = tmp_path / "yunet.onnx"
    path.write_bytes(hostile(onnx.load(BUILT_IN), how))
    assert_refused(path, "damaged, or no face detector")


def assert_refused(path: Path, *words: str):
    with pytest.raises(DiffPrivacyError) as caught:
        load_detector(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    for word in words:
        assert word in message


def test_files_that_are_no_detector_are_refused_by_name(tmp_path):
    assert_refused(tmp_path / "missing.onnx", "No face detector at", "det_10g.onnx")
    assert_refused(tmp_path, "No face detector at")
    text = tmp_path / "text.onnx"
    text.write_text("this is no network")
    assert_refused(text, "no ONNX file")
    empty = tmp_path / "empty.onnx"
    empty.touch()
    assert_refused(empty, "no face detector")
    other_name = tmp_path / "detector.bin"
    other_name.write_bytes(b"1234")
    assert_refused(other_name, "not named .onnx")
    assert_refused(onnx_file(tmp_path / "one.onnx", 1), "no face detector")
    assert_refused(onnx_file(tmp_path / "nine.onnx", 9), "no face detector")


def test_a_recognizer_is_refused_as_detector(data_dir):
    assert_refused(data_dir / "recognizers" / "mobileface_v2.onnx", "no face detector")
