"""Judging versions of pictures: what the table says, what ``diffprivacy evaluate`` prints, and its errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from diffprivacy import demo
from diffprivacy.cli import main
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.evaluation.comparison import FaceComparison, clean_photos, judge
from diffprivacy.evaluation.drawing import cosine_plot
from diffprivacy.evaluation.table import table
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import protected_mask
from diffprivacy.identity.recognizers import load_recognizer
from diffprivacy.identity.thresholds import read_thresholds

pytestmark = pytest.mark.usefixtures("models_loaded_once")


def picture(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255)


PIXELS = skimage.data.astronaut()[:256, 96:352]


@pytest.fixture(scope="module")
def astronaut() -> torch.Tensor:
    return picture(PIXELS)


@pytest.fixture(scope="module")
def detector():
    return load_detector(None)


@pytest.fixture(scope="module")
def face(astronaut, detector):
    (found,) = detector.detect(astronaut)
    return found


@pytest.fixture(scope="module")
def judges():
    return {which: demo.load_recognizer(which) for which in ("guide", "judge")}


def erased(rgb: torch.Tensor, face) -> torch.Tensor:
    """The picture with its face painted grey."""
    mask = protected_mask(rgb.shape, [face])[..., None]
    return rgb * (1 - mask) + 0.5 * mask


def test_the_same_picture_is_the_same_person(astronaut, face, judges, detector):
    (same,) = judge(astronaut, astronaut, [face], ["her"], judges, detector)
    assert same.person == "her"
    assert same.found
    assert same.nme < 1e-3
    assert [same.cosine(which) for which in judges] == pytest.approx([1, 1], abs=1e-4)
    assert (same.psnr, same.ssim) == (float("inf"), pytest.approx(1))
    assert same.similarity == pytest.approx(1, abs=1e-3)


def test_an_erased_face_is_neither_found_nor_anyone(astronaut, face, judges, detector):
    (gone,) = judge(astronaut, erased(astronaut, face), [face], ["her"], judges, detector)
    assert gone.found is False
    assert np.isnan(gone.nme)
    assert max(gone.cosine(which) for which in judges) < 0.35
    assert gone.psnr < 20
    assert gone.similarity < 0.3


def test_a_face_that_moved_is_aligned_anew(astronaut, face, judges, detector):
    """By 6 pixels, an eighth of its eye distance: judges still know it, and the NME says how far."""
    moved = torch.roll(astronaut, 6, dims=1)
    (judged,) = judge(astronaut, moved, [face], ["her"], judges, detector)
    eyes = np.linalg.norm(face.landmarks[0] - face.landmarks[1])
    assert judged.nme == pytest.approx(6 / eyes, rel=0.25)
    assert judged.cosine("guide") > 0.9


def test_pictures_of_different_sizes_are_refused(astronaut, face, judges):
    with pytest.raises(DiffPrivacyError, match="256x256 pixels and the other image 250x256"):
        judge(astronaut, astronaut[:, :250], [face], ["her"], judges)


def judged(person: str, original: list[float], version: list[float], found: bool | None = True) -> FaceComparison:
    vectors = [{"a": np.array(v) / np.linalg.norm(v)} for v in (original, version)]
    return FaceComparison(person, *vectors, found, 0.1 if found else float("nan"), 20.0, 0.5, 0.25)


def test_table_counts_accepted_and_nearest():
    """Of two people, one goes over to the other: half are accepted, half are nearest to themselves."""
    faces = [judged("x", [1, 0], [1, 0]), judged("y", [0, 1], [0.8, 0.6], found=False)]
    lines = table({"protected": faces}, {"a": 0.9}).splitlines()
    assert (
        lines[0]
        == "|  | a: cosine (others), TAR, nearest, farthest, link | found | NME | PSNR | SSIM | structure similarity |"
    )
    assert (
        lines[2] == "| protected | 0.80 (0.40), 50.0 %, 50.0 %, 50.0 %, – | 50.0 % | 0.100 | 20.0 dB | 0.500 | 0.250 |"
    )


def test_table_says_nothing_that_was_not_measured():
    (line,) = table({"protected": [judged("x", [1, 0], [1, 0], found=None)]}, {}).splitlines()[2:]
    assert line == "| protected | 1.00 (–), –, –, –, – | – | – | 20.0 dB | 0.500 | 0.250 |"


def test_variants_of_one_person_are_all_that_person():
    faces = [judged("x", [1, 0], [0.9, 0.1]), judged("x", [1, 0], [0.8, 0.1]), judged("y", [0, 1], [0.1, 1])]
    assert "100.0 %, 100.0 %, 0.0 %, 1.00 |" in table({"protected": faces}, {"a": 0.5}).splitlines()[2]


def test_opposites_are_found_from_the_other_end_and_linked():
    """Nobody accepts the opposite of a face; the farthest in a gallery is the person, and two of them are alike."""
    people = np.eye(4)
    faces = [judged(name, who, spoilt) for name, who in zip("wxyz", people, strict=True) for spoilt in opposites(who)]
    line = table({"protected": faces}, {"a": 0.3}).splitlines()[2]
    assert line.startswith("| protected | -0.69 (0.42), 0.0 %, 0.0 %, 100.0 %, 1.00 |")


def opposites(who: np.ndarray) -> list[list[float]]:
    """Two versions of a face, driven to its opposite."""
    return [list(-who + 0.6 * (1 - who)), list(-who + 0.62 * (1 - who))]


def test_plot_has_a_panel_for_each_judge():
    one = cosine_plot({"protected": [judged("x", [1, 0], [0, 1])]}, {"a": 0.3})
    assert one.shape[2] == 3
    assert 0 <= one.min() < one.max() <= 1
    unmarked = cosine_plot({"protected": [judged("x", [1, 0], [0, 1])]}, {})
    assert one.shape == unmarked.shape
    columns = ((one - unmarked).abs().amax(dim=2) > 0.5).any(dim=0).nonzero()
    assert 1 <= len(columns) <= 4, "the threshold is one dashed line"


def test_clean_pairs_need_two_photos_of_a_person(tmp_path, judges, detector):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(PIXELS).save(tmp_path / name / "photo.png")
    with pytest.raises(DiffPrivacyError, match="two photos of one person"):
        clean_photos(sorted(tmp_path.glob("*/*")), judges, detector)


@pytest.fixture
def folders(tmp_path: Path, astronaut, face) -> tuple[Path, Path]:
    """A folder with the astronaut, and one with two variants of her: herself and nobody."""
    originals, protected = tmp_path / "originals", tmp_path / "protected"
    for folder in (originals, protected):
        folder.mkdir()
    Image.fromarray(PIXELS).save(originals / "her.png")
    for i, version in enumerate((astronaut, erased(astronaut, face))):
        Image.fromarray((version.numpy() * 255).round().astype(np.uint8)).save(protected / f"her-{i + 1}.png")
    return originals, protected


def test_command_prints_the_table_and_writes_the_plot(folders, tmp_path, capsys):
    originals, protected = folders
    plot = tmp_path / "plot.png"
    recovered = tmp_path / "recovered"
    recovered.mkdir()
    Image.fromarray(PIXELS).save(recovered / "her.png")
    arguments = ["--recovered", str(recovered), "--plot", str(plot)]
    assert main(["evaluate", str(originals), str(protected), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("|  | demo judge: cosine (others), TAR, nearest, farthest, link |")
    assert "(–), 50.0 %, –, –, – | 50.0 %" in lines[2]
    assert lines[3].startswith("| recovered | 1.00 (–), 100.0 %, –, –, – | 100.0 % | 0.000 | inf dB | 1.000 |")
    assert Image.open(plot).size[0] > 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda originals, protected: (protected / "her-1.png").rename(protected / "him.png"), ""),
        (lambda originals, protected: [f.unlink() for f in protected.iterdir()], "holds nothing under the names of"),
        (lambda originals, protected: Image.new("RGB", (9, 9)).save(protected / "her-1.png"), "her-1.png: The original is 256x256"),
        (lambda originals, protected: [Image.new("RGB", (99, 99)).save(f) for f in (originals / "her.png", *protected.iterdir())], "No face was found in"),
    ],
)  # fmt: skip
def test_bad_folders_are_one_clear_line(folders, capsys, change, message):
    change(*folders)
    code = main(["evaluate", *map(str, folders)])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert (code, len(errors)) == ((1, 1) if message else (0, 0))
    assert message in "".join(errors)


def test_thresholds_come_from_clean_photos(folders, data_dir, tmp_path, capsys):
    """Five photos of ten people: 100 pairs of one person, 1125 of two, of the 1000 that the rate needs."""
    judge_file = data_dir / "recognizers" / "mobilefacenet_ms1m.onnx"
    copy = tmp_path / "judge.onnx"
    copy.symlink_to(judge_file)
    for person in (data_dir / "photos" / "lfw250").iterdir():
        (tmp_path / "clean" / person.name).mkdir(parents=True)
        for photo in sorted(person.iterdir())[:5]:
            Image.open(photo).crop((45, 45, 205, 205)).save(tmp_path / "clean" / person.name / f"{photo.stem}.png")
    judge = ["--recognizer", str(copy), "--detector", str(data_dir / "detectors" / "yunet_n.onnx")]
    clean = ["--clean", str(tmp_path / "clean"), "--keep-thresholds"]
    assert main(["evaluate", *map(str, folders), *judge, *clean]) == 0
    measured, *table = capsys.readouterr().out.splitlines()
    assert measured.startswith("judge: threshold 0.3")
    assert measured.endswith("TAR of clean pairs 100.0 %")
    assert "50.0 %" in table[2]
    (kept,) = read_thresholds(copy)
    assert kept.source.startswith("photos of clean, yunet_n.onnx detector, RGB")
    assert (kept.same_pairs, kept.different_pairs, f"{kept.cosine:.3f}") == (100, 1125, measured[17:22])
    assert any("| JPEG of quality 60 | two photos of one person |" in line for line in table)
    assert main(["evaluate", *map(str, folders), *judge]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == table[:3]


def test_thresholds_are_kept_beside_a_file_only(folders, tmp_path, capsys):
    assert main(["evaluate", *map(str, folders), "--clean", str(tmp_path), "--keep-thresholds"]) == 2
    assert "--keep-thresholds needs --clean, the photos, and --recognizer" in capsys.readouterr().err


def test_recognizers_of_one_name_are_told_apart_by_the_user(folders, data_dir, capsys):
    file = data_dir / "recognizers" / "mobilefacenet_ms1m.onnx"
    assert main(["evaluate", *map(str, folders), "--recognizer", str(file), "--recognizer", f"{file}:BGR"]) == 1
    assert "two of these have one file name" in capsys.readouterr().err


def test_a_recognizer_that_takes_bgr_gets_bgr(data_dir):
    """Its embedding of a picture is the other order's of the picture with red and blue exchanged."""
    file = data_dir / "recognizers" / "mobilefacenet_ms1m.onnx"
    rgb, bgr = load_recognizer(file), load_recognizer(file, "BGR")
    crop = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(bgr(crop), rgb(crop.flip(1)), atol=1e-5)
        assert not torch.allclose(bgr(crop), rgb(crop), atol=1e-3)
