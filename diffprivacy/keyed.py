"""Keyed mode, beyond the paper: the published picture and a short secret bring the face back, without a stored noise map.

A face's crop is inverted to its noise map; within the mask the map is turned by a rotation that the secret decides; the
turned map is sampled down to the face that is published. The way back inverts the published face, turns back and
samples. A rotation keeps Gaussian noise Gaussian: a wrong secret gives another face, not noise. Each of its rounds
permutes, flips signs and mixes by a cosine transform, so neither magnitudes nor signs of the original map remain.

What is published went through the autoencoder, the picture's pixels and the soft border, so recovery is approximate.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .backbone import Backbone
from .errors import DiffPrivacyError
from .faces import Face, crop_face, face_mask, paste_faces
from .inversion import invert_fixed_point
from .keys import check_face, face_fields
from .sampling import Callback, ddim_sigmas, sample_euler
from .stages import stage_denoiser

STEPS = 20
END = 0.1
"""Noise level at which sampling stops: the published face keeps that much noise, which is what the way back can hold on to."""
ROUNDS = 3
SALT_BYTES = 16
SCRYPT: dict[str, int] = {"n": 2**17, "r": 8, "p": 1, "maxmem": 2**28}
"""Cost of one guess of the secret: 128 MiB of memory, about half a second."""


@dataclass(frozen=True, eq=False)
class Public:
    """What travels openly with a picture in keyed mode: a random salt and where the crops were cut."""

    salt: bytes
    faces: Sequence[Face]
    size: int
    margin: float


def rotate(noise_map: Tensor, mask: Tensor, seed: bytes, back: bool = False) -> Tensor:
    """The noise map (1,C,h,w) with its elements within a mask (h,w) turned by an orthogonal map that the seed decides.

    back: undo it. Elements outside keep their bits.
    """
    from scipy.fft import dct, idct

    inside = (mask > 0.5).expand_as(noise_map[0])
    x = noise_map[0][inside].double().cpu().numpy()
    rounds = [_permutation_and_signs(seed + bytes([i]), len(x)) for i in range(ROUNDS)]
    if back:
        for order, signs in reversed(rounds):
            turned = idct(x, norm="ortho") * signs
            x = np.empty_like(turned)
            x[order] = turned
    else:
        for order, signs in rounds:
            x = dct(x[order] * signs, norm="ortho")
    turned_map = noise_map.clone()
    turned_map[0][inside] = torch.from_numpy(x).to(noise_map)
    return turned_map


def _permutation_and_signs(seed: bytes, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Both from SHAKE-256's stream, so that they are the same with every version of every library."""
    stream = np.frombuffer(hashlib.shake_256(seed).digest(16 * length), dtype="<u8")
    return stream[:length].argsort(kind="stable"), 1.0 - 2.0 * (stream[length:] & 1)
