"""Frames of a video in which a face is missed: detected in each frame alone, followed, and followed with low scores.

    DIFFPRIVACY_DATA=... python -m benchmarks.tracking [--photos 4]

Clips of 6 seconds show a photo of photos/celebahq512, 256 pixels wide, under a camera that sways. For 4 of them the face is
hard to see, most in the middle: it is dark and noisy, blurred by motion, or a plate moves up before it. A face is missed in a
frame if nothing that would be replaced covers both its eyes; what has its middle outside the face's box is invented.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from diffprivacy.faces.detectors import Detector, load_detector
from diffprivacy.faces.geometry import MASK_RADII, TEMPLATE_SIZE, Face, align_matrix, head_centre
from diffprivacy.media.images import read_picture
from diffprivacy.video.tracks import track_faces

RATE, SECONDS, SIDE = 10, 6, 256


def hardness(time: float) -> float:
    """How hard the face is to see: 0 at both ends of a clip, 1 in its middle."""
    return float(np.clip(1.5 - 4.5 * abs(time / SECONDS - 0.5), 0, 1))


def dark(frame: np.ndarray, _: Face, hard: float, random: np.random.Generator) -> np.ndarray:
    light = (frame / 255) ** 2.2 * 256.0**-hard + random.normal(0, 0.002 * hard, frame.shape)
    return 255 * light.clip(0, 1) ** (1 / 2.2)


def blurred(frame: np.ndarray, _: Face, hard: float, __: np.random.Generator) -> np.ndarray:
    length = 1 + round(44 * hard)
    return cv2.blur(frame, (length, 1 + length // 4))


def behind_a_plate(frame: np.ndarray, face: Face, hard: float, _: np.random.Generator) -> np.ndarray:
    x0, y0, x1, y1 = face.box
    top = round(y1 + 8 - hard * 0.72 * (y1 - y0))
    frame = frame.copy()
    frame[max(0, top) : round(y1 + 8), max(0, round(x0 - 4)) : round(x1 + 4)] = (96, 92, 88)
    return frame


KINDS = {"dark, down to 1/256": dark, "motion blur, up to 45 px": blurred, "a plate up to the eyes": behind_a_plate}


def clip(photo: np.ndarray, face: Face, kind: str) -> Iterator[tuple[torch.Tensor, Face]]:
    """The frames (S,S,3) in [0,1] of a clip, and where the face is in each."""
    random = np.random.default_rng(0)
    for time in np.arange(RATE * SECONDS) / RATE:
        dx, dy = 9 * np.sin(1.5 * time), 5 * np.sin(2.3 * time)
        camera = np.array([[1, 0, dx], [0, 1, dy]])
        seen = cv2.warpAffine(photo, camera, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT)
        x0, y0, x1, y1 = face.box
        moved = Face((x0 + dx, y0 + dy, x1 + dx, y1 + dy), face.landmarks + np.array((dx, dy), np.float32), 1.0)
        frame = KINDS[kind](seen.astype(np.float32), moved, hardness(time), random)
        yield torch.from_numpy(np.clip(frame.round(), 0, 255).astype(np.float32) / 255), moved


def covers(face: Face, eyes: np.ndarray) -> bool:
    """Whether what is replaced of a face holds both eyes (2,2) of another."""
    to_template = align_matrix(face, TEMPLATE_SIZE, 1.0)
    places = (eyes @ to_template[:, :2].T + to_template[:, 2] - head_centre(face)) / MASK_RADII
    return bool((np.hypot(*places.T) <= 1).all())


def is_inside(face: Face, box: tuple[float, float, float, float]) -> bool:
    x, y = face.landmarks.mean(axis=0)
    return bool(box[0] <= x <= box[2] and box[1] <= y <= box[3])


def count(frames: Sequence[Sequence[Face]], truth: Sequence[Face]) -> np.ndarray:
    """In how many frames the face is missed, and how many places are invented (2,)."""
    missed = sum(
        not any(covers(face, true.landmarks[:2]) for face in faces) for faces, true in zip(frames, truth, strict=True)
    )
    invented = sum(not is_inside(face, true.box) for faces, true in zip(frames, truth, strict=True) for face in faces)
    return np.array([missed, invented])


def measure(detector: Detector, photo: np.ndarray, face: Face, kind: str) -> np.ndarray:
    """Missed and invented (3,2): by each frame alone, followed, and followed with low scores."""
    pictures, truth = zip(*clip(photo, face, kind), strict=True)
    detected = [detector.detect(picture, 0) for picture in pictures]
    sure = [[found for found in faces if found.score >= detector.min_score] for faces in detected]
    doubtful = [[found for found in faces if found.score < detector.min_score] for faces in detected]
    times = [i / RATE for i in range(len(pictures))]
    ways = [sure]
    for low in ((), doubtful):
        tracks = track_faces(sure, (SIDE, SIDE), times, doubtful=low)
        ways.append(
            [[track.face(i) for track in tracks if track.start <= i < track.stop] for i in range(len(pictures))]
        )
    return np.stack([count(way, truth) for way in ways])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    detector = load_detector(None)
    files = sorted((Path(os.environ["DIFFPRIVACY_DATA"]) / "photos" / "celebahq512").glob("*.jpg"))
    print("| clips | frames | missed, invented: each frame alone | followed | and low scores |\n|---|---|---|---|---|")
    for kind in KINDS:
        total = np.zeros((3, 2), int)
        for file in files[:: len(files) // options.photos][: options.photos]:
            photo = cv2.resize(
                (read_picture(file).rgb.numpy() * 255).astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_AREA
            )
            face = max(detector.detect(torch.from_numpy(photo).float() / 255), key=lambda found: found.area)
            total += measure(detector, photo, face, kind)
        cells = " | ".join(f"{missed}, {invented}" for missed, invented in total)
        print(f"| {kind} | {options.photos * RATE * SECONDS} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
