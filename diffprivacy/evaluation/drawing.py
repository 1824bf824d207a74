"""Contact sheets and plots."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..identity.verification import Scores, roc

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .comparison import FaceComparison


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


def cosine_plot(versions: Mapping[str, Sequence[FaceComparison]], thresholds: Mapping[str, float]) -> Tensor:
    """Every face's cosine to its original, a panel for each judge and a row for each version, as a picture (H,W,3).

    A line marks the judge's threshold: what lies to its right is taken for the same person.
    """
    from matplotlib.figure import Figure

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
    return _rendered(figure)


def roc_plot(curves: Mapping[str, tuple[Scores, Scores]], far: float) -> Tensor:
    """ROC curves as an image (H,W,3). curves: of each name the cosines of pairs of one person, and of two people.

    A line marks the false accept rate in use. On the diagonal the pairs are not told apart. Without curves it says that
    they need faces of several people.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, (same, different) in curves.items():
        accepted_different, accepted_same, _ = roc(same, different)
        axes.plot(accepted_different, accepted_same, label=name)
    rates = np.geomspace(1e-4, 1)
    axes.plot(rates, rates, color="grey", linewidth=1, linestyle=":", label="chance")
    axes.axvline(far, color="black", linewidth=1, linestyle="--")
    axes.set(xscale="log", xlim=(1e-4, 1), ylim=(0, 1.02))
    axes.set(xlabel="false accept rate", ylabel="true accept rate")
    axes.legend(fontsize=8)
    if not curves:
        axes.set_title("no curve: it needs faces of several people", fontsize=9)
    return _rendered(figure)


def histogram(groups: Mapping[str, Scores], threshold: float | None) -> Tensor:
    """How often each cosine occurs in each group, as an image (H,W,3); a line marks the threshold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, cosines in groups.items():
        axes.hist(cosines, bins=60, range=(-1, 1), density=True, alpha=0.5, label=name)
    if threshold is not None:
        axes.axvline(threshold, color="black", linewidth=1, linestyle="--")
    axes.set(xlim=(-1, 1), xlabel="cosine", ylabel="density")
    axes.legend(fontsize=8)
    return _rendered(figure)


def loss_curve(history: Sequence[tuple[int, float, float]]) -> Tensor:
    """The validation loss over a training run, (step, seconds, loss) at least once, as an image (H,W,3)."""
    from matplotlib.figure import Figure

    steps, seconds, losses = zip(*history, strict=True)
    best = int(np.argmin(losses))
    figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses)
    axes.plot(steps[best], losses[best], "o", color="C0")
    axes.grid(alpha=0.4)
    axes.set(xlabel="step", ylabel="validation loss")
    axes.set_title(f"{losses[0]:.4f}, lowest {losses[best]:.4f} at step {steps[best]}, {seconds[-1]:.0f} s", fontsize=9)
    return _rendered(figure)


def _rendered(figure: Figure) -> Tensor:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return torch.from_numpy(np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255)
