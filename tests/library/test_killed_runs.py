"""Runs that are killed, and runs beside each other: real processes on one output folder."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyrage
import pytest
import skimage.data

from diffprivacy.media import atomic
from testing.folders import photo
from testing.videos import pixels, write_source

if sys.platform == "win32":
    pytest.skip("Windows has no signals that kill", allow_module_level=True)

from testing.killed import Run

QUICK = ["--steps", 2, "--strength", 0.5, "--unguided"]


def killed_until_done(out: Path, moments: int, kills: int, check: Callable[[], object], *arguments: object) -> None:
    """Killed at random moments of so many, again and again, then not any more."""
    chance = random.Random(0)
    for _ in range(kills):
        code, _, _ = Run(out, *arguments, moment=chance.randrange(1, moments)).finish()
        assert code in (-signal.SIGKILL, 0)
        check()
    assert Run(out, *arguments).finish()[0] == 0
    check()
    assert not list(out.glob(f"{atomic.PREFIX}*"))


def test_a_folder_that_is_killed_again_and_again_ends_the_same(tmp_path):
    """Whenever: what bears a final name is protected, and whole."""
    for i in range(2):
        photo(tmp_path / "in" / f"{i}.png", bool(i % 2))
    arguments = ["anonymize", tmp_path / "in", "--seed", 1, "--variants", 2, *QUICK, "-o"]
    once, out = tmp_path / "once", tmp_path / "out"
    code, _, moments = Run(once, *arguments, once).finish()
    assert code == 0
    expected = {path.name: path.read_bytes() for path in once.glob("[!.]*")}

    def check() -> None:
        for path in out.glob("[!.]*"):
            assert path.read_bytes() == expected[path.name]

    killed_until_done(out, moments, 2, check, *arguments, out)
    assert {path.name for path in out.glob("[!.]*")} == set(expected)


def test_an_image_never_stands_without_the_key_beside_it(tmp_path):
    """A key may be there first."""
    recipient = str(pyrage.x25519.Identity.generate().to_public())
    source, out = photo(tmp_path / "a.png"), tmp_path / "out"
    options = ["--seal-to", recipient, "--key-beside", "--fidelity", "lossless"]
    arguments = ["anonymize", source, *options, *QUICK, "-o"]
    _, _, moments = Run(tmp_path / "once", *arguments, tmp_path / "once").finish()

    def check() -> None:
        assert (out / "a.png.age").exists() or not (out / "a.png").exists()

    for moment in range(moments - 14, moments, 2):
        Run(out, *arguments, out, moment=moment).finish()
        check()
        for path in out.glob("[!.]*"):
            path.unlink()


def test_a_film_that_is_killed_again_and_again_ends_the_same(tmp_path):
    photograph = skimage.data.astronaut()
    frames = [np.ascontiguousarray(photograph[0:240, 100 + i : 340 + i]) for i in range(4)]
    source = write_source(tmp_path / "film.mp4", frames)
    arguments = ["anonymize", source, "--seed", 1, *QUICK, "-o"]
    once, out = tmp_path / "once", tmp_path / "out"
    code, _, moments = Run(once, *arguments, once).finish()
    assert code == 0
    expected = pixels(once / "film.mp4")

    def check() -> None:
        if (out / "film.mp4").exists():
            assert all(map(np.array_equal, pixels(out / "film.mp4"), expected))

    killed_until_done(out, moments, 2, check, *arguments, out)
    assert len(pixels(out / "film.mp4")) == len(frames)


def test_two_processes_on_one_folder_share_the_work(tmp_path):
    names = [photo(tmp_path / "in" / f"{i}.png").name for i in range(4)]
    out = tmp_path / "out"
    arguments = ["anonymize", tmp_path / "in", "-o", out, *QUICK]
    both = [Run(out, *arguments) for _ in range(2)]
    codes, said, _ = zip(*[run.finish() for run in both], strict=True)
    assert codes == (0, 0)
    made = [line for text in said for line in text.splitlines() if line.endswith(".png")]
    assert sorted(made) == [str(out / name) for name in names]
    assert "4 already done" in Run(out, *arguments).finish()[1]
    assert sorted(path.name for path in out.iterdir()) == [".diffprivacy.json", *names]
