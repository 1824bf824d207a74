"""How far and how strongly to guide: what recognizers see in new faces, and how natural they are.

    DIFFPRIVACY_DATA=... python -m benchmarks.guidance_scale [--task hide] [--strengths 0.6 0.8] [--scales 0.03 0.04] [--weights 1]
        [--device cuda] [--sheets FOLDER]

114 faces: 32 held-out portraits, 32 CelebA-HQ photos, and five photos each of ten people of LFW, as crops of the embedded
model, with the same noise for every setting. Strangeness and softness are those of :mod:`.naturalness`. Of the recognizers only the guide guides: mean cosine to
the original, the share accepted at the threshold for FAR 1e-3, and how often the farthest of all originals is one of
the person's own. ``--weights``: how far sampling goes away from blurred and deformed faces. A few minutes a setting on a
processor, ten seconds on a graphics card.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffprivacy import demo, regeneration
from diffprivacy.diffusion.noise import NoiseKey
from diffprivacy.diffusion.sharpening import sharpening
from diffprivacy.evaluation.drawing import contact_sheet
from diffprivacy.identity.energies import visual_distance
from diffprivacy.media.images import Picture, write_picture
from diffprivacy.presets import PRESETS
from diffprivacy.regeneration import Regeneration, latent_shape, regenerate_crops, task_energy

from .attacks.faces import open_lab, threshold
from .naturalness import Faces, detail, embedded, open_judge, read_faces, through_autoencoder

HALF, PHOTOS_EACH = 32, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["anonymize", "hide"], default="anonymize")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.6, 0.7, 0.8])
    parser.add_argument("--scales", type=float, nargs="+", default=[0.03, 0.04])
    parser.add_argument("--weights", type=float, nargs="+", default=[1.0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sheets", type=Path, help="folder for a PNG of the faces of each setting")
    options = parser.parse_args()
    lab = open_lab()
    model, judges = lab.diffusion_model, lab.judges
    natural, portraits, celebrities = open_judge(lab.data, model, lab.detector)
    lfw = [
        file
        for folder in sorted((lab.data / "photos" / "lfw250").iterdir())
        for file in sorted(folder.iterdir())[:PHOTOS_EACH]
    ]
    faces = portraits.part(0, HALF) + celebrities.part(0, HALF) + read_faces(lfw, lab.detector)
    people = np.array([*map(str, range(2 * HALF)), *(file.parent.name for file in lfw)])
    real = detail(through_autoencoder(faces, model))
    originals = {name: embedded(faces, judge) for name, judge in judges.items()}
    key, shape = NoiseKey.from_seed(1), latent_shape(model, demo.IMAGE_SIZE)
    noise = torch.stack([key.normal(shape, i) for i in range(len(people))]).to(options.device)
    model.to(options.device)
    guide = demo.load_recognizer("guide").to(options.device)
    print(
        f"| strength | scale | weight | strangeness | softness | structure | {' | '.join(judges)} |\n{'|---' * (6 + len(judges))}|"
    )
    for strength, scale, weight in product(options.strengths, options.scales, options.weights):
        preset = dataclasses.replace(
            PRESETS[options.task]["default"], strength=strength, scale=scale, scale_after=scale
        )
        regeneration.sharpening = partial(sharpening, weight=weight)
        crops, landmarks = faces.crops.to(options.device), faces.landmarks.to(options.device)
        how = Regeneration(preset, task_energy(options.task, guide))
        made = Faces(regenerate_crops(crops, landmarks, noise, model, how).cpu(), faces.landmarks)
        strange = np.mean([part.mean() for part in natural.strangeness(made).values()])
        structure = visual_distance(faces.crops, faces.landmarks, faces.landmarks)(made.crops).sqrt().mean()
        cells = [f"{strange:.2f}", f"{100 * (1 - detail(made) / real):.0f} %", f"{structure:.3f}"]
        cells += [
            _seen(embedded(made, judge), originals[name], people, threshold(name, judge))
            for name, judge in judges.items()
        ]
        print(f"| {strength} | {scale} | {weight} | {' | '.join(cells)} |", flush=True)
        if options.sheets:
            _write(options.sheets / f"{options.task}-{strength}-{scale}-{weight}.png", made.crops)


def _seen(made: np.ndarray, originals: np.ndarray, people: np.ndarray, threshold: float) -> str:
    cosines = made @ originals.T
    own = cosines.diagonal()
    farthest = (people[cosines.argmin(1)] == people).mean()
    return f"{own.mean():.2f}, {100 * (own >= threshold).mean():.0f} %, {100 * farthest:.0f} %"


def _write(file: Path, crops: Tensor) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    tiles = list(crops.clamp(0, 1).movedim(1, -1))
    rows = [tiles[i : i + 12] for i in range(0, len(tiles), 12)]
    rows[-1] += [torch.ones_like(tiles[0])] * (12 - len(rows[-1]))
    write_picture(file, Picture(torch.cat([contact_sheet(row, [""] * 12) for row in rows])))


if __name__ == "__main__":
    main()
