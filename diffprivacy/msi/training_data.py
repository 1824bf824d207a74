"""What MSI's training needs of its pictures: computed once, however many steps follow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..diffusion.model import DiffusionModel
from ..errors import DiffPrivacyError
from ..media.images import read_picture
from .module import CHUNK, image_scales, relative_levels

LOG = logging.getLogger("diffprivacy")
LEAST_SIDE = 64
"""Pixels; below that there is no face to learn."""


@dataclass(frozen=True)
class TrainingData:
    """latents (N,C,h,w) in the network's units and image features (N,5,F) of N pictures, both float32."""

    latents: Tensor
    features: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def split(self, held_out: int) -> tuple[TrainingData, TrainingData]:
        """Without the last ``held_out`` pictures, and those alone."""
        cut = len(self) - held_out
        return TrainingData(self.latents[:cut], self.features[:cut]), TrainingData(
            self.latents[cut:], self.features[cut:]
        )

    def to(self, device: torch.device | str) -> TrainingData:
        """On a device, as tensors that autograd may use even where they were made in inference mode."""
        return TrainingData(self.latents.to(device).clone(), self.features.to(device).clone())


@torch.no_grad()
def prepare(diffusion_model: DiffusionModel, images: Tensor, flips: bool = True) -> TrainingData:
    """The constants of images (N,3,H,W) in [0,1], on the CPU; with ``flips`` each picture's mirror image follows it.

    When memory runs out, fewer pictures are encoded at once, and the log says so.
    Raises DiffPrivacyError for pictures that are too small, whose sides the autoencoder cannot take, or of which not
    even one fits into memory.
    """
    height, width = images.shape[-2:]
    if min(height, width) < LEAST_SIDE:
        raise DiffPrivacyError(
            f"The images are {width}x{height} pixels: MSI needs faces of at least {LEAST_SIDE}x{LEAST_SIDE}."
        )
    if height % diffusion_model.downscale or width % diffusion_model.downscale:
        raise DiffPrivacyError(
            f"The images are {width}x{height} pixels: make both sides multiples of {diffusion_model.downscale}."
        )
    if flips:
        images = torch.stack([images, images.flip(-1)], dim=1).flatten(0, 1)
    levels = relative_levels(diffusion_model.image_encoder_identity.depth)
    size = CHUNK
    while True:
        try:
            chunks = [
                (diffusion_model.encode(c).float().cpu(), image_scales(diffusion_model, c, levels).cpu())
                for c in images.split(size)
            ]
            return TrainingData(*(torch.cat(values) for values in zip(*chunks, strict=True)))
        except torch.OutOfMemoryError:
            if size == 1:
                raise DiffPrivacyError("Out of memory with a single image: make smaller crops.") from None
            size //= 2
            LOG.warning("out of memory: encoding %d images at once", size)


def readable_crops(sources: Iterable[Path], crop: Callable[[Tensor], Sequence[Tensor]], size: int) -> Tensor:
    """Face crops (N,3,size,size) of all pictures that can be read; each that cannot is named in the log and skipped.

    crop: picture (H,W,3) in [0,1] -> its crops (size,size,3); may raise DiffPrivacyError.
    Raises DiffPrivacyError when no picture gives a crop.
    """
    crops: list[Tensor] = []
    for source in sources:
        try:
            rgb = read_picture(source).rgb
            if min(rgb.shape[:2]) < LEAST_SIDE:
                raise DiffPrivacyError(
                    f"{rgb.shape[1]}x{rgb.shape[0]} pixels are too few, at least {LEAST_SIDE} a side."
                )
            crops += crop(rgb)
        except DiffPrivacyError as error:
            LOG.warning("skipped %s: %s", source, error)
    if not crops:
        raise DiffPrivacyError(
            f"No image gives a face of {size}x{size} pixels to learn from; give photos in which a face is found."
        )
    return torch.stack(crops).movedim(-1, 1)
