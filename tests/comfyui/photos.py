"""Free photos: scikit-image's astronaut (NASA, public domain) and the group photo in insightface's wheel."""

from __future__ import annotations

from pathlib import Path

import insightface
import numpy as np
import skimage.data
from PIL import Image


def write_astronaut(folder: Path) -> Path:
    """One face, 512x512."""
    path = folder / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(path)
    return path


def write_group(folder: Path) -> Path:
    """Six faces, 1280x886."""
    path = folder / "group.png"
    Image.open(Path(insightface.__file__).parent / "data" / "images" / "t1.jpg").save(path)
    return path


def write_landscape(folder: Path) -> Path:
    """No face."""
    path = folder / "no-face.png"
    Image.fromarray(skimage.data.coffee()).save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))
