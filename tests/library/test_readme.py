"""The README's transcript, run as it stands but for the number of steps; test_showcase takes all."""

from __future__ import annotations

import shlex
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffprivacy.cli import main
from testing.reference import ROOT, blocks

pytestmark = pytest.mark.usefixtures("models_loaded_once", "whatever_is_drawn", "short_keys")


def transcript() -> list[str]:
    lines = chain.from_iterable(blocks(ROOT / "README.md"))
    return [line for line in lines if line.startswith(("diffprivacy", "age-keygen"))]


def test_the_readmes_commands_do_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import pyrage
    from skimage import data

    monkeypatch.chdir(tmp_path)
    photo = data.astronaut()
    Image.fromarray(photo).save("photo.jpg", quality=95)
    identity = pyrage.x25519.Identity.generate()
    for line in transcript():
        if line.startswith("age-keygen -o"):
            Path(line.split()[-1]).write_text(f"{identity}\n")
        else:
            arguments = shlex.split(line.replace("age1...", str(identity.to_public())))[1:]
            quick = ["--steps", "6"] if arguments[0] != "recover" else []
            assert main([*arguments, *quick]) == 0, line
    original = np.asarray(Image.open("photo.jpg")).astype(int)
    anonymized, hidden, recovered = (
        np.asarray(Image.open(Path(folder) / "photo.png")).astype(int)
        for folder in ("protected", "hidden", "originals")
    )
    face = (slice(60, 170), slice(170, 270))
    for protected in (anonymized, hidden):
        assert abs(protected - original)[face].mean() > 5
        assert (protected == original)[320:].all()
    assert abs(recovered - original)[face].mean() < abs(anonymized - original)[face].mean() / 2
