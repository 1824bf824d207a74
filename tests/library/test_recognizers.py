"""Recognizers: what is read from an ONNX graph, alignment under autograd, ensembles, thresholds, and real faces."""

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.transform import SimilarityTransform
from torch import nn

from diffprivacy import demo
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.faces.alignment import align, template
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import ARCFACE_TEMPLATE
from diffprivacy.faces.similarity import similarity
from diffprivacy.identity.recognizers import Ensemble, Recognizer, load_recognizer
from diffprivacy.identity.thresholds import read_thresholds, thresholds_path, write_threshold
from diffprivacy.identity.verification import pair_cosines
from testing.onnx_files import hostile, write_onnx

REAL = {"mobilefacenet_ms1m": (0.301, 0.69, 0.02), "mobileface_v2": (0.356, 0.63, 0.03)}
"""Threshold at FAR 1e-3 on LFW, mean cosine of same and of different people in photos/lfw250."""


def run_onnx(path: Path, pictures: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    output = np.asarray(session.run(None, {"data": pictures})[0])
    return output / np.linalg.norm(output, axis=1, keepdims=True)


def crops(count: int = 3, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("constant_nodes", [False, True])
@pytest.mark.parametrize(
    ("before", "scale", "offset"),
    [
        ((), 2, -1),
        ((("Sub", 127.5), ("Mul", 0.0078125)), 255, 0),
        ((("Div", 127.5), ("Add", -1.0)), 255, 0),
        ((("Mul", 1 / 255),), 255, 0),
        ((("Sub", 0.5), ("Div", 0.5)), 1, 0),
    ],
)
def test_normalisation_is_read_from_the_graph(tmp_path, before, scale, offset, constant_nodes):
    path = write_onnx(tmp_path / "any.onnx", before=before, constant_nodes=constant_nodes)
    recognizer = load_recognizer(path, "RGB")
    expected = run_onnx(path, (crops() * scale + offset).numpy())
    np.testing.assert_allclose(recognizer(crops()).numpy(), expected, atol=1e-6)
    assert recognizer.input_size == 32


def test_bgr_networks_get_bgr(tmp_path):
    path = write_onnx(tmp_path / "any.onnx")
    assert torch.equal(load_recognizer(path, "BGR")(crops()), load_recognizer(path, "RGB")(crops().flip(1)))


def test_network_exported_for_one_picture_takes_batches(tmp_path):
    single, many = (load_recognizer(write_onnx(tmp_path / f"{n}.onnx", batch=n), "RGB") for n in (1, "N"))
    torch.testing.assert_close(single(crops()), many(crops()))


def test_weights_loaded_in_inference_mode_carry_gradients(tmp_path):
    with torch.inference_mode():
        recognizer = load_recognizer(write_onnx(tmp_path / "any.onnx"), "RGB")
    pictures = crops().requires_grad_()
    assert torch.autograd.grad(recognizer(pictures)[:, 0].sum(), pictures)[0].any()


def test_missing_file_is_named(tmp_path):
    path = tmp_path / "insightface" / "w600k_r50.onnx"
    with pytest.raises(DiffPrivacyError, match="put an ArcFace ONNX file there") as error:
        load_recognizer(path)
    assert str(path) in str(error.value)


def test_other_files_are_refused(tmp_path):
    text = tmp_path / "text.onnx"
    text.write_text("not a network")
    with pytest.raises(DiffPrivacyError, match=r"text\.onnx is no ONNX file"):
        load_recognizer(text)


@pytest.mark.parametrize(
    "how",
    [
        *("short weights", "wrong shape", "unknown type", "unknown operator", "missing weights", "no weights named"),
        *("empty constant", "cycle", "output of nothing", "no version", "huge input", "weights of another file"),
        "division by zero",
    ],
)
def test_a_hostile_file_is_one_error_that_names_it(tmp_path, how):
    path = write_onnx(tmp_path / "any.onnx")
    path.write_bytes(hostile(onnx.load(path), how))
    with pytest.raises(DiffPrivacyError, match=r"any\.onnx .*choose"):
        load_recognizer(path)


@pytest.mark.parametrize("cut", [0, 1, 100, 5000])
def test_a_file_cut_short_is_one_error_that_names_it(tmp_path, cut):
    path = write_onnx(tmp_path / "any.onnx")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DiffPrivacyError, match=r"any\.onnx .*choose"):
        load_recognizer(path)


@pytest.mark.parametrize(
    "other", [{"outputs": 2}, {"length": 1000}, {"length": 212}, {"height": 16}], ids=lambda other: str(other)
)
def test_networks_that_are_no_recognizers_are_refused(tmp_path, other):
    with pytest.raises(DiffPrivacyError, match=r"other\.onnx is no face recognizer"):
        load_recognizer(write_onnx(tmp_path / "other.onnx", **other))


def test_unknown_operators_are_named(tmp_path):
    with pytest.raises(DiffPrivacyError, match=r"other\.onnx cannot be run by torch .*Mish"):
        load_recognizer(write_onnx(tmp_path / "other.onnx", activation="Mish"))


def face_points(size: float = 60.0, angle: float = 0.3, centre: tuple[float, float] = (100.0, 90.0)) -> torch.Tensor:
    """The five points (1,5,2) of a face turned by angle whose ArcFace crop covers size pixels."""
    points = (torch.from_numpy(ARCFACE_TEMPLATE) - 55.5) * size / 112
    turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=torch.float32)
    return (points @ turn.T + torch.tensor(centre))[None]


def test_similarity_equals_skimage():
    points = face_points() + torch.randn(1, 5, 2, generator=torch.Generator().manual_seed(0)) * 3
    expected = SimilarityTransform.from_estimate(points[0].numpy(), template(112).numpy()).params
    np.testing.assert_allclose(similarity(points, template(112))[0].numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [112, 160])
@pytest.mark.parametrize("face", [50.0, 112.0, 400.0])
def test_align_puts_the_landmarks_on_the_template(size, face):
    points = face_points(face, centre=(250.0, 240.0))
    y, x = torch.meshgrid(torch.arange(480.0), torch.arange(500.0), indexing="ij")
    width = face / 30
    for point, target in zip(points[0], template(size), strict=True):
        spot = torch.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * width**2))
        crop = align(spot.expand(1, 3, -1, -1), points, size)[0, 0]
        cy, cx = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
        found = torch.stack(((crop * cx).sum(), (crop * cy).sum())) / crop.sum()
        assert torch.dist(found, target) < 0.1


def test_align_does_not_alias():
    stripes = (torch.arange(600) % 2).float().expand(1, 3, 600, -1)
    inside = align(stripes, face_points(450.0, 0.0, (300.0, 300.0)))[..., 10:-10, 10:-10]
    assert (inside - 0.5).abs().max() < 0.02


def test_gradients_reach_every_pixel_of_a_large_face():
    image = torch.zeros(1, 3, 400, 400, requires_grad=True)
    crop = align(image, face_points(300.0, 0.0, (200.0, 200.0)))
    assert (torch.autograd.grad(crop.sum(), image)[0][..., 60:340, 60:340] > 0).all()


def test_align_has_the_gradient_it_should():
    image = torch.rand(1, 3, 24, 20, dtype=torch.float64, requires_grad=True)
    points = face_points(14.0, centre=(10.0, 12.0))
    assert torch.autograd.gradcheck(lambda image: align(image, points, 8), image)


def tiny(size: int, length: int, seed: int) -> Recognizer:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 5, 5), nn.PReLU(), nn.Flatten(), nn.Linear(4 * (size // 5) ** 2, length))
    return Recognizer(network, size)


def test_ensemble_of_different_sizes_weighs_cosines():
    first, second = tiny(112, 32, 0), tiny(60, 48, 1)
    pictures = torch.rand(2, 3, 150, 160, generator=torch.Generator().manual_seed(0))
    points = face_points().expand(2, -1, -1)
    ensemble = Ensemble([(first, 3), (second, 1)])
    embeddings = ensemble.embed(pictures, points)
    assert [e.shape for e in embeddings] == [(2, 32), (2, 48)]
    a, b = (m.embed(pictures, points) for m in (first, second))
    expected = 0.75 * first.cosine(a, (a[0].flip(0),)) + 0.25 * second.cosine(b, (b[0].flip(0),))
    torch.testing.assert_close(ensemble.cosine(embeddings, tuple(e.flip(0) for e in embeddings)), expected)
    nested = Ensemble([(ensemble, 1), (first, 1)])
    assert nested.weights == (0.375, 0.125, 0.5)


@pytest.mark.parametrize("weights", [[], [0, 0], [2, -1]])
def test_ensemble_without_sensible_weights_is_refused(weights):
    with pytest.raises(DiffPrivacyError, match="ensemble needs"):
        Ensemble([(tiny(112, 32, 0), weight) for weight in weights])


def test_mirrored_embedding_is_that_of_the_mirrored_picture_too():
    recognizer, points = tiny(112, 32, 0), template(112)[None]
    pictures = crops(1, 112)
    a, b = (recognizer.embed(p, points, mirrored=True)[0] for p in (pictures, pictures.flip(3)))
    torch.testing.assert_close(a, b)
    expected = F.normalize(recognizer(pictures) + recognizer(pictures.flip(3)))
    torch.testing.assert_close(a, expected, atol=1e-3, rtol=0)


def scores(count: int, mean: float) -> np.ndarray:
    return np.random.default_rng(count).normal(mean, 0.1, count)


def test_threshold_comes_back_with_the_model(tmp_path):
    path = write_onnx(tmp_path / "any.onnx")
    with pytest.raises(DiffPrivacyError, match=r"no threshold at FAR 0\.001 in any\.thresholds\.json"):
        load_recognizer(path, "RGB").threshold(1e-3)
    written = [write_threshold(path, scores(50, 0.6), scores(2000, 0), far, "a test") for far in (1e-2, 1e-3)]
    recognizer = load_recognizer(path, "RGB")
    assert [recognizer.threshold(far) for far in (1e-2, 1e-3)] == written
    assert (scores(2000, 0) >= written[1].cosine).sum() == 2
    assert (written[1].same_pairs, written[1].different_pairs, written[1].source) == (50, 2000, "a test")
    again = write_threshold(path, scores(50, 0.6), scores(3000, 0), 1e-3, "more photos")
    assert read_thresholds(path) == (written[0], again)


def test_too_few_pairs_give_no_threshold(tmp_path):
    path = write_onnx(tmp_path / "any.onnx")
    with pytest.raises(DiffPrivacyError, match="at least 1000 pairs of different people, got 999"):
        write_threshold(path, scores(50, 0.6), scores(999, 0), 1e-3, "a test")
    assert not thresholds_path(path).exists()


def test_thresholds_of_another_model_are_refused(tmp_path):
    path = write_onnx(tmp_path / "any.onnx")
    write_threshold(path, scores(50, 0.6), scores(2000, 0), 1e-3, "a test")
    write_onnx(path, length=96)
    with pytest.raises(DiffPrivacyError, match="measured on another model"):
        load_recognizer(path, "RGB")


@pytest.mark.parametrize("content", ["{", "[]", "[" * 10**5, json.dumps({"sha256": "", "thresholds": [{"far": 1}]})])
def test_damaged_thresholds_are_refused(tmp_path, content):
    path = write_onnx(tmp_path / "any.onnx")
    thresholds_path(path).write_text(content)
    with pytest.raises(DiffPrivacyError, match=r"any\.thresholds\.json is no file of thresholds"):
        load_recognizer(path, "RGB")


@pytest.mark.parametrize("name", ["far", "cosine", "tar", "mean", "std"])
@pytest.mark.parametrize("value", [-5, 1.5, float("nan"), float("inf"), "0.3", None, True, [0.3], 10**400])
def test_thresholds_that_are_no_cosines_and_shares_are_refused(tmp_path, name, value):
    path = write_onnx(tmp_path / "any.onnx")
    write_threshold(path, scores(50, 0.6), scores(2000, 0), 1e-3, "a test")
    content = json.loads(thresholds_path(path).read_text())
    kept = content["strangers"] if name in ("mean", "std") else content["thresholds"][0]
    kept[name] = value
    thresholds_path(path).write_text(json.dumps(content))
    with pytest.raises(DiffPrivacyError, match=rf"any\.thresholds\.json is no file of thresholds.*{name} is"):
        read_thresholds(path)


def read(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).float() / 255


@pytest.fixture(scope="module")
def lfw(data_dir) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """50 photos (50,3,250,250) of 10 people, the landmarks that our own detection finds, and the names."""
    detector = load_detector(data_dir / "detectors/yunet_n.onnx")
    paths = sorted((data_dir / "photos/lfw250").rglob("*.jpg"))[::2]
    pictures = [read(path) for path in paths]
    middle = [min(detector.detect(p), key=lambda face: np.hypot(*np.subtract(face.centre, 124.5))) for p in pictures]
    landmarks = torch.from_numpy(np.stack([face.landmarks for face in middle]))
    return torch.stack(pictures).permute(0, 3, 1, 2), landmarks, [path.parent.name for path in paths]


@pytest.fixture(scope="module", params=REAL)
def real(request, data_dir) -> tuple[str, Path]:
    return request.param, data_dir / f"recognizers/{request.param}.onnx"


@pytest.fixture(scope="module")
def loaded(real) -> Recognizer:
    return load_recognizer(real[1])


def test_torch_and_onnxruntime_agree(real, loaded, lfw):
    _, path = real
    aligned = align(*(part[::10] for part in lfw[:2]))
    expected = run_onnx(path, (aligned * 255).numpy())
    np.testing.assert_allclose(loaded(aligned).numpy(), expected, atol=1e-4)


def test_people_are_told_apart(real, loaded, lfw):
    name, _ = real
    pictures, landmarks, people = lfw
    threshold, same_mean, different_mean = REAL[name]
    embeddings = loaded.reference(pictures, landmarks, mirrored=True)[0].numpy()
    same, different = pair_cosines(embeddings, people)
    assert (len(same), len(different)) == (100, 1125)
    assert same.mean() == pytest.approx(same_mean, abs=0.02)
    assert different.mean() == pytest.approx(different_mean, abs=0.02)
    for person in range(0, 50, 5):
        assert pair_cosines(embeddings[person : person + 5], people[person : person + 5])[0].mean() > threshold


def test_alignment_equals_that_of_opencv(loaded, lfw):
    """insightface's own alignment: skimage's similarity and OpenCV's bilinear warp."""
    pictures, landmarks = (part[::4] for part in lfw[:2])
    warped = []
    for picture, points in zip(pictures, landmarks, strict=True):
        matrix = SimilarityTransform.from_estimate(points.numpy(), ARCFACE_TEMPLATE).params[:2]
        warped.append(torch.from_numpy(cv2.warpAffine(picture.permute(1, 2, 0).numpy(), matrix, (112, 112))))
    cosines = (loaded(align(pictures, landmarks)) * loaded(torch.stack(warped).permute(0, 3, 1, 2))).sum(dim=1)
    assert cosines.min() > 0.999


@pytest.mark.parametrize(("dtype", "closest"), [(torch.bfloat16, 0.999), (torch.float16, 0.9999)])
def test_low_precision_is_safe(loaded, lfw, dtype, closest):
    aligned = align(*(part[::10] for part in lfw[:2]))
    exact, rough = loaded(aligned), copy.deepcopy(loaded).to(dtype)(aligned)
    assert rough.dtype == torch.float32
    assert (exact * rough).sum(dim=1).min() > closest


@pytest.mark.parametrize(("dtype", "closest"), [(torch.bfloat16, 0.9), (torch.float16, 0.99)])
@pytest.mark.parametrize("which", ["guide", "judge"])
def test_gradients_in_low_precision_point_the_same_way(which, dtype, closest):
    """Of the cosine to another face, through the demo model's recognizers; the picture itself stays in float32."""
    recognizer, picture = demo.load_recognizer(which), F.interpolate(crops(1, 14), size=112, mode="bicubic")
    other = recognizer(crops(1, 112)).detach()

    def gradient() -> torch.Tensor:
        x = picture.clone().requires_grad_()
        return torch.autograd.grad((recognizer(x) * other).sum(), x)[0].flatten()

    exact = gradient()
    recognizer.to(dtype)
    rough = gradient()
    assert rough.dtype == torch.float32
    assert F.cosine_similarity(rough, exact, dim=0) > closest


@pytest.mark.parametrize(
    "other", ["detectors/scrfd_500m_bnkps.onnx", "detectors/yunet_n.onnx", "vae/vaelight_encoder.onnx"]
)
def test_real_networks_that_are_no_recognizers_are_refused(data_dir, other):
    with pytest.raises(DiffPrivacyError, match="is no face recognizer"):
        load_recognizer(data_dir / other)
