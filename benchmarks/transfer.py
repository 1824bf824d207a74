"""Does guidance carry over to recognizers that did not guide? Prints a table of cosines to the original person.

    DIFFPRIVACY_DATA=folder python benchmarks/transfer.py [--third w600k_r50.onnx]

Latents of real faces are optimised directly, without a diffusion model, which is the hardest test of an energy: nothing
else keeps the picture from becoming a pattern for the guide. Each step moves a latent by a fixed share of the latents'
deviation along the normalised gradient. *Away* starts from the face itself; *toward* starts from another person's face
and moves to the identity of this one. Of three recognizers each one and each two guide in turn, a star marks the
guides, and the others judge. The default third is the demo model's judge.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffprivacy.demo import load_recognizer as load_demo_recognizer
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import align_matrix, crop_face
from diffprivacy.identity.energies import augmented, identity_away, identity_toward, latent_gradient
from diffprivacy.identity.recognizers import Embeddings, Ensemble, FaceMatcher, load_recognizer

NAMES = ("mobilefacenet_ms1m", "mobileface_v2")
MARGIN = 1.45


@dataclass(frozen=True)
class Faces:
    """Faces and their latents; the reference embeddings are those of the photos, not of the crops."""

    latents: Tensor
    landmarks: Tensor
    references: dict[str, Embeddings]

    def swapped(self) -> Faces:
        """Each person's identity over the latent of the next."""
        return Faces(self.latents.roll(1, 0), self.landmarks.roll(1, 0), self.references)


def read_faces(data: Path, count: int, size: int, encode: nn.Module, judges: Mapping[str, FaceMatcher]) -> Faces:
    from PIL import Image

    detector = load_detector(data / "detectors/yunet_n.onnx")
    crops, landmarks, photos, points = [], [], [], []
    for path in sorted((data / "photos/celebahq512").iterdir())[:count]:
        photo = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).float() / 255
        face = max(detector.detect(photo), key=lambda face: face.area)
        matrix = align_matrix(face, size, MARGIN)
        photos.append(photo)
        points.append(face.landmarks)
        crops.append(crop_face(photo, face, size, MARGIN))
        landmarks.append(face.landmarks @ matrix[:, :2].T + matrix[:, 2])
    with torch.no_grad():
        latents = encode(torch.stack(crops).permute(0, 3, 1, 2) * 2 - 1)
    originals = torch.stack(photos).permute(0, 3, 1, 2), torch.from_numpy(np.stack(points))
    references = {name: judge.reference(*originals, mirrored=True) for name, judge in judges.items()}
    return Faces(latents, torch.from_numpy(np.stack(landmarks)).float(), references)


def load_vae(data: Path) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """VAElight's encoder and a decoder to pictures in [0,1]."""
    encoder, maps_of = (_convert(data / f"vae/vaelight_{part}.onnx") for part in ("encoder", "decoder"))

    def decode(latents: Tensor) -> Tensor:
        maps = maps_of(latents)
        size = max(m.shape[-2:] for m in maps)
        return torch.stack([F.interpolate(m, size=size, mode="bilinear") for m in maps]).sum(dim=0) / 2 + 0.5

    return encoder, decode


def _convert(path: Path) -> nn.Module:
    """onnx2torch knows no SAME_UPPER; for the 3 x 3 convolutions here it is a padding of one pixel all around."""
    import onnx
    from onnx2torch import convert

    model = onnx.load(path)
    for node in model.graph.node:
        for attribute in list(node.attribute):
            if attribute.name == "auto_pad" and attribute.s == b"SAME_UPPER":
                node.attribute.remove(attribute)
                node.attribute.append(onnx.helper.make_attribute("pads", [1, 1, 1, 1]))
    return convert(model).eval().requires_grad_(False)


def descend(gradient: Callable[[Tensor], Tensor], latents: Tensor, steps: int, rate: float) -> Tensor:
    deviation = latents.std()
    for _ in range(steps):
        slope = gradient(latents)
        latents = latents - rate * deviation * slope / slope.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return latents


def cosines(faces: Faces, pictures: Tensor, judges: Mapping[str, FaceMatcher]) -> dict[str, float]:
    """Each judge's mean cosine to the original people."""
    result = {}
    for name, judge in judges.items():
        embeddings = judge.reference(pictures.clamp(0, 1), faces.landmarks, mirrored=True)
        result[name] = float(judge.cosine(embeddings, faces.references[name]).mean())
    return result


def print_row(task: str, guide: str, views: int | str, cells: Iterable[str]) -> None:
    print(" | ".join([f"{task:6}", f"{guide:35}", f"{views:5}", *(f"{cell:>18}" for cell in cells)]), flush=True)


def marked(values: dict[str, float], guides: Sequence[str]) -> list[str]:
    return [f"{value:+.3f}{'*' if name in guides else ' '}" for name, value in values.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Transfer of identity guidance to recognizers that did not guide.")
    parser.add_argument("--faces", type=int, default=6)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rate", type=float, default=0.03, help="length of a step in deviations of the latents")
    parser.add_argument("--size", type=int, default=160, help="side of the face crops in pixels")
    parser.add_argument("--draws", type=int, default=2, help="random views a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--third", type=Path, help="ONNX recognizer to take in place of the demo model's judge")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = Path(os.environ["DIFFPRIVACY_DATA"])

    networks = [load_recognizer(data / f"recognizers/{name}.onnx") for name in NAMES]
    networks.append(load_recognizer(options.third) if options.third else load_demo_recognizer("judge"))
    judges = {network.name.removesuffix(".onnx"): network for network in networks}
    encode, decode = load_vae(data)
    own = read_faces(data, options.faces, options.size, encode, judges)

    start = time.time()
    print_row("task", "guides", "views", judges)
    for task, faces in (("away", own), ("toward", own.swapped())):
        identity = identity_away if task == "away" else identity_toward
        print_row(task, "none", 0, marked(cosines(faces, decode(faces.latents), judges), ()))
        unseen: dict[tuple[int, int], list[float]] = {}
        for guides, draws in product([*combinations(judges, 1), *combinations(judges, 2)], (0, options.draws)):
            guide = Ensemble([(judges[name], 1) for name in guides])
            reference = tuple(faces.references[name][0] for name in guides)
            energy = identity(guide, reference, faces.landmarks)
            if draws:
                energy = augmented(energy, faces.landmarks, draws)
            latents = descend(latent_gradient(energy, decode), faces.latents, options.steps, options.rate)
            values = cosines(faces, decode(latents), judges)
            print_row(task, " + ".join(guides), draws, marked(values, guides))
            others = unseen.setdefault((len(guides), draws), [])
            others.extend(value for name, value in values.items() if name not in guides)
        for (count, draws), values in unseen.items():
            print(f"{task}: networks that did not guide, {count} guide(s), {draws} views: {np.mean(values):+.3f}")
    print(f"{options.faces} faces, {options.steps} steps, {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
