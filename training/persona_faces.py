"""Aligned portraits of many people, from which personas are mixed: ``python -m training.persona_faces PORTRAITS.tar``."""

from __future__ import annotations

import argparse
import io

import torch
from torch import Tensor

from diffprivacy.faces.alignment import align, template
from diffprivacy.faces.geometry import TEMPLATE_SIZE
from diffprivacy.personas.mixtures import PEOPLE, ROWS, SHEET

from .data import SIZE, in_colour, read_portraits

MARGIN = 1.45
UP = 5
"""Pixels by which the portraits show their faces higher than in the middle."""


def sheet(pictures: Tensor) -> Tensor:
    """ArcFace crops of people whose portraits (N,3,128,128) in [0,1] are in colour, ROWS rows of them: (H,W,3)."""
    colour = pictures[in_colour(pictures)]
    chosen = colour[torch.randperm(len(colour), generator=torch.Generator().manual_seed(0))[:PEOPLE]]
    centre = (template(TEMPLATE_SIZE) - TEMPLATE_SIZE / 2) * SIZE / (TEMPLATE_SIZE * MARGIN) + SIZE / 2
    points = centre - torch.tensor([0.0, UP])
    crops = align(chosen, points.expand(PEOPLE, -1, -1))
    rows = crops.unflatten(0, (ROWS, -1)).movedim(1, 3)  # (R,3,S,C,S)
    return rows.flatten(3).movedim(1, 0).flatten(1, 2).movedim(0, -1)


def main() -> None:
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("portraits", help="tar of the portraits")
    pictures = read_portraits(parser.parse_args().portraits).float() / 255
    buffer = io.BytesIO()
    pixels = (sheet(pictures).clamp(0, 1) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=75, method=6)
    SHEET.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main()
