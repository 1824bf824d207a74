"""The wheel holds what the commands need, and nothing else."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import skimage.data
from PIL import Image

from testing.wheel import ROOT


def test_every_file_of_the_package_and_no_other_is_in_the_wheel(wheel: Path):
    with zipfile.ZipFile(wheel) as file:
        packed = {name for name in file.namelist() if ".dist-info/" not in name}
    files = (path for path in (ROOT / "diffprivacy").rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert packed == {path.relative_to(ROOT).as_posix() for path in files}


def test_the_installed_command_runs_from_its_own_files(installed: Path, tmp_path: Path):
    where = [installed.with_name("python"), "-c", "import diffprivacy; print(diffprivacy.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert Path(found).is_relative_to(installed.parents[1])


def test_the_installed_command_anonymizes_with_a_checkpoint(installed: Path, tiny_checkpoint: Path, tmp_path: Path):
    """A checkpoint's text encoder needs CLIP's vocabulary, the demo model does not."""
    Image.fromarray(skimage.data.astronaut()).save(tmp_path / "photo.png")
    options = ["photo.png", "-o", "out", "--checkpoint", tiny_checkpoint, "--size", "64", "--steps", "2", "--unguided"]
    subprocess.run([installed, "anonymize", *options], cwd=tmp_path, check=True)
    assert (tmp_path / "out" / "photo.png").is_file()
