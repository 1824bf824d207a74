"""The validation loss over a training run as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

WIDTH, HEIGHT = 768, 432
LEFT, TOP, RIGHT, BOTTOM = 96, 40, 744, 376
LINE, GRID, INK = (31, 119, 180), (225, 225, 225), (40, 40, 40)


def draw_loss_curve(history: Sequence[tuple[int, float, float]]) -> Tensor:
    """Picture (432,768,3) in [0,1] of (step, seconds, loss) triples, at least one; the lowest loss is marked."""
    from PIL import Image, ImageDraw, ImageFont

    steps, _, losses = np.array(history).T
    low, high = losses.min(), losses.max()
    low, high = low - 0.05 * (high - low) - 1e-6, high + 0.05 * (high - low) + 1e-6
    x = LEFT + (RIGHT - LEFT) * steps / max(1, steps[-1])
    y = BOTTOM - (BOTTOM - TOP) * (losses - low) / (high - low)
    image = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=16)
    for share in (0, 0.25, 0.5, 0.75, 1):
        at = BOTTOM - (BOTTOM - TOP) * share
        draw.line((LEFT, at, RIGHT, at), fill=GRID)
        draw.text((LEFT - 8, at), f"{low + (high - low) * share:.4f}", fill=INK, font=font, anchor="rm")
        across = LEFT + (RIGHT - LEFT) * share
        draw.text((across, BOTTOM + 8), f"{steps[-1] * share:.0f}", fill=INK, font=font, anchor="mt")
    draw.line(list(zip(x, y, strict=True)), fill=LINE, width=3, joint="curve")
    best = int(losses.argmin())
    draw.ellipse((x[best] - 5, y[best] - 5, x[best] + 5, y[best] + 5), fill=LINE)
    title = (
        f"validation loss {losses[0]:.4f}, lowest {losses[best]:.4f} at step {steps[best]:.0f}, {history[-1][1]:.0f} s"
    )
    draw.text((LEFT, 10), title, fill=INK, font=font)
    draw.text(((LEFT + RIGHT) / 2, HEIGHT - 24), "step", fill=INK, font=font, anchor="mt")
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
