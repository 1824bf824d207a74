"""Image files that tests write, also of kinds that Pillow does not write."""

import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def photo(height: int = 24, width: int = 40) -> np.ndarray:
    """Smooth in both directions and different under every rotation and reflection."""
    y, x = np.mgrid[:height, :width]
    return np.stack((x * 255 // (width - 1), y * 255 // (height - 1), (x * 2 + y) % 128), axis=-1).astype(np.uint8)


def transparent_palette() -> Image.Image:
    image = Image.fromarray(photo()).quantize(8)
    image.info["transparency"] = bytes([0, 128, 255])
    return image


def icc_profile(gamma: float, primaries: dict[str, tuple[float, float, float]]) -> bytes:
    """A minimal ICC version 2 profile: primaries (XYZ at D50) and a gamma; grey if there are no primaries."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    white = (0.9642, 1.0, 0.8249)
    description = b"test\0"
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(description)) + description + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + fixed(*white),
        **{f"{name}XYZ".encode(): b"XYZ " + bytes(4) + fixed(*xyz) for name, xyz in primaries.items()},
        **{f"{name}TRC".encode(): curve for name in (primaries or "k")},
    }
    table, body = b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content
    space = b"RGB " if primaries else b"GRAY"
    head = struct.pack(
        ">I4s4s4s4s4s12x4s", 132 + len(table + body), b"test", b"\2\x10\0\0", b"mntr", space, b"XYZ ", b"acsp"
    )
    head = head.ljust(68, b"\0") + fixed(*white)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


ADOBE_RGB = {"r": (0.60974, 0.31111, 0.01947), "g": (0.20528, 0.62567, 0.06087), "b": (0.14919, 0.06322, 0.74457)}


def deep_png(pixels: np.ndarray, profile: bytes) -> bytes:
    """A PNG of 16 bits a channel, (H,W,C) with 1 to 4 channels, written by hand: Pillow writes no grey with alpha."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">II5B", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = (
        (b"IHDR", head),
        (b"iCCP", b"p\0\0" + zlib.compress(profile)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    framed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)
