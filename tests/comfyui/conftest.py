"""A real ComfyUI process for a test session, on the CPU, in a base folder of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.comfyui.server import ComfyServer

HERE = Path(__file__).parent
PACK = HERE.parents[1]
NOT_RUN = pytest.StashKey[int]()


def find_comfyui() -> Path | None:
    """$COMFYUI_PATH, the installation that this pack lies in, or comfy-cli's default folder."""
    candidates = [os.environ.get("COMFYUI_PATH"), PACK.parents[1], Path.home() / "comfy" / "ComfyUI"]
    return next((Path(c) for c in candidates if c and (Path(c) / "comfy" / "sd.py").is_file()), None)


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


@pytest.fixture(scope="session")
def comfyui() -> Path:
    path = find_comfyui()
    assert path is not None
    return path


@pytest.fixture(scope="session")
def server(comfyui: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    """One ComfyUI for all tests that do not need options of their own."""
    prepared = ComfyServer(comfyui, PACK, tmp_path_factory.mktemp("base"), tiny_checkpoint)
    (prepared.base / "custom_nodes" / "segs_nodes.py").symlink_to(HERE / "segs_nodes.py")
    with prepared as running:
        yield running
