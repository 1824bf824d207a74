"""The command line as a person uses it: real photos in, protected PNG files or one clear line out."""

from __future__ import annotations

import io
import re
import sys
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from diffprivacy import demo
from diffprivacy.cli import main
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import crop_face, protected_mask
from diffprivacy.media.disclosure import SOURCE_TYPE
from diffprivacy.media.images import Picture, read_picture, write_picture
from diffprivacy.msi.module import load_msi
from testing.folders import friends

pytestmark = pytest.mark.usefixtures("models_loaded_once")
QUICK = ["--steps", "3", "--strength", "0.6", "--unguided"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe at home"
    Image.fromarray(skimage.data.astronaut()).save(folder / "astronaut.png", exif=exif)
    friends(folder / "group.png")
    return folder


def changed_outside_and_inside(original: Path, protected: Path, faces: int) -> tuple[int, float]:
    """How many values changed where nothing may, and the least mean change in a face, in levels of 8 bits."""
    before, after = (read_picture(path).rgb for path in (original, protected))
    found = load_detector(None).detect(before)
    assert len(found) == faces
    mask = protected_mask(before.shape, found, demo.MARGIN)
    change = (after - before).abs() * 255
    inside = [change[protected_mask(before.shape, [face], demo.MARGIN) == 1].mean().item() for face in found]
    return int((change[mask == 0] > 0).sum()), min(inside)


def test_every_face_changes_and_nothing_else(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["anonymize", str(photos), "-o", str(out), *QUICK]) == 0
    for name, faces in (("astronaut", 1), ("group", 6)):
        outside, inside = changed_outside_and_inside(photos / f"{name}.png", out / f"{name}.png", faces)
        assert outside == 0
        assert inside > 3
    content = (out / "astronaut.png").read_bytes()
    assert b"Jane Doe" not in content
    assert content.count(b"iTXt") == content.count(SOURCE_TYPE.encode()) == 1
    assert not {b"tEXt", b"zTXt", b"eXIf", b"iCCP", b"tIME"} & {content[i : i + 4] for i in range(len(content))}
    assert "demo model" in capsys.readouterr().err


def test_interrupted_folder_goes_on(photos, tmp_path, capsys):
    """A picture that is there already is not done again, unless asked for."""
    out = tmp_path / "out"
    assert main(["anonymize", str(photos / "astronaut.png"), "-o", str(out), *QUICK]) == 0
    first = (out / "astronaut.png").read_bytes()
    assert main(["anonymize", str(photos / "astronaut.png"), "-o", str(out), *QUICK]) == 0
    assert (out / "astronaut.png").read_bytes() == first
    assert "1 already done" in capsys.readouterr().out
    assert main(["anonymize", str(photos / "astronaut.png"), "-o", str(out), *QUICK, "--overwrite"]) == 0
    assert (out / "astronaut.png").read_bytes() != first


def test_seed_decides_the_noise_and_is_warned_about(photos, tmp_path, capsys):
    for folder in ("a", "b"):
        arguments = ["-o", str(tmp_path / folder), *QUICK, "--seed", "3", "--variants", "2"]
        assert main(["anonymize", str(photos / "astronaut.png"), *arguments]) == 0
    warning = capsys.readouterr().err.partition("warning: --seed ")[2]
    assert "anyone who guesses the number can remove the noise" in warning
    a, b = ([(tmp_path / folder / f"astronaut-{i}.png").read_bytes() for i in (1, 2)] for folder in ("a", "b"))
    assert a == b
    assert a[0] != a[1]


def test_chosen_faces_only(photos, tmp_path):
    assert main(["anonymize", str(photos / "group.png"), "-o", str(tmp_path), *QUICK, "--faces", "0,2"]) == 0
    before, after = read_picture(photos / "group.png").rgb, read_picture(tmp_path / "group.png").rgb
    found = load_detector(None).detect(before)
    chosen = protected_mask(before.shape, [found[0], found[2]], demo.MARGIN)
    assert torch.equal(before[chosen == 0], after[chosen == 0])
    assert not torch.equal(before[chosen == 1], after[chosen == 1])


@pytest.fixture(scope="module")
def one_of_six(photos, tmp_path_factory) -> tuple[Path, int]:
    """A photo of one person of the group, taken apart from it, and the person's number there."""
    picture = read_picture(photos / "group.png").rgb
    faces = load_detector(None).detect(picture)
    left, top, right, bottom = (round(value) for value in faces[2].box)
    room = (right - left) // 2
    alone = picture[max(0, top - room) : bottom + room, max(0, left - room) : right + room]
    file = tmp_path_factory.mktemp("person") / "person.png"
    write_picture(file, Picture(alone))
    return file, 2


@pytest.mark.parametrize(("option", "changes_person"), [("--only", True), ("--except", False)])
def test_people_in_photos_are_protected_or_spared(photos, one_of_six, tmp_path, option, changes_person):
    person, number = one_of_six
    assert main(["anonymize", str(photos / "group.png"), "-o", str(tmp_path), *QUICK, option, str(person)]) == 0
    before, after = (read_picture(folder / "group.png").rgb for folder in (photos, tmp_path))
    for i, face in enumerate(load_detector(None).detect(before)):
        middle = before.shape[0], before.shape[1]
        x, y = (round(value) for value in face.centre)
        change = (after - before)[
            max(0, y - 10) : min(middle[0], y + 10), max(0, x - 10) : min(middle[1], x + 10)
        ].abs()
        assert (change.mean() > 0.01) == ((i == number) == changes_person)


def test_photos_of_people_show_one_face_each(photos, tmp_path, capsys):
    command = ["anonymize", str(photos / "astronaut.png"), "-o", str(tmp_path), *QUICK]
    assert main([*command, "--only", str(photos / "group.png")]) == 1
    assert "group.png: 6 faces found; give photos with exactly one face" in capsys.readouterr().err
    assert main([*command, "--except", str(photos / "astronaut.png")]) == 1
    assert (
        "astronaut.png: --only or --except: every face is, threshold 0.37, so nothing would be protected"
        in capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc, which only Linux has")
def test_large_photo_takes_the_memory_of_a_few_pictures(photos, tmp_path):
    """The networks aside: three in float32 (the original and both variants), and as much as one in 8 bits.

    Only the face in it changes.
    """
    from testing.killed import Run

    wide = np.tile(skimage.data.coffee(), (4, 4, 1))
    wide[1000:1512, 1500:2012] = skimage.data.astronaut()
    Image.fromarray(wide).save(tmp_path / "wide.jpg")
    options = ["-o", str(tmp_path / "out"), "--steps", "2", "--unguided", "--faces", "largest", "--variants", "2"]
    runs = [Run(tmp_path, "anonymize", photo, *options) for photo in (photos / "astronaut.png", tmp_path / "wide.jpg")]
    assert [run.finish()[0] for run in runs] == [0, 0]
    small, large = (run.peak for run in runs)
    assert len(list((tmp_path / "out").glob("wide-*.png"))) == 2
    assert large - small < 4 * 4 * wide.size
    before, after = (read_picture(path).rgb for path in (tmp_path / "wide.jpg", tmp_path / "out" / "wide-1.png"))
    changed = (after != before).any(dim=2)
    assert changed[1000:1512, 1500:2012].any()
    changed[1000:1512, 1500:2012] = False
    assert not changed.any()


def noise(path: Path) -> None:
    Image.fromarray(np.full((200, 300, 3), 128, np.uint8)).save(path)


def truncated(path: Path) -> None:
    Image.fromarray(skimage.data.astronaut()).save(path)
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("name", "write", "options", "message"),
    [
        ("text.jpg", lambda path: path.write_text("hello"), [], "text.jpg"),
        ("cut.png", truncated, [], "cut.png"),
        ("dot.png", lambda path: Image.new("RGB", (1, 1)).save(path), [], "No face"),
        ("wall.png", noise, [], "No face"),
        ("wall.png", noise, ["--checkpoint", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        ("wall.png", noise, ["--detector", "nowhere.onnx"], "nowhere.onnx"),
        (
            "wall.png",
            noise,
            ["--recognizer", "/nowhere/r50.onnx"],
            "at /nowhere/r50.onnx: put an ArcFace ONNX file there",
        ),
        ("wall.png", noise, ["--recognizer", __file__], "is no ONNX file"),
    ],
)
def test_bad_input_is_one_line_and_no_file(tmp_path, capsys, name, write, options, message):
    write(tmp_path / name)
    out = tmp_path / "out"
    assert main(["anonymize", str(tmp_path / name), "-o", str(out), *options]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not list(out.rglob("*"))


def test_one_bad_picture_does_not_stop_the_others(photos, tmp_path):
    noise(tmp_path / "wall.png")
    inputs = [str(tmp_path / "wall.png"), str(photos / "astronaut.png")]
    assert main(["anonymize", *inputs, "-o", str(tmp_path / "out"), *QUICK]) == 1
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["astronaut.png"]


def test_picture_without_a_face_is_copied_only_when_asked_for(tmp_path):
    noise(tmp_path / "wall.png")
    arguments = [str(tmp_path / "wall.png"), "-o", str(tmp_path / "out"), "--without-face", "copy"]
    assert main(["anonymize", *arguments]) == 0
    assert torch.equal(read_picture(tmp_path / "out" / "wall.png").rgb, read_picture(tmp_path / "wall.png").rgb)


def test_a_dozen_faces_are_all_protected(photos, tmp_path):
    """The six friends, cut out and set side by side twice."""
    group = read_picture(photos / "group.png").rgb
    friends = [crop_face(group, face, 160, 1.9) for face in load_detector(None).detect(group)]
    rows = [torch.cat([friends[(4 * row + i) % 6] for i in range(4)], dim=1) for row in range(3)]
    write_picture(tmp_path / "crowd.png", Picture(torch.cat(rows)))
    before = read_picture(tmp_path / "crowd.png").rgb
    found = load_detector(None).detect(before)
    assert len(found) >= 11
    assert main(["anonymize", str(tmp_path / "crowd.png"), "-o", str(tmp_path / "out"), *QUICK]) == 0
    outside, inside = changed_outside_and_inside(tmp_path / "crowd.png", tmp_path / "out" / "crowd.png", len(found))
    assert outside == 0
    assert inside > 3


def test_portrait_mode_by_exif_comes_out_upright(photos, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.fromarray(np.rot90(skimage.data.astronaut()).copy())
    lying.save(tmp_path / "lying.png", exif=exif)
    assert main(["anonymize", str(tmp_path / "lying.png"), "-o", str(tmp_path / "out"), *QUICK]) == 0
    (tmp_path / "upright.png").write_bytes((photos / "astronaut.png").read_bytes())
    outside, inside = changed_outside_and_inside(tmp_path / "upright.png", tmp_path / "out" / "lying.png", 1)
    assert outside == 0
    assert inside > 3


class Impatient(io.StringIO):
    """A terminal whose user presses Ctrl-C once the bar of training stands beyond step 20."""

    pressed = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        step = re.search(r"(\d+)/900 ", text)
        if step and int(step[1]) > 20 and not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt
        return super().write(text)


def test_interrupted_training_of_msi_keeps_what_was_learnt_and_goes_on(photos, tmp_path, capsys):
    out = tmp_path / "msi.safetensors"
    train = ["train-msi", str(photos / "astronaut.png"), "-o", str(out), "--steps", "900", "--size", "64", "--no-flips"]
    with redirect_stderr(Impatient()) as screen:
        assert main(train) == 130
    assert "msi.safetensors holds what was learnt so far" in screen.getvalue()
    learnt = load_msi(out).state_dict()
    assert learnt["out.weight"].any()
    assert main([*train, "--minutes", "0"]) == 0
    assert int(re.findall(r"in (\d+) steps", capsys.readouterr().out)[-1]) >= 20
    assert all(torch.equal(tensor, learnt[name]) for name, tensor in load_msi(out).state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == [out.name]
