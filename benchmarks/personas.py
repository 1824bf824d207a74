"""Does a persona stay one person over many photos, and is it a stranger to the original and under another secret?

    DIFFPRIVACY_DATA=... python -m benchmarks.personas [--people 10] [--photos 10] [--steps 20] [--task anonymize] [--made FOLDER]

LFW photos, each protected under two secrets. A book tells the people by itself, photo by photo, as the command line does;
*personas* is how many it found. Cosines and the share accepted as one person at each judge's threshold for FAR 1e-3, of
pairs of protected photos: of one person, and of two people; of one person under two secrets, from the same photo, which
gives both its pose, light and surroundings, and from another; of protected photos against that person's originals (all of
them), and against other people's; and against what the guide was to see, as the book drew it. *enrolled* takes the first
protected photo of each person as their template and tries the others; *revoked* tries them under the other secret. Only the
guide guides. *without* has new noise and no persona for each photo, as the command line without --personas.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffprivacy import demo
from diffprivacy.diffusion.noise import NoiseKey
from diffprivacy.evaluation.drawing import contact_sheet
from diffprivacy.faces.geometry import crop_face, crop_landmarks, paste_faces
from diffprivacy.identity.embedding import embed_face
from diffprivacy.identity.thresholds import person_threshold
from diffprivacy.identity.verification import accept_rate
from diffprivacy.media.images import Picture, read_picture, write_picture
from diffprivacy.personas.book import PersonaBook
from diffprivacy.presets import PERSONAS, PRESETS, Preset
from diffprivacy.regeneration import Regeneration, Task, latent_shape, regenerate_crops, starting_noise, task_energy

from .attacks import faces

SECRETS = (1, 2)
HEAD = (
    "| method, judge | one person | two people | own originals (others) | two secrets: same photo | another photo "
    "| two people | as drawn | enrolled | revoked |\n|" + "---|" * 10
)
AS_DRAWN = 6


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=10)
    parser.add_argument("--photos", type=int, default=10, help="of each person")
    parser.add_argument("--steps", type=int, default=20, help="of the whole schedule; 0.8 of them run")
    parser.add_argument("--task", choices=["anonymize", "hide"], default="anonymize")
    parser.add_argument("--strength", type=float, help="by default the task's with personas")
    parser.add_argument("--methods", nargs="*", default=["personas", "without"])
    parser.add_argument(
        "--made", type=Path, help="folder that keeps the faces, so that a run goes on where it was interrupted"
    )
    parser.add_argument("--sheet", type=Path, help="PNG to write the first photos of each person to")
    options = parser.parse_args(arguments)
    lab = faces.open_lab()
    photos = faces.people(lab, options.people, options.photos)
    names = [photo.person for photo in photos]
    embeddings = np.stack([embed_face(lab.guide, photo.rgb, photo.face) for photo in photos])
    books = [PersonaBook(NoiseKey.from_seed(secret)) for secret in SECRETS]
    owners = [
        [book.assign(one[None], lab.guide, person_threshold(lab.guide))[0] for one in embeddings] for book in books
    ]
    print(f"{len(photos)} photos of {len(set(names))} people; personas: {len(books[0])}\n\n{HEAD}", flush=True)
    originals = [photo.rgb for photo in photos]
    shown = {"original": originals}
    for method in options.methods:
        how = Method(method, options.task, options.steps, options.strength)
        made = [
            _protected(photos, book, of, lab, how, options.made and options.made / f"{how.folder}-{secret}")
            for secret, book, of in zip(SECRETS, books, owners, strict=True)
        ]
        shown[method] = made[0]
        for which, judge in lab.judges.items():
            first, second, known = (faces.embedded(images, photos, judge) for images in (*made, originals))
            cells = _cells(first, second, known, names, faces.threshold(which, judge))
            if which == "guide":
                cells[AS_DRAWN] = _said((first * books[0].targets[owners[0]]).sum(1), faces.threshold(which, judge))
            print(f"| {method}, {which} | {' | '.join(cells)} |", flush=True)
    if options.sheet:
        _draw(options.sheet, shown, photos)


@dataclass(frozen=True)
class Method:
    """How faces are made new; name: "personas" or "without". strength: None for the task's own."""

    name: str
    task: Task
    steps: int
    strength: float | None

    @property
    def preset(self) -> Preset:
        preset = (PERSONAS if self.name == "personas" else PRESETS)[self.task]["default"]
        return dataclasses.replace(preset, steps=self.steps, strength=self.strength or preset.strength)

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.task}-{self.steps}-{self.preset.strength}"


def _protected(
    photos: Sequence[faces.Photo],
    book: PersonaBook,
    owners: Sequence[int],
    lab: faces.Lab,
    method: Method,
    made: Path | None,
) -> list[Tensor]:
    """The photos (H,W,3) with their faces made new, one by one; ``made`` is the folder that keeps them."""
    shape = latent_shape(lab.diffusion_model, demo.IMAGE_SIZE)
    images = []
    for i, (photo, owner) in enumerate(zip(photos, owners, strict=True)):
        file = made / f"{photo.name}.png" if made else None
        if file and file.exists():
            images.append(read_picture(file).rgb)
            continue
        persona = book.persona(owner) if method.name == "personas" else None
        how = Regeneration(
            method.preset,
            task_energy(method.task, lab.guide, method.preset.form, persona=persona and persona.target),
            noise_key=persona and persona.noise_key,
        )
        crop = crop_face(photo.rgb, photo.face, demo.IMAGE_SIZE, demo.MARGIN).movedim(-1, 0)[None]
        landmarks = crop_landmarks(photo.face, demo.IMAGE_SIZE, demo.MARGIN)[None]
        noise = starting_noise(how, shape, book.secret, "photo", i)
        (new,) = regenerate_crops(crop, landmarks, noise, lab.diffusion_model, how)
        images.append(paste_faces(photo.rgb, [new.movedim(0, -1)], [photo.face], demo.MARGIN))
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_picture(file, Picture(images[-1]))
    return images


def _crop(image: Tensor, photo: faces.Photo) -> Tensor:
    """The photo's face (1,3,S,S) in an image (H,W,3)."""
    return crop_face(image, photo.face, demo.IMAGE_SIZE, demo.MARGIN).movedim(-1, 0)[None]


def _cells(
    first: np.ndarray, second: np.ndarray, originals: np.ndarray, names: Sequence[str], threshold: float
) -> list[str]:
    same = np.asarray(names)[:, None] == np.asarray(names)[None]
    pairs = np.triu(np.ones_like(same), k=1)
    within, across, against = first @ first.T, first @ second.T, first @ originals.T
    begins = np.array([i for i, name in enumerate(names) if names.index(name) == i])
    probes = np.setdiff1d(np.arange(len(names)), begins)
    enrolled = np.zeros_like(same)
    enrolled[np.ix_(begins, probes)] = same[np.ix_(begins, probes)]
    same_photo = np.eye(len(names), dtype=bool)
    return [
        _said(within[same & pairs], threshold),
        _said(within[~same & pairs], threshold),
        f"{_said(against[same], threshold)} ({_said(against[~same], threshold)})",
        _said(across[same_photo], threshold),
        _said(across[same & ~same_photo], threshold),
        _said(across[~same], threshold),
        "–",
        _said(within[enrolled], threshold),
        _said(across[enrolled], threshold),
    ]


def _said(cosines: np.ndarray, threshold: float) -> str:
    return f"{cosines.mean():.2f}, {100 * accept_rate(cosines, threshold):.0f} % of {cosines.size}"


def _draw(file: Path, shown: dict[str, list[Tensor]], photos: Sequence[faces.Photo]) -> None:
    """The first three photos of the first three people, a row for each method."""
    names = list(dict.fromkeys(photo.person for photo in photos))[:3]
    chosen = [i for name in names for i in [i for i, photo in enumerate(photos) if photo.person == name][:3]]
    rows = [
        contact_sheet(
            [crop_face(images[i], photos[i].face, 128, 1.8) for i in chosen], [label, *[""] * (len(chosen) - 1)]
        )
        for label, images in shown.items()
    ]
    write_picture(file, Picture(torch.cat(rows)))


if __name__ == "__main__":
    main()
