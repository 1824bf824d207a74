"""What a run says: before it, of each input, and at its end, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from diffprivacy import pipeline
from diffprivacy.commands.manifest import Manifest
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import Face
from diffprivacy.media.disclosure import XMP
from diffprivacy.media.images import read_picture
from testing.folders import anonymize, photo, run, wall

pytestmark = pytest.mark.usefixtures("models_loaded_once")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two faces beside each other, a wall, half a picture, and notes."""
    face = skimage.data.astronaut()[20:180, 150:310]
    (tmp_path / "in").mkdir()
    Image.fromarray(np.concatenate([face, face[:, ::-1]], axis=1)).save(tmp_path / "in" / "pair.png")
    wall(tmp_path / "in" / "wall.png")
    (tmp_path / "in" / "cut.png").write_bytes((tmp_path / "in" / "pair.png").read_bytes()[:500])
    (tmp_path / "in" / "notes.txt").write_text("x")
    return tmp_path / "in"


def test_a_dry_run_says_what_would_be_done_and_does_nothing(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert anonymize(folder, out, "--dry-run", "--faces", "1") == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == f"{folder / 'pair.png'} -> {out / 'pair.png'}: 1 of 2 faces"
    assert lines[1].startswith("  face 0 at ") and lines[1].endswith("left as it is")
    assert lines[2].startswith("  face 1 at ") and lines[2].endswith("to be made new")
    assert "1 to be protected, 1 skipped, 2 failed" in printed.out
    assert "wall.png: No face was found" in printed.err and "cut.png is" in printed.err
    assert "embedded demo model" not in printed.err
    assert not out.exists()
    assert anonymize(folder, out) == 1
    capsys.readouterr()
    assert anonymize(folder, out, "--dry-run") == 1
    assert "1 already done" in capsys.readouterr().out


def test_programs_read_one_object_a_line(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert anonymize(folder, out, "--json") == 1
    *inputs, last = map(json.loads, capsys.readouterr().out.splitlines())
    by_name = {Path(each["input"]).name: each for each in inputs}
    assert {name: each["status"] for name, each in by_name.items()} == {
        "pair.png": "protected",
        "wall.png": "failed",
        "cut.png": "failed",
        "notes.txt": "skipped",
    }
    assert by_name["pair.png"]["outputs"] == [str(out / "pair.png")]
    assert [face["protect"] for face in by_name["pair.png"]["faces"]] == [True, True]
    assert "No face" in by_name["wall.png"]["reason"]
    assert last == {"summary": {"protected": 1, "already done": 0, "faces covered": 0, "skipped": 1, "failed": 2}}
    assert anonymize(folder, out, "--json", "--dry-run") == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["summary"]["already done"] == 1


def test_the_summary_counts_covered_faces(folder, tmp_path, capsys, monkeypatch):
    real = pipeline.regenerate_crops
    calls = iter(range(9))

    def failing(*arguments):
        if next(calls) == 1:
            raise RuntimeError("no")
        return real(*arguments)

    monkeypatch.setattr(pipeline, "regenerate_crops", failing)
    assert anonymize(folder / "pair.png", tmp_path / "out", "--if-impossible", "cover") == 0
    assert "1 face covered, not made new" in capsys.readouterr().out


def test_a_covered_face_goes_by_its_number_among_all_faces(folder, tmp_path, capsys, monkeypatch):
    def failing(*arguments):
        raise RuntimeError("no")

    monkeypatch.setattr(pipeline, "regenerate_crops", failing)
    options = ["--faces", "1", "--if-impossible", "cover"]
    assert anonymize(folder / "pair.png", tmp_path / "out", *options) == 0
    printed = capsys.readouterr()
    assert "face 1 is covered, as it cannot be made new" in printed.err
    assert "  covered: face 1\n" in printed.out
    record = Manifest(tmp_path / "out", b"")
    file, faces = tmp_path / "out" / "pair.png", load_detector(None).detect(read_picture(folder / "pair.png").rgb)
    moved = [Face((face.box[0] + 7, *face.box[1:]), face.landmarks, 0.5) for face in faces]
    for found in (faces, moved):
        assert [record.decision(file, face) for face in found] == ["left", "covered"]
    assert record.knows(file) and not record.knows(file.with_name("other.png"))
    assert record.decision(file.with_name("other.png"), faces[0]) is None


def test_what_was_decided_for_each_face_is_said_when_asked(folder, tmp_path, capsys):
    assert anonymize(folder / "pair.png", tmp_path / "out", "-v", "--faces", "0") == 0
    said = capsys.readouterr().err
    assert "pair.png: face 0 at " in said and "to be made new" in said
    assert "pair.png: face 1 at " in said and "left as it is" in said


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_other_formats_hold_no_metadata_and_their_keys_lie_beside(tmp_path, kind):
    source = tmp_path / "a.jpeg"
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe"
    Image.fromarray(skimage.data.astronaut()[20:180, 150:310]).save(source, quality=98, exif=exif)
    (tmp_path / "phrase").write_text("correct horse")
    phrase = ["--passphrase-file", tmp_path / "phrase"]
    assert anonymize(source, tmp_path / "out", "--output-format", kind, *phrase, "--fidelity", "lossless") == 0
    out = tmp_path / "out" / f"a.{kind}"
    assert sorted(path.name for path in out.parent.glob("[!.]*")) == [out.name, f"{out.name}.age"]
    with Image.open(out) as made:
        assert made.format == {"jpg": "JPEG", "webp": "WEBP"}[kind]
        assert not {"exif", "icc_profile", "comment"} & set(made.info)
        assert made.info["xmp"] == XMP
        assert not made.getexif()
    before, after = read_picture(source).rgb, read_picture(out).rgb
    corner = (before - after)[:20, :20].abs().mean()
    assert 0 < corner < 0.03
    assert run("recover", out, "-o", tmp_path / "back", *phrase) == 0
    back = read_picture(tmp_path / "back" / "a.png").rgb
    assert (before - back).abs().mean() < 0.3 * (before - after).abs().mean()


def test_the_same_format_is_the_inputs(tmp_path, capsys):
    for name in ("a.jpeg", "b.webp", "c.png", "d.bmp"):
        photo(tmp_path / "in" / name)
    image = Image.fromarray(skimage.data.astronaut()[20:180, 150:310]).convert("RGBA")
    image.putalpha(200)
    image.save(tmp_path / "clear.png")
    assert anonymize(tmp_path / "in", tmp_path / "out", "--output-format", "same", "--quality", 50) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["a.jpg", "b.webp", "c.png", "d.png"]
    assert anonymize(tmp_path / "clear.png", tmp_path / "out", "--output-format", "jpg") == 1
    assert "JPEG holds no transparency; choose --output-format png or webp" in capsys.readouterr().err
    assert anonymize(tmp_path / "clear.png", tmp_path / "x.webp", "--output-format", "webp") == 0
    assert anonymize(tmp_path / "clear.png", tmp_path / "out", "--quality", 101) == 2
