"""What identity guidance costs: seconds of a guided step over an unguided one, and peak memory.

    python -m benchmarks.guidance                                      # a narrow SD 1.5 shape, 256 pixels, CPU
    python -m benchmarks.guidance --full --size 512 --device cuda --dtype float16
    python -m benchmarks.guidance --full --size 512 --dtype float16 --footprint    # bytes of tensors, nothing computed

Seeded weights in the shapes of Stable Diffusion 1.5 (UNet 860 M parameters, autoencoder 84 M; narrow: 35 M and 5 M) and of
TAESD, which is the same in both. The energy is that of one face and the demo guide, without augmentations. The
autoencoder is in float32, as in the library, or in bfloat16, as ComfyUI holds it on cards that have it. Memory is the
allocator's peak on CUDA, the process's, weights included, on a CPU, and with --footprint that of the tensors of the
row's networks and activations (see benchmarks.footprint).
"""

from __future__ import annotations

import argparse
import copy
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprivacy import demo
from diffprivacy.backends.diffusers import DiffusersAutoencoder, DiffusersModel
from diffprivacy.diffusion.guidance import Guidance, guided
from diffprivacy.diffusion.model import TextConditioning
from diffprivacy.diffusion.sampling import ddim_sigmas, sample_euler
from diffprivacy.identity.energies import identity_away, latent_gradient, near_faces
from testing.footprint import Footprint, without_data

STATUS = Path("/proc/self/status")
ROWS = (
    ("–", None, 1),
    ("VAE", None, 1),
    ("VAE", None, 2),
    ("VAE", 1, 1),
    ("VAE, checkpointed", None, 1),
    ("VAE, checkpointed", 1, 1),
    ("VAE, bfloat16, checkpointed", None, 1),
    ("VAE, bfloat16, checkpointed", 1, 1),
    ("TAESD", None, 1),
    ("TAESD", None, 2),
)
"""Decoder, pictures decoded at once, and every how many steps it guides."""


def networks(full: bool) -> tuple[Any, Any, Any]:
    """UNet, autoencoder and TAESD."""
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

    torch.manual_seed(0)
    width, decoder_width = (320, 128) if full else (64, 32)
    channels: Any = (width, 2 * width, 4 * width, 4 * width)
    unet = UNet2DConditionModel(64, block_out_channels=channels, cross_attention_dim=768, attention_head_dim=8)
    shape: Any = {
        "block_out_channels": (decoder_width, 2 * decoder_width, 4 * decoder_width, 4 * decoder_width),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    }
    autoencoder = AutoencoderKL(**shape)
    return unet, autoencoder, AutoencoderTiny()


def measured(run: Callable[[], Tensor], device: torch.device) -> tuple[float, float]:
    """Seconds (on a CPU those of its processor time) and peak memory in GiB of a run."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
        return clock() - start, torch.cuda.max_memory_allocated() / 2**30
    peak = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    assert peak is not None
    return clock() - start, int(peak[1]) / 2**20


def counted(run: Callable[[], Tensor], *networks: torch.nn.Module) -> float:
    """Peak of the tensors, these networks' weights included, in GiB."""
    with Footprint(*networks) as footprint:
        run()
    return footprint.peak / 2**30


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the real widths of Stable Diffusion 1.5")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--variants", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the UNet")
    parser.add_argument("--decoders", nargs="+", help="those to guide through, such as TAESD; all by default")
    parser.add_argument("--footprint", action="store_true", help="count the bytes of tensors, compute nothing")
    return parser.parse_args()


def diffusion_models_of(
    unet: Any, autoencoder: Any, tiny: Any, device: torch.device, dtype: torch.dtype
) -> dict[str, DiffusersModel]:
    """The UNet with each decoder; on the meta device, with what makes their tensors countable."""
    half_autoencoder = copy.deepcopy(autoencoder).to(torch.bfloat16)
    decoders = {"VAE": (autoencoder, 0.18215), "VAE, bfloat16": (half_autoencoder, 0.18215), "TAESD": (tiny, 1.0)}
    diffusion_models = {
        name: DiffusersModel(unet, DiffusersAutoencoder(decoder).eval(), [], [], scale).to(device, dtype)
        for name, (decoder, scale) in decoders.items()
    }
    if device.type == "meta":
        without_data(unet, autoencoder, half_autoencoder, tiny)
    return diffusion_models


def _print_head(options: argparse.Namespace) -> None:
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    print(f"{device}, {options.size} pixels, {options.dtype}")
    columns = ["variants", "decoder", "chunk"]
    columns += ["tensors"] if options.footprint else ["guided", "s a step", "over unguided", "peak memory"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")


def main() -> None:
    options = _options()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    weights_device = torch.device("meta") if options.footprint else device
    with weights_device:
        unet, autoencoder, tiny = networks(options.full)
    diffusion_models = diffusion_models_of(unet, autoencoder, tiny, weights_device, dtype)
    recognizer = demo.load_recognizer("guide").to(device)
    landmarks = demo_landmarks(options.size).to(device)
    reference = recognizer.reference(torch.rand(1, 3, options.size, options.size, device=device), landmarks)
    energy = identity_away(recognizer, reference, landmarks)
    conditioning = TextConditioning(torch.randn(1, 77, 768, device=device))
    levels = diffusion_models["VAE"].noise_levels
    sigmas = ddim_sigmas(levels, options.steps).to(device)

    def run(variants: int, decoder: Callable[[Tensor], Tensor] | None, chunk: int | None, every: int) -> Tensor:
        x = torch.randn(variants, 4, options.size // 8, options.size // 8, device=device)

        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            return diffusion_models["VAE"].denoise(x, sigma, conditioning)

        if decoder is None:
            return sample_euler(denoiser, x, sigmas)
        gradient = latent_gradient(energy, decoder, chunk)
        return sample_euler(guided(denoiser, gradient, sigmas, Guidance(every=every), levels), x, sigmas)

    _print_head(options)
    if not options.footprint:
        run(1, diffusion_models["TAESD"].differentiable_decoder(), None, 1)
    for variants in options.variants:
        unguided = 0.0
        for name, chunk, every in ROWS:
            left_out = options.decoders and name not in ("–", *options.decoders)
            if left_out or chunk == variants or (options.footprint and every > 1):
                continue
            diffusion_model = diffusion_models.get(name.removesuffix(", checkpointed"))
            if diffusion_model:
                model: Any = diffusion_model.autoencoder.model
                checkpointed = name.endswith("checkpointed")
                (model.enable_gradient_checkpointing if checkpointed else model.disable_gradient_checkpointing)()
            decoder = diffusion_model and diffusion_model.differentiable_decoder()
            if decoder and name == "TAESD":
                decoder = near_faces(decoder, landmarks)
            row = partial(run, variants, decoder, chunk, every)
            if options.footprint:
                peak = counted(row, unet, *([recognizer, diffusion_model.autoencoder] if diffusion_model else []))
                print(f"| {variants} | {name} | {chunk or 'all'} | {peak:.2f} GiB |", flush=True)
                continue
            seconds, peak = measured(row, device)
            seconds /= options.steps
            unguided = unguided or seconds
            when = "never" if decoder is None else ("every step", "every 2nd step")[every - 1]
            print(
                f"| {variants} | {name} | {chunk or 'all'} | {when} | {seconds:.2f} | {seconds / unguided:.2f} | "
                f"{peak:.1f} GiB |",
                flush=True,
            )


def demo_landmarks(size: int) -> Tensor:
    """The five points (1,5,2) of a face in the middle of a crop with margin 1.8."""
    from diffprivacy.faces.geometry import ARCFACE_TEMPLATE

    points = torch.from_numpy(ARCFACE_TEMPLATE)
    return ((points - 55.5) * size / (112 * 1.8) + (size - 1) / 2)[None]


if __name__ == "__main__":
    main()
