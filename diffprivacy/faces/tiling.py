"""Looking for faces of every size, everywhere in a picture, and whichever way up it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor

from ..media.images import levels
from .geometry import Face, sort_faces

Scan = Callable[[np.ndarray], list[Face]]
"""Finds upright faces, some perhaps several times, in an RGB picture (H,W,3) uint8."""

SAME_FACE = 0.4
"""Intersection over union from which two boxes are taken for one face."""
FINEST = 1.6
"""Picture pixels per pixel of the finest views: a face of 20 pixels still has 12 there."""


def find_faces(picture: Tensor, scan: Scan, sure: float) -> list[Face]:
    """Every face of ``picture`` (H,W,3) in [0,1] once, from left to right.

    A picture without a face that scores at least ``sure`` may lie on its side or be upside down, so it is tried all
    four ways. Detectors do find such faces as they lie, with a lower score and landmarks in the wrong places: the
    surest view of each face holds.
    """
    pixels = levels(picture.detach(), 8)
    height, width = pixels.shape[:2]
    turns_back = (
        [[1, 0, 0], [0, 1, 0]],
        [[0, -1, width - 1], [1, 0, 0]],
        [[-1, 0, width - 1], [0, -1, height - 1]],
        [[0, 1, 0], [-1, 0, height - 1]],
    )
    found: list[Face] = []
    for quarter_turns, turn_back in enumerate(turns_back):
        faces = scan(np.ascontiguousarray(np.rot90(pixels, quarter_turns)))
        found = keep_best([*found, *(moved(face, np.array(turn_back)) for face in faces)])
        if found and found[0].score >= sure:
            break
    return sort_faces(found)


def scan_views(pixels: np.ndarray, side: int, scan: Scan) -> list[Face]:
    """Faces that ``scan`` finds in square views, resized to ``side``, of the picture at every scale.

    The coarsest view has a border around the picture, as detectors miss faces that fill the frame. Finer views overlap
    by a quarter of their side. A face that a view cuts off is left to those that show the whole of it: one that is
    larger than the overlap is of a good size in the next coarser views.
    """
    import cv2

    height, width = pixels.shape[:2]
    faces = []
    for left, top, extent in _views(height, width, side):
        right, bottom = left + extent, top + extent
        view = cv2.copyMakeBorder(
            pixels[max(0, top) : bottom, max(0, left) : right],
            max(0, -top),
            max(0, bottom - height),
            max(0, -left),
            max(0, right - width),
            cv2.BORDER_CONSTANT,
        )
        shrinks = extent > side
        view = cv2.resize(view, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        scale = extent / side
        to_picture = np.array([[scale, 0, left + (scale - 1) / 2], [0, scale, top + (scale - 1) / 2]])
        for face in scan(view):
            x0, y0, x1, y1 = face.box
            cut_low = (x0 < 1 and left > 0) or (y0 < 1 and top > 0)
            cut_high = (x1 > side - 2 and right < width) or (y1 > side - 2 and bottom < height)
            if not (cut_low or cut_high):
                faces.append(moved(face, to_picture))
    return faces


def keep_best(faces: Sequence[Face]) -> list[Face]:
    """Of boxes that overlap like those of one face, only the one with the highest score; the surest face first."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(overlap(face, better) < SAME_FACE for better in kept):
            kept.append(face)
    return kept


def overlap(one: Face, other: Face) -> float:
    """Intersection over union of two boxes."""
    width = min(one.box[2], other.box[2]) - max(one.box[0], other.box[0])
    height = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
    common = max(0.0, width) * max(0.0, height)
    return common / (one.area + other.area - common)


def moved(face: Face, matrix: np.ndarray) -> Face:
    """The face seen through an affine map (2,3) that keeps upright boxes upright."""
    corners = np.reshape(face.box, (2, 2)) @ matrix[:, :2].T + matrix[:, 2]
    landmarks = face.landmarks @ matrix[:, :2].T + matrix[:, 2]
    (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return Face((x0, y0, x1, y1), landmarks.astype(np.float32), face.score)


def _views(height: int, width: int, side: int) -> Iterator[tuple[int, int, int]]:
    """Left, top and side in picture pixels of the square views, coarse to fine."""
    extents = [max(height, width) * 3 // 2 + 1, max(height, width)]
    while extents[-1] > side * FINEST:
        extents.append((extents[-1] + 1) // 2)
    for extent in extents:
        for top in _starts(height, extent):
            for left in _starts(width, extent):
                yield left, top, extent


def _starts(length: int, extent: int) -> list[int]:
    """Where views of ``extent`` start so that they cover ``length`` and overlap by a quarter; one view is centred."""
    if extent >= length:
        return [(length - extent) // 2]
    count = int(np.ceil((length - extent) / (extent * 3 / 4))) + 1
    return np.linspace(0, length - extent, count).round().astype(int).tolist()
