"""``--engine ray``: a cluster of two workers on this machine makes what one process makes, whoever is killed meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import pyrage
import pytest
from filelock import FileLock

from diffprivacy.commands import cluster, protect
from diffprivacy.media import atomic
from testing.dying import dying, plan_deaths
from testing.folders import anonymize, photo, wall


def test_a_killed_command_and_a_killed_worker_leave_what_one_process_makes(tmp_path, capsys, monkeypatch):
    """Keys included. The command dies after its first file, then one of two workers where files take their places."""
    identity = pyrage.x25519.Identity.generate()
    for i in range(3):
        photo(tmp_path / "in" / f"{i}.png", bool(i % 2))
    wall(tmp_path / "in" / "wall.png")
    options = ["--seed", 1, "--unguided", "--seal-to", identity.to_public(), "--key-beside", "--fidelity", "lossless"]
    once, out = tmp_path / "once", tmp_path / "out"
    assert anonymize(tmp_path / "in", once, *options) == 1
    alone = capsys.readouterr()
    command = [
        sys.executable,
        "-m",
        "diffprivacy",
        "anonymize",
        tmp_path / "in",
        "-o",
        out,
        "--steps",
        2,
        "--strength",
        0.5,
    ]
    with subprocess.Popen([*map(str, [*command, *options, "--engine", "ray", "--jobs", 1])]) as killed:
        while not any(out.glob("*.png")):
            assert killed.poll() is None
            time.sleep(0.05)
        killed.kill()
    plan_deaths(out, {"2.png": [18]})
    with monkeypatch.context() as patch:
        patch.setattr(protect, "protect_input", dying)
        assert anonymize(tmp_path / "in", out, *options, "--engine", "ray", "--jobs", 2) == 1
    printed = capsys.readouterr()
    assert not any((tmp_path / "out-deaths").iterdir())
    assert printed.err.count("wall.png: No face was found") == 1
    assert "protected, 1 failed" in printed.out
    assert {path.name for path in out.iterdir()} == {path.name for path in once.iterdir()}
    assert not list(out.glob(f"{atomic.PREFIX}*"))
    for file in once.glob("*.png"):
        assert (out / file.name).read_bytes() == file.read_bytes()
        sealed = (out / f"{file.stem}.png.age").read_bytes()
        assert pyrage.decrypt(sealed, [identity])
    assert anonymize(tmp_path / "in", out, *options) == 1
    assert "3 already done" in capsys.readouterr().out
    assert alone.err.count("wall.png") == 1


def test_the_folder_of_a_killed_commands_cluster_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, held = (tmp_path / f"{cluster.FOLDER}-{name}" for name in ("left", "held"))
    for folder in (left, held):
        folder.mkdir()
        (folder / "lock").touch()
    old, begun = (tmp_path / f"{cluster.FOLDER}-{name}" for name in ("old", "begun"))
    for folder in (old, begun):
        (folder / "session").mkdir(parents=True)
    os.utime(old, (0, 0))
    with FileLock(held / "lock"):
        cluster.sweep()
    assert {*tmp_path.iterdir()} == {held, begun}


def test_without_ray_the_command_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert anonymize(photo(tmp_path / "a.png"), tmp_path / "out", "--engine", "ray") == 1
    assert "--engine ray needs the package ray: run pip install" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_does_not_answer_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    assert anonymize(photo(tmp_path / "a.png"), tmp_path / "out", "--engine", "ray") == 1
    assert "There is no Ray cluster at nowhere (RAY_ADDRESS)" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--ask-passphrase"]])
def test_nobody_types_a_passphrase_into_a_cluster(tmp_path, capsys, options):
    assert anonymize(photo(tmp_path / "a.png"), tmp_path / "out", "--engine", "ray", *options) == 2
    assert "--ask-passphrase goes with one job" in capsys.readouterr().err
