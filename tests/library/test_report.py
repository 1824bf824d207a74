"""The report of ``evaluate``: known answers, intervals against an independent bootstrap, bounds, guides, bad folders."""

from __future__ import annotations

import json
import re
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import skimage.data
from PIL import Image, ImageFilter

from diffprivacy.cli import main
from diffprivacy.evaluation.comparison import FaceComparison
from diffprivacy.evaluation.report import Evidence, as_html, as_json
from diffprivacy.evaluation.verdict import Share, verdict
from diffprivacy.identity.verification import accept_rate

PEOPLE = 40
pytestmark = pytest.mark.usefixtures("models_loaded_once")


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def faces(originals: np.ndarray, versions: np.ndarray, people: list[str] | None = None) -> list[FaceComparison]:
    """Comparisons of a judge named a, from vectors (N,D)."""
    names = people or [f"photo {i}" for i in range(len(originals))]
    return [
        FaceComparison(name, {"a": original}, {"a": version}, True, 0.1, 20.0, 0.5, 0.3)
        for name, original, version in zip(names, unit(originals), unit(versions), strict=True)
    ]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((PEOPLE, 128))


def test_identical_faces_are_all_accepted_and_all_nearest(vectors):
    of = verdict(faces(vectors, vectors), "a", 0.3)
    assert of.cosine == pytest.approx(1)
    assert of.tar is not None and of.nearest is not None and of.farthest is not None
    assert (of.tar.value, of.nearest.value, of.farthest.value) == (1, 1, 0)


def test_shuffled_people_are_accepted_as_often_as_strangers_are(vectors):
    """At a threshold that a tenth of all strangers pass, the share of shuffled people who pass holds a tenth."""
    cosines = unit(vectors) @ unit(vectors).T
    threshold = float(np.quantile(cosines[~np.eye(PEOPLE, dtype=bool)], 0.9))
    of = verdict(faces(vectors, np.roll(vectors, 1, axis=0)), "a", threshold)
    assert of.tar is not None and of.nearest is not None
    assert of.tar.low <= 0.1 <= of.tar.high
    assert of.nearest.value == 0


def test_a_blurred_version_lies_between(vectors):
    noise = np.random.default_rng(2).standard_normal(vectors.shape)
    of = [verdict(faces(vectors, vectors + strength * noise), "a", 0.5) for strength in (0, 1.7, 20)]
    shares = [one.tar.value for one in of if one.tar is not None]
    assert shares[0] == 1 and shares[2] == 0 and 0 < shares[1] < 1


def test_the_interval_is_that_of_an_independent_bootstrap():
    hits = np.random.default_rng(3).random(60) < 0.3
    ours = Share.of(hits, [str(i) for i in range(60)])
    theirs = scipy.stats.bootstrap((hits.astype(float),), np.mean, method="percentile", rng=np.random.default_rng(4))
    low, high = theirs.confidence_interval
    assert (ours.low, ours.high) == (pytest.approx(low, abs=0.025), pytest.approx(high, abs=0.025))
    assert ours.value == accept_rate(hits.astype(float), 0.5)


def test_many_photos_of_few_people_say_less_than_of_many():
    """Photos of one person fail together: the interval is over people, not over photos."""
    hits = [i < 5 for i in range(10) for _ in range(20)]
    of_people = Share.of(hits, [str(i) for i in range(10) for _ in range(20)])
    of_photos = Share.of(hits, [str(i) for i in range(200)])
    assert of_people.high - of_people.low > 3 * (of_photos.high - of_photos.low)


def test_none_of_thirty_is_no_proof_of_never():
    share = Share.of([False] * 30, [str(i) for i in range(30)])
    assert (share.value, share.low, share.high) == (0, 0, pytest.approx(0.1))


def test_two_protections_of_one_face_that_look_alike_are_linked(vectors):
    """Two alike protections of each person are linked, two of different strangers are not."""
    people = [f"photo {i // 2}" for i in range(PEOPLE)]
    originals = np.repeat(vectors[: PEOPLE // 2], 2, axis=0)
    alike = verdict(faces(originals, np.repeat(vectors[PEOPLE // 2 :], 2, axis=0), people), "a", 0.5)
    apart = verdict(faces(originals, vectors, people), "a", 0.5)
    assert alike.linked is not None and apart.linked is not None
    assert (alike.linked.value, apart.linked.value, alike.linked.count) == (1, 0, PEOPLE // 2)
    assert alike.link == 1 and apart.link < 0.8


def test_figures_for_programs_hold_no_nan(vectors):
    one = {"protected": faces(vectors[:1], vectors[:1])}
    told = json.loads(json.dumps(as_json(Evidence(one, {})), allow_nan=False))
    assert told["judges"]["a"]["versions"]["protected"]["tar"] is None
    assert told["judges"]["a"]["versions"]["protected"]["link"] is None
    assert told["versions"]["protected"]["faces"] == 1


def test_the_page_asks_nobody_for_anything_and_shows_names_as_text(vectors):
    evidence = Evidence({"protected": faces(vectors, vectors)}, {"a": 0.3}, missing=["<script>alert(1)</script>.png"])
    page = as_html(evidence)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert set(re.findall(r"""(?:src|href)\s*=\s*['"]([^'"]{5})""", page)) == {"data:"}
    assert "@import" not in page and "url(" not in page


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with the astronaut and a picture without a face; her blurred, and the other as it is."""
    originals, protected = tmp_path / "originals", tmp_path / "protected"
    her = Image.fromarray(skimage.data.astronaut()[:256, 96:352])
    for folder in (originals, protected):
        folder.mkdir()
        Image.new("RGB", (64, 64)).save(folder / "sky.png")
    her.save(originals / "her.png")
    her.filter(ImageFilter.GaussianBlur(2)).save(protected / "her.png")
    return originals, protected


def test_the_report_lies_in_its_folder_and_a_broken_bound_ends_with_1(folders, tmp_path, capsys):
    command = ["evaluate", *map(str, folders), "--report", str(tmp_path / "report")]
    assert main([*command, "--max-tar", "0.01", "--min-found", "0.5"]) == 1
    errors = capsys.readouterr().err
    assert "demo judge accepts 100.0 % of the faces as their originals, more than --max-tar 0.01" in errors
    assert "--min-found" not in errors
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    assert told["judges"]["demo judge"]["versions"]["protected"]["tar"]["value"] == 1
    assert [Path(name).name for name in told["originals without a face"]] == ["sky.png"]
    assert {"protected", "JPEG of quality 60"} == told["utility"]["head pose"].keys() and told["utility"]["age"] == {}
    page = tmp_path / "report" / "report.html"
    assert "needs genderage.onnx" in page.read_text()
    assert page.read_text().count("<img") == 3, "the cosines, and the worst face beside its original"
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    again = ["evaluate", *map(str, folders), str(folders[1])]
    attacks = [f"--attack={name}" for name in ("averaging", "surroundings", "look")]
    assert main([*again, *attacks, "--max-tar", "1", "--min-found", "1", "--max-link", "0.02"]) == 1
    said = capsys.readouterr()
    assert "| surroundings, the same photo | demo judge | 100.0 % (0.0 to 100.0) | 100.0 % |" in said.out
    assert (
        "| averaging images, nearest | demo judge | 100.0 %" in said.out and "| look | no network | 100.0 %" in said.out
    )
    (error,) = [line for line in said.err.splitlines() if line.startswith("error:")]
    assert "accepts 100.0 % of the pairs of two protections of one face, more than --max-link 0.02" in error


def test_a_bound_that_cannot_be_measured_is_not_kept(folders, capsys):
    assert main(["evaluate", *map(str, folders), "--max-link", "0.02"]) == 1
    assert (
        "cannot be held to --max-link: that needs two folders or variants, and a threshold" in capsys.readouterr().err
    )


def test_missing_files_are_listed_all(folders, capsys):
    _, protected = folders
    for name in ("her.png", "sky.png"):
        (protected / name).unlink()
    assert main(["evaluate", *map(str, folders)]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "her.png" in line and "sky.png" in line and "2 of 2" in line


def test_a_judge_that_is_no_recognizer_is_named(folders, tmp_path, capsys):
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    assert main(["evaluate", *map(str, folders), "--recognizer", str(tmp_path / "no.onnx")]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "no.onnx" in line


@pytest.mark.usefixtures("whatever_is_drawn")
def test_the_record_of_a_run_tells_who_guided_and_whom_it_left(folders, data_dir, tmp_path, capsys):
    """In any format of images: she is protected, and her smaller double beside her is left on purpose."""
    originals, _ = folders
    her, both = Image.open(originals / "her.png"), Image.new("RGB", (420, 256))
    both.paste(her)
    both.paste(her.resize((164, 164)), (256, 40))
    both.save(originals / "her.png")
    file = str(data_dir / "recognizers" / "mobilefacenet_ms1m.onnx")
    out = tmp_path / "made"
    quick = ["--steps", "2", "--output-format", "webp", "--recognizer", file, "--faces", "largest"]
    assert main(["anonymize", str(originals), "-o", str(out), "--without-face", "copy", *quick]) == 0
    judged = ["evaluate", str(originals), str(out), "--recognizer", file, "--report", str(tmp_path)]
    assert main(judged) == 1
    assert "mobilefacenet_ms1m guided when" in capsys.readouterr().err
    assert main([*judged, "--judge-guides"]) == 0
    assert "left as they are on purpose, and not judged: 1 face" in capsys.readouterr().out
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["judges"]["mobilefacenet_ms1m"]["guided"] is True
    assert told["versions"]["protected"]["faces"] == 1 and len(told["left on purpose"]) == 1
    assert told["left on purpose"][0].endswith("her.webp (face 1)") and told["covered"] == []
    assert "This recognizer guided" in (tmp_path / "report.html").read_text()
    shutil.copytree(out, tmp_path / "unknown", ignore=shutil.ignore_patterns(".diffprivacy.json"))
    assert main(["evaluate", str(originals), str(tmp_path / "unknown"), "--report", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["versions"]["protected"]["faces"] == 2, "without the record every face counts"
