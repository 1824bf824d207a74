"""Pictures for the person at the screen."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..faces.geometry import Face

if TYPE_CHECKING:
    from .comparison import Judged

CHOSEN = (46, 204, 113)
FOUND = (149, 165, 166)
CARRIED = (243, 156, 18)
AROUND = 0.6
"""How far a face reaches around its five points, in their greater extent."""


def draw_faces(picture: Tensor, found: Sequence[Face], chosen: Sequence[Face]) -> Tensor:
    """The picture (H,W,3) with a numbered box for every face found; green for those chosen, grey for the others."""
    colors = [CHOSEN if any(face is other for other in chosen) else FOUND for face in found]
    return _with_boxes(picture, [face.box for face in found], range(len(found)), colors)


def draw_people(picture: Tensor, faces: Sequence[Face], people: Sequence[int], seen: Sequence[bool]) -> Tensor:
    """The frame (H,W,3) with a box around each face and its person's number; orange where no detector saw it."""
    boxes = []
    for face in faces:
        low, high = face.landmarks.min(axis=0), face.landmarks.max(axis=0)
        around = AROUND * (high - low).max()
        boxes.append((*(low - around).tolist(), *(high + around).tolist()))
    return _with_boxes(picture, boxes, people, [CHOSEN if known else CARRIED for known in seen])


def _with_boxes(
    picture: Tensor,
    boxes: Sequence[tuple[float, ...]],
    numbers: Sequence[int],
    colors: Sequence[tuple[int, int, int]],
) -> Tensor:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray((picture.numpy() * 255).round().astype(np.uint8))
    draw = ImageDraw.Draw(image)
    line = max(2, max(image.size) // 300)
    font = ImageFont.load_default(size=max(12, max(image.size) // 40))
    for (left, top, right, bottom), number, color in zip(boxes, numbers, colors, strict=True):
        draw.rectangle((left, top, right, bottom), outline=color, width=line)
        label = draw.textbbox((left, top), str(number), font=font)
        draw.rectangle((label[0] - line, label[1] - line, label[2] + line, label[3] + line), fill=color)
        draw.text((left, top), str(number), fill=(0, 0, 0), font=font)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def contact_sheet(pictures: Sequence[Tensor], labels: Sequence[str]) -> Tensor:
    """Pictures (H,W,3) of one size side by side, each with its label of up to three lines beneath."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = pictures[0].shape[:2]
    line = max(12, width // 14)
    font = ImageFont.load_default(size=line)
    sheet = Image.new("RGB", (len(pictures) * (width + 8) + 8, height + 4 * line + 16), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left = 8 + i * (width + 8)
        sheet.paste(Image.fromarray((picture.numpy() * 255).round().astype(np.uint8)), (left, 8))
        draw.multiline_text((left, height + 12), label, fill=(0, 0, 0), font=font)
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)


def cosine_plot(versions: Mapping[str, Sequence[Judged]], thresholds: Mapping[str, float]) -> Tensor:
    """Every face's cosine to its original, a panel for each judge and a row for each version, as a picture (H,W,3).

    A line marks the judge's threshold: what lies to its right is taken for the same person.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    names = list(next(iter(versions.values()))[0].original)
    figure = Figure(figsize=(6, len(names) * (0.8 + 0.4 * len(versions))), dpi=120, layout="constrained")
    jitter = np.random.default_rng(0)
    for i, name in enumerate(names):
        axes = figure.add_subplot(len(names), 1, i + 1)
        for row, faces in enumerate(versions.values()):
            cosines = [face.cosine(name) for face in faces]
            axes.scatter(cosines, -row + jitter.uniform(-0.25, 0.25, len(cosines)), s=14, alpha=0.6)
        axes.set_title(name, fontsize=9)
        axes.set_yticks([-row for row in range(len(versions))], list(versions))
        axes.set(xlim=(-1, 1.02), ylim=(0.5 - len(versions), 0.5))
        if name in thresholds:
            axes.axvline(thresholds[name], color="black", linewidth=1, linestyle="--")
    axes.set_xlabel("cosine to the original; dashed: threshold for the same person")
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return torch.from_numpy(np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255)
