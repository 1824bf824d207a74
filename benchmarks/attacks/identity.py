"""Who finds the person behind an anonymized face by searching a gallery, and who links two protections of one person?

    DIFFPRIVACY_DATA=... python -m benchmarks.attacks.identity [--faces 26] [--steps 20] [--sheet FILE]

CelebA-HQ: protected photos against a gallery of all originals, which is the worst case, and LFW: protected photos of ten
people against *other* photos of theirs. Searches: the most similar face, the most opposite one, and the one nearest to
the mean cosine of strangers, which finds faces that guidance left at one value. Every photo is protected twice, under
two keys; the link is the AUC of telling pairs of one photo from pairs of two.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from diffprivacy.diffusion.noise import NoiseKey
from diffprivacy.evaluation.drawing import contact_sheet
from diffprivacy.faces.geometry import crop_face
from diffprivacy.identity.verification import accept_rate, link_auc, rank1, strangers_cosine
from diffprivacy.media.images import Picture, write_picture

from . import faces

HEAD = "| method, judge | cosine ± std (others ± std) | TAR | similar | opposite | nearest to the aim | link AUC |"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=26, help="CelebA-HQ photos to protect, of 100")
    parser.add_argument("--steps", type=int, default=20, help="of the whole schedule; 0.6 of them run")
    parser.add_argument("--methods", nargs="*", help="parts of their names (default: all)")
    parser.add_argument("--sheet", type=Path, help="PNG to write the first faces to")
    options = parser.parse_args(arguments)
    lab = faces.open_lab()
    methods = {
        name: method
        for name, method in faces.methods(lab, options.steps).items()
        if not options.methods or any(part in name for part in options.methods)
    }
    celebrities, people = faces.celebrities(lab), faces.people(lab)
    named = sorted({photo.person for photo in people})
    first = [next(photo for photo in people if photo.person == name) for name in named]
    others = [photo for photo in people if not any(photo is taken for taken in first)]
    rows = []
    for title, probes, gallery in (
        (f"CelebA-HQ, {options.faces} photos", celebrities[: options.faces], celebrities),
        (f"LFW, other photos of {len(first)} people", first, others),
    ):
        chance = 100 / len({photo.person for photo in gallery})
        print(f"\n{title}; gallery of {len(gallery)}, chance {chance:.0f} %\n\n{HEAD}\n|{'---|' * 7}", flush=True)
        for name, method in methods.items():
            made = [faces.protections(probes, lab, method, NoiseKey.from_seed(seed)) for seed in (1, 2)]
            for which in lab.judges:
                print(f"| {name}, {which} | {_verdict(lab, which, made, probes, gallery)} |", flush=True)
            if gallery is celebrities:
                rows.append(
                    (name, [crop_face(rgb, p.face, 128, 1.8) for rgb, p in zip(made[0][:10], probes, strict=False)])
                )
    if options.sheet:
        originals = [crop_face(photo.rgb, photo.face, 128, 1.8) for photo in celebrities[:10]]
        sheet = [
            contact_sheet(shown, [name] + [""] * (len(shown) - 1)) for name, shown in [("original", originals), *rows]
        ]
        write_picture(options.sheet, Picture(torch.cat(sheet)))


def _verdict(
    lab: faces.Lab, which: str, made: list[list], probes: Sequence[faces.Photo], gallery: Sequence[faces.Photo]
) -> str:
    """A judge's cells of the table."""
    judge = lab.judges[which]
    people, known = [photo.person for photo in probes], [photo.person for photo in gallery]
    originals = faces.embedded([photo.rgb for photo in gallery], gallery, judge)
    one, two = (faces.embedded(images, probes, judge) for images in made)
    cosines = one @ originals.T
    own = np.asarray(people)[:, None] == np.asarray(known)[None]
    nearest = np.abs(cosines - judge.strangers[0].mean).argmin(axis=1)
    ends = [rank1(one, people, originals, known, opposite=opposite) for opposite in (False, True)]
    ends.append(float(np.mean(np.asarray(known)[nearest] == np.asarray(people))))
    link = link_auc(np.concatenate([one, two]), [photo.person for photo in probes] * 2)
    others = strangers_cosine(one, people, originals, known)
    cells = [
        f"{cosines[own].mean():.2f} ± {cosines[own].std():.2f} ({others:.2f} ± {cosines[~own].std():.2f})",
        f"{100 * accept_rate(cosines[own], faces.threshold(which, judge)):.0f} %",
        *(f"{100 * share:.0f} %" for share in ends),
        f"{link:.2f}",
    ]
    return " | ".join(cells)


if __name__ == "__main__":
    main()
