"""What a graphics card does: one command for every figure that needs one.

    python -m benchmarks.gpu                               # all tables, full-size seeded weights, on the card
    python -m benchmarks.gpu --device cpu --tiny           # the same rows on a CPU with narrow networks: a test that it runs

Prints Markdown tables with the card's name. Seeded weights in the shapes of Stable Diffusion 1.5 at 512 pixels and SDXL at
1024: a guided step against an unguided one (TAESD, VAE; 1 and 4 variants) with its launches, waits and bytes uploaded
from torch.profiler, the peak of memory, inversion in half precision, one face with 4 variants from end to end, and
whether the same noise gives the same face twice; and MSI training of SD 1.5. Some two minutes on an H100. A table that
fails says why, and the others are made.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.guidance import demo_landmarks
from benchmarks.msi import full_size, full_size_model
from diffprivacy import demo
from diffprivacy.backends.diffusers import DiffusersAutoencoder, DiffusersModel, load_diffusion_model
from diffprivacy.demo.backend import load_diffusion_model as load_demo_model
from diffprivacy.diffusion.guidance import Guidance, guided
from diffprivacy.diffusion.inversion import invert_belm, invert_fixed_point, tolerance_for
from diffprivacy.diffusion.model import NoiseLevels, TextConditioning
from diffprivacy.diffusion.out_of_memory import halving
from diffprivacy.diffusion.sampling import ddim_sigmas, sample_euler
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.identity.energies import augmented, identity_away, latent_gradient, near_faces
from diffprivacy.msi.training import Settings
from testing.checkpoints import write_tiny_folder

WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy", "hipStreamSynchronize")
"""Names of what the profiler records where the processor waits for the card."""
STEPS = 50
TIMED = 5
"""Guided steps that are timed, after one that warms up."""
SIZES = {"SD 1.5": 512, "SDXL": 1024}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1280 + 6 * 256,
}
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


def model_of(family: str, device: torch.device, tiny: bool) -> DiffusersModel:
    """A family's networks with seeded weights, the UNet in half precision on a card; no text encoders."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    if tiny:
        with tempfile.TemporaryDirectory() as folder:
            return load_diffusion_model(write_tiny_folder(Path(folder), "sdxl" if family == "SDXL" else "sd2"))
    config: dict[str, Any] = SDXL if family == "SDXL" else {"sample_size": 64, "cross_attention_dim": 768}
    half = torch.float16 if device.type == "cuda" else torch.float32
    with device:
        torch.set_default_dtype(half)  # SDXL's weights in float32 would not fit where the network does.
        unet = UNet2DConditionModel(**config).eval()
        torch.set_default_dtype(torch.float32)
        autoencoder = DiffusersAutoencoder(AutoencoderKL(**AUTOENCODER), checkpointing=True).eval()
    return DiffusersModel(unet, autoencoder, [], [], 0.13025 if family == "SDXL" else 0.18215)


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
    def made(cls, family: str, device: torch.device, tiny: bool) -> Scene:
        from diffusers import AutoencoderTiny

        size = 64 if tiny else SIZES[family]
        diffusion_model, points = model_of(family, device, tiny), demo_landmarks(size)
        unet = diffusion_model.unet.config
        pooled = unet.projection_class_embeddings_input_dim
        with device:
            context = torch.randn(1, 77, unet.cross_attention_dim)
            vector = None if pooled is None else torch.randn(1, pooled - 6 * unet.addition_time_embed_dim)
            small = DiffusersModel(diffusion_model.unet, DiffusersAutoencoder(AutoencoderTiny()).eval(), [], [], 1.0)
        recognizer = demo.load_recognizer("guide").to(device)
        reference = recognizer.reference(torch.rand(1, 3, size, size, device=device), points)
        energy = augmented(identity_away(recognizer, reference, points), points)
        text = TextConditioning(context, vector)
        decoders = {
            "TAESD": near_faces(small.differentiable_decoder(), points),
            "VAE": diffusion_model.differentiable_decoder(),
        }
        latent = torch.randn(1, 4, size // 8, size // 8, device=device)
        return cls(
            device, lambda x, sigma: diffusion_model.denoise(x, sigma, text), decoders, energy, latent, diffusion_model
        )

    def steps(self, decoder: str | None, variants: int, count: int) -> Tensor:
        """Some guided steps, or unguided ones."""
        levels = self.diffusion_model.noise_levels
        sigmas = ddim_sigmas(levels, STEPS, 0.6)[: count + 1]
        denoise = self.denoise
        if decoder is not None:
            gradient = halving(partial(latent_gradient, self.energy, self.decoders[decoder]))
            denoise = guided(denoise, gradient, sigmas, Guidance(), levels)
        return sample_euler(denoise, self.latent.repeat(variants, 1, 1, 1) * sigmas[0], sigmas)


def seconds(run: Callable[[], object], device: torch.device, warm: Callable[[], object]) -> float:
    """Of a run, after a shorter one of the same kernels."""
    warm()
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def peak(device: torch.device) -> str:
    """Memory of the card at most since the last reset, all networks included, in GiB."""
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f}" if device.type == "cuda" else "–"


def launches(steps: Callable[[int], object], device: torch.device) -> tuple[int, int, float]:
    """What one step more costs: kernels launched (operations on a CPU), waits, and MB uploaded, from torch.profiler."""
    (kernels, waits, uploaded), more = _recorded(partial(steps, 1), device), _recorded(partial(steps, 2), device)
    return more[0] - kernels, more[1] - waits, (more[2] - uploaded) / 1e6


def _recorded(run: Callable[[], object], device: torch.device) -> tuple[int, int, int]:
    """Kernels, waits and bytes uploaded of a run."""
    card = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if card else [])]) as recorded:
        run()
        _wait(device)
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        recorded.export_chrome_trace(file.name)
        events = [event for event in json.loads(Path(file.name).read_text())["traceEvents"] if "name" in event]
    kernels = [e for e in events if e.get("cat") == ("kernel" if card else "cpu_op")]
    waits = [e for e in events if e.get("cat") == "cuda_runtime" and e["name"] in WAITS]
    copies = [e["args"].get("bytes", 0) for e in events if "Memcpy HtoD" in e["name"]]
    return len(kernels), len(waits), sum(copies)


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n### {title}\n")
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")
    sys.stdout.flush()


def guidance_table(scene: Scene, family: str, count: int) -> None:
    """Without memory for a row it says so; with memory for fewer pictures at once these are taken, and that is logged."""
    rows = []
    for variants in (1, 4):
        plain = None
        for decoder in (None, "TAESD", "VAE"):
            if scene.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(scene.device)
            row = [str(variants), decoder or "unguided"]
            try:
                steps = partial(scene.steps, decoder, variants)
                taken = seconds(partial(steps, count), scene.device, partial(steps, 1)) / count
                kernels, waits, uploaded = launches(steps, scene.device)
            except torch.OutOfMemoryError:
                rows.append([*row, "out of memory", "", "", "", "", ""])
                continue
            plain = plain or taken
            numbers = [f"{1000 * taken:.0f}", f"{taken / plain:.2f}", peak(scene.device)]
            rows.append([*row, *numbers, str(kernels), str(waits), f"{uploaded:.2f}"])
    head = ["variants", "decoder", "ms a step", "over unguided", "peak GiB", "launches a step", "waits", "MB uploaded"]
    table(f"A guided step, {family}", head, rows)


def inversion_table(scene: Scene, family: str, steps: int) -> None:
    rows, levels = [], scene.diffusion_model.noise_levels
    sigmas = ddim_sigmas(levels, steps)
    calls = [0]
    warm = partial(scene.denoise, scene.latent, sigmas[0])

    def counting(x: Tensor, sigma: Tensor) -> Tensor:
        calls[0] += 1
        return scene.denoise(x, sigma)

    exact = partial(invert_fixed_point, tolerance=1e-6)
    fixed = partial(invert_fixed_point, tolerance=tolerance_for(scene.diffusion_model.dtype))
    for name, invert in (("fixed point to 1e-6", exact), ("fixed point", fixed), ("belm", invert_belm)):
        calls[0] = 0
        try:
            taken = seconds(partial(invert, counting, scene.latent, sigmas), scene.device, warm)
            rows.append([name, str(calls[0]), f"{taken:.2f} s"])
        except DiffPrivacyError as error:  # Seeded weights promise no fixed point.
            rows.append([name, str(calls[0]), str(error)])
    table(
        f"Inversion in {scene.diffusion_model.dtype}, {family}, {steps} steps", ["method", "evaluations", "time"], rows
    )


def whole_table(scene: Scene, family: str, steps: int) -> None:
    made: list[Tensor] = []

    def one() -> None:
        samples = scene.steps("TAESD", 4, steps)
        made.append(torch.cat([scene.diffusion_model.decode(sample) for sample in samples.split(1)]))

    taken = seconds(one, scene.device, one)
    same = "yes, to the bit" if torch.equal(made[0], made[1]) else f"no, up to {(made[0] - made[1]).abs().max():.2g}"
    table(
        f"One face, 4 variants, {family}", ["steps", "time", "the same twice"], [[str(steps), f"{taken:.2f} s", same]]
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="narrow networks and few steps")
    parser.add_argument("--family", choices=SIZES, help="one of them only")
    options = parser.parse_args()
    device, tiny = torch.device(options.device), options.tiny
    if device.type == "cuda" and not torch.cuda.is_available():
        print("No graphics card is here, so nothing was measured; --device cpu --tiny tests the command.")
        return 1
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, PyTorch {torch.__version__}{', narrow networks' if tiny else ''}")
    failed = [not family_tables(family, device, tiny) for family in ([options.family] if options.family else SIZES)]
    return int(any(failed))


def family_tables(family: str, device: torch.device, tiny: bool) -> bool:
    """All tables of a family, SD 1.5's training among them; False where one failed."""
    torch.manual_seed(0)
    scene = Scene.made(family, device, tiny)
    well = [
        made(guidance_table, scene, family, 1 if tiny else TIMED),
        made(inversion_table, scene, family, 2 if tiny else STEPS),
        made(whole_table, scene, family, 2 if tiny else 30),
    ]
    del scene
    _give_back(device)
    if family == "SD 1.5":
        well.append(made(training_table, device, tiny))
        _give_back(device)
    return all(well)


def training_table(device: torch.device, tiny: bool) -> None:
    print("\n### MSI training, SD 1.5\n")
    if tiny:
        full_size(load_demo_model().to(device), 64, Settings(steps=1, batch=2, validation=2))
        return
    with device:  # Drawing that many weights on a processor takes longer than the training.
        model = full_size_model()
    model.noise_levels = NoiseLevels.scaled_linear()
    full_size(model.to(device, torch.bfloat16 if device.type == "cuda" else None), 512, Settings(steps=30))


def made(a_table: Callable[..., None], *arguments: Any) -> bool:
    """Whether a table was made; what stood in its way is printed."""
    try:
        a_table(*arguments)
    except Exception:
        print(f"\n{a_table.__name__} failed:\n{traceback.format_exc()}", flush=True)
        return False
    return True


def _give_back(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
