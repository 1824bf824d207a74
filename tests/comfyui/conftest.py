"""Tests against a real ComfyUI, where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testing.checkpoints import write_tiny_single_file
from tests.comfyui.server import HERE, PACK, find_comfyui

NOT_RUN = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if find_comfyui():
        return
    mine = [item for item in items if HERE in item.path.parents]
    items[:] = [item for item in items if item not in mine]
    config.hook.pytest_deselected(items=mine)
    config.stash[NOT_RUN] = len(mine)


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if count := config.stash.get(NOT_RUN, 0):
        terminalreporter.write_line(
            f"{count} ComfyUI tests did not run: no ComfyUI found; set COMFYUI_PATH to one, or run `make comfyui`."
        )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.stash.get(NOT_RUN, 0):
        session.exitstatus = pytest.ExitCode.OK


@dataclass
class Ended:
    """What a script printed."""

    output: str
    errors: str

    def found(self) -> dict[str, Any]:
        """The lines of JSON in its output, in one."""
        lines = [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]
        return {name: facts for line in lines for name, facts in line.items()}


@pytest.fixture(scope="session")
def inside(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Ended]]:
    """Runs a script with arguments in a fork of one Python process of ComfyUI's own, which has the pack loaded.

    A script that ends otherwise than well, also by a signal, is a failed test.
    """
    command = [sys.executable, HERE / "inside.py", comfyui, PACK]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        answers = process.stdout

        def run(script: str | Path, *arguments: object) -> Ended:
            printed = tmp_path_factory.mktemp("inside")
            files = printed / "output", printed / "errors"
            print(
                json.dumps([*map(str, files), *map(str, (HERE / script, *arguments))]), file=process.stdin, flush=True
            )
            answer = next((line for line in answers if line.startswith("exit ")), "died")
            ended = Ended(*(file.read_text() if file.exists() else "" for file in files))
            assert answer == "exit 0\n", f"{answer}{ended.errors[-3000:]}"
            return ended

        yield run
        process.stdin.close()


@pytest.fixture(scope="session")
def single_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints that ComfyUI takes for SD 2.x and SDXL; see LoadThinCheckpoint."""
    folder = tmp_path_factory.mktemp("single files")
    return {kind: write_tiny_single_file(folder / f"{kind}.safetensors", kind) for kind in ("sd2", "sdxl")}


@pytest.fixture(scope="session")
def flow_models(comfyui: Path, inside: Callable[..., Ended], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like ComfyUI's ``models`` with small flow and video models, their VAEs and tiny decoders."""
    folder = tmp_path_factory.mktemp("models")
    inside(PACK / "testing" / "flow_models.py", comfyui, folder)
    return folder
