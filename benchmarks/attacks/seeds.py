"""Is the noise of a published face found by trying seeds?

    DIFFPRIVACY_DATA=... python -m benchmarks.attacks.seeds [--faces 6] [--window 4096]

The attacker inverts the published crop (DDIM, empty prompt) and correlates the result with the noise of every seed of a
window that holds the true one. torch's generators keep 32 bits of a seed: the time for 2^32 follows from the window's.
A noise key has 256 bits; there the window holds the seeds' noise and the true noise is not among it. z is in standard
deviations of unrelated noise; the largest of 4096 unrelated ones is about 3.6, of 2^32 about 6.3.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from diffprivacy import demo
from diffprivacy.diffusion.conditioning import stage_denoiser
from diffprivacy.diffusion.inversion import invert_ddim
from diffprivacy.diffusion.noise import NoiseKey
from diffprivacy.diffusion.sampling import ddim_sigmas
from diffprivacy.faces.geometry import crop_face, crop_landmarks
from diffprivacy.regeneration import Regeneration, latent_shape, regenerate_crops

from . import faces

FIRST = 1_000_000
"""The first seed of the window; the true ones lie in it."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=6)
    parser.add_argument("--window", type=int, default=4096, help="seeds to try")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args(arguments)
    lab = faces.open_lab()
    photos = faces.celebrities(lab, options.faces)
    shape = latent_shape(lab.diffusion_model, demo.IMAGE_SIZE)
    true = [(FIRST + 7 * i) for i in range(len(photos))]
    sources = {
        "a seed of torch": torch.stack([_of_seed(seed, shape) for seed in true]),
        "256 bits": torch.stack([NoiseKey().normal(shape) for _ in photos]),
    }
    window, seconds = _window(options.window, shape)
    print("| noise, guidance | z of the true noise | largest z of the window | found |\n|---|---|---|---|")
    for method in faces.methods(lab, options.steps):
        if not method.name.startswith(("unguided", "stranger")):
            continue
        for source, noise in sources.items():
            found = _inverted(photos, noise, lab, method).flatten(1)
            z = _normal(found) @ window.T * window.shape[1] ** 0.5
            own = (_normal(found) * _normal(noise.flatten(1))).sum(dim=1) * window.shape[1] ** 0.5
            hits = sum(int(row.argmax()) == seed - FIRST for row, seed in zip(z, true, strict=True))
            share = f"{hits} of {len(photos)}" if source != "256 bits" else "not in any window"
            print(
                f"| {source}, {method.name} | {own.min():.0f} to {own.max():.0f} | {z.max():.1f} | {share} |",
                flush=True,
            )
    rate = options.window / seconds
    print(
        f"\n{rate:.0f} seeds a second on one core: {2**32 / rate / 3600:.1f} h for 2^32, {2**256 / rate:.0e} s for 2^256"
    )


def _of_seed(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _normal(rows: Tensor) -> Tensor:
    """Rows (N,D) of unit length."""
    return torch.nn.functional.normalize(rows)


def _window(count: int, shape: tuple[int, ...]) -> tuple[Tensor, float]:
    """The noise of consecutive seeds as rows of unit length, and the processor's seconds to make and compare it."""
    start = time.process_time()
    rows = _normal(torch.stack([_of_seed(FIRST + i, shape).flatten() for i in range(count)]))
    torch.mv(rows, rows[0])
    return rows, time.process_time() - start


def _inverted(photos: Sequence[faces.Photo], noise: Tensor, lab: faces.Lab, method: faces.Method) -> Tensor:
    """What inversion finds in the published crops, less what the attacker knows to be the image."""
    crops = torch.stack([crop_face(p.rgb, p.face, demo.IMAGE_SIZE, demo.MARGIN).movedim(-1, 0) for p in photos])
    landmarks = torch.stack([crop_landmarks(p.face, demo.IMAGE_SIZE, demo.MARGIN) for p in photos])
    published = regenerate_crops(
        crops, landmarks, noise, lab.diffusion_model, Regeneration(method.preset, method.energy)
    )
    latents = lab.diffusion_model.encode(published)
    sigmas = ddim_sigmas(lab.diffusion_model.noise_levels, method.preset.steps, method.preset.strength)
    return invert_ddim(stage_denoiser(lab.diffusion_model), latents, sigmas) - latents


if __name__ == "__main__":
    main()
