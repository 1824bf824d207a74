"""Several processes for one run, and what ``doctor`` finds."""

from __future__ import annotations

import json

import pytest

from diffprivacy.commands import doctor
from testing.folders import anonymize, photo, run, wall

pytestmark = pytest.mark.usefixtures("models_loaded_once")


def test_two_jobs_make_what_one_makes_and_say_the_same(tmp_path, capsys):
    for i in range(2):
        photo(tmp_path / "in" / f"{i}.png", bool(i % 2))
    wall(tmp_path / "in" / "wall.png")
    said = []
    for jobs in (1, 2):
        out = tmp_path / f"out{jobs}"
        assert anonymize(tmp_path / "in", out, "--seed", 1, "--unguided", "--jobs", jobs) == 1
        printed = capsys.readouterr()
        assert printed.err.count("using the embedded demo model") == 1
        assert printed.err.count("wall.png: No face was found") == 1
        said.append(printed.out.replace(str(out), "out"))
    assert said[0] == said[1]
    made = [{path.name: path.read_bytes() for path in (tmp_path / f"out{jobs}").glob("*.png")} for jobs in (1, 2)]
    assert len(made[0]) == 2
    assert made[0] == made[1]
    assert anonymize(tmp_path / "in", tmp_path / "out2", "--seed", 1, "--unguided") == 1
    assert "2 already done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ask-passphrase"], "--ask-passphrase goes with one job"),
        (["--min-size", 30, "--detector", "missing.onnx"], "missing.onnx"),
        (["--jobs", 0], "0 is not 1 or more"),
    ],
)
def test_what_no_job_can_do_is_said_once(tmp_path, capsys, options, message):
    for i in range(2):
        photo(tmp_path / "in" / f"{i}.png")
    assert anonymize(tmp_path / "in", tmp_path / "out", "--jobs", 2, *options) in (1, 2)
    assert capsys.readouterr().err.count(message) == 1
    assert not (tmp_path / "out").exists()


def test_doctor_tells_people_and_programs(tmp_path, capsys, monkeypatch):
    (tmp_path / "models" / "checkpoints").mkdir(parents=True)
    (tmp_path / "models" / "checkpoints" / "sd15.safetensors").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert run("doctor") == 0
    said = capsys.readouterr().out
    assert "self-test: the embedded model works; about" in said
    assert f"{tmp_path / 'models' / 'checkpoints'}: sd15.safetensors" in said
    assert f"{tmp_path / 'models' / 'insightface'}: no model; put files here: recognizers" in said
    monkeypatch.setattr(doctor, "PACKAGES", {"nowhere": "some-package"})
    monkeypatch.setattr(doctor, "load_diffusion_model", lambda: 1 / 0)
    assert run("doctor", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    by_name = {each["name"]: each for each in found["findings"]}
    assert by_name["nowhere"]["remedy"] == "run: pip install some-package"
    assert "ZeroDivisionError" in by_name["self-test"]["found"]
    assert found["problems"] == 2
