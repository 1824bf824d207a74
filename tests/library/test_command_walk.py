"""Command lines at random."""

from __future__ import annotations

import random
from pathlib import Path

import pyrage
import pytest
import torch

from diffprivacy.media import atomic
from diffprivacy.media.images import read_picture
from testing.folders import photo, run, wall

RECIPIENT = str(pyrage.x25519.Identity.generate().to_public())
pytestmark = pytest.mark.usefixtures("models_loaded_once")
OPTIONS = [
    [],
    ["--overwrite"],
    ["--variants", "2"],
    ["--faces", "largest"],
    ["--faces", "7"],
    ["--faces", "nonsense"],
    ["--without-face", "copy"],
    ["--strength", "2"],
    ["--strength", "0.01"],
    ["--seed", str(2**70)],
    ["--size", "100"],
    ["--detector", "missing.onnx"],
    ["--only", "in/face.png"],
    ["--except", "in"],
    ["--seal-to", RECIPIENT, "--key-beside", "--fidelity", "lossless"],
    ["--passphrase-env", "MISSING"],
    ["--keyed"],
    ["--fidelity", "lossless"],
    ["--msi", "in/cut.png"],
    ["--checkpoint", "in"],
    ["--device", "xpu"],
]
INPUTS = [["in"], ["in/face.png"], ["in/wall.png"], ["in/cut.png"], ["in/face.png", "in/wall.png"], ["."], ["nowhere"]]
OUTPUTS = ["out", "in", "in/out", "new/out.png", "in/face.png", "file", "link"]


@pytest.mark.parametrize("seed", range(2))
def test_a_random_walk_over_command_lines(tmp_path, monkeypatch, capsys, seed):
    """Whatever is asked for, in whatever state the output is: an exit code of ours, and never an unprotected face."""
    chance = random.Random(seed)
    monkeypatch.chdir(tmp_path)
    face = photo(Path("in/face.png"))
    wall(Path("in/wall.png"))
    Path("in/cut.png").write_bytes(face.read_bytes()[:500])
    Path("file").write_text("x")
    Path("link").symlink_to("in")
    given = {path: path.read_bytes() for path in Path("in").iterdir()}
    original = read_picture(face).rgb
    codes = {run("anonymize", face, "-o", "out", "--steps", "2", "--unguided")}
    for _ in range(20):
        if chance.random() < 0.2 and Path("out").is_dir():
            for left in list(Path("out").iterdir())[:1]:
                left.write_bytes(b"half") if left.is_file() else None
        task = chance.choice(["anonymize", "anonymize", "hide"])
        options = [option for group in chance.sample(OPTIONS, chance.choice([0, 1, 1, 2])) for option in group]
        command = [task, *chance.choice(INPUTS), "-o", chance.choice(OUTPUTS), "--steps", "2", "--unguided", *options]
        code = run(*command)
        assert code in (0, 1, 2), command
        codes.add(code)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err + printed.out, command
        for path, content in given.items():
            assert path.read_bytes() == content, command
        for path in set(Path().rglob("*.png")) - set(given):
            if path.stat().st_size > 4 and path.resolve() not in {each.resolve() for each in given}:
                made = read_picture(path).rgb
                assert made.shape != original.shape or not torch.equal(made, original), (command, path)
        assert not list(Path().rglob(f"{atomic.PREFIX}*")), command
    assert codes == {0, 1, 2}
