"""What a run that is killed leaves on the disk: nothing that others can read, and nothing once the next one has begun."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import skimage.data

from diffprivacy.cli import main
from diffprivacy.media import atomic
from diffprivacy.media.images import encode_png
from diffprivacy.recovery import png
from testing.three_faces import IDENTITY, ORIGINAL, PROTECTED, SEAL, lossless
from testing.videos import write_source

FILM = os.urandom(2**20)
"""The content of an original video, which recovery never looks into."""
HELD = """
import sys, time
from diffprivacy.cli import main
from diffprivacy.media import atomic

commit = atomic.Together.commit

def held(files):
    if any(path.name == sys.argv[1] for path in files.files):
        print("written", flush=True)
        time.sleep(3600)
    commit(files)

atomic.Together.commit = held
main(sys.argv[2:])
"""
"""A command line that stops for good where the file of a name is written and not yet in its place."""


@contextmanager
def held(name: str, *command: str | Path) -> Iterator[subprocess.Popen]:
    """A process that has written the temporary of a file and is killed at the end."""
    process = subprocess.Popen([sys.executable, "-c", HELD, name, *map(str, command)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert b"written" in process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def kill(process: subprocess.Popen) -> None:
    """As ``kill -9`` or a power cut: nothing in the process can clean up."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


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
    with held(name, *command) as process:
        (residue,) = temporaries(out)
        assert residue.stat().st_mode & 0o777 == 0o600
        kill(process)
    assert residue.read_bytes() == plain, "the original is on the disk, which is what this is about"
    assert not (out / name).exists()
    assert main(command) == 0
    assert (out / name).read_bytes() == plain
    assert not temporaries(out)


def test_the_demos_identity_is_its_owners_alone(tmp_path):
    """From its first byte on; a second start sweeps what the first left."""
    with held("identity.txt", "demo", "-o", tmp_path) as process:
        (residue,) = temporaries(tmp_path)
        assert residue.stat().st_mode & 0o777 == 0o600
        kill(process)
    assert b"AGE-SECRET-KEY-1" in residue.read_bytes()
    with held("identity.txt", "demo", "-o", tmp_path):
        assert residue not in temporaries(tmp_path)


def test_what_a_running_process_writes_is_not_swept(tmp_path, sealed):
    folder, identity = sealed
    command = ["recover", folder / "trip.mp4", "-o", tmp_path, "--identity-file", identity]
    with held("trip.mov", *command):
        in_use = temporaries(tmp_path)
        atomic.write_atomically(tmp_path / "another", b"x")
        assert temporaries(tmp_path) == in_use


def test_the_job_of_an_unfinished_video_is_its_owners_alone(tmp_path):
    """It holds what the noise follows from."""
    photo = skimage.data.astronaut()[0:240, 100:340]
    source = write_source(tmp_path / "trip.mp4", [photo] * 3)
    out = tmp_path / "out"
    command = ["anonymize", source, "-o", out, "--steps", "2", "--strength", "0.5"]
    with held("job.json", *command) as process:
        (unfinished,) = out.glob(f"{atomic.PREFIX}*.unfinished")
        (residue,) = temporaries(unfinished)
        assert residue.stat().st_mode & 0o777 == 0o600
        kill(process)
    assert re.search(r'"noise": "[0-9a-f]{64}"', residue.read_text())
    with held("trip.mp4", *command):
        job = unfinished / "job.json"
        assert job.stat().st_mode & 0o777 == 0o600
        assert not residue.exists()
