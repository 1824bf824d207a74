"""What sealed keys give to those who have one face's key, and to those who add keys of their own.

    DIFFPRIVACY_DATA=... python -m benchmarks.attacks.sealed [--pairs 10]

A neighbour's key: two photos stand side by side, the faces 1.3 widths apart; how alike is the second face to what the
key of the first decodes to (mobilefacenet_ms1m)? Strangers are the chance level. Forged keys and injected chunks: does
the genuine original still come back?
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import torch

from diffprivacy.cli import main as command_line
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.faces.geometry import Crop
from diffprivacy.identity.embedding import embed_face
from diffprivacy.media.images import Picture, read_picture
from diffprivacy.recovery import png
from diffprivacy.recovery.encryption import Encryptor
from diffprivacy.recovery.keyed import Public
from testing.key_attacks import forged_key, inject, neighbours_key, share_replaced, side_by_side
from testing.three_faces import FACES, IDENTITY, MARGIN, ORIGINAL, PROTECTED, SEAL, lossless

from . import faces

CROP = Crop(192)
"""In the attack on neighbours."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    options = parser.parse_args(arguments)
    print("| attack | before | now |\n|---|---|---|")
    try:
        forged = f"{100 * share_replaced(PROTECTED, [forged_key(PROTECTED, FACES[0], MARGIN)]):.1f} % replaced"
    except DiffPrivacyError as error:
        forged = f"refused: {error}"
    print(f"| forged lossless key | 99.9996 % of the image replaced | {forged} |")
    stranger = Encryptor(recipients=[str(type(IDENTITY).generate().to_public())])
    injected = {
        "junk chunk": (png.SEALED_KEY, b"junk", "recovery fails"),
        "key sealed to others": (png.SEALED_KEY, stranger.encrypt(b"x"), "recovery fails"),
        "forged key, appended": (
            png.SEALED_KEY,
            SEAL.encrypt_key(forged_key(PROTECTED, FACES[0], MARGIN)),
            "the forgery wins",
        ),
        "chunk of keyed mode": (
            png.KEYED,
            Public(bytes(16), (FACES[0],), 64, MARGIN).to_bytes(),
            "a wrong face, exit 0",
        ),
    }
    for name, (kind, content, before) in injected.items():
        print(f"| {name} | {before} | {recovery_after(kind, content)} |", flush=True)
    own, others = neighbours(options.pairs)
    print(
        f"| A's key: cosine to B | 0.27 to 0.72 | {np.mean(own):.2f}, at most {np.max(own):.2f} (strangers {np.mean(others):.2f}) |"
    )


def neighbours(pairs: int) -> tuple[list[float], list[float]]:
    """Cosines of what A's key shows in B's place to B, and to the next pair's B."""
    lab = faces.open_lab()
    judge = lab.judges["mobilefacenet_ms1m"]
    photos = faces.celebrities(lab, 2 * pairs)
    leaks, originals = [], []
    for left, right in zip(photos[::2], photos[1::2], strict=True):
        image, places = side_by_side([left.rgb, right.rgb], lab.detector)
        leak = neighbours_key(Picture(image), places, 0, lab.diffusion_model, CROP, steps=8)
        leaks.append(embed_face(judge, leak, places[1]))
        originals.append(embed_face(judge, image, places[1]))
    cosines = np.stack(leaks) @ np.stack(originals).T
    return list(np.diag(cosines)), list(cosines[~np.eye(len(cosines), dtype=bool)])


def recovery_after(kind: bytes, content: bytes) -> str:
    """What ``diffprivacy recover`` does with a protected image after a chunk was added to it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "identity.txt").write_text(str(IDENTITY))
        png.save(folder / "a.png", PROTECTED, [SEAL.encrypt_key(lossless())])
        inject(folder / "a.png", kind, content)
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = command_line(
                [
                    "recover",
                    str(folder / "a.png"),
                    "-o",
                    str(folder / "out"),
                    "--identity-file",
                    str(folder / "identity.txt"),
                ]
            )
        made = folder / "out" / "a.png"
        if not made.exists():
            return f"refused, exit {code}"
        genuine = torch.equal(read_picture(made).rgb, ORIGINAL.rgb)
        return "the original comes back" if genuine else f"something else, exit {code}"


if __name__ == "__main__":
    main()
