"""Coverage-guided fuzzing of what strangers hand to recovery: keys, pictures with chunks, keyed mode's open part.

    pip install atheris
    python -m benchmarks.fuzz key|png|public [--seconds 60]

Begins at valid files and mutates them. Anything but the documented DiffPrivacyError, or more than 2 GB of memory, ends
the run with the input that did it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np
import torch

with atheris.instrument_imports(include=["diffprivacy.recovery"]):  # pyright: ignore[reportAttributeAccessIssue]
    from diffprivacy.recovery import key as keys
    from diffprivacy.recovery import keyed, png
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.faces.geometry import ARCFACE_TEMPLATE, Face
from diffprivacy.media.images import Picture, encode_png

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


TARGETS: dict[str, tuple[Callable[[bytes], object], Callable[[], bytes]]] = {
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
    read(valid())

    def once(data: bytes) -> None:
        try:
            read(data)
        except DiffPrivacyError:
            return

    with tempfile.TemporaryDirectory() as corpus:
        (Path(corpus) / "valid").write_bytes(valid())
        limits = [f"-max_total_time={options.seconds}", "-rss_limit_mb=2000", "-max_len=20000"]
        atheris.Setup([sys.argv[0], *limits, corpus], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
