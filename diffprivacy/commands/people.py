"""``--only`` and ``--except``: people to protect or to spare, identified by photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from ..errors import DiffPrivacyError, NoFaceError
from ..faces.detectors import Detector
from ..faces.geometry import Face
from ..faces.selection import select_person
from ..identity.embedding import embed_face
from ..identity.recognizers import FaceMatcher
from ..identity.thresholds import person_threshold
from ..media.images import read_picture
from ..video.tracks import Track
from .inputs import pictures_in
from .requests import PeopleRequest


@dataclass(frozen=True)
class People:
    """The people of some photos, and whether they are protected or spared.

    known: embeddings (n,D) of the photos' faces. threshold: cosine from which a face is one of theirs.
    """

    recognizer: FaceMatcher
    known: np.ndarray
    threshold: float
    keep: Literal["only", "all but"]

    def in_picture(self, picture: Tensor, faces: Sequence[Face]) -> list[Face]:
        """The faces to protect; raises NoFaceError if there is none."""

        embeddings = np.stack([embed_face(self.recognizer, picture, face) for face in faces])
        return select_person(faces, embeddings, self.known, self.threshold, self.keep)

    def in_video(self, tracks: Sequence[Track]) -> list[Track]:
        """The tracks to protect; raises NoFaceError if there is none.

        Who is to be protected is so in all appearances once one is alike; who is spared is spared only in those that
        are alike themselves, so that a mistake protects too much.
        """
        alike = [track for track in tracks if (self.known @ track.embedding).max() >= self.threshold]
        people = {track.person for track in alike}
        if self.keep == "only":
            chosen = [track for track in tracks if track.person in people]
        else:
            chosen = [track for track in tracks if track not in alike]
        if not chosen:
            raise NoFaceError("Nobody in the video is to be protected.", "person")
        return chosen


def load_people(request: PeopleRequest, detector: Detector, recognizer: FaceMatcher) -> People | None:
    """The people asked for, None for none.

    Raises DiffPrivacyError, naming the photo, where one does not show exactly one face.
    """
    given = request.only or request.spared
    if not given:
        return None
    embeddings = []
    for photo in (picture for folder in given for picture in pictures_in(folder)):
        picture = read_picture(photo).rgb
        faces = detector.detect(picture)
        if len(faces) != 1:
            raise DiffPrivacyError(f"{photo}: {len(faces)} faces found; give photos with exactly one face.")
        embeddings.append(embed_face(recognizer, picture, faces[0]))
    threshold = person_threshold(recognizer) if request.threshold is None else request.threshold
    return People(recognizer, np.stack(embeddings), threshold, "only" if request.only else "all but")
