"""The package as its users get it: built, and installed into an environment without the source."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the sources, where nothing of an earlier build lies; returns its file."""
    source = folder / "source"
    shutil.copytree(ROOT / "diffprivacy", source / "diffprivacy", ignore=shutil.ignore_patterns("__pycache__"))
    for package in ("nodes", "testing", "training"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", "__init__.py"):
        shutil.copy(ROOT / file, source)
    subprocess.run([sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, environment: Path) -> Path:
    """A new environment with the wheel and, for its dependencies, this one's packages; returns its folder of commands.

    This one's editable installation of the source stays out: path files work in an environment's own folder only.
    """
    subprocess.run([sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, environment], check=True)
    paths = {"base": str(environment), "platbase": str(environment)}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    commands = Path(sysconfig.get_path("scripts", "venv", paths))
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--python", commands / "python"]
    subprocess.run([*install, wheel], check=True)
    return commands
