"""What ten variants of one face, averaged, tell of the original: why one variant only is published.

    DIFFPRIVACY_DATA=... python -m benchmarks.attacks.averaging [--faces 26] [--variants 10] [--steps 20]

The image that is the mean of a photo's variants, and the mean of their embeddings, search a gallery of 100 originals.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from diffprivacy.identity.verification import rank1

from . import faces


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=26)
    parser.add_argument("--variants", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--made", type=Path, metavar="FOLDER", help="keep protected photos, and take those that are there"
    )
    options = parser.parse_args(arguments)
    lab = faces.open_lab()
    gallery = faces.celebrities(lab)
    probes = gallery[: options.faces]
    people, known = [photo.person for photo in probes], [photo.person for photo in gallery]
    print(
        f"{options.faces} faces, {options.variants} variants; rank-1 of {len(gallery)}, chance {100 / len(gallery):.0f} %\n"
    )
    print("| method, judge | one variant: similar, opposite | mean image | mean embedding |\n|---|---|---|---|")
    known_faces = {which: faces.embedded([p.rgb for p in gallery], gallery, j) for which, j in lab.judges.items()}
    for method in faces.methods(lab, options.steps):
        if method.name.startswith(("unguided", "stranger")):
            seeds = range(1, options.variants + 1)
            made = [faces.protections(probes, lab, method, seed, options.made) for seed in seeds]
            mean = [torch.stack(variants).mean(dim=0) for variants in zip(*made, strict=True)]
            for which, judge in lab.judges.items():
                originals = known_faces[which]
                each = [faces.embedded(images, probes, judge) for images in made]
                cells = []
                for vectors in (each[0], faces.embedded(mean, probes, judge), np.stack(each).mean(axis=0)):
                    ends = [rank1(vectors, people, originals, known, opposite=opposite) for opposite in (False, True)]
                    cells.append(", ".join(f"{100 * share:.0f} %" for share in ends))
                print(f"| {method.name}, {which} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
