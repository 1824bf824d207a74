"""Which faces an image has, and which of them are to be protected."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NoFaceError
from ..faces.detectors import Detector
from ..faces.geometry import Face
from ..faces.regions import BoxFile, assumed_in_words, faces_in_boxes, is_assumed, union
from ..faces.selection import select_faces
from ..faces.transparency import detect_faces, flattened
from ..media.images import Picture
from ..progress import say
from .inputs import Plan
from .people import People

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FaceFinder:
    """What finds and chooses faces. boxes: of faces that the detector misses. margin: of the crops."""

    detector: Detector
    boxes: BoxFile | None
    people: People | None
    margin: float

    def find(self, source: Path, picture: Picture) -> list[Face]:
        """The faces that the detector finds and those that were given for the file, each place once."""
        faces = detect_faces(self.detector, picture)
        if self.boxes is None:
            return faces
        self.boxes.check_frames(source, 1)
        self.boxes.check_size(source, (picture.rgb.shape[0], picture.rgb.shape[1]))
        given = faces_in_boxes(picture.rgb, self.boxes.of(source), self.detector)
        warn_of_assumed(source, given)
        return union(faces, given)

    def choose(self, source: Path, picture: Picture, found: Sequence[Face], which: str) -> list[Face]:
        """Those to protect; raises NoFaceError for none."""
        chosen: list[Face] = []
        try:
            chosen = select_faces(found, which)
            if self.people is not None:
                chosen = self.people.in_picture(flattened(picture, chosen, self.margin).rgb, chosen)
        except NoFaceError:
            chosen = []
            raise
        finally:
            for line in in_words(found, chosen):
                log.info("%s: %s", source, line)
        return chosen


def warn_of_boxes(boxes: BoxFile, found: Plan) -> None:
    """Say which boxes are for no input: a name that is mistyped leaves a face as it is."""
    for name in sorted(set(boxes.boxes) - set(map(boxes.name_of, found.targets))):
        say(f"warning: --boxes: {boxes.path} has boxes for {name}, which is no input", sys.stderr)


def warn_of_assumed(source: Path, given: Sequence[Face]) -> None:
    """Say in how many of the boxes given for a file no face was found."""
    if words := assumed_in_words(given):
        say(f"warning: --boxes: {source}: {words}", sys.stderr)


def in_words(found: Sequence[Face], chosen: Sequence[Face]) -> list[str]:
    """A line for each face: its number, place, and whether it is to be protected."""
    lines = []
    for each in for_programs(found, chosen):
        x, y, width, height = each["box"]
        what = "to be made new" if each["protect"] else "left as it is"
        score = "assumed in a box" if each["assumed"] else f"score {each['score']}"
        lines.append(f"face {each['number']} at {x},{y}, {width}x{height} pixels, {score}: {what}")
    return lines


def for_programs(found: Sequence[Face], chosen: Sequence[Face]) -> list[dict[str, Any]]:
    """The same as values; a box is left, top, width, height. assumed: no face was found in a box that was given."""
    ids = {id(face) for face in chosen}
    described = []
    for number, face in enumerate(found):
        x0, y0, x1, y1 = face.box
        box = [round(x0), round(y0), round(x1 - x0), round(y1 - y0)]
        known = {"score": round(face.score, 2), "assumed": is_assumed(face)}
        described.append({"number": number, "box": box, **known, "protect": id(face) in ids})
    return described
