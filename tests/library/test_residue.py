"""What a run that is killed leaves on the disk: nothing that others can read, and nothing once the next one has begun."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest
import skimage.data

from diffprivacy.cli import main
from diffprivacy.media import atomic
from diffprivacy.media.images import encode_png
from diffprivacy.recovery import png
from testing.three_faces import IDENTITY, ORIGINAL, PROTECTED, SEAL, lossless
from testing.videos import write_source

if sys.platform == "win32":
    pytest.skip("Windows has no signals that kill", allow_module_level=True)

from testing.killed import Run

FILM = os.urandom(2**20)
"""The content of an original video, which recovery never looks into."""


def killed_before(name: str, folder: Path, *command: str | Path) -> None:
    """A command line that works on a folder, killed where the file of a name is written and not yet in its place."""
    assert Run(folder, *command, before=name).finish()[0] == -signal.SIGKILL


def temporaries(folder: Path) -> list[Path]:
    return list(folder.glob(f"{atomic.PREFIX}*.part"))


@pytest.fixture
def sealed(tmp_path: Path) -> tuple[Path, Path]:
    """A protected video and a protected image with what brings them back, and the file of the identity."""
    folder = tmp_path / "sealed"
    folder.mkdir()
    (folder / "trip.mp4").write_bytes(b"protected")
    (folder / "trip.mov.age").write_bytes(SEAL.encrypt(FILM))
    png.save(folder / "group.png", PROTECTED, [SEAL.encrypt_key(lossless())])
    (tmp_path / "identity").write_text(str(IDENTITY))
    return folder, tmp_path / "identity"


@pytest.mark.parametrize(
    ("source", "name", "plain"),
    [("trip.mp4", "trip.mov", FILM), ("group.png", "group.png", encode_png(ORIGINAL))],
    ids=["video", "image"],
)
def test_a_killed_recovery_leaves_nothing_for_others_and_nothing_for_long(tmp_path, sealed, source, name, plain):
    folder, identity = sealed
    out = tmp_path / "out"
    command = ["recover", str(folder / source), "-o", str(out), "--identity-file", str(identity)]
    killed_before(name, out, *command)
    (residue,) = temporaries(out)
    assert residue.stat().st_mode & 0o777 == 0o600
    assert residue.read_bytes() == plain, "the original is on the disk, which is what this is about"
    assert not (out / name).exists()
    assert main(command) == 0
    assert (out / name).read_bytes() == plain
    assert not temporaries(out)


def test_the_demos_identity_is_its_owners_alone(tmp_path):
    """From its first byte on; a second start sweeps what the first left."""
    out = tmp_path / "out"
    killed_before("identity.txt", out, "demo", "-o", out)
    (residue,) = temporaries(out)
    assert residue.stat().st_mode & 0o777 == 0o600
    assert b"AGE-SECRET-KEY-1" in residue.read_bytes()
    killed_before("identity.txt", out, "demo", "-o", out)
    assert residue not in temporaries(out)


def test_what_a_running_process_writes_is_not_swept(tmp_path, sealed, monkeypatch):
    folder, identity = sealed
    out, commit, seen = tmp_path / "out", atomic.Together.commit, []

    def meanwhile(files: atomic.Together) -> None:
        if out / "trip.mov" in files.files:
            seen.append(temporaries(out))
            atomic.write_atomically(out / "another", b"x")
            seen.append(temporaries(out))
        commit(files)

    monkeypatch.setattr(atomic.Together, "commit", meanwhile)
    assert main(["recover", str(folder / "trip.mp4"), "-o", str(out), "--identity-file", str(identity)]) == 0
    assert len(seen[0]) == 1
    assert seen[1] == seen[0]
    assert (out / "trip.mov").read_bytes() == FILM


def test_the_job_of_an_unfinished_video_is_its_owners_alone(tmp_path):
    """It holds what the noise follows from."""
    photo = skimage.data.astronaut()[0:240, 100:340]
    source = write_source(tmp_path / "trip.mp4", [photo] * 2)
    out = tmp_path / "out"
    command = ["anonymize", source, "-o", out, "--steps", "2", "--strength", "0.5", "--unguided"]
    killed_before("job.json", out, *command)
    (unfinished,) = out.glob(f"{atomic.PREFIX}*.unfinished")
    (residue,) = temporaries(unfinished)
    assert residue.stat().st_mode & 0o777 == 0o600
    assert re.search(r'"noise": "[0-9a-f]{64}"', residue.read_text())
    killed_before("trip.mp4", out, *command)
    job = unfinished / "job.json"
    assert job.stat().st_mode & 0o777 == 0o600
    assert not residue.exists()
