"""The one way in which faces are embedded to be compared."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..faces.geometry import Face, crop_face, crop_landmarks
from .recognizers import FaceMatcher


def embed_face(recognizer: FaceMatcher, picture: Tensor, face: Face) -> np.ndarray:
    """Unit vector (D,) of a face in a picture (H,W,3), fused with its mirror image.

    Of an ensemble the vectors of its members stand one after the other, so that a dot product is its cosine.
    """
    crop = crop_face(picture, face, 224, 2.0).movedim(-1, 0)[None]
    parts = recognizer.reference(crop, crop_landmarks(face, 224, 2.0)[None], mirrored=True)
    weighted = [part[0] * weight**0.5 for part, weight in zip(parts, recognizer.weights, strict=True)]
    return torch.cat(weighted).cpu().numpy()
