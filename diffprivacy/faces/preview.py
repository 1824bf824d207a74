"""Faces marked and numbered in their image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .geometry import Face

CHOSEN = (46, 204, 113)
FOUND = (149, 165, 166)
CARRIED = (243, 156, 18)
BELOW = (187, 107, 217)
AROUND = 0.6
"""How far a face reaches around its five points, in their greater extent."""


def draw_faces(picture: Tensor, found: Sequence[Face], chosen: Sequence[Face], below: Sequence[Face] = ()) -> Tensor:
    """The picture (H,W,3) with a box around every face found, its number and score: green for those chosen, grey for
    the others. Violet, with a score alone, are those below the score that counts; a score of 0 is a box drawn by hand."""
    colors = [CHOSEN if any(face is other for other in chosen) else FOUND for face in found]
    labels = [f"{number}  {face.score:.2f}" for number, face in enumerate(found)]
    return _with_boxes(
        picture,
        [face.box for face in (*below, *found)],
        [*(f"{face.score:.2f}" for face in below), *labels],
        [*([BELOW] * len(below)), *colors],
    )


def draw_people(picture: Tensor, faces: Sequence[Face], people: Sequence[int], seen: Sequence[bool]) -> Tensor:
    """The frame (H,W,3) with a box around each face and its person's number; orange where no detector saw it."""
    boxes = []
    for face in faces:
        low, high = face.landmarks.min(axis=0), face.landmarks.max(axis=0)
        around = AROUND * (high - low).max()
        boxes.append((*(low - around).tolist(), *(high + around).tolist()))
    return _with_boxes(
        picture, boxes, [str(person) for person in people], [CHOSEN if known else CARRIED for known in seen]
    )


def _with_boxes(
    picture: Tensor,
    boxes: Sequence[tuple[float, ...]],
    labels: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
) -> Tensor:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray((picture.numpy() * 255).round().astype(np.uint8))
    draw = ImageDraw.Draw(image)
    line = max(2, max(image.size) // 300)
    font = ImageFont.load_default(size=max(12, max(image.size) // 40))
    for (left, top, right, bottom), text, color in zip(boxes, labels, colors, strict=True):
        draw.rectangle((left, top, right, bottom), outline=color, width=line)
        label = draw.textbbox((left, top), text, font=font)
        draw.rectangle((label[0] - line, label[1] - line, label[2] + line, label[3] + line), fill=color)
        draw.text((left, top), text, fill=(0, 0, 0), font=font)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
