"""A hundred people's photos, protected twice by each job, for ``diffprivacy evaluate`` to attack.

    DIFFPRIVACY_DATA=... python -m benchmarks.attacks.hundred FOLDER [--jobs hide-1 keyed anonymize-1 ...] [--photos 100] [--steps 20]

FOLDER/anonymize-1 and FOLDER/anonymize-2 hold two protections of the largest face of every CelebA-HQ photo, under two
keys, and so on. What is there already is kept. Faces are made in batches by one thread, which ``--batch`` does for
several images, and drawn again as by the commands; keyed mode makes one inversion for both secrets.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from diffprivacy import demo
from diffprivacy.diffusion.conditioning import stage_denoiser
from diffprivacy.diffusion.inversion import invert_fixed_point
from diffprivacy.diffusion.noise import NoiseKey
from diffprivacy.diffusion.sampling import sample_euler
from diffprivacy.faces.geometry import crop_face, crop_landmarks, face_mask, paste_faces
from diffprivacy.media.images import Picture, write_picture
from diffprivacy.presets import PRESETS
from diffprivacy.recovery import keyed
from diffprivacy.redrawing import DRAWS, MATCHED, RECOGNIZED, likeness
from diffprivacy.regeneration import Regeneration, Task, fresh_noise, latent_shape, regenerate_crops, task_energy

from . import faces

JOBS = ("hide-1", "keyed", "anonymize-1", "anonymize-2", "hide-2")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args(arguments)
    lab = faces.open_lab()
    photos = faces.celebrities(lab, options.photos)
    for job in options.jobs:
        folder = options.folder / job
        if job == "keyed":
            folder = options.folder / "keyed-2"
        for part in _missing(photos, folder):
            if job == "keyed":
                for key, crops in enumerate(turned(part, lab), start=1):
                    _publish(part, crops, options.folder / f"keyed-{key}")
            else:
                task = cast(Task, job.split("-")[0])
                _publish(part, made_new(part, lab, task, options.steps), folder)
            print(f"{job}: {part[-1].name}", flush=True)


def _missing(photos: list[faces.Photo], folder: Path) -> Iterator[list[faces.Photo]]:
    left = [photo for photo in photos if not (folder / f"{photo.name}.png").exists()]
    yield from (left[i : i + faces.BATCH] for i in range(0, len(left), faces.BATCH))


def _publish(photos: list[faces.Photo], crops: Tensor, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for photo, crop in zip(photos, crops.movedim(1, -1), strict=True):
        write_picture(folder / f"{photo.name}.png", Picture(paste_faces(photo.rgb, [crop], [photo.face], demo.MARGIN)))


def _cut(photos: list[faces.Photo]) -> Tensor:
    return torch.stack([crop_face(p.rgb, p.face, demo.IMAGE_SIZE, demo.MARGIN).movedim(-1, 0) for p in photos])


def made_new(photos: list[faces.Photo], lab: faces.Lab, task: Task, steps: int) -> Tensor:
    """Crops (N,3,S,S) with new faces under a fresh key, drawn again as :mod:`diffprivacy.redrawing` does."""
    preset = dataclasses.replace(PRESETS[task]["default"], steps=steps)
    how = Regeneration(preset, task_energy(task, lab.guide, preset.form, alone=True))
    crops = _cut(photos)
    points = torch.stack([crop_landmarks(p.face, demo.IMAGE_SIZE, demo.MARGIN) for p in photos])
    shape = latent_shape(lab.diffusion_model, demo.IMAGE_SIZE)
    noise = torch.stack([NoiseKey().normal(shape) for _ in photos])
    new, least = torch.empty_like(crops), torch.full((len(photos),), torch.inf)
    for draw in range(DRAWS):
        rows = (least > 0).nonzero().flatten()
        if not len(rows):
            break
        drawn = fresh_noise(noise[rows], draw, "draw") if draw else noise
        made = regenerate_crops(crops[rows], points[rows], drawn, lab.diffusion_model, how)
        before, after = (lab.guide.reference(images, points[rows]) for images in (crops[rows], made))
        alike = likeness(lab.guide, before, after)
        missing = alike.amax(dim=0) - RECOGNIZED if task == "anonymize" else MATCHED - alike.amin(dim=0)
        better = missing < least[rows]
        new[rows[better]], least[rows[better]] = made[better], missing[better]
    print(f"{task}: {int((least > 0).sum())} of {len(photos)} miss their aim after {DRAWS} draws", flush=True)
    return new


def turned(photos: list[faces.Photo], lab: faces.Lab) -> Iterator[Tensor]:
    """Crops (N,3,S,S) of keyed mode, under one secret for each photo, and then under a second."""
    model, denoiser = lab.diffusion_model, stage_denoiser(lab.diffusion_model)
    sigmas = keyed.keyed_sigmas(model)
    latents = model.encode(_cut(photos))
    masks = torch.stack([face_mask(p.face, demo.IMAGE_SIZE, demo.MARGIN)[None] for p in photos])
    masks = F.interpolate(masks, latents.shape[2:], mode="area")[:, 0]
    maps = invert_fixed_point(denoiser, latents, sigmas, None, keyed.ITERATIONS)
    for _ in range(2):
        seeds = [keyed.face_seed(os.urandom(32), 0) for _ in photos]
        rotated = [keyed.rotate(z[None], mask, seed) for z, mask, seed in zip(maps, masks, seeds, strict=True)]
        yield model.decode(sample_euler(denoiser, torch.cat(rotated), sigmas))


if __name__ == "__main__":
    main()
