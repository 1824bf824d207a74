"""What a graphics card does: one command for every figure that needs one.

    python -m benchmarks.gpu                               # all tables, full-size seeded weights, on the card
    python -m benchmarks.gpu --device cpu --tiny           # the same rows on a CPU with narrow networks: a test that it runs

Prints Markdown tables with the card's name. Seeded weights in the shapes of Stable Diffusion 1.5 at 512 pixels: a guided
step against an unguided one (TAESD, VAE; 1 and 4 variants) with its launches, waits and bytes uploaded, the peak of
memory, inversion in half precision, a step of MSI training, one face with 4 variants from end to end, and whether the
same noise gives the same face twice.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.guidance import demo_landmarks, diffusion_models_of, networks
from diffprivacy import demo
from diffprivacy.backends.diffusers import DiffusersModel
from diffprivacy.diffusion.guidance import Guidance, guided
from diffprivacy.diffusion.inversion import invert_belm, invert_fixed_point, tolerance_for
from diffprivacy.diffusion.model import TextConditioning
from diffprivacy.diffusion.sampling import ddim_sigmas, sample_euler
from diffprivacy.identity.energies import augmented, identity_away, latent_gradient, near_faces

WAITS = ("Synchronize", "_local_scalar_dense")
"""Parts of the names of profiler events in which the processor waits for the card."""
STEPS = 50


@dataclass(frozen=True)
class Scene:
    """What all rows share: the denoiser, the decoders, the energy and the latents."""

    device: torch.device
    denoise: Callable[[Tensor, Tensor], Tensor]
    decoders: dict[str, Callable[[Tensor], Tensor]]
    energy: Any
    latent: Tensor
    diffusion_model: DiffusersModel

    @classmethod
    def made(cls, device: torch.device, tiny: bool) -> Scene:
        half = torch.float16 if device.type == "cuda" else torch.float32
        size = 64 if tiny else 512
        with device:
            diffusion_models = diffusion_models_of(*networks(full=not tiny), device, half)
        diffusion_model, points = diffusion_models["VAE"], demo_landmarks(size)
        context = TextConditioning(torch.randn(1, 77, 768, device=device))
        recognizer = demo.load_recognizer("guide").to(device)
        reference = recognizer.reference(torch.rand(1, 3, size, size, device=device), points)
        energy = augmented(identity_away(recognizer, reference, points), points)
        near = near_faces(diffusion_models["TAESD"].differentiable_decoder(), points)
        return cls(
            device,
            lambda x, sigma: diffusion_model.denoise(x, sigma, context),
            {"TAESD": near, "VAE": diffusion_model.differentiable_decoder()},
            energy,
            torch.randn(1, 4, size // 8, size // 8, device=device),
            diffusion_model,
        )

    def steps(self, decoder: str | None, variants: int, count: int) -> Tensor:
        """Some guided steps, or unguided ones."""
        levels = self.diffusion_model.noise_levels
        sigmas = ddim_sigmas(levels, STEPS, 0.6).to(self.device)[: count + 1]
        denoise = self.denoise
        if decoder is not None:
            gradient = latent_gradient(self.energy, self.decoders[decoder])
            denoise = guided(denoise, gradient, sigmas, Guidance(), levels)
        return sample_euler(denoise, self.latent.repeat(variants, 1, 1, 1) * sigmas[0], sigmas)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of a run, after one that warms up."""
    run()
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def peak(device: torch.device) -> str:
    """Memory of the card at most since the last reset, in GiB."""
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f}" if device.type == "cuda" else "–"


def launches(run: Callable[[], object]) -> tuple[int, int, float]:
    """Kernels launched (operations on a CPU), waits, and MB uploaded, from torch.profiler."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as recorded:
        run()
    events = recorded.events() or []
    kernel = "cudaLaunchKernel" if torch.cuda.is_available() else "aten::"
    uploads = sum(getattr(e, "nbytes", 0) or 0 for e in events if "Memcpy HtoD" in e.name)
    waits = sum(any(part in e.name for part in WAITS) for e in events)
    return sum(e.name.startswith(kernel) for e in events), waits, uploads / 1e6


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n### {title}\n")
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")


def guidance_table(scene: Scene, count: int) -> None:
    rows = []
    for variants in (1, 4):
        plain = None
        for decoder in (None, "TAESD", "VAE"):
            if scene.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(scene.device)
            run = partial(scene.steps, decoder, variants, count)
            taken = seconds(run, scene.device) / count
            plain = plain or taken
            kernels, waits, uploaded = launches(partial(scene.steps, decoder, variants, 1))
            numbers = [f"{taken / plain:.2f}", peak(scene.device), str(kernels), str(waits), f"{uploaded:.1f}"]
            rows.append([str(variants), decoder or "unguided", *numbers])
    head = ["variants", "decoder", "time of a step / unguided", "peak GiB", "launches a step", "waits", "MB uploaded"]
    table("A guided step", head, rows)


def inversion_table(scene: Scene, steps: int) -> None:
    rows, levels = [], scene.diffusion_model.noise_levels
    sigmas = ddim_sigmas(levels, steps).to(scene.device)
    calls = [0]

    def counting(x: Tensor, sigma: Tensor) -> Tensor:
        calls[0] += 1
        return scene.denoise(x, sigma)

    fixed = partial(invert_fixed_point, tolerance=tolerance_for(scene.diffusion_model.dtype))
    for name, invert in (("fixed point", fixed), ("belm", invert_belm)):
        calls[0] = 0
        taken = seconds(lambda invert=invert: invert(counting, scene.latent, sigmas), scene.device)
        rows.append([name, str(calls[0] // 2), f"{taken:.2f} s"])
    table(f"Inversion in {scene.diffusion_model.dtype}, {steps} steps", ["method", "evaluations", "time"], rows)


def whole_table(scene: Scene, steps: int) -> None:
    made: list[Tensor] = []

    def one() -> None:
        made.append(scene.diffusion_model.decode(scene.steps("TAESD", 4, steps)))

    taken = seconds(one, scene.device)
    same = "yes, to the bit" if torch.equal(made[0], made[1]) else f"no, up to {(made[0] - made[1]).abs().max():.2g}"
    table("One face, 4 variants", ["steps", "time", "the same twice"], [[str(steps), f"{taken:.2f} s", same]])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="narrow networks and few steps")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("No graphics card is here, so nothing was measured; --device cpu --tiny tests the command.")
        return 1
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, PyTorch {torch.__version__}{', narrow networks' if options.tiny else ''}")
    torch.manual_seed(0)
    scene = Scene.made(device, options.tiny)
    steps = 2 if options.tiny else STEPS
    guidance_table(scene, 1 if options.tiny else 10)
    inversion_table(scene, steps)
    whole_table(scene, 2 if options.tiny else 30)
    print("\nMSI training at full size: python -m benchmarks.msi --full-size --device cuda")
    return 0


if __name__ == "__main__":
    sys.exit(main())
