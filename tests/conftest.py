"""Fixtures of all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from testing.checkpoints import write_tiny_folder, write_tiny_sd1
from tests.comfyui.server import PACK, ComfyServer, find_comfyui

# A busy machine is slow at everything, so that no example may fail for the time it took; and no run has other examples.
settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None
)
settings.load_profile("patient")


NOT_RUN = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Processes that tests start compile each module once for all of them, also where the environment forbids it."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(config.cache.mkdir("bytecode")))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test and its fixtures draw from PyTorch is the same in every run."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that are marked ``card`` run where there is a graphics card."""
    if torch.cuda.is_available():
        return
    marked = [item for item in items if item.get_closest_marker("card")]
    items[:] = [item for item in items if item not in marked]
    config.hook.pytest_deselected(items=marked)
    config.stash[NOT_RUN] = len(marked)


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if count := config.stash.get(NOT_RUN, 0):
        terminalreporter.write_line(f"{count} tests did not run: they need a graphics card, and none is here.")


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's own folder for state, apart from whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFPRIVACY_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded SD 1.x single file that ComfyUI and the diffusers host load."""
    return write_tiny_sd1(tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Seeded diffusers folders shaped like SD 2.x and SDXL."""
    root = tmp_path_factory.mktemp("folders")
    return {kind: write_tiny_folder(root / kind, kind) for kind in ("sd2", "sdxl")}


@pytest.fixture(scope="session")
def comfyui() -> Path:
    path = find_comfyui()
    assert path is not None
    return path


@pytest.fixture(scope="session")
def server(comfyui: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """One ComfyUI for all tests of graphs and of the page, without diffusers, which neither it nor the pack requires."""
    absent = tmp_path_factory.mktemp("absent")
    (absent / "diffusers.py").write_text("raise ModuleNotFoundError(\"No module named 'diffusers'\")")
    server = ComfyServer(comfyui, PACK, tmp_path_factory.mktemp("base"), tiny_checkpoint)
    server.environment = {"PYTHONPATH": str(absent)}
    with server as running:
        yield running
