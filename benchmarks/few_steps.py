"""Whether few steps guide as far as many: cosine to the original for the guide and for a judge that took no part.

    DIFFPRIVACY_DATA=... python -m benchmarks.few_steps [--faces 8] [--steps 4 8 20 50] [--repeats 4] [--scale 0.015]

Regenerates CelebA-HQ faces with the embedded model from time step 599 down, so many steps in all, with the presets'
guidance; the same noise, and so the same aims, at every number of steps. ``--repeats``: gradients of a long step.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor

from diffprivacy import demo
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.diffusion.guidance import Guidance, guided
from diffprivacy.diffusion.sampling import noise_to, sample_euler
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import crop_face, crop_landmarks
from diffprivacy.faces.selection import select_faces
from diffprivacy.identity.energies import latent_gradient
from diffprivacy.identity.recognizers import load_recognizer
from diffprivacy.media.images import read_picture
from diffprivacy.presets import GUIDED, PRESETS
from diffprivacy.regeneration import task_energy

START = 599


def faces_of(data: Path, count: int) -> tuple[Tensor, Tensor]:
    """Crops (F,3,S,S) and their five points (F,5,2)."""
    detector = load_detector(data / "detectors" / "yunet_n.onnx")
    crops, points = [], []
    for file in sorted((data / "photos" / "celebahq512").glob("*.jpg"))[:count]:
        picture = read_picture(file).rgb
        (face,) = select_faces(detector.detect(picture), "largest")
        crops.append(crop_face(picture, face, demo.IMAGE_SIZE, demo.MARGIN).movedim(-1, 0))
        points.append(crop_landmarks(face, demo.IMAGE_SIZE, demo.MARGIN))
    return torch.stack(crops), torch.stack(points)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 20, 50])
    parser.add_argument("--repeats", type=int, default=Guidance.repeats)
    parser.add_argument("--scale", type=float, help="of guidance; the preset's by default")
    options = parser.parse_args()
    data = Path(os.environ["DIFFPRIVACY_DATA"])
    model, guide = load_diffusion_model(), demo.load_recognizer("guide")
    judge = load_recognizer(data / "recognizers" / "mobilefacenet_ms1m.onnx")
    crops, points = faces_of(data, options.faces)
    latents, text, levels = model.encode(crops), model.text_conditioning(""), model.noise_levels
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    print("| task | steps | guide | judge |\n|---|---|---|---|")
    for task in ("anonymize", "hide"):
        energy = task_energy(task, guide)(crops, points, noise)
        assert energy is not None
        gradient = latent_gradient(energy, model.differentiable_decoder())
        scale = options.scale or PRESETS[task]["default"].scale
        guidance = Guidance(scale=scale, interval=GUIDED, repeats=options.repeats)
        for steps in options.steps:
            times = torch.linspace(START, 0, steps + 1)[:-1]
            sigmas = torch.cat([levels.sigma(times), torch.zeros(1)])
            denoiser = guided(lambda x, sigma: model.denoise(x, sigma, text), gradient, sigmas, guidance, levels)
            made = model.decode(sample_euler(denoiser, noise_to(latents, sigmas[0], noise), sigmas))
            cosines = [
                float(each.cosine(each.reference(made, points), each.reference(crops, points)).mean())
                for each in (guide, judge)
            ]
            print(f"| {task} | {steps} | " + " | ".join(f"{cosine:.2f}" for cosine in cosines) + " |", flush=True)


if __name__ == "__main__":
    main()
