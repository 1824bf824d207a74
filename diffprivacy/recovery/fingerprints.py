"""A short fingerprint of a picture, to tell whether recovery has what protection had."""

from __future__ import annotations

import hashlib

from ..media.images import Picture, levels


def picture_fingerprint(picture: Picture) -> str:
    """SHA-256 of the pixels as a file holds them: a copy saved losslessly by another program has the same."""
    pixels = levels(picture.rgb, picture.bit_depth)
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype.str}".encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()[:32]
