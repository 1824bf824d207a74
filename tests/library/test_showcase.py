"""``diffprivacy demo`` as somebody sees it who has just cloned the pack."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from diffprivacy.cli import main
from diffprivacy.evaluation.fidelity import psnr
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import crop_face
from diffprivacy.media.images import read_picture

HALF = """
import dataclasses, sys
from diffprivacy.presets import PRESETS
for preset in PRESETS.values():
    preset["default"] = dataclasses.replace(preset["default"], steps=25)
from diffprivacy.cli import main
sys.exit(main())
"""
"""The command with half of the steps."""


@pytest.fixture(scope="module")
def run(installed: Path, tmp_path_factory: pytest.TempPathFactory):
    """The folder that the installed command wrote for the built-in photo, what it printed, and what stood on the
    terminal meanwhile, where progress bars are drawn."""
    folder = tmp_path_factory.mktemp("demo")
    terminal, screen = pty.openpty()
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [installed.with_name("python"), "-c", HALF, "demo", "-o", "out", "--seed", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=screen) as process:
        os.close(screen)
        shown = _read(terminal)
        assert process.stdout is not None
        printed = process.stdout.read().decode()
    assert process.returncode == 0, shown
    return folder / "out", printed, shown


def _read(terminal: int) -> str:
    """All that is written to a terminal until its other end is closed, which Linux reports as an error."""
    parts = []
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:
            break
        if not part:
            break
        parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode()


@pytest.fixture(scope="module")
def demo(run):
    """The folder that the demo wrote for the built-in photo, and what it printed."""
    return run[:2]


@pytest.fixture(scope="module")
def rows(demo) -> dict[str, list[float]]:
    """Guide's cosine, judge's cosine and PSNR by the name of the version, as printed."""
    found = re.findall(r"^(\w[\w ]*?) +(-?[\d.]+) +(-?[\d.]+) +([\d.]+) dB$", demo[1], re.MULTILINE)
    return {name: [float(value) for value in values] for name, *values in found}


def test_all_jobs_are_shown(demo, rows):
    names = ["variant 1", "variant 2", "variant 3", "variant 4", "hidden"]
    assert list(rows) == [*names, "recovered"]
    files = {path.name for path in demo[0].iterdir()}
    pictures = {f"{name.replace(' ', '-')}.png" for name in names}
    keys = {f"{name}.age" for name in pictures}
    assert files == pictures | keys | {"recovered.png", "contact-sheet.png", "identity.txt"}


def test_the_jobs_do_what_they_are_for(rows):
    """The judge, which never guides, takes a single variant for the person now and then; all of them are far."""
    variants = [row for name, row in rows.items() if name.startswith("variant")]
    for guide, _, fidelity in variants:
        assert guide < 0.2
        assert fidelity < 25
    assert sum(judge for _, judge, _ in variants) / len(variants) < 0.4
    guide, _, fidelity = rows["hidden"]
    assert guide > 0.5
    assert fidelity < 22
    assert rows["recovered"][2] > 27
    assert rows["recovered"][0] > 0.7
    assert rows["recovered"][1] > 0.7


def test_the_sealed_key_recovers_every_protected_picture(demo, tmp_path):
    """With the command, from the files alone; nothing but the face differs from the original, and that little."""
    out, printed = demo
    assert "another identity instead of identity.txt: No matching identity" in printed
    original = torch.from_numpy(skimage.data.astronaut().astype(np.float32) / 255)
    for name in ("hidden.png", "variant-2.png"):
        arguments = ["-o", str(tmp_path), "--identity-file", str(out / "identity.txt")]
        assert main(["recover", str(out / name), *arguments]) == 0
        recovered = read_picture(tmp_path / name).rgb
        assert psnr(recovered, original) > 35 > psnr(read_picture(out / name).rgb, original)


def test_contact_sheet_shows_the_face_in_each_file_and_a_label_of_its_own(demo, rows):
    sheet = np.asarray(Image.open(demo[0] / "contact-sheet.png"))
    original = torch.from_numpy(skimage.data.astronaut().astype(np.float32) / 255)
    (face,) = load_detector(None).detect(original)
    files = [demo[0] / f"{name.replace(' ', '-')}.png" for name in (*rows, "hidden")]
    height = len(sheet) // 4
    shown = [original, *(read_picture(file).rgb for file in files)]
    labels = []
    for i, image in enumerate(shown):
        top, left = i // 4 * height, 8 + i % 4 * 264
        expected = crop_face(image, face, 256, margin=2.2).numpy() * 255
        panel = sheet[top + 8 : top + 264, left : left + 256]
        assert np.abs(panel - expected).mean() < 1
        labels.append(sheet[top + 264 : top + height, left : left + 256])
        assert (labels[-1] < 128).any()
    assert len({label.tobytes() for label in labels}) == len(shown)
    people, anonymized = (sheet[row * height + 8 : row * height + 264].astype(float) for row in (2, 3))
    assert all(5 < np.abs(people - anonymized)[:, 8 + i * 264 : 264 + i * 264].mean() < 60 for i in range(4))


def test_every_job_has_a_progress_bar(run):
    for job in ("anonymize", "hide", "record the key", "recover", "anonymize four other people"):
        assert re.search(rf"\r{job}: 100%", run[2])


def test_photo_without_a_face_is_one_clear_line_and_no_file(tmp_path: Path, capsys):
    Image.fromarray(skimage.data.coffee()).save(tmp_path / "coffee.png")
    assert main(["demo", str(tmp_path / "coffee.png"), "-o", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "No face was found" in line
    assert not (tmp_path / "out").exists()
