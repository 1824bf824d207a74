"""Folders of photos, and the command line that protects them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from diffprivacy.cli import main

FRIENDS = Path(find_spec("insightface").submodule_search_locations[0]) / "data" / "images" / "t1.jpg"
"""Six people, 1280x886."""
FACE = skimage.data.astronaut()[20:180, 150:310]


def run(*arguments: object) -> int:
    """The exit code, also of a command line that the parser refuses."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as error:
        return int(error.code or 0)


def anonymize(source: Path, output: Path, *options: object) -> int:
    return run("anonymize", source, "-o", output, "--steps", 2, "--strength", 0.5, "--unguided", *options)


def photo(path: Path, mirrored: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(FACE[:, ::-1] if mirrored else FACE).save(path)
    return path


def friends(path: Path) -> Path:
    """Six people, 640x443."""
    Image.open(FRIENDS).reduce(2).save(path)
    return path


def wall(path: Path) -> Path:
    """A picture without a face."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((60, 60, 3), 128, np.uint8)).save(path)
    return path
