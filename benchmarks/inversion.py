"""What each inversion costs and what it gives back, on a seeded tiny SD 1.x checkpoint or on a real one.

    python -m benchmarks.inversion [--checkpoint FILE] [--side 32] [--dtype float32|float16] [--device cpu]

The key is what recovery must store: the noise map, for BELM two of them, in float32.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffprivacy.backends.diffusers import load_diffusion_model
from diffprivacy.diffusion.inversion import invert_belm, invert_ddim, invert_fixed_point, sample_belm
from diffprivacy.diffusion.model import Denoiser
from diffprivacy.diffusion.sampling import ddim_sigmas, sample_euler
from testing.checkpoints import write_tiny_sd1

METHODS: dict[str, tuple[Callable, Callable]] = {
    "ddim": (invert_ddim, sample_euler),
    "fixed_point K=2": (partial(invert_fixed_point, iterations=2), sample_euler),
    "fixed_point K=5": (partial(invert_fixed_point, iterations=5), sample_euler),
    "fixed_point": (invert_fixed_point, sample_euler),
    "belm": (invert_belm, sample_belm),
}


class Counted:
    """A denoiser that counts its evaluations."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser
        self.evaluations = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.evaluations += 1
        return self.denoiser(x, sigma)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="SD 1.x file or diffusers folder (default: seeded tiny one)")
    parser.add_argument("--side", type=int, default=32, help="side of the latent")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="the network's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50, 100])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        diffusion_model = load_diffusion_model(options.checkpoint or write_tiny_sd1(Path(folder) / "tiny.safetensors"))
    diffusion_model.to(options.device, getattr(torch, options.dtype))
    conditioning = diffusion_model.text_conditioning("")
    z0 = torch.randn(
        1, diffusion_model.latent_channels, options.side, options.side, generator=torch.Generator().manual_seed(0)
    )
    z0 = z0.to(options.device)
    print(f"latent {tuple(z0.shape)}, network {options.dtype} on {options.device}")
    print(f"{'steps':>5}  {'method':<16} {'up':>5} {'down':>5} {'seconds':>8} {'round trip RMSE':>16} {'key kB':>7}")
    for steps in options.steps:
        sigmas = ddim_sigmas(diffusion_model.noise_levels, steps).to(options.device)
        for name, (invert, sample) in METHODS.items():
            up, down = (Counted(lambda x, sigma: diffusion_model.denoise(x, sigma, conditioning)) for _ in range(2))
            start = time.perf_counter()
            noise = invert(up, z0, sigmas)
            states = tuple(n.float() for n in noise) if isinstance(noise, tuple) else noise.float()
            back = sample(down, states, sigmas)
            seconds = time.perf_counter() - start
            key = 4 * z0.numel() * (2 if isinstance(noise, tuple) else 1) / 1000
            error = (back - z0).square().mean().sqrt().item()
            print(
                f"{steps:>5}  {name:<16} {up.evaluations:>5} {down.evaluations:>5} {seconds:>8.1f} {error:>16.1e} {key:>7.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
