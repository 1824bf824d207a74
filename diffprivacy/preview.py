"""Pictures for the person at the screen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .faces import Face

CHOSEN = (46, 204, 113)
FOUND = (149, 165, 166)


def draw_faces(picture: Tensor, found: Sequence[Face], chosen: Sequence[Face]) -> Tensor:
    """The picture (H,W,3) with a numbered box for every face found; green for those chosen, grey for the others."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray((picture.numpy() * 255).round().astype(np.uint8))
    draw = ImageDraw.Draw(image)
    line = max(2, max(image.size) // 300)
    font = ImageFont.load_default(size=max(12, max(image.size) // 40))
    for number, face in enumerate(found):
        color = CHOSEN if any(face is other for other in chosen) else FOUND
        left, top, right, bottom = face.box
        draw.rectangle((left, top, right, bottom), outline=color, width=line)
        label = draw.textbbox((left, top), str(number), font=font)
        draw.rectangle((label[0] - line, label[1] - line, label[2] + line, label[3] + line), fill=color)
        draw.text((left, top), str(number), fill=(0, 0, 0), font=font)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def contact_sheet(pictures: Sequence[Tensor], labels: Sequence[str]) -> Tensor:
    """Pictures (H,W,3) of one size side by side, each with its label of one or two lines beneath."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = pictures[0].shape[:2]
    line = max(12, width // 14)
    font = ImageFont.load_default(size=line)
    sheet = Image.new("RGB", (len(pictures) * (width + 8) + 8, height + 3 * line + 16), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left = 8 + i * (width + 8)
        sheet.paste(Image.fromarray((picture.numpy() * 255).round().astype(np.uint8)), (left, 8))
        draw.multiline_text((left, height + 12), label, fill=(0, 0, 0), font=font)
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)
