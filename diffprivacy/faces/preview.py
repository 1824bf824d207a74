"""Where the faces of an image are, and nothing of how they look: ComfyUI serves previews to whoever asks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Face
from .regions import is_assumed

CHOSEN = (46, 204, 113)
FOUND = (149, 165, 166)
CARRIED = (243, 156, 18)
BELOW = (187, 107, 217)
COVER = (40, 44, 52)
COARSE = 16
"""Pixels left of a preview's longer side: recognizers hardly match a face that fills half of it."""
AROUND = 0.6
"""How far a face reaches around its five points, in their greater extent."""


def draw_faces(picture: Tensor, found: Sequence[Face], chosen: Sequence[Face], below: Sequence[Face] = ()) -> Tensor:
    """Where faces are in an image (H,W,3), each covered by its number and score: green for those chosen, grey for the
    others. Violet, with a score alone, are those below the score that counts. "box" in the place of a score: no detector found
    a face in a box that was given."""
    colors = [CHOSEN if any(face is other for other in chosen) else FOUND for face in found]
    labels = [f"{number}\n{'box' if is_assumed(face) else f'{face.score:.2f}'}" for number, face in enumerate(found)]
    return _covered(
        picture,
        [face.box for face in (*below, *found)],
        [*(f"{face.score:.2f}" for face in below), *labels],
        [*([BELOW] * len(below)), *colors],
    )


def draw_people(picture: Tensor, faces: Sequence[Face], people: Sequence[int], seen: Sequence[bool]) -> Tensor:
    """Where faces are in a frame (H,W,3), each covered by its person's number; orange where no detector saw it."""
    boxes = []
    for face in faces:
        low, high = face.landmarks.min(axis=0), face.landmarks.max(axis=0)
        around = AROUND * (high - low).max()
        boxes.append((*(low - around).tolist(), *(high + around).tolist()))
    return _covered(
        picture, boxes, [str(person) for person in people], [CHOSEN if known else CARRIED for known in seen]
    )


def _covered(
    picture: Tensor,
    boxes: Sequence[tuple[float, ...]],
    labels: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
) -> Tensor:
    """An image that anybody may see: nothing of the faces in the boxes, and of any other too little to tell whose."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray((_coarse(picture).numpy() * 255).round().astype(np.uint8))
    draw = ImageDraw.Draw(image)
    line = max(2, max(image.size) // 300)
    for (left, top, right, bottom), label, color in zip(boxes, labels, colors, strict=True):
        draw.rectangle((left, top, right, bottom), fill=COVER, outline=color, width=line)
        font = ImageFont.load_default(size=max(12, round((bottom - top) / 3)))
        centre = ((left + right) / 2, (top + bottom) / 2)
        draw.multiline_text(centre, label, fill=color, font=font, anchor="mm", align="center")
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def _coarse(picture: Tensor) -> Tensor:
    """An image (H,W,3) reduced to COARSE pixels in its longer side, and enlarged to what it was."""
    height, width = picture.shape[:2]
    rows, columns = (max(1, round(side * COARSE / max(height, width))) for side in (height, width))
    reduced = F.adaptive_avg_pool2d(picture.movedim(-1, 0)[None], (rows, columns))
    return F.interpolate(reduced, (height, width), mode="bilinear")[0].movedim(0, -1)
