"""Looking for faces of every size, everywhere in a picture, and whichever way up each of them is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ..media.images import levels
from .geometry import Face, align_matrix, sort_faces

Scan = Callable[[np.ndarray], list[Face]]
"""Finds upright faces, some perhaps several times, in a square RGB view (S,S,3) uint8."""

SAME_FACE = 0.4
"""Intersection over union from which two boxes are taken for one face."""
INSIDE = 0.6
SMALLER = 0.2
"""A box of which this share lies in that of a surer face is a part of it, unless it has less than this share of its
area: then it may be a face behind or before it."""
SMALLEST = 12
"""Pixels that a face must have in a view."""
TURNED = 2
"""Faces that lie another way up are looked for from so many times the smallest size."""
MARGIN = 3.2
"""Margin of the aligned crop in which a doubtful face is looked at again: it is as large there as networks like it."""
MIDDLE = 0.2
"""How far from the middle of that crop, in its sides, the face may lie."""
LEANING = 12
"""Degrees from the nearest quarter turn from which a sure face is looked at again, too: networks place the landmarks of
a leaning face as if it leaned less."""
AGAINST = 0.15
"""What a face loses in score when it lies another way up than every sure one."""


@dataclass(frozen=True)
class Network:
    """A network that finds faces in square views: ``side`` is theirs in pixels.

    lowest: score from which it reports a face; enough: score from which a face counts by default; sure: score that
    faces reach only the right way up.
    """

    scan: Scan
    side: int
    lowest: float
    enough: float
    sure: float


def find_faces(picture: Tensor, network: Network, min_score: float, min_size: float) -> list[Face]:
    """Every face of ``picture`` (H,W,3) in [0,1] once, from left to right, whichever way up it is.

    The picture is scanned all four ways, for a sure face says nothing about its neighbours. Networks also find faces as
    they lie, with a lower score and landmarks in the wrong places: the surest view of each face holds, and one that is
    not sure, or leans, is looked at again, upright and alone.
    min_score: of the faces returned; min_size: longer side of their boxes in pixels.
    """
    pixels = levels(picture.detach(), 8)
    views: list[list[Face]] = []
    for quarter_turns, turn_back in enumerate(_turns_back(*pixels.shape[:2])):
        finest = max(1.0, min_size * (TURNED if quarter_turns else 1) / SMALLEST)
        seen = scan_views(np.rot90(pixels, quarter_turns), network, finest)
        views.append(keep_best([moved(face, turn_back) for face in seen]))
    surest = keep_best([face for view in views for face in view if face.score >= network.sure])
    faces = [_straightened(pixels, face, network) for face in surest]
    for quarter_turns, view in enumerate(views):
        against = AGAINST if quarter_turns and not any(face in surest for face in view) else 0
        for face in view:
            if not any(_is_same(face, sure) for sure in surest):
                faces.append(_looked_at(pixels, face, network, against))
    return sort_faces([face for face in keep_best(faces) if face.score >= min_score and max(_size(face)) >= min_size])


def scan_views(pixels: np.ndarray, network: Network, finest: float) -> list[Face]:
    """Faces that the network finds in square views of the picture (H,W,3) at every scale.

    The coarsest view has a border around the picture, as detectors miss faces that fill the frame. Finer views, up to
    ``finest`` picture pixels for each of theirs, overlap by a quarter of their side. A face that a view cuts off is left
    to those that show the whole of it: one that is larger than the overlap is of a good size in the next coarser views.
    """
    height, width = pixels.shape[:2]
    side = network.side
    faces = []
    for left, top, extent in _views(height, width, side * finest):
        view, to_picture = _view(pixels, left, top, extent, side)
        right, bottom = left + extent, top + extent
        for face in network.scan(view):
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
        if not any(_is_same(face, better) for better in kept):
            kept.append(face)
    return kept


def overlap(one: Face, other: Face) -> float:
    """Intersection over union of two boxes."""
    common = _common(one, other)
    return common / (one.area + other.area - common)


def moved(face: Face, matrix: np.ndarray) -> Face:
    """The face seen through a map (2,3) that may turn, scale and shift; its box stays upright, turned by quarters."""
    half = np.array(_size(face)) / 2 * np.hypot(matrix[0], matrix[1])[:2]
    if abs(matrix[0, 1]) > abs(matrix[0, 0]):
        half = half[::-1]
    centre = matrix[:, :2] @ face.centre + matrix[:, 2]
    landmarks = face.landmarks @ matrix[:, :2].T + matrix[:, 2]
    (x0, y0), (x1, y1) = (centre - half).tolist(), (centre + half).tolist()
    return Face((x0, y0, x1, y1), landmarks.astype(np.float32), face.score)


def _straightened(pixels: np.ndarray, face: Face, network: Network) -> Face:
    """A sure face whose landmarks lean as much as it does."""
    for _ in range(2):
        if abs(_lean(face)) >= LEANING:
            face = _looked_at(pixels, face, network)
    return face


def _looked_at(pixels: np.ndarray, face: Face, network: Network, against: float = 0) -> Face:
    """The face as the network sees it in the middle of a crop, upright or turned by quarters, whichever is surest.

    Unless it is sure there, only the upright look counts in its score, and it loses ``against``; without such a loss it
    keeps at least the score it had.
    """
    crop, to_picture = _aligned(pixels, face, network.side)
    looks = [
        _central(network.scan(np.ascontiguousarray(np.rot90(crop, quarter_turns))), turn_back, network.side)
        for quarter_turns, turn_back in enumerate(_turns_back(network.side, network.side))
    ]
    best = max((seen for look in looks for seen in look), key=lambda seen: seen.score, default=face)
    first = face.score
    if best is not face and best.score > min(first, network.sure):
        face = moved(best, to_picture)
    if (highest := max(first, face.score)) >= network.sure:
        return replace(face, score=highest)
    both = (first + max((seen.score for seen in looks[0]), default=0.0)) / 2
    return replace(face, score=both - against if against else max(first, both))


def _aligned(pixels: np.ndarray, face: Face, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The face's crop (S,S,3), black beyond the picture, and the map (2,3) from its pixels back."""
    import cv2

    to_crop = np.vstack((align_matrix(face, side, MARGIN), (0, 0, 1)))
    to_picture = np.linalg.inv(to_crop)
    corners = to_picture[:2] @ np.array([[0, side, 0, side], [0, 0, side, side], [1, 1, 1, 1]])
    left, top = np.maximum(np.floor(corners.min(axis=1)).astype(int), 0).tolist()
    right, bottom = np.maximum(np.ceil(corners.max(axis=1)).astype(int) + 1, 1).tolist()
    seen = np.ascontiguousarray(pixels[top:bottom, left:right])
    shrink = max(1.0, float(np.hypot(*to_picture[:2, 0])))
    columns, rows = (max(1, round(length / shrink)) for length in (seen.shape[1], seen.shape[0]))
    across, down = seen.shape[1] / columns, seen.shape[0] / rows
    small = cv2.resize(seen, (columns, rows), interpolation=cv2.INTER_AREA)
    place = np.array([[across, 0, left + (across - 1) / 2], [0, down, top + (down - 1) / 2], [0, 0, 1]])
    return cv2.warpAffine(small, (to_crop @ place)[:2], (side, side)), to_picture[:2]


def _turns_back(height: int, width: int) -> list[np.ndarray]:
    """For 0 to 3 quarter turns, as np.rot90 makes them, the map (2,3) from the turned picture to that of this size."""
    turns = (
        [[1, 0, 0], [0, 1, 0]],
        [[0, -1, width - 1], [1, 0, 0]],
        [[-1, 0, width - 1], [0, -1, height - 1]],
        [[0, 1, 0], [-1, 0, height - 1]],
    )
    return [np.array(turn) for turn in turns]


def _lean(face: Face) -> float:
    """Degrees between the eyes' line and the nearest side of the picture."""
    x, y = (face.landmarks[1] - face.landmarks[0]).tolist()
    return (math.degrees(math.atan2(y, x)) + 45) % 90 - 45


def _central(faces: Sequence[Face], turn_back: np.ndarray, side: int) -> list[Face]:
    """The faces in the middle of a turned crop, in the crop as it was."""
    middle, reach = side / 2, MIDDLE * side
    return [moved(face, turn_back) for face in faces if all(abs(place - middle) < reach for place in face.centre)]


def _is_same(face: Face, better: Face) -> bool:
    is_part = _common(face, better) > INSIDE * face.area and face.area > SMALLER * better.area
    return is_part or overlap(face, better) >= SAME_FACE


def _common(one: Face, other: Face) -> float:
    width = min(one.box[2], other.box[2]) - max(one.box[0], other.box[0])
    height = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
    return max(0.0, width) * max(0.0, height)


def _size(face: Face) -> tuple[float, float]:
    x0, y0, x1, y1 = face.box
    return x1 - x0, y1 - y0


def _view(pixels: np.ndarray, left: int, top: int, extent: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A square of the picture resized to ``side``, black beyond it, and the map (2,3) from its pixels back."""
    import cv2

    x0, y0 = max(0, left), max(0, top)
    seen = np.ascontiguousarray(pixels[y0 : top + extent, x0 : left + extent])
    scale = side / extent
    columns, rows = max(1, round(seen.shape[1] * scale)), max(1, round(seen.shape[0] * scale))
    x, y = round((x0 - left) * scale), round((y0 - top) * scale)
    shrinks = extent > side
    seen_small = cv2.resize(seen, (columns, rows), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    view = np.zeros((side, side, 3), np.uint8)
    view[y : y + rows, x : x + columns] = seen_small[: side - y, : side - x]
    across, down = seen.shape[1] / columns, seen.shape[0] / rows
    to_picture = np.array([[across, 0, x0 + (0.5 - x) * across - 0.5], [0, down, y0 + (0.5 - y) * down - 0.5]])
    return view, to_picture


def _views(height: int, width: int, finest: float) -> Iterator[tuple[int, int, int]]:
    """Left, top and side in picture pixels of the square views, coarse to fine; the last are not above ``finest``."""
    extents = [max(height, width) * 3 // 2 + 1]
    while extents[-1] > finest:
        extents.append(max(height, width) if len(extents) == 1 else (extents[-1] + 1) // 2)
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
