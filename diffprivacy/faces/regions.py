"""Faces from boxes and masks that somebody else drew, and boxes of faces for others to read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import DiffPrivacyError
from .detectors import Detector
from .geometry import ARCFACE_TEMPLATE, HEAD_CENTRE, Face, sort_faces
from .tiling import keep_best, overlap

BOX_RADII = (40.0, 56.0)
"""Half width and height of a face's box in template pixels, as detectors draw it."""
AROUND = 0.5
"""How much of a box's sides is shown to the detector on each side of it."""
LENIENT = 0.3
"""Score from which a face inside a given box counts: somebody says that there is one."""
MATCH = 0.3
"""Intersection over union from which a detection is the face of a box."""

MESH = 468
"""Points of MediaPipe's face mesh, without irises."""
MESH_POINTS = ((33, 133), (362, 263), (1,), (61,), (291,))
"""Its points whose means are the five: corners of either eye, tip of the nose, corners of the mouth."""

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of a picture."""


def faces_in_boxes(picture: Tensor, boxes: Sequence[Box], detector: Detector) -> list[Face]:
    """One face of ``picture`` (H,W,3) for each box, from left to right, those that cover the same place once.

    The five points are those of the face that the detector finds inside; where it finds none they are
    :func:`upright_face`'s, see :func:`is_assumed`.
    Raises DiffPrivacyError for a box without an inside or outside the picture.
    """
    return sort_faces(keep_best([_face_in_box(picture, box, detector) for box in boxes]))


def is_assumed(face: Face) -> bool:
    """Whether a face is nothing but a given box, in which no detector found one."""
    return face.score == 0


def assumed_in_words(faces: Sequence[Face]) -> str:
    """In how many of the boxes of faces that were given none was found, empty for none: what is made there may lean as
    the face does not."""
    assumed = sum(map(is_assumed, faces))
    return (
        f"in {assumed} of {len(faces)} boxes no face is found; there one is assumed that looks straight ahead and fills "
        "the box"
        if assumed
        else ""
    )


def upright_face(box: Box) -> Face:
    """A face of score 0 that looks straight ahead and fills a box: where nothing but the box is known."""
    x0, y0, x1, y1 = box
    scale = max((x1 - x0) / BOX_RADII[0], (y1 - y0) / BOX_RADII[1]) / 2
    points = (ARCFACE_TEMPLATE - np.array(HEAD_CENTRE)) * scale + ((x0 + x1) / 2, (y0 + y1) / 2)
    return Face(box, points.astype(np.float32), 0.0)


def face_of_mesh(points: np.ndarray, score: float) -> Face:
    """The face whose MediaPipe mesh (n,2) in pixels this is, n at least 468: five of its points, in our box around them.

    Raises DiffPrivacyError for another number of points.
    """
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < MESH or not np.isfinite(points).all():
        raise DiffPrivacyError(f"A face mesh has {MESH} points or more, each x and y; this one is {points.shape}.")
    landmarks = np.stack([points[list(vertices)].mean(axis=0) for vertices in MESH_POINTS]).astype(np.float32)
    (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return Face((x0, y0, x1, y1), landmarks, score)


def boxes_of_mask(mask: Tensor) -> list[Box]:
    """The box around each connected region of a mask (H,W) above one half; raises DiffPrivacyError if there is none."""
    from scipy.ndimage import find_objects, label

    regions = np.empty(mask.shape, np.int32)
    label(mask.cpu().numpy() > 0.5, np.ones((3, 3)), output=regions)
    found = find_objects(regions)
    if not found:
        raise DiffPrivacyError("The mask is empty; paint over each face, or leave the mask out.")
    return [(x.start - 0.5, y.start - 0.5, x.stop - 0.5, y.stop - 0.5) for y, x in found]


def union(*groups: Sequence[Face]) -> list[Face]:
    """The faces of all groups, each place once, the surest face of it, from left to right."""
    return sort_faces(keep_best([face for group in groups for face in group]))


@dataclass(frozen=True)
class BoxFile:
    """``--boxes``: for each file the boxes of its faces by frame; those under None are for every frame.

    A file is called by its name, or by as many of its folders as tell it from others of that name.
    """

    path: Path
    boxes: dict[str, dict[int | None, list[Box]]]

    def name_of(self, source: Path) -> str | None:
        """What a file is called here; None where it has no boxes."""
        parts = source.absolute().parts
        names = ("/".join(parts[first:]) for first in range(len(parts)))
        return next((name for name in names if name in self.boxes), None)

    def of_file(self, source: Path) -> dict[int | None, list[Box]]:
        """The boxes of a file by frame."""
        name = self.name_of(source)
        return {} if name is None else self.boxes[name]

    def of(self, source: Path, frame: int = 0) -> list[Box]:
        """The boxes of a picture, or of a video's frame; none is an empty list."""
        entry = self.of_file(source)
        return entry.get(None, []) + entry.get(frame, [])

    def check_size(self, source: Path, size: tuple[int, int]) -> None:
        """Raises DiffPrivacyError for a box that lies outside a source's frames of (height, width)."""
        for boxes in self.of_file(source).values():
            for box in boxes:
                try:
                    check_box(box, size)
                except DiffPrivacyError as error:
                    raise DiffPrivacyError(f"{self.path}, {source.name}: {error.message}", "boxes") from error

    def check_frames(self, source: Path, frames: int) -> None:
        """Raises DiffPrivacyError for boxes in a frame that a source of so many has not."""
        last = max((frame for frame in self.of_file(source) if frame is not None), default=0)
        if last >= frames:
            raise DiffPrivacyError(
                f"{self.path}: {source.name} has boxes for frame {last}, but its frames are 0 to {frames - 1}.", "boxes"
            )


def read_boxes(path: Path) -> BoxFile:
    """The boxes in a JSON file.

    ``{"group.jpg": [{"x": 10, "y": 20, "width": 64, "height": 80}], "clip.mp4": {"0": [...], "25": [...]}}``: for each
    file name a list of boxes, left, top and size in pixels as ComfyUI's BOUNDING_BOX has them; for a video a list for
    each frame that has any, frames counting from 0, or one list for all frames.
    Raises DiffPrivacyError, naming the file, for anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
        boxes = {
            name: {frame: [box_of(box) for box in found] for frame, found in _frames(entry).items()}
            for name, entry in content.items()
        }
    except OSError as error:
        raise DiffPrivacyError(f"{path} cannot be read: {error.strerror}.", "boxes") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DiffPrivacyError(
            f"{path} holds no boxes ({error!r}): it should look like "
            '{"photo.jpg": [{"x": 10, "y": 20, "width": 64, "height": 80}]}.',
            "boxes",
        ) from error
    return BoxFile(path, boxes)


def box_of(entry: dict[str, float]) -> Box:
    """A box from ComfyUI's {"x", "y", "width", "height"}, whose pixels begin at whole numbers."""
    x, y = float(entry["x"]) - 0.5, float(entry["y"]) - 0.5
    return x, y, x + float(entry["width"]), y + float(entry["height"])


def entry_of(face: Face, size: tuple[int, int]) -> dict[str, int]:
    """ComfyUI's form of a face's box, cut at the borders of a picture of (height, width), whole pixels."""
    height, width = size
    x0, y0, x1, y1 = (round(value + 0.5) for value in face.box)
    x, y = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    return {"x": x, "y": y, "width": max(1, min(x1, width) - x), "height": max(1, min(y1, height) - y)}


def check_box(box: Box, size: tuple[int, int]) -> None:
    """Raises DiffPrivacyError for a box that has no inside, or misses a picture of (height, width)."""
    x0, y0, x1, y1 = box
    height, width = size
    place = f"x {x0 + 0.5:g}, y {y0 + 0.5:g}, width {x1 - x0:g}, height {y1 - y0:g}"
    if not (x1 > x0 and y1 > y0 and all(map(math.isfinite, box))):
        raise DiffPrivacyError(f"The box at {place} has no inside; give it a width and a height of 1 or more.")
    if x1 <= 0 or y1 <= 0 or x0 >= width - 1 or y0 >= height - 1:
        raise DiffPrivacyError(
            f"The box at {place} lies outside the image of {width}x{height}; boxes count in its pixels."
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises ValueError for a name that stands there twice, of which json.loads would drop the first."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} stands there twice")
    return content


def _frames(entry: list | dict) -> dict[int | None, list]:
    if isinstance(entry, list):
        return {None: entry}
    if any(int(frame) < 0 for frame in entry):
        raise ValueError("frames count from 0")
    return {int(frame): found for frame, found in entry.items()}


def _face_in_box(picture: Tensor, box: Box, detector: Detector) -> Face:
    check_box(box, (picture.shape[0], picture.shape[1]))
    x0, y0, x1, y1 = box
    across, down = AROUND * (x1 - x0), AROUND * (y1 - y0)
    left, top = max(0, round(x0 - across)), max(0, round(y0 - down))
    shown = picture[top : max(top + 1, round(y1 + down)), left : max(left + 1, round(x1 + across))]
    given = upright_face(box)
    found = [_shifted(face, left, top) for face in detector.detect(shown, LENIENT, 0)]
    best = max(found, key=lambda face: overlap(face, given), default=None)
    return best if best is not None and overlap(best, given) >= MATCH else given


def _shifted(face: Face, left: int, top: int) -> Face:
    x0, y0, x1, y1 = face.box
    landmarks = face.landmarks + np.array((left, top), np.float32)
    return replace(face, box=(x0 + left, y0 + top, x1 + left, y1 + top), landmarks=landmarks)
