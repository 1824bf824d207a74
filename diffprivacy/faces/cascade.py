"""The detector that needs no file: scikit-image's cascade proposes windows, a small network decides.

The cascade (Viola and Jones, 2004, on the multi-block local binary patterns of Liao et al., 2007) was trained on
upright frontal faces. It finds most faces and much else: the verifier tells them apart and finds the landmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..errors import DiffPrivacyError
from .geometry import TEMPLATE_SIZE, Face, align_matrix, head_centre
from .tiling import SAME_FACE, find_faces, keep_best, overlap
from .verifier import CONTEXT, CROP_SIZE, load_verifier

SCANS = ((640, (-20, 0, 20), 640), (1280, (0,), 64))
"""Longer side of the scanned picture, degrees by which it is turned, largest window there: all in its pixels."""
WINDOW = 24
"""Side of the cascade's smallest window."""
LENIENCE = 0.1
"""How far below its thresholds the cascade still lets a window pass."""
PLAUSIBLE = 0.5
"""Score from which a proposed window is looked at again, aligned."""
ENOUGH = 0.99
VOTES = 2
"""Score of an aligned crop from which it is a face, and the number of windows that must have led to it."""
ALIGNED_MARGIN = 1.4
"""Margin of an aligned crop that shows the face as large as a window with its context does."""
BOX_RADII = (40.0, 56.0)
"""Half width and height of a face's box in template pixels."""


class CascadeDetector:
    """Finds faces nearly frontal and upright, of 1/50 of the picture's longer side and more."""

    def __init__(self) -> None:
        try:
            from skimage.data import lbp_frontal_face_cascade_filename
            from skimage.feature import Cascade
        except ImportError as error:
            raise DiffPrivacyError("The built-in face detector needs scikit-image: pip install scikit-image") from error
        self.cascade = Cascade(lbp_frontal_face_cascade_filename(), eps=LENIENCE)
        self.verifier = load_verifier()

    def detect(self, picture: Tensor) -> list[Face]:
        return find_faces(picture, self._scan, sure=ENOUGH)

    def _scan(self, pixels: np.ndarray) -> list[Face]:
        import cv2

        pyramid = [cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)]
        while min(pyramid[-1].shape) > 2 * CROP_SIZE:
            pyramid.append(cv2.resize(pyramid[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
        faces = [face for face in self._look(pyramid, self._proposals(pyramid)) if face.score > PLAUSIBLE]
        for _ in range(2):
            faces = self._look(pyramid, [align_matrix(face, CROP_SIZE, ALIGNED_MARGIN) for face in faces])
        return [
            face
            for face in keep_best(faces)
            if face.score > ENOUGH and sum(overlap(face, other) > SAME_FACE for other in faces) >= VOTES
        ]

    def _proposals(self, pyramid: Sequence[np.ndarray]) -> list[np.ndarray]:
        """For every window that the cascade takes for a face, the similarity (2,3) from the picture to its crop."""
        height, width = pyramid[0].shape
        turns = []
        for longer, rolls, largest in SCANS:
            scale = min(1.0, longer / max(height, width))
            turns += [(_turn(height, width, roll, scale), largest) for roll in rolls]
            if scale == 1.0:
                break
        with ThreadPoolExecutor() as pool:  # the cascade lets go of Python's lock
            found = pool.map(lambda turn: self._windows(pyramid, *turn), turns)
            return [to_crop for to_crops in found for to_crop in to_crops]

    def _windows(self, pyramid: Sequence[np.ndarray], turn: np.ndarray, largest: int) -> list[np.ndarray]:
        height, width = pyramid[0].shape
        columns, rows = np.ceil(np.abs(turn[:, :2]) @ (width, height)).astype(int).tolist()
        windows = self.cascade.detect_multi_scale(
            _warp(pyramid, turn, columns, rows),
            scale_factor=1.2,
            step_ratio=1,
            min_size=(WINDOW, WINDOW),
            max_size=(min(largest, columns, rows),) * 2,
            min_neighbor_number=1,
            intersection_score_threshold=1.01,  # merge nothing: every window is a proposal
        )
        to_crops = []
        for window in windows:
            side = window["width"]
            shrink = CROP_SIZE / (CONTEXT * side)
            middle = np.array([window["c"], window["r"]]) + (side - 1) / 2
            shift = shrink * (turn[:, 2] - middle) + (CROP_SIZE - 1) / 2
            to_crops.append(np.column_stack((shrink * turn[:, :2], shift)))
        return to_crops

    def _look(self, pyramid: Sequence[np.ndarray], to_crops: Sequence[np.ndarray]) -> list[Face]:
        """What the verifier sees in each crop: a face, with its score and landmarks in the picture."""
        if not to_crops:
            return []
        crops = np.stack([_warp(pyramid, to_crop, CROP_SIZE, CROP_SIZE) for to_crop in to_crops])
        with torch.no_grad():
            logits, landmarks = self.verifier(torch.from_numpy(crops)[:, None].float() / 255)
        return [
            _face(np.linalg.solve(to_crop[:, :2], (points - to_crop[:, 2]).T).T, score)
            for to_crop, points, score in zip(to_crops, landmarks.numpy(), logits.sigmoid().tolist(), strict=True)
        ]


def _face(landmarks: np.ndarray, score: float) -> Face:
    """The face whose box stands around its landmarks as detectors put it."""
    face = Face((0, 0, 0, 0), landmarks.astype(np.float32), score)
    to_template = align_matrix(face, TEMPLATE_SIZE, 1.0)
    x, y = np.linalg.solve(to_template[:, :2], head_centre(face) - to_template[:, 2])
    width, height = np.array(BOX_RADII) / np.hypot(*to_template[:, 0])
    return Face((x - width, y - height, x + width, y + height), face.landmarks, score)


def _turn(height: int, width: int, degrees: float, scale: float) -> np.ndarray:
    """Similarity (2,3) that scales a picture and turns it around its middle, all of it staying in view."""
    angle = np.radians(degrees)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    size = np.ceil(np.abs(linear) @ (width, height))
    return np.column_stack((linear, (size - 1) / 2 - linear @ ((width - 1) / 2, (height - 1) / 2)))


def _warp(pyramid: Sequence[np.ndarray], matrix: np.ndarray, width: int, height: int) -> np.ndarray:
    """The picture through a similarity, from the level of its pyramid (each half as large) that is not much larger."""
    import cv2

    level = int(np.clip(np.floor(-np.log2(np.hypot(*matrix[:, 0]))), 0, len(pyramid) - 1))
    # Halving moves pixel centres: x of the picture is 2^level x + (2^level - 1) / 2 of the level.
    step = 2**level
    matrix = np.column_stack((matrix[:, :2] * step, matrix[:, 2] + matrix[:, :2].sum(axis=1) * (step - 1) / 2))
    return cv2.warpAffine(pyramid[level], matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
