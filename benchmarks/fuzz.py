"""Coverage-guided fuzzing of what strangers hand over: pictures, keys, pictures with chunks, keyed mode's open part.

    pip install atheris
    python -m benchmarks.fuzz image|key|png|public [--seconds 60]

Begins at valid files and mutates them. Anything but the documented DiffPrivacyError, or more than 2 GB of memory, ends
the run with the input that did it.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np
import torch

with atheris.instrument_imports(  # pyright: ignore[reportAttributeAccessIssue]
    include=["diffprivacy.recovery", "diffprivacy.media", "PIL"]
):
    from diffprivacy.media.images import Picture, decode_picture, encode_png
    from diffprivacy.recovery import key as keys
    from diffprivacy.recovery import keyed, png
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.faces.geometry import ARCFACE_TEMPLATE, Face

FACE = Face((0.0, 0.0, 112.0, 112.0), ARCFACE_TEMPLATE, 1.0)


def a_key() -> bytes:
    """A valid key of one face."""
    key = keys.RecoveryKey(
        "latent",
        sigmas=torch.tensor([2.0, 1.0, 0.0]),
        noise_map=torch.zeros(1, 4, 2, 2),
        pseudo_words=torch.ones(1, 2, 3),
        faces=(FACE,),
        size=16,
    )
    return key.bound_to(Picture(torch.zeros(8, 8, 3))).to_bytes()


def a_png() -> bytes:
    """A valid picture with two chunks."""
    picture = encode_png(Picture(torch.from_numpy(np.linspace(0, 1, 192, dtype=np.float32).reshape(8, 8, 3))))
    return png.with_chunks(picture, png.SEALED_KEY, [b"one", b"two"])


def pictures() -> list[bytes]:
    """One small picture in every format, with a profile and an orientation."""
    from PIL import Image, ImageCms

    image = Image.fromarray(np.linspace(0, 255, 12 * 9 * 4).reshape(12, 9, 4).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"exif": exif, "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}
    kinds = {"PNG": ("RGBA", "LA", "P", "1"), "JPEG": ("RGB", "CMYK"), "TIFF": ("RGBA", "CMYK"), "WEBP": ("RGBA",)}
    made = [encode_png(Picture(torch.rand(5, 4, 3), bit_depth=16))]
    for kind, mode in [(kind, mode) for kind, modes in kinds.items() for mode in modes] + [("BMP", "RGB")]:
        file = io.BytesIO()
        image.convert(mode).save(file, kind, **({} if kind == "BMP" else more))
        made.append(file.getvalue())
    return made


TARGETS: dict[str, tuple[Callable[[bytes], object], Callable[[], bytes | list[bytes]]]] = {
    "image": (lambda data: decode_picture(data, "picture"), pictures),
    "key": (keys.RecoveryKey.from_bytes, a_key),
    "png": (lambda data: png.read_chunks(data, png.SEALED_KEY), a_png),
    "public": (keyed.Public.from_bytes, keyed.Public(bytes(16), (FACE,), 128, 1.45).to_bytes),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    read, valid = TARGETS[options.target]
    made = valid()
    seeds = made if isinstance(made, list) else [made]
    for seed in seeds:
        read(seed)

    def once(data: bytes) -> None:
        try:
            read(data)
        except DiffPrivacyError:
            return

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds):
            (Path(corpus) / f"valid{number}").write_bytes(seed)
        limits = [
            f"-max_total_time={options.seconds}",
            "-rss_limit_mb=2000",
            "-max_len=20000",
            f"-artifact_prefix={corpus}/",
        ]
        atheris.Setup([sys.argv[0], *limits, corpus], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
