"""Photos, their protections and what recognizers see in both, for the attacks on identity."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffprivacy import demo
from diffprivacy.backends.diffusers import DiffusersModel
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.diffusion.conditioning import LAST
from diffprivacy.diffusion.noise import NoiseKey
from diffprivacy.faces.detectors import Detector, load_detector
from diffprivacy.faces.geometry import Face, crop_face, crop_landmarks, paste_faces
from diffprivacy.identity.embedding import embed_face
from diffprivacy.identity.energies import Energy, augmented, identity_away
from diffprivacy.identity.recognizers import FaceMatcher, load_recognizer
from diffprivacy.media.images import Picture, read_picture, write_picture
from diffprivacy.presets import PRESETS, Preset
from diffprivacy.regeneration import EnergyOf, Regeneration, anonymizing, latent_shape, regenerate_crops

BATCH = 16
THRESHOLDS = {"mobilefacenet_ms1m": 0.301}
"""Cosine at FAR 1e-3 on the 6000 LFW pairs, of the judge that keeps none."""


@dataclass(frozen=True)
class Photo:
    """A photo (H,W,3), its largest face, whose it is, and the photo's own name."""

    rgb: Tensor
    face: Face
    person: str
    name: str


@dataclass(frozen=True)
class Lab:
    """What all attacks on identity use; ``guide`` is one of the judges."""

    diffusion_model: DiffusersModel
    detector: Detector
    judges: Mapping[str, FaceMatcher]
    data: Path

    @property
    def guide(self) -> FaceMatcher:
        return self.judges["guide"]


def open_lab() -> Lab:
    """The embedded model, YuNet, the two embedded recognizers and mobilefacenet_ms1m, which never guides."""
    torch.set_num_threads(1)
    data = Path(os.environ["DIFFPRIVACY_DATA"])
    judges: dict[str, FaceMatcher] = {
        "guide": demo.load_recognizer("guide"),
        "demo judge": demo.load_recognizer("judge"),
        "mobilefacenet_ms1m": load_recognizer(data / "recognizers" / "mobilefacenet_ms1m.onnx"),
    }
    return Lab(load_diffusion_model(), load_detector(data / "detectors" / "yunet_n.onnx"), judges, data)


def celebrities(lab: Lab, most: int | None = None) -> list[Photo]:
    """CelebA-HQ: 100 photos of as many people, or the first of them."""
    return _photos(sorted((lab.data / "photos" / "celebahq512").glob("*.jpg"))[:most], lab, lambda path: path.stem)


def people(lab: Lab, most: int = 10, each: int = 10) -> list[Photo]:
    """LFW: ten photos each of ten people, or the first of them."""
    folders = sorted((lab.data / "photos" / "lfw250").iterdir())[:most]
    files = [file for folder in folders for file in sorted(folder.glob("*.jpg"))[:each]]
    return _photos(files, lab, lambda path: path.parent.name)


def _photos(files: Sequence[Path], lab: Lab, person: Callable[[Path], str]) -> list[Photo]:
    photos = []
    for file in files:
        rgb = read_picture(file).rgb
        if found := lab.detector.detect(rgb):
            photos.append(Photo(rgb, max(found, key=lambda face: face.area), person(file), file.stem))
    return photos


@dataclass(frozen=True)
class Method:
    """A way of making faces new; ``name`` is that of its rows and of its folder."""

    name: str
    preset: Preset
    energy: EnergyOf | None = None

    @property
    def folder(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in f"{self.name}-{self.preset.steps}")


def methods(lab: Lab, steps: int) -> list[Method]:
    """As shipped, unguided, from more noise, with nothing of the original but its surroundings, as version 0.1 was, and the paper's."""
    default = dataclasses.replace(PRESETS["anonymize"]["default"], steps=steps)

    def endless(crops: Tensor, landmarks: Tensor, _: Tensor) -> Energy:
        away = identity_away(lab.guide, lab.guide.reference(crops, landmarks), landmarks, form="smooth")
        return augmented(away, landmarks)

    return [
        Method("stranger (default)", default, anonymizing(lab.guide)),
        Method("unguided", default),
        Method("strength 0.8, unguided", dataclasses.replace(default, strength=0.8)),
        Method("control: noise alone in the same surroundings", dataclasses.replace(default, strength=1.0)),
        Method("smooth, to t = 101 (0.1)", dataclasses.replace(default, interval=(101, LAST)), endless),
        Method("max(cos, 0), to t = 251", default, anonymizing(lab.guide, form="paper")),
    ]


def protections(photos: Sequence[Photo], lab: Lab, method: Method, seed: int, made: Path | None = None) -> list[Tensor]:
    """The photos (H,W,3) with their faces made new; a photo's noise follows from the seed and its place.

    made: folder that keeps them, so that a run goes on where it was interrupted.
    """
    shape, key = latent_shape(lab.diffusion_model, demo.IMAGE_SIZE), NoiseKey.from_seed(seed)
    results: list[Tensor] = []
    for start in range(0, len(photos), BATCH):
        part = photos[start : start + BATCH]
        files = [made / method.folder / str(seed) / f"{p.name}.png" for p in part] if made else []
        if files and all(file.exists() for file in files):
            results += [read_picture(file).rgb for file in files]
            continue
        crops = torch.stack([crop_face(p.rgb, p.face, demo.IMAGE_SIZE, demo.MARGIN).movedim(-1, 0) for p in part])
        landmarks = torch.stack([crop_landmarks(p.face, demo.IMAGE_SIZE, demo.MARGIN) for p in part])
        noise = torch.stack([key.normal(shape, "photo", start + i) for i in range(len(part))])
        how = Regeneration(method.preset, method.energy)
        new = regenerate_crops(crops, landmarks, noise, lab.diffusion_model, how).movedim(1, -1)
        images = [paste_faces(p.rgb, [crop], [p.face], demo.MARGIN) for p, crop in zip(part, new, strict=True)]
        for file, image in zip(files, images, strict=bool(files)):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_picture(file, Picture(image))
        results += images
    return results


def embedded(images: Sequence[Tensor], photos: Sequence[Photo], judge: FaceMatcher) -> np.ndarray:
    """Embeddings (N,D) of the photos' faces in as many images (H,W,3)."""
    return np.stack([embed_face(judge, image, photo.face) for image, photo in zip(images, photos, strict=True)])


def threshold(name: str, judge: FaceMatcher) -> float:
    """The judge's cosine at FAR 1e-3."""
    return judge.thresholds[0].cosine if judge.thresholds else THRESHOLDS[name]
