"""The whole job on one video: its faces are followed, regenerated piece by piece, and pasted back into every frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..diffusion.temporal import smoothing_weights
from ..errors import DiffPrivacyError
from ..faces.covering import cover_faces
from ..faces.detectors import Detector
from ..faces.geometry import Crop, Face, crop_face, crop_landmarks, paste_faces
from ..faces.keeping import keep_original, kept_parts
from ..faces.regions import union
from ..identity.embedding import embed_face
from ..identity.recognizers import FaceMatcher
from ..media.images import levels, values
from .cuts import CutFinder
from .files import read_frames
from .frames import Frame, Video
from .tracks import Track, track_faces
from .writing import part_writer

CONTEXT = 4
"""Frames before and after a piece that are regenerated with it, so that pieces agree where they meet."""
PIECE_BYTES = 2**28
"""Memory for the frames of a piece."""
PIECE_FRAMES = (8, 64)
"""Fewest and most frames of a piece."""

Regenerate = Callable[[Tensor, Tensor, int, Tensor], Tensor]
"""``regenerate(crops, landmarks, person, smoothing)``: consecutive crops (N,3,S,S) of one face, with points (N,5,2),
made new; smoothing: the weights (N,N) with which they are averaged over time."""
Given = Callable[[int, Tensor], Sequence[Face]]
"""``given(number, picture)``: the faces that somebody named in a frame (H,W,3)."""
Cover = Callable[[Track, range, Exception], object]
"""``cover(track, piece, error)``: told of a face that could not be made new in a piece, and why."""


@dataclass(frozen=True)
class Pasting:
    """How new faces are put into frames.

    keep: names of the parts that stay, see :mod:`..faces.keeping`. cover: a face that cannot be made new is covered by
    its mean colour, and told; None: the error is raised.
    """

    crop: Crop
    keep: Sequence[str] = ()
    cover: Cover | None = None


@dataclass(frozen=True)
class Followed:
    """The faces of a video.

    times: when each frame is shown, in seconds from the first. jumps: frames that look different from the one before,
    as at cuts and flashes.
    """

    times: Sequence[float]
    tracks: Sequence[Track]
    jumps: Sequence[int] = field(default=())

    @property
    def frames(self) -> int:
        """How many."""
        return len(self.times)

    @property
    def ends(self) -> list[float]:
        """Until when each frame is shown; the last one for as long as the one before it."""
        return [*self.times[1:], 2 * self.times[-1] - self.times[max(0, self.frames - 2)]]

    def smoothing(self, numbers: Sequence[int]) -> Tensor:
        """The weights (N,N) with which the frames of these numbers are averaged over time."""
        interval = float(np.median(np.diff(self.times))) if self.frames > 1 else 1.0
        lights = np.searchsorted(self.jumps, numbers, side="right").tolist()
        return smoothing_weights([self.times[number] for number in numbers], interval, lights)


def follow_faces(
    video: Video,
    detector: Detector,
    recognizer: FaceMatcher | None,
    callback: Callable[[int], object] | None = None,
    given: Given | None = None,
) -> Followed:
    """Every face in every frame; the recognizer, where there is one, tells who is who.

    callback: called with the number of each frame. given: faces that count besides those detected.
    """
    found: list[list[Face]] = []
    doubtful: list[list[Face]] = []
    embeddings: list[list[np.ndarray]] = []
    times: list[float] = []
    cuts = CutFinder()
    for i, frame in enumerate(read_frames(video)):
        picture = values(frame.pixels)
        times.append(float((frame.time - video.start) * video.time_base))
        cuts.add(picture, times[-1])
        detected = detector.detect(picture, 0)
        faces = [face for face in detected if face.score >= detector.min_score]
        if given is not None:
            faces = union(faces, given(i, picture))
        found.append(faces)
        doubtful.append([face for face in detected if face.score < detector.min_score])
        if recognizer is not None:
            embeddings.append([embed_face(recognizer, picture, face) for face in faces])
        if callback is not None:
            callback(i)
    size = (video.height, video.width)
    known = embeddings if recognizer is not None else None
    return Followed(times, track_faces(found, size, times, cuts.cuts, known, doubtful=doubtful), cuts.jumps)


def pieces(video: Video, frames: int) -> list[range]:
    """The frames of each piece, few enough to be held in memory."""
    fewest, most = PIECE_FRAMES
    of_frame = video.height * video.width * 3 * video.bit_depth // 8
    length = min(most, max(fewest, PIECE_BYTES // of_frame))
    return [range(start, min(start + length, frames)) for start in range(0, frames, length)]


def protect_pieces(
    video: Video,
    todo: Sequence[tuple[range, Path]],
    followed: Followed,
    regenerate: Regenerate,
    how: Pasting,
) -> None:
    """Write the given consecutive pieces of the video with the faces of all tracks of ``followed`` made new."""
    if not todo:
        return
    first = max(0, todo[0][0].start - CONTEXT)
    stream = enumerate(read_frames(video, first), start=first)
    held: dict[int, Frame] = {}
    for piece, path in todo:
        while max(held, default=first - 1) + 1 < piece.stop + CONTEXT and (item := next(stream, None)) is not None:
            held[item[0]] = item[1]
        for number in [number for number in held if number < piece.start - CONTEXT]:
            del held[number]
        new = _regenerated(held, piece, followed, regenerate, how)
        with part_writer(path, video) as write:
            for number in piece:
                write(_protected(held[number], new.get(number, []), how))


def face_at(video: Video, track: Track, crop: Crop) -> Tensor:
    """The crop (3,S,S) of a track's largest detected face."""
    seen = np.flatnonzero(track.seen)
    spread = [float(np.ptp(track.landmarks[i], axis=0).sum()) for i in seen]
    number = track.start + int(seen[int(np.argmax(spread))])
    (frame,) = read_frames(video, number, number + 1)
    return crop_face(values(frame.pixels), track.face(number), crop.size, crop.margin).movedim(-1, 0)


def _regenerated(
    held: dict[int, Frame], piece: range, followed: Followed, regenerate: Regenerate, how: Pasting
) -> dict[int, list[tuple[Face, Tensor | None]]]:
    """The faces of a piece's frames, each with its new crop (S,S,3), None for one that is to be covered."""
    crop = how.crop
    new: dict[int, list[tuple[Face, Tensor | None]]] = {}
    for track in tracks_in(followed.tracks, piece):
        numbers = [number for number in held if track.start <= number < track.stop]
        faces = [track.face(number) for number in numbers]
        crops = [
            crop_face(values(held[number].pixels), face, crop.size, crop.margin).movedim(-1, 0)
            for number, face in zip(numbers, faces, strict=True)
        ]
        landmarks = torch.stack([crop_landmarks(face, crop.size, crop.margin) for face in faces])
        weights = followed.smoothing(numbers)
        made: Sequence[Tensor | None]
        try:
            made = [*regenerate(torch.stack(crops), landmarks, track.person, weights).movedim(1, -1).cpu()]
        except (DiffPrivacyError, RuntimeError, MemoryError) as error:  # PyTorch's out-of-memory is a RuntimeError
            if how.cover is None:
                raise
            how.cover(track, piece, error)
            made = [None] * len(numbers)
        for number, face, image in zip(numbers, faces, made, strict=True):
            new.setdefault(number, []).append((face, image))
    return new


def tracks_in(tracks: Sequence[Track], piece: range) -> list[Track]:
    """The tracks with a face in a piece."""
    return [track for track in tracks if track.start < piece.stop and piece.start < track.stop]


def _protected(frame: Frame, faces: Sequence[tuple[Face, Tensor | None]], how: Pasting) -> Frame:
    if not faces:
        return frame
    original, margin = values(frame.pixels), how.crop.margin
    places = [face for face, crop in faces if crop is not None]
    pasted = paste_faces(original, [crop for _, crop in faces if crop is not None], places, margin)
    if how.keep:
        pasted = keep_original(original, pasted, kept_parts(original.shape, places, how.keep))
    pasted = cover_faces(pasted, [face for face, crop in faces if crop is None], margin)
    return Frame(levels(pasted, frame.pixels.dtype.itemsize * 8), frame.time)
