"""The commands of the documentation, run as they stand, on small files of the names that they use."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pyrage
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from diffprivacy.commands import protect_picture
from testing.certificates import write_certificate
from testing.folders import FRIENDS, photo, run
from testing.reference import ROOT, blocks
from testing.videos import write_source

pytestmark = pytest.mark.usefixtures("models_loaded_once", "whatever_is_drawn", "short_keys")
IDENTITY = pyrage.x25519.Identity.generate()
QUICK = {
    "anonymize": ["--steps", "2", "--strength", "0.5"],
    "hide": ["--steps", "2", "--strength", "0.5"],
    "train-msi": ["--steps", "1", "--batch", "2", "--no-flips", "--size", "64"],
}
"""Options that make a command quick."""
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCKS = {
    f"{page.stem}-{number}": lines
    for page in PAGES
    for number, lines in enumerate(blocks(page))
    if any(line.startswith("diffprivacy ") and " --clean " not in line for line in lines)
}
"""But for thresholds from clean photos, which test_evaluate measures."""


@pytest.fixture(scope="module")
def networks(data_dir: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What stands for each file of a network."""
    torch.manual_seed(0)
    small = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "num_hidden_layers": 5}
    vision = CLIPVisionModel(CLIPVisionConfig(**small, patch_size=32, image_size=64)).state_dict()
    file = tmp_path_factory.mktemp("vision") / "small.safetensors"
    save_file({f"vision_model.{name.removeprefix('vision_model.')}": weight for name, weight in vision.items()}, file)
    return {
        "sd15.safetensors": tiny_checkpoint,
        "vit-l-14.safetensors": file,
        "det_10g.onnx": data_dir / "detectors" / "scrfd_500m_bnkps.onnx",
        "w600k_r50.onnx": data_dir / "recognizers" / "mobilefacenet_ms1m.onnx",
        "glintr100.onnx": data_dir / "recognizers" / "mobileface_v2.onnx",
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networks: dict[str, Path]) -> Path:
    """The working folder, with what a user has there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(protect_picture, "checked", lambda how, *_: how)  # two steps may miss their aim
    for name in ("photo.jpg", "photos/a.jpg"):
        photo(Path(name))
    stranger = Image.open(FRIENDS).crop((13, 200, 217, 404)).resize((160, 160))
    for folder in ("protected", "hidden"):
        Path(folder).mkdir()
        stranger.save(f"{folder}/a.png")
    three = Image.open(FRIENDS).reduce(2).crop((0, 50, 320, 230))
    three.save("group.jpg", quality=95)
    Path("colleagues").mkdir()
    three.crop((110, 0, 210, 100)).save("colleagues/b.jpg", quality=95)
    three.crop((210, 60, 310, 180)).save("me.jpg", quality=95)
    Path("boxes.json").write_text(json.dumps({"group.jpg": [{"x": 2, "y": 2, "width": 30, "height": 40}]}))
    Path("passphrase.txt").write_text("correct horse")
    write_certificate(tmp_path)
    frame = np.ascontiguousarray(skimage.data.astronaut()[0:240, 100:340])
    Path("films").mkdir()
    for name in ("interview.mp4", "films/film.mp4"):
        write_source(Path(name), [frame] * 2)
    for name, file in networks.items():
        Path(name).symlink_to(file)
    return tmp_path


@pytest.mark.parametrize("lines", BLOCKS.values(), ids=BLOCKS)
def test_documented_commands_run(here: Path, lines: list[str]):
    if not any(" evaluate " in line for line in lines):
        for made in ("protected/a.png", "hidden/a.png"):
            Path(made).unlink()
    for line in lines:
        program, *words = shlex.split(line.replace("age1...", str(IDENTITY.to_public())))
        if program == "age-keygen":
            Path(words[-1]).write_text(str(IDENTITY))
        elif program == "diffprivacy":
            quick = [*QUICK.get(words[0], []), *(["--size", "64"] if "--checkpoint" in words else [])]
            assert run(*words, *quick) == 0, line
