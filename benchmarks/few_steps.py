"""Whether few steps guide as far as many: cosine to the original for the guide and for a judge that took no part, and
the structure similarity, which people see.

    DIFFPRIVACY_DATA=... python -m benchmarks.few_steps [--faces 8] [--steps 4 8 20 50] [--repeats 4] [--scale 0.015]
        [--tasks anonymize hide] [--euler]

Regenerates CelebA-HQ faces with the embedded model as the presets do, but for the number of steps in which they come
down from the presets' noise; the same noise, and so the same aims, at every number of steps. ``--repeats``: gradients
of a long step. ``--euler``: without new noise in the steps, and without sharpening.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffprivacy import demo
from diffprivacy.backends.diffusers import DiffusersModel
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.diffusion.guidance import Guidance, guided
from diffprivacy.diffusion.inpainting import inpainting, latent_mask
from diffprivacy.diffusion.model import Denoiser
from diffprivacy.diffusion.sampling import noise_to, sample_ancestral, sample_euler
from diffprivacy.diffusion.sharpening import sharpening
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import crop_face, crop_landmarks
from diffprivacy.faces.keeping import replaced_part
from diffprivacy.faces.selection import select_faces
from diffprivacy.identity.energies import latent_gradient, visual_distance
from diffprivacy.identity.recognizers import load_recognizer
from diffprivacy.media.images import read_picture
from diffprivacy.presets import GUIDED, PRESETS
from diffprivacy.regeneration import fresh_noise, task_energy

LAST = 999


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


def sharpened(model: DiffusersModel) -> Denoiser:
    """The model's predictions under the empty prompt, sharpened."""
    text, spoilt = model.text_conditioning(""), model.text_conditioning(model.spoilt or "")

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = model.denoise(x, sigma, text)
        return denoised + sharpening(denoised, model.denoise(x, sigma, spoilt))

    return denoise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 20, 50])
    parser.add_argument("--tasks", nargs="+", default=["anonymize", "hide"])
    parser.add_argument("--repeats", type=int, default=Guidance.repeats)
    parser.add_argument("--scale", type=float, help="of guidance; the preset's by default")
    parser.add_argument("--euler", action="store_true")
    options = parser.parse_args()
    data = Path(os.environ["DIFFPRIVACY_DATA"])
    model, guide = load_diffusion_model(), demo.load_recognizer("guide")
    judge = load_recognizer(data / "recognizers" / "mobilefacenet_ms1m.onnx")
    crops, points = faces_of(data, options.faces)
    latents, text, levels = model.encode(crops), model.text_conditioning(""), model.noise_levels
    plain = partial(model.denoise, conditioning=text) if options.euler else sharpened(model)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    masks = torch.stack([replaced_part(each, crops.shape[-1]) for each in points])
    mask = latent_mask(masks, latents.shape[-2:])
    print("| task | steps | guide | judge | structure |\n|---|---|---|---|---|")
    for task in options.tasks:
        energy = task_energy(task, guide)(crops, points, noise)
        assert energy is not None
        gradient = latent_gradient(energy, model.differentiable_decoder())
        preset = PRESETS[task]["default"]
        guidance = Guidance(scale=options.scale or preset.scale, interval=GUIDED, repeats=options.repeats)
        for steps in options.steps:
            times = torch.linspace(preset.strength * LAST, 0, steps + 1)[:-1].round()
            sigmas = torch.cat([levels.sigma(times), torch.zeros(1)])
            denoiser = guided(plain, gradient, sigmas, guidance, levels, not options.euler)
            denoiser = inpainting(denoiser, latents, noise, mask)
            start = noise_to(latents, sigmas[0], noise)
            if options.euler:
                samples = sample_euler(denoiser, start, sigmas)
            else:
                samples = sample_ancestral(denoiser, start, sigmas, partial(fresh_noise, noise))
            made = model.decode(samples)
            cosines = [
                float(each.cosine(each.reference(made, points), each.reference(crops, points)).mean())
                for each in (guide, judge)
            ]
            structure = float(visual_distance(crops, points, points)(made).sqrt().mean())
            cells = [f"{cosine:.2f}" for cosine in cosines]
            print(f"| {task} | {steps} | {' | '.join(cells)} | {structure:.3f} |", flush=True)


if __name__ == "__main__":
    main()
