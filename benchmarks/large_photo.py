"""Peak memory of each command on a photo of 51 megapixels.

    python -m benchmarks.large_photo [COMMAND ...]

Every command runs as a process of its own; its peak is the most it had resident at once, networks and libraries
included. Linux and macOS only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

WIDTH, HEIGHT = 8750, 5833
PORTRAIT = 1500
"""Side in pixels of the portrait in the photo."""
UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which the system counts resident memory."""


def main(chosen: list[str]) -> None:
    """Print the table of the chosen commands, or of all."""
    with tempfile.TemporaryDirectory() as folder:
        photo, passphrase = Path(folder, "photo.jpg"), Path(folder, "passphrase")
        make_photo(photo)
        passphrase.write_text("correct horse battery staple")
        key, quick = ["--passphrase-file", str(passphrase)], ["--steps", "5"]
        commands = {
            "demo": ["demo", str(photo)],
            "anonymize": ["anonymize", str(photo), *quick],
            "anonymize --variants 4": ["anonymize", str(photo), *quick, "--variants", "4"],
            "hide, with a key": ["hide", str(photo), *quick, *key],
            "recover": ["recover", f"{folder}/hide, with a key/photo.png", *key],
        }
        print("| command | peak memory |\n|---|---|")
        for name in chosen or commands:
            print(f"| {name} | {peak([*commands[name], '-o', f'{folder}/{name}']) / 1e9:.2f} GB |", flush=True)


def make_photo(path: Path) -> None:
    """One face on a fine texture, as JPEG."""
    texture = skimage.data.coffee()
    times = (-(-HEIGHT // texture.shape[0]), -(-WIDTH // texture.shape[1]), 1)
    photo = Image.fromarray(np.tile(texture, times)[:HEIGHT, :WIDTH])
    photo.paste(Image.fromarray(skimage.data.astronaut()).resize((PORTRAIT, PORTRAIT)), (5200, 2100))
    photo.save(path, quality=92)


def peak(arguments: list[str]) -> int:
    """Most memory in bytes that a command had resident; raises RuntimeError if it fails."""
    command = subprocess.Popen([sys.executable, "-m", "diffprivacy", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(command.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(arguments)} failed")
    return usage.ru_maxrss * UNIT


if __name__ == "__main__":
    main(sys.argv[1:])
