"""Who finds the person behind an anonymized face by searching a gallery, and who links two protections of one person?

    DIFFPRIVACY_DATA=... python -m benchmarks.attacks.identity [--faces 26] [--steps 20] [--photos lfw] [--made FOLDER]

CelebA-HQ: protected photos against a gallery of all originals, which is the worst case, and LFW: protected photos of ten
people against *other* photos of theirs. Searches: the most similar face, the most opposite one, and the one nearest to
the mean cosine of strangers, which finds faces that guidance left at one value. Every photo is protected twice, under
two keys. Link: the AUC of telling pairs of one photo from pairs of two (chance 0.5), and the share of pairs of one photo
that are accepted as one person. *Others* stands for other people's faces, the chance level; acceptance is at the judge's
threshold for FAR 1e-3. The control has nothing of the original's face: what links its pairs are hair, light and
background around the mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffprivacy.evaluation.drawing import contact_sheet
from diffprivacy.faces.geometry import crop_face
from diffprivacy.identity.verification import accept_rate, link_auc, rank1, strangers_cosine
from diffprivacy.media.images import Picture, write_picture

from . import faces

HEAD = (
    "| method, judge | cosine ± std (others ± std) | TAR (others) | similar | opposite | nearest to the aim | "
    "link: AUC, accepted (others) |"
)
KEYS = (1, 2)
SHOWN = 10


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=26, help="CelebA-HQ photos to protect, of 100")
    parser.add_argument("--steps", type=int, default=20, help="of the whole schedule; 0.6 of them run")
    parser.add_argument("--photos", choices=["celebahq", "lfw"], help="of these only (default: both)")
    parser.add_argument("--methods", nargs="*", help="parts of their names (default: all)")
    parser.add_argument(
        "--made", type=Path, metavar="FOLDER", help="keep protected photos, and take those that are there"
    )
    parser.add_argument("--sheet", type=Path, help="PNG to write the first faces to")
    options = parser.parse_args(arguments)
    lab = faces.open_lab()
    methods = [
        method
        for method in faces.methods(lab, options.steps)
        if not options.methods or any(part in method.name for part in options.methods)
    ]
    rows: list[list[Tensor]] = []
    labels: list[str] = []
    for title, probes, gallery in _searches(lab, options.photos, options.faces):
        chance = 100 / len({photo.person for photo in gallery})
        print(f"\n{title}; gallery of {len(gallery)}, chance {chance:.0f} %\n\n{HEAD}\n|{'---|' * 7}", flush=True)
        originals = {which: faces.embedded([p.rgb for p in gallery], gallery, j) for which, j in lab.judges.items()}
        labels.append("original")
        rows.append([_closeup(p.rgb, p) for p in probes[:SHOWN]])
        for method in methods:
            made = [faces.protections(probes, lab, method, seed, options.made) for seed in KEYS]
            for which in lab.judges:
                print(
                    f"| {method.name}, {which} | {_verdict(lab, which, made, probes, gallery, originals)} |", flush=True
                )
            labels.append(method.name)
            rows.append([_closeup(rgb, p) for rgb, p in zip(made[0][:SHOWN], probes, strict=False)])
    if options.sheet:
        sheet = [
            contact_sheet(shown, [label, *[""] * (len(shown) - 1)]) for label, shown in zip(labels, rows, strict=True)
        ]
        write_picture(options.sheet, Picture(torch.cat(sheet)))


def _searches(
    lab: faces.Lab, photos: str | None, count: int
) -> Iterator[tuple[str, Sequence[faces.Photo], Sequence[faces.Photo]]]:
    """What is searched, the photos that are protected, and the gallery."""
    if photos != "lfw":
        celebrities = faces.celebrities(lab)
        yield f"CelebA-HQ, {count} photos", celebrities[:count], celebrities
    if photos != "celebahq":
        people = faces.people(lab)
        names = [photo.person for photo in people]
        first = [photo for i, photo in enumerate(people) if names.index(photo.person) == i]
        others = [photo for i, photo in enumerate(people) if names.index(photo.person) != i]
        yield f"LFW, other photos of {len(first)} people", first, others


def _closeup(rgb: Tensor, photo: faces.Photo) -> Tensor:
    return crop_face(rgb, photo.face, 128, 1.8)


def _verdict(
    lab: faces.Lab,
    which: str,
    made: Sequence[Sequence[Tensor]],
    probes: Sequence[faces.Photo],
    gallery: Sequence[faces.Photo],
    embedded: Mapping[str, np.ndarray],
) -> str:
    """A judge's cells of the table."""
    judge, originals = lab.judges[which], embedded[which]
    threshold = faces.threshold(which, judge)
    people, known = [photo.person for photo in probes], [photo.person for photo in gallery]
    one, two = (faces.embedded(images, probes, judge) for images in made)
    cosines = one @ originals.T
    own = np.asarray(people)[:, None] == np.asarray(known)[None]
    nearest = np.abs(cosines - judge.strangers[0].mean).argmin(axis=1)
    ends = [rank1(one, people, originals, known, opposite=opposite) for opposite in (False, True)]
    ends.append(float(np.mean(np.asarray(known)[nearest] == np.asarray(people))))
    link = link_auc(np.concatenate([one, two]), [photo.person for photo in probes] * 2)
    pairs = one @ two.T
    same = np.eye(len(pairs), dtype=bool)
    others = strangers_cosine(one, people, originals, known)
    cells = [
        f"{cosines[own].mean():.2f} ± {cosines[own].std():.2f} ({others:.2f} ± {cosines[~own].std():.2f})",
        _accepted(cosines, own, threshold),
        *(f"{100 * share:.0f} %" for share in ends),
        f"{link:.2f}, {_accepted(pairs, same, threshold)}",
    ]
    return " | ".join(cells)


def _accepted(cosines: np.ndarray, own: np.ndarray, threshold: float) -> str:
    """The share of one person's pairs that is accepted, and of other pairs."""
    shares = [100 * accept_rate(cosines[which], threshold) for which in (own, ~own)]
    return "{:.0f} % ({:.0f} %)".format(*shares)


if __name__ == "__main__":
    main()
