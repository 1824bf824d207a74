"""Distil the second recognizer: ``python -m training.recognizer DATA.tar OUT``.

The student sees what the teacher sees, and more of it than there are people: views of portraits and blends of two
faces, so that it learns the teacher's function rather than a list of names. Its own view is degraded further.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from diffprivacy.demo.recognizers import FaceResNet

from .data import Augmenter, arcface_crop, in_colour, read_portraits, split
from .loop import autocast, channels_last, parser, run_of, shipped_weights, train
from .teacher import Teacher

BLENDED = 0.4


def blended(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images of which the last 40 % are mixed with another image of the batch: whole, or the half on one side."""
    device, count = images.device, int(len(images) * BLENDED)
    mixed, partner = images[-count:], images[torch.randperm(len(images), generator=generator, device=device)[:count]]
    chance = torch.rand(3, count, 1, 1, 1, generator=generator, device=device)
    ramp = torch.linspace(-6, 6, images.shape[-1], device=device).view(1, 1, 1, -1)
    side = torch.sigmoid(torch.where(chance[0] < 0.5, ramp, ramp.mT))
    weight = torch.where(chance[1] < 0.5, 0.25 + chance[2] / 2, side)
    return torch.cat([images[:-count], weight * mixed + (1 - weight) * partner])


def degraded(crops: Tensor, generator: torch.Generator) -> Tensor:
    """What only the student has to bear: noise, and for some a blur, half the resolution or a patch cut out."""
    device, b = crops.device, len(crops)
    chance = torch.rand(5, b, 1, 1, 1, generator=generator, device=device)
    small = F.interpolate(F.interpolate(crops, size=56, mode="area"), size=112, mode="bilinear")
    blurred = F.avg_pool2d(F.pad(crops, (1, 1, 1, 1), mode="reflect"), 3, 1)
    crops = torch.where(chance[0] < 0.15, small, torch.where(chance[0] > 0.85, blurred, crops))
    axis = torch.arange(112, device=device)
    near_x, near_y = ((axis - 14 - 84 * chance[i]).abs() < 14 for i in (1, 2))
    crops = crops.masked_fill(near_x & near_y.mT & (chance[3] < 0.2), 0.5)
    return crops + 0.04 * chance[4] * torch.randn(crops.shape, generator=generator, device=device)


def main() -> None:
    arguments = parser("Distil one of the demo model's recognizers.", steps=60_000, batch=64, lr=2e-3)
    options = arguments.parse_args()
    run = run_of(options, weight_decay=0.05)
    device = run.device
    training, held_out = (p.to(device) for p in split(read_portraits(options.data)))
    colour = torch.cat([in_colour(chunk / 255) for chunk in training.split(512)])
    teacher = Teacher(device)
    held_out_crops = arcface_crop(held_out / 255)
    truth = teacher(held_out_crops)
    model = channels_last(FaceResNet(), device)
    if options.shipped:
        model.load_state_dict(shipped_weights("resnet"))

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(training), (run.batch,), generator=generator, device=device)
        views, _ = Augmenter(generator)(training[chosen] / 255, colour[chosen])
        crops = arcface_crop(blended(views, generator))
        with torch.no_grad():
            target = teacher(crops)
        with autocast(device):
            embedding = model(degraded(crops, generator).contiguous(memory_format=torch.channels_last) * 2 - 1)
        cosine = (embedding * target).sum(1).mean()
        relation = (embedding @ embedding.T - target @ target.T).square().mean()
        return 1 - cosine + 4 * relation, {"cosine": cosine.item(), "relation": relation.item()}

    def evaluate(weights: dict[str, Tensor]) -> str:
        averaged = FaceResNet().to(device)
        averaged.load_state_dict(weights)
        with torch.no_grad():
            embedding = averaged.eval()(held_out_crops * 2 - 1)
        upper = torch.triu_indices(len(truth), len(truth), 1)
        pairs = torch.stack([(e @ e.T)[upper[0], upper[1]] for e in (embedding, truth)])
        return (
            f"held-out cosine to teacher {(embedding * truth).sum(1).mean():.3f}, "
            f"correlation of pair cosines {torch.corrcoef(pairs)[0, 1]:.3f}"
        )

    train(model, loss, run, evaluate)


if __name__ == "__main__":
    main()
