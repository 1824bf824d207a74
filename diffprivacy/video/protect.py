"""The whole job on one video: its faces are followed, redrawn piece by piece, and pasted back into every frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..faces.detectors import Detector
from ..faces.geometry import Crop, Face, crop_face, crop_landmarks, paste_faces
from ..identity.embedding import embed_face
from ..identity.recognizers import FaceMatcher
from ..media.images import levels, values
from .files import Frame, Video, part_writer, read_frames
from .tracks import Track, track_faces

CONTEXT = 4
"""Frames before and after a piece that are redrawn with it, so that pieces agree where they meet."""
PIECE_BYTES = 2**28
"""Memory for the frames of a piece."""
PIECE_FRAMES = (8, 64)
"""Fewest and most frames of a piece."""
CUT = 0.1
"""Mean change of a small picture of the frame, in [0,1], from which another shot begins."""

Redraw = Callable[[Tensor, Tensor, int], Tensor]
"""``redraw(crops, landmarks, person)``: consecutive crops (N,3,S,S) of one face, with points (N,5,2), made new."""


@dataclass(frozen=True)
class Followed:
    """The faces of a video with ``frames`` frames."""

    frames: int
    tracks: list[Track]


def follow_faces(
    video: Video, detector: Detector, recognizer: FaceMatcher | None, callback: Callable[[int], object] | None = None
) -> Followed:
    """Every face in every frame; the recognizer, where there is one, tells who is who.

    callback: called with the number of each frame.
    """
    found: list[list[Face]] = []
    embeddings: list[list[np.ndarray]] = []
    cuts: set[int] = set()
    before = None
    for i, frame in enumerate(read_frames(video)):
        picture = values(frame.pixels)
        small = thumbnail(picture)
        if before is not None and is_cut(before, small):
            cuts.add(i)
        before = small
        faces = detector.detect(picture)
        found.append(faces)
        if recognizer is not None:
            embeddings.append([embed_face(recognizer, picture, face) for face in faces])
        if callback is not None:
            callback(i)
    size = (video.height, video.width)
    known = embeddings if recognizer is not None else None
    return Followed(len(found), track_faces(found, size, float(video.rate), cuts, known))


def pieces(video: Video, frames: int) -> list[range]:
    """The frames of each piece, few enough to be held in memory."""
    fewest, most = PIECE_FRAMES
    of_frame = video.height * video.width * 3 * video.bit_depth // 8
    length = min(most, max(fewest, PIECE_BYTES // of_frame))
    return [range(start, min(start + length, frames)) for start in range(0, frames, length)]


def protect_pieces(
    video: Video,
    todo: Sequence[tuple[range, Path]],
    tracks: Sequence[Track],
    redraw: Redraw,
    crop: Crop,
) -> None:
    """Write the given consecutive pieces of the video with the faces of all tracks made new."""
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
        new = _redrawn(held, piece, tracks, redraw, crop)
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


def _redrawn(
    held: dict[int, Frame], piece: range, tracks: Sequence[Track], redraw: Redraw, crop: Crop
) -> dict[int, list[tuple[Face, Tensor]]]:
    """The new faces of a piece's frames, each with its crop (S,S,3)."""
    new: dict[int, list[tuple[Face, Tensor]]] = {}
    for track in tracks_in(tracks, piece):
        numbers = [number for number in held if track.start <= number < track.stop]
        faces = [track.face(number) for number in numbers]
        crops = [
            crop_face(values(held[number].pixels), face, crop.size, crop.margin).movedim(-1, 0)
            for number, face in zip(numbers, faces, strict=True)
        ]
        landmarks = torch.stack([crop_landmarks(face, crop.size, crop.margin) for face in faces])
        redrawn = redraw(torch.stack(crops), landmarks, track.person).movedim(1, -1).cpu()
        for number, face, image in zip(numbers, faces, redrawn, strict=True):
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


def thumbnail(picture: Tensor) -> Tensor:
    """A frame (H,W,3) as small as :func:`is_cut` compares it, (3,18,32)."""
    return F.adaptive_avg_pool2d(picture.movedim(-1, 0), (18, 32))


def is_cut(before: Tensor, after: Tensor) -> bool:
    """Whether another shot begins between the thumbnails of two frames."""
    return bool((after - before).abs().mean() > CUT)
