"""Pictures for the person at the screen."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .faces import Face

if TYPE_CHECKING:
    from .evaluation import Judged

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
