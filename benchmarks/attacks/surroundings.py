"""What is around a face tells of the person: an upper bound for photos whose faces are made new.

    DIFFPRIVACY_DATA=... python -m benchmarks.attacks.surroundings [--people 10]

LFW: each of ten photos of ten people is searched for among all others, with the largest face in grey where the mask
leaves nothing of it. The photos are not protected: new faces leave less in the mask's soft border.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from diffprivacy.commands.evaluate_attacks import embedded
from diffprivacy.evaluation.attacks import Attack, attack_table
from diffprivacy.evaluation.searches import around, surroundings
from diffprivacy.identity.recognizers import FaceMatcher

from . import faces

VIEWS = {"the face's crop": slice(0, 1), "the head's crop": slice(1, 2), "both": slice(0, 2)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=10)
    options = parser.parse_args(arguments)
    lab = faces.open_lab()
    photos = faces.people(lab, options.people)
    views = [around(photo.rgb, photo.face) for photo in photos]
    names, people = [photo.name for photo in photos], [photo.person for photo in photos]
    attacks: dict[str, list[Attack]] = {}
    for which, judge in lab.judges.items():
        vectors = seen(views, judge)
        for view, part in VIEWS.items():
            of_view = vectors[:, part].reshape(len(photos), -1)
            attacks[f"{which}, {view}"] = surroundings(of_view, of_view, names, people)
    print(attack_table(attacks))


def seen(views: list[Tensor], judge: FaceMatcher) -> np.ndarray:
    """Unit vectors (N,2,D) of both views of each photo."""
    with torch.no_grad():
        return torch.stack([embedded(judge, of_photo) for of_photo in views]).numpy()


if __name__ == "__main__":
    main()
