"""Random numbers that nobody can guess: all of one protected image's follow from 256 bits of the operating system's.

torch's generators keep 32 bits of a seed, few enough to try every one against a published image.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets

import numpy as np
import torch
from torch import Tensor

KEY_BYTES = 32
DOMAIN = b"diff-privacy noise 1\0"


class NoiseKey:
    """A secret of 256 bits and the independent streams of random numbers that follow from it.

    Labels, texts and whole numbers, name a stream: what it is for, which face, which variant. The same key and labels
    give the same numbers, on every machine; other labels, or a key that differs in one bit, give unrelated ones. Take
    each stream once, whole: a shorter one is the beginning of a longer one.

    A stream is SHAKE-256 (FIPS 202) of the key and the labels; each of its 64-bit words, little-endian, gives one
    number. They are made on the CPU.
    """

    def __init__(self, key: bytes | None = None):
        """key: 32 bytes; by default fresh ones from the operating system."""
        self.key = secrets.token_bytes(KEY_BYTES) if key is None else key
        if len(self.key) != KEY_BYTES:
            raise ValueError(f"a noise key has {KEY_BYTES} bytes, not {len(self.key)}")

    @classmethod
    def from_seed(cls, seed: int | None) -> NoiseKey:
        """The key that belongs to a number, for tests only: whoever guesses the number has the noise. None: a fresh key."""
        if seed is None:
            return cls()
        return cls(hashlib.sha3_256(DOMAIN + str(seed).encode()).digest())

    @classmethod
    def of(cls, row: Tensor) -> NoiseKey:
        """The key that private noise of any shape decides: only those know it who know all of the noise."""
        return cls(hashlib.sha256(row.detach().float().cpu().contiguous().numpy().tobytes()).digest())

    def derive(self, *labels: str | int) -> NoiseKey:
        """A key of its own for a part of the work, which tells nothing of this one."""
        return NoiseKey(self._stream(KEY_BYTES, ["key", *labels]))

    def uniform(self, shape: tuple[int, ...], *labels: str | int) -> Tensor:
        """Uniform float64 numbers of a shape in the open interval (0,1), on the CPU.

        The upper 52 bits k of a word give (k + 1/2) / 2^52, which float64 holds exactly.
        """
        words = np.frombuffer(self._stream(8 * math.prod(shape), ["uniform", *labels]), dtype="<u8")
        return torch.from_numpy(((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52).reshape(shape)

    def normal(self, shape: tuple[int, ...], *labels: str | int) -> Tensor:
        """Unit Gaussian float32 numbers of a shape, on the CPU.

        The inverse of the normal distribution function, in float64, of uniform numbers; the largest is 8.2.
        """
        return torch.special.ndtri(self.uniform(shape, "normal", *labels)).float()

    def _stream(self, length: int, labels: list[str | int]) -> bytes:
        return hashlib.shake_256(DOMAIN + self.key + json.dumps(labels).encode()).digest(length)
