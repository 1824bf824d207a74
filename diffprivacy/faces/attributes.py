"""Age and sex by a network of insightface's; its weights, such as genderage.onnx of buffalo_l, are for research only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import DiffPrivacyError
from .geometry import Face

ADVICE = "name genderage.onnx of insightface's buffalo_l (its weights are for non-commercial research only)"


class Attributes:
    """Estimates age in years, and 1 for male or 0 for female."""

    def __init__(self, model: Any):
        self._model = model

    def __call__(self, image: Tensor, face: Face) -> tuple[float, float]:
        from insightface.app.common import Face as Found

        pixels = (image.clamp(0, 1).numpy() * 255).round().astype(np.uint8)
        male, age = self._model.get(np.ascontiguousarray(pixels[..., ::-1]), Found(bbox=np.array(face.box)))
        return float(age), float(male)


def load_attributes(path: Path) -> Attributes:
    """Raises DiffPrivacyError for a missing file and for one that is no such network."""
    from insightface.model_zoo import get_model

    if not path.is_file():
        raise DiffPrivacyError(f"There is no file {path}; {ADVICE}.")
    try:
        model: Any = get_model(str(path), download=False)
    except Exception as error:  # Parsers of ONNX meet damage with errors of every kind.
        raise DiffPrivacyError(f"{path} is damaged, or no ONNX network ({type(error).__name__}); {ADVICE}.") from error
    if getattr(model, "taskname", "") != "genderage":
        raise DiffPrivacyError(f"{path} does not estimate age and sex; {ADVICE}.")
    return Attributes(model)
