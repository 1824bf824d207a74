"""How natural regenerated faces look to networks that did not guide.

    DIFFPRIVACY_DATA=... python -m benchmarks.naturalness [--faces 32] [--steps 20] [--before] [--sheet sheet.png]

*Strangeness* is the headline: how far eyes, nose and mouth lie from those of real faces, as the mean squared Mahalanobis
distance of the features that mobilefacenet_ms1m has there after its third stage (28x28), divided by that of real faces which took no
part in the fit. 1.00 is a real face; torn, doubled and displaced parts raise it, and so does strong blur. *Softness* is the share of
the real faces' detail (energy of the Laplacian over the ArcFace crop) that is missing. *Found* and *score* are of SCRFD, *landmarks* is
how far its five points lie from YuNet's, in distances of the eyes. *Accepted* is the share that a recognizer takes for the original at its
threshold for FAR 1e-3, of which the guide alone guides. All real faces went through the autoencoder, so that it
is not what is measured. Half of the faces are held-out portraits, half CelebA-HQ.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from diffprivacy import demo
from diffprivacy.backends.diffusers import DiffusersModel
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.diffusion.noise import NoiseKey
from diffprivacy.evaluation.drawing import contact_sheet
from diffprivacy.faces.alignment import align
from diffprivacy.faces.detectors import Detector, load_detector
from diffprivacy.faces.geometry import Face, crop_face, crop_landmarks
from diffprivacy.identity.recognizers import FaceMatcher, load_recognizer
from diffprivacy.media.images import Picture, read_picture, write_picture
from diffprivacy.presets import PRESETS
from diffprivacy.regeneration import Regeneration, latent_shape, regenerate_crops, task_energy
from training.data import five_points, read_portraits, split

from .attacks.faces import open_lab, threshold

LAYER = "Conv_17"
"""The convolution of mobilefacenet_ms1m whose input is looked at."""
PLACES = {"eyes": ((38.3, 51.6), (73.5, 51.5)), "nose": ((56.0, 71.7),), "mouth": ((56.0, 92.3),)}
"""Pixels of the ArcFace crop around which the features are taken; right ones are mirrored."""
REAL = 400
"""Portraits of the training set, and CelebA-HQ photos, that say what is real."""
BEFORE = {"anonymize": (0.015, False), "hide": (0.02, False)}
"""Scale and kind of sampling before faces were sharpened."""
LOWEST_SCORE = 0.05


@dataclass(frozen=True)
class Faces:
    """Crops (F,3,128,128) in [0,1] and their five points (F,5,2)."""

    crops: Tensor
    landmarks: Tensor

    def __add__(self, other: Faces) -> Faces:
        return Faces(torch.cat([self.crops, other.crops]), torch.cat([self.landmarks, other.landmarks]))

    def part(self, start: int | None, stop: int | None) -> Faces:
        return Faces(self.crops[start:stop], self.landmarks[start:stop])


class Judge:
    """Features of the parts of a face, and the distribution of those of real ones."""

    def __init__(self, path: Path, real: Faces, others: Faces):
        """others: real faces to which strangeness is relative."""
        self._network = load_recognizer(path)
        layer = dict(self._network.network.named_modules())[LAYER]
        layer.register_forward_pre_hook(self._keep)
        self._fits: dict[str, Any] = {}
        for place, features in self._features(real).items():
            mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
            self._fits[place] = mean, spread, LedoitWolf().fit((features - mean) / spread)
        self._real = {place: distances.mean() for place, distances in self._distances(others).items()}

    def _keep(self, _: Any, inputs: tuple[Tensor, ...]) -> None:
        self._maps = inputs[0]

    @torch.no_grad()
    def _features(self, faces: Faces) -> dict[str, np.ndarray]:
        maps = []
        for crops, landmarks in zip(faces.crops.split(32), faces.landmarks.split(32), strict=True):
            self._network(align(crops, landmarks))
            maps.append(self._maps)
        return {
            place: torch.cat([_around(torch.cat(maps), *point) for point in points]).numpy()
            for place, points in PLACES.items()
        }

    def _distances(self, faces: Faces) -> dict[str, np.ndarray]:
        """Squared distances of each face's parts."""
        found = {}
        for place, features in self._features(faces).items():
            mean, spread, fit = self._fits[place]
            found[place] = fit.mahalanobis((features - mean) / spread).reshape(len(PLACES[place]), -1).mean(axis=0)
        return found

    def strangeness(self, faces: Faces) -> dict[str, np.ndarray]:
        """(F,) for each part, 1 for real faces."""
        return {place: distances / self._real[place] for place, distances in self._distances(faces).items()}


def _around(maps: Tensor, x: float, y: float) -> Tensor:
    """Mean and spread of every channel of maps (B,C,28,28) in 5x5 places around a pixel of the ArcFace crop, (B,2C)."""
    column, row = int(x / 4), int(y / 4)
    window = maps[..., row - 2 : row + 3, column - 2 : column + 3].flatten(2)
    return torch.cat([window.mean(2), window.std(2)], dim=1)


def detail(faces: Faces) -> float:
    """Mean energy of the Laplacian of the grey ArcFace crops."""
    grey = align(faces.crops, faces.landmarks).mean(dim=1, keepdim=True)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return float(F.conv2d(grey, kernel).square().mean())


def detected(faces: Faces, detectors: tuple[Detector, Detector]) -> tuple[float, float, float]:
    """Share of faces that the first detector finds, mean score, and how far the second's points lie from its."""
    scores, errors = [], []
    for crop, landmarks in zip(faces.crops, faces.landmarks, strict=True):
        picture = F.pad(crop[None], (64,) * 4, mode="replicate")[0].movedim(0, -1)
        found = [max(d.detect(picture, LOWEST_SCORE), key=lambda f: f.score, default=None) for d in detectors]
        scores.append(found[0].score if found[0] else 0.0)
        if found[0] and found[1]:
            between = np.linalg.norm(found[0].landmarks - found[1].landmarks, axis=1).mean()
            errors.append(between / float((landmarks[0] - landmarks[1]).norm()))
    return float(np.mean(np.array(scores) >= detectors[0].min_score)), float(np.mean(scores)), float(np.mean(errors))


def warped(crops: Tensor, pixels: float) -> Tensor:
    """Crops whose parts are displaced at random."""
    generator = torch.Generator().manual_seed(0)
    shift = torch.randn(len(crops), 2, 6, 6, generator=generator) * 2 * pixels / crops.shape[-1]
    plain = F.affine_grid(torch.eye(2, 3).expand(len(crops), -1, -1), list(crops.shape), align_corners=False)
    moved = plain + F.interpolate(shift, crops.shape[-2:], mode="bicubic").movedim(1, -1)
    return F.grid_sample(crops, moved, padding_mode="border", align_corners=False)


def embedded(faces: Faces, judge: FaceMatcher) -> np.ndarray:
    """Unit vectors (F,D), fused with the mirror image."""
    parts = zip(faces.crops.split(32), faces.landmarks.split(32), strict=True)
    return torch.cat([judge.reference(*part, mirrored=True)[0] for part in parts]).cpu().numpy()


def celebrities(folder: Path, detector: Detector) -> Faces:
    return read_faces(sorted(folder.glob("*.jpg")), detector)


def read_faces(files: Sequence[Path], detector: Detector) -> Faces:
    """The largest face of each photo."""
    crops, landmarks = [], []
    for path in files:
        rgb = read_picture(path).rgb
        face: Face = max(detector.detect(rgb), key=lambda found: found.area)
        crops.append(crop_face(rgb, face, demo.IMAGE_SIZE, demo.MARGIN).movedim(-1, 0))
        landmarks.append(crop_landmarks(face, demo.IMAGE_SIZE, demo.MARGIN))
    return Faces(torch.stack(crops), torch.stack(landmarks))


def regenerated(
    faces: Faces, model: DiffusersModel, task: Any, steps: int, before: bool = False, guided: bool = True
) -> Tensor:
    """What a task makes of the faces, with the same noise every time."""
    preset = dataclasses.replace(PRESETS[task]["default"], steps=steps)
    if before:
        scale, ancestral = BEFORE[task]
        preset = dataclasses.replace(preset, scale=scale, scale_after=scale, ancestral=ancestral)
        model = load_diffusion_model("0.1")
    key, shape = NoiseKey.from_seed(1), latent_shape(model, demo.IMAGE_SIZE)
    noise = torch.stack([key.normal(shape, i) for i in range(len(faces.crops))])
    how = Regeneration(preset, task_energy(task, demo.load_recognizer("guide")) if guided else None)
    return regenerate_crops(faces.crops, faces.landmarks, noise, model, how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--before", action="store_true", help="also as the first version did")
    parser.add_argument(
        "--sheet", type=Path, help="PNG to write the faces to, and a text file of the strangest beside it"
    )
    options = parser.parse_args()
    lab = open_lab()
    yunet, scrfd = load_detector(None), load_detector(lab.data / "detectors" / "scrfd_500m_bnkps.onnx")
    model = lab.diffusion_model
    judge, portraits, photos = open_judge(lab.data, model, yunet)
    half = options.faces // 2
    chosen = portraits.part(0, half) + photos.part(0, half)
    faces = through_autoencoder(chosen, model)
    versions = {
        "real": faces.crops,
        "blurred by 1 pixel": gaussian_blur(faces.crops, [9, 9], [1.0, 1.0]),
        "blurred by 2.5": gaussian_blur(faces.crops, [17, 17], [2.5, 2.5]),
        "warped by 2 pixels": warped(faces.crops, 2.0),
        "warped by 4": warped(faces.crops, 4.0),
    }
    originals = {name: embedded(chosen, recognizer) for name, recognizer in lab.judges.items()}

    def accepted(faces: Faces) -> list[str]:
        shares = (
            (embedded(faces, recognizer) * originals[name]).sum(1) >= threshold(name, recognizer)
            for name, recognizer in lab.judges.items()
        )
        return [f"{100 * share.mean():.0f} %" for share in shares]

    def show(name: str, crops: Tensor) -> np.ndarray:
        made = Faces(crops, faces.landmarks)
        return _print(name, made, judge, detail(faces), (scrfd, yunet), accepted(made))

    kinds = (True, False) if options.before else (False,)
    columns = ["strangeness", *PLACES, "softness", "found", "score", "landmarks", *(f"{n} accepts" for n in lab.judges)]
    print(f"| | {' | '.join(columns)} |\n{'|---' * (1 + len(columns))}|")
    for name, crops in versions.items():
        show(name, crops)
    show("unguided", regenerated(chosen, model, "anonymize", options.steps, guided=False))
    for task, past in (("anonymize", "anonymized"), ("hide", "hidden")):
        for before in kinds:
            crops = regenerated(chosen, model, task, options.steps, before)
            name = f"{past}, before" if before else past
            strange = show(name, crops)
            if options.sheet:
                _write(options.sheet.with_stem(f"{options.sheet.stem}-{name.replace(', ', '-')}"), crops, strange)


def open_judge(data: Path, model: DiffusersModel, detector: Detector) -> tuple[Judge, Faces, Faces]:
    """The judge, and held-out portraits and CelebA-HQ photos, of which the first 50 each are unknown to it."""
    trained, held_out = (part / 255 for part in split(read_portraits(data / "portraits128.tar")))
    portraits = Faces(held_out, five_points(len(held_out)))
    photos = celebrities(data / "photos" / "celebahq512", detector)
    seen = Faces(trained[:REAL], five_points(REAL)) + portraits.part(100, None) + photos.part(75, None)
    others = portraits.part(50, 100) + photos.part(50, 75)
    real = (through_autoencoder(faces, model) for faces in (seen, others))
    return Judge(data / "recognizers" / "mobilefacenet_ms1m.onnx", *real), portraits, photos


def through_autoencoder(faces: Faces, model: DiffusersModel) -> Faces:
    """The faces as the autoencoder gives them back, so that it is not what is measured."""
    return dataclasses.replace(
        faces, crops=torch.cat([model.decode(model.encode(part)) for part in faces.crops.split(64)])
    )


def _print(
    name: str,
    faces: Faces,
    judge: Judge,
    real_detail: float,
    detectors: tuple[Detector, Detector],
    accepted: list[str],
) -> np.ndarray:
    """Print a line; the strangeness of each face."""
    parts = judge.strangeness(faces)
    whole = np.mean(list(parts.values()), axis=0)
    found, score, landmarks = detected(faces, detectors)
    columns = [f"{whole.mean():.2f}", *(f"{part.mean():.2f}" for part in parts.values())]
    columns += [
        f"{100 * (1 - detail(faces) / real_detail):.0f} %",
        f"{100 * found:.0f} %",
        f"{score:.3f}",
        f"{landmarks:.3f}",
        *accepted,
    ]
    print(f"| {name} | {' | '.join(columns)} |", flush=True)
    return whole


def _write(path: Path, crops: Tensor, strange: np.ndarray) -> None:
    """Eight faces a row, each with its strangeness."""
    tiles = F.interpolate(crops, scale_factor=1.5, mode="bicubic").clamp(0, 1).movedim(1, -1)
    labels = [f"{i}: {value:.2f}" for i, value in enumerate(strange)]
    rows = [contact_sheet(list(tiles[i : i + 8]), labels[i : i + 8]) for i in range(0, len(tiles), 8)]
    write_picture(path, Picture(torch.cat(rows)))


if __name__ == "__main__":
    main()
