"""Three faces side by side in an image of noise, the same protected, and a lossless key of them."""

from __future__ import annotations

import numpy as np
import pyrage
import torch

from diffprivacy.faces.geometry import ARCFACE_TEMPLATE, Crop, Face, own_pixels, protected_mask
from diffprivacy.media.images import Picture, decode_picture, encode_png
from diffprivacy.recovery.encryption import Encryptor
from diffprivacy.recovery.key import RecoveryKey
from diffprivacy.recovery.replay import record

MARGIN = 1.8
CROP = Crop(64, MARGIN)
SHAPE = (170, 420)
IDENTITY = pyrage.x25519.Identity.generate()
SEAL = Encryptor(recipients=[str(IDENTITY.to_public())])


def face_at(x: float, y: float = 85.0, scale: float = 0.9) -> Face:
    """A face whose template's middle lies at x, y; its box is about 77 pixels wide."""
    points = (ARCFACE_TEMPLATE - np.float32(55.5)) * np.float32(scale) + np.float32([x, y])
    return Face((x - 38 * scale, y - 48 * scale, x + 38 * scale, y + 48 * scale), points.astype(np.float32), 1.0)


FACES = [face_at(90), face_at(180), face_at(270)]
"""Three, 1.3 widths apart: their masks overlap."""


def noise(seed: int = 0) -> torch.Tensor:
    levels = torch.randint(0, 256, (*SHAPE, 3), generator=torch.Generator().manual_seed(seed))
    return levels.float() / 255


ORIGINAL = Picture(noise())
MASK = protected_mask(SHAPE, FACES, MARGIN) > 0
PROTECTED = Picture(torch.where(MASK[..., None], torch.full((*SHAPE, 3), 0.4), ORIGINAL.rgb))
PROTECTED = decode_picture(encode_png(PROTECTED), "protected")


def own(index: int) -> torch.Tensor:
    """The pixels (H,W) that belong to a face."""
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    region, inside = own_pixels(SHAPE, FACES[index], FACES[:index] + FACES[index + 1 :], MARGIN)
    mask[region] = inside
    return mask


def lossless() -> RecoveryKey:
    key = record(ORIGINAL, FACES, None, CROP, "lossless").bound_to(PROTECTED)
    return RecoveryKey.from_bytes(key.to_bytes())
