"""Reading pictures as they look and writing them as PNG that holds nothing but the picture."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import DiffPrivacyError
from .atomic import write_atomically
from .limits import check_file

if TYPE_CHECKING:
    from PIL import Image, ImageCms

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
MOST_FILE_BYTES = 2**30
"""Of a picture's file."""
MOST_BYTES = 640_000_000
"""Of a picture's pixels as they were saved: 106 megapixels of RGB with 16 bits a channel, twice as many with 8."""
SAME_COLOUR = 2
"""Levels of 255 by which a profile may differ from sRGB and still mean sRGB, as its many editions do."""
QUALITY = 95
"""Of JPEG and WebP, 1 to 100."""
ROWS = 256
"""Rows turned into levels at once, so that a large picture needs no second copy of its values."""
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 0x0102
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_COLOUR_TYPE, _GREY_WITH_ALPHA = 25, 4
_SUBFILE_TYPE = 0x00FE


@dataclass(frozen=True, eq=False)
class Picture:
    """rgb: (H,W,3) float32 sRGB in [0,1]; alpha: (H,W) in [0,1] or None; bit_depth: 8 or 16 bits a channel in files."""

    rgb: Tensor
    alpha: Tensor | None = None
    bit_depth: int = 8


def read_picture(path: str | Path) -> Picture:
    """The picture turned upright and converted to sRGB.

    Raises DiffPrivacyError, naming the file, if it is missing, damaged, too large, of another format, or an animation
    or several pages.
    """
    path = Path(path)
    check_file(path, "picture", MOST_FILE_BYTES)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DiffPrivacyError(f"{path} cannot be read: {error.strerror}.") from error
    return decode_picture(data, str(path))


def decode_picture(data: bytes, name: str) -> Picture:
    """Like :func:`read_picture`, from the bytes of a file; ``name`` is what errors call it."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures and odd tags in ones that it reads well; what matters is an error.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(image, data, name)
            _check_single(image, name)
            image.load()
            orientation = image.getexif().get(_ORIENTATION, 1)
            pixels = _pixels(image, data)
    except UnidentifiedImageError as error:
        raise DiffPrivacyError(f"{name} is not an image that can be read ({', '.join(FORMATS)}).") from error
    except Image.DecompressionBombError as error:
        raise DiffPrivacyError(f"{name} is too large ({error}); make it smaller first.") from error
    except (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, struct.error) as error:
        raise DiffPrivacyError(f"{name} is damaged: {error}.") from error
    if pixels is None:
        raise DiffPrivacyError(f"{name} is an image of mode {image.mode}; save it as RGB with 8 or 16 bits a channel.")
    del image
    pixels = _upright(pixels, orientation)
    alpha = values(pixels[..., 3]) if pixels.shape[2] == 4 else None
    return Picture(values(pixels[..., :3]), alpha, bit_depth=pixels.dtype.itemsize * 8)


def encode_png(picture: Picture) -> bytes:
    """PNG with the pixels and nothing else: no text, EXIF, colour profile, time or thumbnail."""
    import cv2

    pixels = cv2.cvtColor(levels(picture.rgb, picture.bit_depth), cv2.COLOR_RGB2BGR)
    if picture.alpha is not None:
        pixels = np.dstack((pixels, levels(picture.alpha, picture.bit_depth)))
    _, data = cv2.imencode(".png", pixels)
    return data.tobytes()


def encode_picture(picture: Picture, ending: str, quality: int = QUALITY) -> bytes:
    """The picture as a file of the format that a name's ending stands for: .png, .jpg or .webp, without metadata.

    quality: of JPEG and WebP, 1 to 100; they take 8 bits a channel. Raises DiffPrivacyError for transparency in JPEG.
    """
    import cv2

    if ending == ".png":
        return encode_png(picture)
    options = {
        ".jpg": [
            cv2.IMWRITE_JPEG_QUALITY,
            quality,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        ],
        ".webp": [cv2.IMWRITE_WEBP_QUALITY, quality],
    }
    pixels = cv2.cvtColor(levels(picture.rgb, 8), cv2.COLOR_RGB2BGR)
    if picture.alpha is not None:
        if ending == ".jpg":
            raise DiffPrivacyError("JPEG holds no transparency; choose --output-format png or webp.")
        pixels = np.dstack((pixels, levels(picture.alpha, 8)))
    _, data = cv2.imencode(ending, pixels, options[ending])
    return data.tobytes()


def levels(values: Tensor, bit_depth: int) -> np.ndarray:
    """Values in [0,1] as a file of 8 or 16 bits a channel holds them: uint8 or uint16."""
    top = 2**bit_depth - 1
    result = np.empty(values.shape, np.uint8 if bit_depth == 8 else np.uint16)
    for start in range(0, len(values), ROWS):
        rows = slice(start, start + ROWS)
        result[rows] = (values[rows].cpu() * top).round_().clamp_(0, top).numpy()
    return result


def write_picture(path: str | Path, picture: Picture) -> None:
    """Write the picture as PNG; the file appears complete or not at all.

    Raises DiffPrivacyError if the name does not end in .png or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise DiffPrivacyError(f"{path}: protected images are PNG files; choose a name that ends in .png.")
    write_atomically(path, encode_png(picture))


def values(pixels: np.ndarray) -> Tensor:
    """What uint8 or uint16 stand for: float32 in [0,1], contiguous."""
    return torch.from_numpy(pixels.astype(np.float32, order="C")).div_(np.iinfo(pixels.dtype).max)


def _check_single(image: Image.Image, name: str) -> None:
    """Raises DiffPrivacyError for an animation and for several pages; thumbnails and a camera's second JPEG are neither."""
    parts = getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP", "TIFF") else 1
    if image.format == "TIFF" and parts > 1:
        kinds = []
        for i in range(parts):
            image.seek(i)
            kinds.append(image.tag_v2.get(_SUBFILE_TYPE, 0))  # pyright: ignore[reportAttributeAccessIssue]
        image.seek(0)
        parts = sum(not kind & 1 for kind in kinds)
    if parts > 1:
        raise DiffPrivacyError(
            f"{name} holds {parts} frames or pages, of which one is protected at a time: save each as a file of its own, "
            "or an animation as a video."
        )


def _pixels(image: Image.Image, data: bytes) -> np.ndarray | None:
    """(H,W,3 or 4) uint8 or uint16, RGB in sRGB and alpha if there is any; None for samples of other kinds."""
    if image.mode in ("I", "F"):
        return None
    if _bits_per_sample(image, data) != 16:
        return _pixels_8(image)
    # Colour management works on 8 bits: a 16-bit picture in another colour space comes out with 8.
    in_8_bits = _in_8_bits(image, data)
    return _pixels_16(data) if _to_srgb(in_8_bits) is None else _pixels_8(in_8_bits)


def _bits_per_sample(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return image.tag_v2.get(_BITS_PER_SAMPLE, (1,))[0]  # pyright: ignore[reportAttributeAccessIssue]
    return 8


def _in_8_bits(image: Image.Image, data: bytes) -> Image.Image:
    """A picture of 16 bits a channel with 8, grey where it is grey: Pillow gives some as they are, some in colour."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        reduced = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.format == "PNG" and data[_PNG_COLOUR_TYPE] == _GREY_WITH_ALPHA:
        reduced = Image.merge("LA", (image.getchannel("R"), image.getchannel("A")))
    else:
        return image
    reduced.info = dict(image.info)
    return reduced


def _pixels_16(data: bytes) -> np.ndarray | None:
    """By OpenCV, as Pillow gives 8 of the 16 bits."""
    import cv2

    if data.startswith(_PNG) and not _is_whole_png(data):
        raise ValueError("its end is missing")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("its pixels cannot be decoded")
    if pixels.dtype != np.uint16:
        return None
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


def _is_whole_png(data: bytes) -> bool:
    """Whether no chunk is longer than the file, as OpenCV makes room for whatever length one claims."""
    at = len(_PNG)
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        at += 12 + length
        if name == b"IEND":
            return at <= len(data)
    return False


def _pixels_8(image: Image.Image) -> np.ndarray:
    from PIL import ImageCms

    alpha = np.asarray(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
    if image.mode in ("1", "LA", "La"):
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGBA").convert("RGB")
    transform = _to_srgb(image)
    rgb = image.convert("RGB") if transform is None else ImageCms.applyTransform(image, transform)
    pixels = np.asarray(rgb)
    return pixels if alpha is None else np.dstack((pixels, alpha))


def _check_size(image: Image.Image, data: bytes, name: str) -> None:
    """Before a pixel is decoded: a file of a megabyte may hold gigabytes."""
    needed = image.width * image.height * len(image.getbands()) * _bits_per_sample(image, data) // 8
    if needed > MOST_BYTES:
        raise DiffPrivacyError(
            f"{name} is too large: its {image.width}x{image.height} pixels take {needed / 1e6:.0f} MB, and they may take "
            f"{MOST_BYTES / 1e6:.0f}; make it smaller first."
        )


def _to_srgb(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """The colour transform that the embedded profile asks for; None where the picture is sRGB already, or says nothing."""
    from PIL import Image, ImageCms

    profile = image.info.get("icc_profile")
    if not profile:
        return None
    mode = {"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode)
    try:
        transform = ImageCms.buildTransform(io.BytesIO(profile), ImageCms.createProfile("sRGB"), mode, "RGB")
    except ImageCms.PyCMSError:
        # A damaged profile, or one for other channels, is ignored, as everywhere.
        return None
    bands = Image.getmodebands(mode)
    probe = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * bands), axis=-1)
    probe = Image.frombytes(mode, (probe.size // bands, 1), probe.tobytes())
    shift = np.asarray(ImageCms.applyTransform(probe, transform), int) - np.asarray(probe.convert("RGB"), int)
    return None if np.abs(shift).max() <= SAME_COLOUR else transform


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the rotation and mirroring that EXIF's orientation, 1 to 8, stands for."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
