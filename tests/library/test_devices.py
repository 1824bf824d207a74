"""The library on a device whose memory is apart: nothing is mixed, and what it computes is what the CPU computes.

The device is pretended, so that any machine can tell, in a process of its own. Where there is a real card the
same runs on it.
"""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

if sys.platform == "win32":
    pytest.skip("Windows has no forks", allow_module_level=True)

from testing.killed import run_module
from tests.comfyui.server import PACK

SCENARIOS = ("mixing", "gradients", "waits", "training", "keys", "judging", "repeats", "commands")


def run(device: str, folder: Path, *scenarios: str) -> dict[str, Any]:
    """What the scenarios found; a real card wants a process that is no fork."""
    name = "tests.library.on_a_card"
    if device == "card":
        printed = run_module(name, folder / "log", device, folder, *scenarios)
    else:
        command = [sys.executable, "-m", name, device, str(folder), *scenarios]
        process = subprocess.run(command, capture_output=True, text=True, cwd=PACK)
        assert process.returncode == 0, process.stderr[-3000:]
        printed = process.stdout
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return {name: found for line in lines for name, found in line.items()}


@pytest.fixture(scope="module", params=["card", pytest.param("cuda", marks=pytest.mark.card)])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(request.param, tmp_path_factory.mktemp(request.param), *SCENARIOS)


def test_mistakes_are_noticed(found):
    assert re.match(r".*expect\w* all tensors .*(one|same) device", found["mixing"]["mixed"], re.IGNORECASE)
    assert "numpy" in found["mixing"]["read"]


def test_gradients_are_the_cpus(found):
    """Through decoder, random views, alignment and recognizer."""
    assert found["gradients"]["error"] < 1e-3


def test_gradients_repeat_where_they_are_asked_to(found):
    assert found["repeats"]["same"]


def test_a_guided_step_waits_for_the_card_once(found):
    """To read whether the gradient is finite; small tensors are sent without waiting, which had been a hundred waits."""
    assert len(found["waits"]["waits"]) == 1, found["waits"]["waits"]


def test_training_msi_learns_the_same(found):
    assert found["training"]["steps"] == 2
    assert found["training"]["gradients"] < 1e-3
    assert found["training"]["losses"] < 1e-3


@pytest.mark.parametrize("method", ["fixed point", "belm"])
def test_faces_come_back_from_keys(found, method):
    device, difference = found["keys"][method]
    assert device == "cpu"
    assert difference < 0.01


def test_a_photo_becomes_the_same_as_on_the_cpu(found):
    assert found["commands"]["pictures"] == 2
    assert found["commands"]["most"] <= 8


def test_the_command_that_measures_a_card_fills_its_tables(capsys, monkeypatch):
    """On a CPU, with narrow networks; where there is no card it says so."""

    def measured(*options: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["gpu", *options])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("benchmarks.gpu", run_name="__main__")
        return ended.value.code, capsys.readouterr().out

    code, printed = measured("--device", "cpu", "--tiny", "--family", "SD 1.5")
    assert code == 0
    rows = [line.split(" | ")[:2] for line in printed.splitlines() if line.count("|") == 9]
    assert rows[2:] == [[f"| {variants}", way] for variants in (1, 4) for way in ("unguided", "TAESD", "VAE")]
    for part in ("yes, to the bit", "Inversion in torch.float32, SD 1.5", "8 GB: 1 at once, checkpointing | 1 |"):
        assert part in printed
    if not torch.cuda.is_available():
        assert "nothing was measured" in measured()[1]


def test_judging_takes_pictures_of_the_cpu(found):
    assert found["judging"] == {}
