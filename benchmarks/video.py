"""How little protected videos flicker, what that takes from expressions, and whether a person keeps one new face; prints three tables.

    DIFFPRIVACY_DATA=... python -m benchmarks.video

Clips are photos under a camera that moves, turns, zooms and is noisy, as no videos of known people can be had. The
judge took no part in the guidance.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from diffprivacy import demo
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.diffusion.temporal import smoothing_weights
from diffprivacy.faces.detectors import Detector, load_detector
from diffprivacy.faces.geometry import Face, crop_face, crop_landmarks
from diffprivacy.identity.recognizers import FaceMatcher, load_recognizer
from diffprivacy.media.images import read_picture
from diffprivacy.presets import PRESETS
from diffprivacy.regeneration import Regeneration, anonymizing, latent_shape, regenerate_crops
from diffprivacy.video.regeneration import mean_face
from diffprivacy.video.tracks import track_faces

RATE = 25
SIDE = 512
PRESET = PRESETS["anonymize"]["default"]
TALK, OPEN = 2.5, 14
"""How often a second a talking mouth opens, and by how many pixels of 512."""


def filmed(path: Path, frames: int) -> list[Tensor]:
    """A photo (512,512,3) in [0,1] under a moving camera."""
    generator = np.random.default_rng(0)
    photo = (read_picture(path).rgb.numpy() * 255).astype(np.float32)
    pictures = []
    for t in np.arange(frames) / RATE:
        wave = np.sin(2 * np.pi * t * np.array([0.8, 0.6, 0.7, 1.0, 0.5]))
        camera = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), 3 * wave[0], 1 + 0.04 * wave[1])
        camera[:, 2] += 10 * wave[2], 5 * wave[3]
        seen = cv2.warpAffine(photo, camera, (SIDE, SIDE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        seen = seen * (1 + 0.06 * wave[4]) + generator.normal(0, 2, seen.shape)
        pictures.append(torch.from_numpy(np.clip(seen.round(), 0, 255).astype(np.float32) / 255))
    return pictures


def cropped(pictures: Sequence[Tensor], faces: Sequence[Face]) -> tuple[Tensor, Tensor]:
    """Crops (N,3,S,S) and their points (N,5,2)."""
    crops = [
        crop_face(picture, face, demo.IMAGE_SIZE, demo.MARGIN) for picture, face in zip(pictures, faces, strict=True)
    ]
    return torch.stack(crops).movedim(-1, 1), torch.stack(
        [crop_landmarks(face, demo.IMAGE_SIZE, demo.MARGIN) for face in faces]
    )


def average(frames: int, reach: int) -> Tensor | None:
    """The weights of an average over so many frames to both sides; None for 0."""
    return smoothing_weights([i / RATE for i in range(frames)], 1 / RATE, seconds=reach / RATE) if reach else None


def largest(detector: Detector, picture: Tensor) -> Face:
    return max(detector.detect(picture), key=lambda face: face.area)


def tremble(crops: Tensor) -> float:
    """Mean second difference over time in the middle of the crops, in levels of 255."""
    quarter = crops.shape[-1] // 4
    return 255 * float(crops.diff(n=2, dim=0).abs()[..., quarter:-quarter, quarter:-quarter].mean())


def flicker(photos: Sequence[Path], frames: int, detector: Detector, judge: FaceMatcher) -> None:
    diffusion_model, guide = load_diffusion_model(), demo.load_recognizer("guide")
    shape = latent_shape(diffusion_model, demo.IMAGE_SIZE)
    rows: dict[str, list[list[float]]] = {}
    for path in photos:
        pictures = filmed(path, frames)
        found = [largest(detector, picture) for picture in pictures]
        (track,) = track_faces([[face] for face in found], (SIDE, SIDE), [i / RATE for i in range(frames)])
        generator = torch.Generator().manual_seed(0)
        every = torch.randn(frames, *shape, generator=generator)
        one = every[:1].expand(frames, -1, -1, -1)
        smooth = [track.face(i) for i in range(frames)]
        for name, faces, noise, reach in (
            ("the original", smooth, None, 0),
            ("own noise for each frame", smooth, every, 0),
            ("one noise, points as detected", found, one, 0),
            ("one noise, points smoothed", smooth, one, 0),
            ("and averaged over neighbours", smooth, one, 1),
        ):
            crops, landmarks = cropped(pictures, faces)
            new = crops
            if noise is not None:
                how = Regeneration(PRESET, anonymizing(guide), smoothing=average(frames, reach))
                new = regenerate_crops(crops, landmarks, noise, diffusion_model, how)
            before, after = (judge.reference(pictures, landmarks)[0] for pictures in (crops, new))
            within = after @ after.T
            result = [tremble(new), float(within.mean()), float(within.min()), float((before * after).sum(1).mean())]
            rows.setdefault(name, []).append(result)
            print(f"  {path.stem} {name}: {result}", flush=True)
    print("\n| frames | tremble | judge, frame to frame | least | judge, to the original |\n|---|---|---|---|---|")
    for name, results in rows.items():
        trembling, within, least, original = np.mean(results, axis=0)
        print(f"| {name} | {trembling:.1f} | {within:.2f} | {least:.2f} | {original:.2f} |")


def talking(path: Path, detector: Detector, frames: int) -> tuple[list[Tensor], Face]:
    """A photo (512,512,3) whose mouth opens and closes 2.5 times a second, and its face, which stays where it is."""
    photo = (read_picture(path).rgb.numpy() * 255).astype(np.float32)
    face = largest(detector, torch.from_numpy(photo) / 255)
    (x0, y0), width = face.landmarks[3:].mean(axis=0), np.linalg.norm(face.landmarks[3] - face.landmarks[4])
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    across, below = ((x - x0) / width) ** 2, (y - y0) / width
    jaw = np.exp(-2 * across - 4 * np.clip(below - 0.8, 0, None) ** 2) * np.clip(4 * below, 0, 1)
    pictures = []
    for opening in OPEN * (0.5 - 0.5 * np.cos(2 * np.pi * TALK * np.arange(frames) / RATE)):
        moved = cv2.remap(photo, x, y - (opening * jaw).astype(np.float32), cv2.INTER_CUBIC)
        dark = np.exp(-6 * across - ((y - y0 - opening / 2) / (opening / 2 + 0.01)) ** 2) * min(1, opening / 6)
        pictures.append(torch.from_numpy(np.clip(moved * (1 - 0.7 * dark[..., None]), 0, 255).astype(np.float32) / 255))
    return pictures, face


def swing(crops: Tensor, landmarks: Tensor) -> float:
    """How far the mouth's pixels move at the frequency of the talking, in levels of 255."""
    column, row = landmarks[0, 3:].mean(dim=0).round().int().tolist()
    mouth = crops[:, :, row - 6 : row + 12, column - 10 : column + 10].to(torch.complex64)
    wave = torch.exp(-2j * torch.pi * TALK * torch.arange(len(crops)) / RATE)
    return 255 * float((mouth * wave[:, None, None, None]).mean(dim=0).abs().mean())


def expressions(photos: Sequence[Path], frames: int, detector: Detector) -> None:
    diffusion_model, guide = load_diffusion_model(), demo.load_recognizer("guide")
    shape = latent_shape(diffusion_model, demo.IMAGE_SIZE)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).expand(frames, -1, -1, -1)
    rows: dict[int, list[list[float]]] = {}
    for path in photos:
        pictures, face = talking(path, detector, frames)
        crops, landmarks = cropped(pictures, [face] * frames)
        for reach in (0, 1, 2, 4):
            how = Regeneration(PRESET, anonymizing(guide), smoothing=average(frames, reach))
            new = regenerate_crops(crops, landmarks, noise, diffusion_model, how)
            rows.setdefault(reach, []).append([swing(new, landmarks), tremble(new)])
    print("\n| averaged over neighbours to both sides | the mouth's movement | tremble |\n|---|---|---|")
    whole = np.mean(rows[0], axis=0)
    for reach, results in rows.items():
        moved, trembling = np.mean(results, axis=0)
        print(f"| {reach} | {100 * moved / whole[0]:.0f} % | {trembling:.1f} |")


def shots(people: Sequence[Path], detector: Detector, judge: FaceMatcher) -> None:
    diffusion_model, guide = load_diffusion_model(), demo.load_recognizer("guide")
    shape = latent_shape(diffusion_model, demo.IMAGE_SIZE)
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, tuple[list[Tensor], list[float]]] = {}
    for person in people:
        pictures = [read_picture(path).rgb for path in sorted(person.iterdir())[:3]]
        crops, landmarks = cropped(pictures, [largest(detector, picture) for picture in pictures])
        every = torch.randn(3, *shape, generator=generator)
        before = judge.reference(crops, landmarks)[0]
        target: list[Tensor] | None = None
        for name, noise in (
            ("the original", None),
            ("own noise", every),
            ("one noise", every[:1]),
            ("one face", every[:1]),
        ):
            new = crops
            if noise is not None:
                how = Regeneration(PRESET, anonymizing(guide, target=target if name == "one face" else None))
                noise = noise.expand(3, -1, -1, -1)
                new = regenerate_crops(crops, landmarks, noise, diffusion_model, how)
            if name == "one noise":
                target = mean_face(guide, new[:1], landmarks[:1])
            after = judge.reference(new, landmarks)[0]
            embeddings, to_original = rows.setdefault(name, ([], []))
            embeddings.append(after)
            to_original += (before * after).sum(1).tolist()
    print(
        "\n| three photos of a person | judge, one person | least | two people | to the original |\n|---|---|---|---|---|"
    )
    for name, (embeddings, to_original) in rows.items():
        within = [float(e[i] @ e[j]) for e in embeddings for i, j in combinations(range(3), 2)]
        between = [float((a @ b.T).mean()) for a, b in combinations(embeddings, 2)]
        means = (np.mean(within), np.min(within), np.mean(between), np.mean(to_original))
        print(f"| {name} | {' | '.join(f'{mean:.2f}' for mean in means)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", nargs="+", default=["003", "012", "020"], help="CelebA-HQ photos to film")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--people", type=int, default=8, help="of LFW, for the second table")
    options = parser.parse_args()
    data = Path(os.environ["DIFFPRIVACY_DATA"])
    detector = load_detector(data / "detectors" / "yunet_n.onnx")
    judge = load_recognizer(data / "recognizers" / "mobilefacenet_ms1m.onnx")
    photos = [data / "photos" / "celebahq512" / f"{name}.jpg" for name in options.photos]
    flicker(photos, options.frames, detector, judge)
    expressions(photos, 20, detector)
    shots(sorted((data / "photos" / "lfw250").iterdir())[: options.people], detector, judge)


if __name__ == "__main__":
    main()
