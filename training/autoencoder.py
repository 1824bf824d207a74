"""Train the autoencoder: ``python -m training.autoencoder DATA.tar OUT``.

Loss: mean absolute error, plus the loss of identity in the eyes of the teacher. Half of the latents get a little noise,
so that the decoder forgives what a diffusion model gets slightly wrong. ``--decoder-only CHECKPOINT_FOLDER`` starts from
another run with its encoder frozen and its latents scaled to unit variance: a diffusion model may then train on these
latents while the decoder goes on improving.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from diffprivacy.demo.autoencoder import BLOCK, Autoencoder
from diffprivacy.demo.load import WEIGHTS

from .data import Augmenter, arcface_crop, in_colour, read_portraits, split
from .loop import autocast, channels_last, checkpoint_weights, parser, run_of, shipped_weights, train
from .teacher import Teacher

CONFIG = WEIGHTS.parent / "configs" / "autoencoder.json"
NOISE = 0.05


def principal_components(images: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (3,), basis (192, count) and standard deviations (count,) of the 8x8 blocks of images (B,3,H,W)."""
    mean = images.mean((0, 2, 3))
    blocks = F.unfold(images - mean.view(1, 3, 1, 1), BLOCK, stride=BLOCK).transpose(1, 2).reshape(-1, 3 * BLOCK**2)
    values, vectors = torch.linalg.eigh(blocks.T @ blocks / len(blocks))
    return mean, vectors.flip(1)[:, :count], values.flip(0)[:count].sqrt()


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures of the PSNR in dB; images in [0,1]."""
    return float((-10 * (a - b).square().mean((1, 2, 3)).log10()).mean())


def main() -> None:
    arguments = parser("Train the demo model's autoencoder.", steps=60_000, batch=32, lr=1e-3)
    arguments.add_argument("--identity-weight", type=float, default=0.1)
    arguments.add_argument("--decoder-only", type=Path, help="run folder to take the encoder from")
    options = arguments.parse_args()
    run = run_of(options)
    device = run.device
    training, held_out = (p.to(device) for p in split(read_portraits(options.data)))
    colour = torch.cat([in_colour(chunk / 255) for chunk in training.split(512)])
    held_out = held_out / 255
    teacher = Teacher(device)
    config = json.loads(CONFIG.read_text())
    model: Autoencoder = channels_last(Autoencoder(**config), device)
    if options.decoder_only:
        model.load_state_dict(checkpoint_weights(options.decoder_only))
        with torch.no_grad():
            model.rescale(1 / float(model.encode(held_out * 2 - 1).std()))
        model.encoder.requires_grad_(False)
    elif options.shipped:
        model.load_state_dict(shipped_weights("autoencoder"))
    else:
        # Gains halfway to whitening: coarse structure keeps the larger share of the diffusion model's attention.
        mean, basis, deviations = principal_components(training[::4] / 127.5 - 1, config["latent_channels"])
        model.set_linear(mean, basis, deviations**-0.5)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(training), (run.batch,), generator=generator, device=device)
        images, _ = Augmenter(generator)(training[chosen] / 255, colour[chosen])
        with autocast(device):
            latents = model.encode(images * 2 - 1).float()
            half = run.batch // 2
            level = NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator, device=device)
            level[:half] = 0
            latents = latents + level * torch.randn(latents.shape, generator=generator, device=device)
            restored = model.decode(latents).float() / 2 + 0.5
        absolute = (restored - images).abs().mean()
        with torch.no_grad():
            truth = teacher(arcface_crop(images[:half]))
        cosine = (teacher(arcface_crop(restored[:half].clamp(0, 1))) * truth).sum(1).mean()
        parts = {"l1": absolute.item(), "cosine": cosine.item(), "psnr": psnr(restored.detach(), images)}
        return 2 * absolute + options.identity_weight * (1 - cosine), parts

    def evaluate(weights: dict[str, Tensor]) -> str:
        averaged = Autoencoder(**config).to(device)
        averaged.load_state_dict(weights)
        with torch.no_grad():
            latents = averaged.encode(held_out * 2 - 1)
            restored = (averaged.decode(latents) / 2 + 0.5).clamp(0, 1)
            cosine = (teacher(arcface_crop(restored)) * teacher(arcface_crop(held_out))).sum(1).mean()
        deviations = " ".join(f"{d:.2f}" for d in latents.std((0, 2, 3)))
        return f"held out {psnr(restored, held_out):.2f} dB, teacher cosine {cosine:.3f}, latent std {deviations}"

    train(model, loss, run, evaluate)


if __name__ == "__main__":
    main()
