"""The whole job on one video: its faces are followed, regenerated piece by piece, and pasted back into every frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..diffusion.temporal import smoothing_weights
from ..faces.detectors import Detector
from ..faces.geometry import Crop, Face, crop_face, crop_landmarks, paste_faces
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

    def smoothing(self, numbers: Sequence[int]) -> Tensor:
        """The weights (N,N) with which the frames of these numbers are averaged over time."""
        interval = float(np.median(np.diff(self.times))) if self.frames > 1 else 1.0
        lights = np.searchsorted(self.jumps, numbers, side="right").tolist()
        return smoothing_weights([self.times[number] for number in numbers], interval, lights)


def follow_faces(
    video: Video, detector: Detector, recognizer: FaceMatcher | None, callback: Callable[[int], object] | None = None
) -> Followed:
    """Every face in every frame; the recognizer, where there is one, tells who is who.

    callback: called with the number of each frame.
    """
    found: list[list[Face]] = []
    embeddings: list[list[np.ndarray]] = []
    times: list[float] = []
    cuts = CutFinder()
    for i, frame in enumerate(read_frames(video)):
        picture = values(frame.pixels)
        times.append(float((frame.time - video.start) * video.time_base))
        cuts.add(picture, times[-1])
        faces = detector.detect(picture)
        found.append(faces)
        if recognizer is not None:
            embeddings.append([embed_face(recognizer, picture, face) for face in faces])
        if callback is not None:
            callback(i)
    size = (video.height, video.width)
    known = embeddings if recognizer is not None else None
    return Followed(times, track_faces(found, size, times, cuts.cuts, known), cuts.jumps)


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
    crop: Crop,
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
        new = _regenerated(held, piece, followed, regenerate, crop)
        with part_writer(path, video) as write:
            for number in piece:
                write(_protected(held[number], new.get(number, []), crop.margin))


def face_at(video: Video, track: Track, crop: Crop) -> Tensor:
    """The crop (3,S,S) of a track's largest detected face."""
    seen = np.flatnonzero(track.seen)
    spread = [float(np.ptp(track.landmarks[i], axis=0).sum()) for i in seen]
    number = track.start + int(seen[int(np.argmax(spread))])
    (frame,) = read_frames(video, number, number + 1)
    return crop_face(values(frame.pixels), track.face(number), crop.size, crop.margin).movedim(-1, 0)


def _regenerated(
    held: dict[int, Frame], piece: range, followed: Followed, regenerate: Regenerate, crop: Crop
) -> dict[int, list[tuple[Face, Tensor]]]:
    """The new faces of a piece's frames, each with its crop (S,S,3)."""
    new: dict[int, list[tuple[Face, Tensor]]] = {}
    for track in tracks_in(followed.tracks, piece):
        numbers = [number for number in held if track.start <= number < track.stop]
        faces = [track.face(number) for number in numbers]
        crops = [
            crop_face(values(held[number].pixels), face, crop.size, crop.margin).movedim(-1, 0)
            for number, face in zip(numbers, faces, strict=True)
        ]
        landmarks = torch.stack([crop_landmarks(face, crop.size, crop.margin) for face in faces])
        weights = followed.smoothing(numbers)
        made = regenerate(torch.stack(crops), landmarks, track.person, weights).movedim(1, -1).cpu()
        for number, face, image in zip(numbers, faces, made, strict=True):
            new.setdefault(number, []).append((face, image))
    return new


def tracks_in(tracks: Sequence[Track], piece: range) -> list[Track]:
    """The tracks with a face in a piece."""
    return [track for track in tracks if track.start < piece.stop and piece.start < track.stop]


def _protected(frame: Frame, faces: Sequence[tuple[Face, Tensor]], margin: float) -> Frame:
    if not faces:
        return frame
    places, crops = zip(*faces, strict=True)
    pasted = paste_faces(values(frame.pixels), crops, places, margin)
    return Frame(levels(pasted, frame.pixels.dtype.itemsize * 8), frame.time)
