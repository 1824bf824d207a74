"""What it costs in identity to keep parts of a face or a hand before it, and how new faces meet their border; prints two tables.

    DIFFPRIVACY_DATA=... python -m benchmarks.keeping [--faces 26] [--steps 20]

Photos of photos/celebahq512 are anonymized with the embedded model, guided by the demo guide; the demo judge and
mobilefacenet_ms1m take no part. All rows start from one noise; a part that stays is held while the face around it is
drawn, the hand only put back over the new face. Thresholds are those at FAR 1e-3 of the clean pairs of photos/lfw250. Every version is judged in the
whole picture, where the face is found and aligned anew. The tables are printed after every six photos.

The hand is drawn over the chin of each photo and then belongs to the original: the judges compare with it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from diffprivacy import demo
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.diffusion.model import DiffusionModel
from diffprivacy.diffusion.noise import NoiseKey
from diffprivacy.evaluation.comparison import FaceComparison, clean_photos, judge
from diffprivacy.evaluation.table import table
from diffprivacy.faces.colors import match_colors
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import (
    TEMPLATE_SIZE,
    Face,
    align_matrix,
    crop_face,
    crop_landmarks,
    paste_faces,
    protected_mask,
)
from diffprivacy.faces.keeping import keep_original, kept_parts
from diffprivacy.identity.recognizers import FaceMatcher, load_recognizer
from diffprivacy.identity.thresholds import FAR
from diffprivacy.identity.verification import operating_point
from diffprivacy.media.images import Picture, read_picture, write_picture
from diffprivacy.presets import PRESETS
from diffprivacy.regeneration import Regeneration, anonymizing, latent_shape, regenerate_crops

KEPT = (("eyes",), ("nose",), ("mouth",), ("contour",), ("eyes", "mouth"))
FINGERS = ((20, 100, 88, 96), (22, 110, 94, 107), (26, 120, 92, 118))
"""Ends x0, y0, x1, y1 of three fingers across the chin, in template pixels."""
FINGER = 10
"""Their width."""
SKIN = (190, 140, 115)
CASTS = {
    "the same face, 10 levels brighter": (1.0, (10, 10, 10)),
    "the same face, with 15 % less contrast": (0.85, (19, 19, 19)),
    "the same face, warmer": (1.0, (8, 0, -8)),
}
"""Gain, and levels of 255 added to red, green and blue."""
SECTORS = 12
"""Parts of the border whose mean colours are compared."""


def with_hand(rgb: Tensor, face: Face) -> tuple[Tensor, Tensor]:
    """The picture (H,W,3) with fingers over the chin, and where they are (H,W), 1 or 0."""
    to_template = align_matrix(face, TEMPLATE_SIZE, 1.0)
    scale = np.hypot(*to_template[:, 0])
    mask = np.zeros(tuple(rgb.shape[:2]), np.uint8)
    for finger in np.array(FINGERS, float).reshape(-1, 2, 2):
        first, last = np.linalg.solve(to_template[:, :2], (finger - to_template[:, 2]).T).T.round().astype(int).tolist()
        cv2.line(mask, first, last, 1, round(FINGER / scale))
    there = torch.from_numpy(mask).float()
    grain = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))[..., None] * 0.02
    skin = (torch.tensor(SKIN) / 255 + grain).clamp(0, 1)
    return torch.where(there[..., None] == 1, skin, rgb), there


def step_at_border(original: Tensor, version: Tensor, face: Face) -> float:
    """How far the colours of the soft border are from the original's: levels of 255, root mean square over its sectors."""
    mask = protected_mask(original.shape, [face], demo.MARGIN)
    rows, columns = ((mask > 0) & (mask < 1)).nonzero(as_tuple=True)
    x, y = face.centre
    sector = ((torch.atan2(rows - y, columns - x) / (2 * torch.pi) + 0.5) * SECTORS).long().clamp(0, SECTORS - 1)
    change = (version - original)[rows, columns]
    steps = [change[sector == number].mean(dim=0) for number in range(SECTORS) if (sector == number).any()]
    return 255 * float(torch.stack(steps).square().mean().sqrt())


def new_face(rgb: Tensor, face: Face, model: DiffusionModel, how: Regeneration, seed: int) -> tuple[Tensor, Tensor]:
    """The photo (H,W,3) with a new face, and the same with its colours matched."""
    crop = crop_face(rgb, face, demo.IMAGE_SIZE, demo.MARGIN).movedim(-1, 0)
    landmarks = crop_landmarks(face, demo.IMAGE_SIZE, demo.MARGIN)
    noise = NoiseKey.from_seed(seed).normal(latent_shape(model, demo.IMAGE_SIZE))[None]
    (new,) = regenerate_crops(crop[None], landmarks[None], noise, model, how)
    return pasted(rgb, face, new), pasted(rgb, face, match_colors(new, crop, landmarks))


def pasted(rgb: Tensor, face: Face, crop: Tensor) -> Tensor:
    """A photo (H,W,3) with a crop (3,S,S) in its face's place."""
    return paste_faces(rgb, [crop.movedim(0, -1)], [face], demo.MARGIN)


def steps_of_casts(rgb: Tensor, face: Face) -> dict[str, tuple[float, float]]:
    """The step at the border before and after matching, where a crop comes back in other colours and nothing else."""
    crop = crop_face(rgb, face, demo.IMAGE_SIZE, demo.MARGIN).movedim(-1, 0)
    landmarks = crop_landmarks(face, demo.IMAGE_SIZE, demo.MARGIN)
    steps = {}
    for name, (gain, shift) in CASTS.items():
        changed = (crop * gain + torch.tensor(shift)[:, None, None] / 255).clamp(0, 1)
        pair = (pasted(rgb, face, each) for each in (changed, match_colors(changed, crop, landmarks)))
        before, after = (step_at_border(rgb, each, face) for each in pair)
        steps[name] = before, after
    return steps


def print_tables(
    judged: dict[str, list[FaceComparison]], thresholds: dict[str, float], steps: dict[str, list[tuple[float, float]]]
) -> None:
    print("\n" + table(judged, thresholds))
    print("\n| | step at the border | colours matched |\n|---|---|---|")
    for name, pairs in steps.items():
        before, after = np.mean(pairs, axis=0)
        print(f"| {name} | {before:.1f} | {after:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=26)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sheet", type=Path, help="folder for the versions of the first photos")
    options = parser.parse_args()
    start = time.time()
    torch.set_num_threads(1)
    data = Path(os.environ["DIFFPRIVACY_DATA"])
    detector = load_detector(None)
    guide = demo.load_recognizer("guide")
    judges: dict[str, FaceMatcher] = {
        "demo judge": demo.load_recognizer("judge"),
        "mobilefacenet_ms1m": load_recognizer(data / "recognizers" / "mobilefacenet_ms1m.onnx"),
    }
    cosines = clean_photos(sorted((data / "photos" / "lfw250").glob("*/*.jpg")), judges, detector).pairs
    thresholds = {name: operating_point(*of_judge, FAR).threshold for name, of_judge in cosines.items()}
    model = load_diffusion_model()
    how = Regeneration(dataclasses.replace(PRESETS["anonymize"]["default"], steps=options.steps), anonymizing(guide))
    files = sorted((data / "photos" / "celebahq512").glob("*.jpg"))
    judged: dict[str, list[FaceComparison]] = defaultdict(list)
    steps: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number, file in enumerate(files[i * len(files) // options.faces] for i in range(options.faces)):
        rgb = read_picture(file).rgb
        face = max(detector.detect(rgb), key=lambda found: found.area)
        new, matched = new_face(rgb, face, model, how, number)
        made = {"nothing kept": (rgb, new), "nothing kept, colours matched": (rgb, matched)}
        for names in KEPT:
            around, _ = new_face(rgb, face, model, dataclasses.replace(how, keep=names), number)
            kept = keep_original(rgb, around, kept_parts(rgb.shape, [face], names))
            made[f"{' and '.join(names)} kept"] = rgb, kept
        held, hand = with_hand(rgb, face)
        new, _ = new_face(held, face, model, how, number)
        made["a hand over the chin, not kept"] = held, new
        made["a hand over the chin, kept"] = held, keep_original(held, new, hand)
        for name, (original, version) in made.items():
            judged[name] += judge(original, version, [face], [file.stem], judges, detector)
            if options.sheet and number < 3:
                write_picture(options.sheet / f"{file.stem}-{name}.png", Picture(version))
        regenerated = (step_at_border(rgb, made[name][1], face) for name in list(made)[:2])
        for name, pair in {"a new face": tuple(regenerated), **steps_of_casts(rgb, face)}.items():
            steps[name].append(pair)
        print(f"\r{number + 1} of {options.faces}, {time.time() - start:.0f} s", end="", flush=True)
        if (number + 1) % 6 == 0 or number + 1 == options.faces:
            print_tables(judged, thresholds, steps)


if __name__ == "__main__":
    main()
