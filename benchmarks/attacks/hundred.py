"""A hundred people's photos, protected twice by each job, for ``diffprivacy evaluate`` to attack.

    DIFFPRIVACY_DATA=... python -m benchmarks.attacks.hundred FOLDER [--jobs anonymize hide keyed lfw] [--steps 20]

FOLDER/anonymize-1 and FOLDER/anonymize-2 hold two protections of the largest face of every CelebA-HQ photo, under two
keys, and so on; *lfw* anonymizes ten photos each of ten people. What is there already is kept. Keyed mode turns faces in
batches, with one inversion for both secrets, which the command does not.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.nn.functional as F

from diffprivacy import demo
from diffprivacy.cli import main as command_line
from diffprivacy.diffusion.conditioning import stage_denoiser
from diffprivacy.diffusion.inversion import invert_fixed_point
from diffprivacy.faces.geometry import crop_face, face_mask, paste_faces
from diffprivacy.media.images import Picture, write_picture
from diffprivacy.recovery import keyed

from . import faces

JOBS = ("anonymize", "hide", "keyed", "lfw", "unguided")
KEYS = (1, 2)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS[:-1])
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args(arguments)
    photos = Path(os.environ["DIFFPRIVACY_DATA"]) / "photos"
    for job in options.jobs:
        if job == "keyed":
            turn(options.folder)
            continue
        task = "hide" if job == "hide" else "anonymize"
        source = photos / ("lfw250" if job == "lfw" else "celebahq512")
        for key in KEYS[:1] if job == "lfw" else KEYS:
            out = [task, str(source), "-o", str(options.folder / f"{job}-{key}"), "--faces", "largest"]
            how = ["--steps", str(options.steps), "--batch", "4"] + (["--unguided"] if job == "unguided" else [])
            print(f"{job}-{key}: exit code {command_line(out + how)}", flush=True)


def turn(folder: Path, batch: int = 16) -> None:
    """Keyed protections of the CelebA-HQ photos under two secrets each, FOLDER/keyed-1 and FOLDER/keyed-2."""
    lab = faces.open_lab()
    model, denoiser = lab.diffusion_model, stage_denoiser(lab.diffusion_model)
    sigmas = keyed.keyed_sigmas(model)
    photos = faces.celebrities(lab)
    for start in range(0, len(photos), batch):
        part = [p for p in photos[start : start + batch] if not (folder / "keyed-2" / f"{p.name}.png").exists()]
        if not part:
            continue
        crops = torch.stack([crop_face(p.rgb, p.face, demo.IMAGE_SIZE, demo.MARGIN).movedim(-1, 0) for p in part])
        latents = model.encode(crops)
        masks = torch.stack([face_mask(p.face, demo.IMAGE_SIZE, demo.MARGIN)[None] for p in part])
        masks = F.interpolate(masks, latents.shape[2:], mode="area")
        maps = invert_fixed_point(denoiser, latents, sigmas, None, keyed.ITERATIONS)
        for key in KEYS:
            seeds = [keyed.face_seed(os.urandom(32), 0) for _ in part]
            turned = [keyed.rotate(z[None], mask[0], seed) for z, mask, seed in zip(maps, masks, seeds, strict=True)]
            new = model.decode(keyed.sample_euler(denoiser, torch.cat(turned), sigmas)).movedim(1, -1)
            (folder / f"keyed-{key}").mkdir(parents=True, exist_ok=True)
            for photo, crop in zip(part, new, strict=True):
                published = paste_faces(photo.rgb, [crop], [photo.face], demo.MARGIN)
                write_picture(folder / f"keyed-{key}" / f"{photo.name}.png", Picture(published))
        print(f"keyed: {start + len(part)} photos", flush=True)


if __name__ == "__main__":
    main()
