"""``diffprivacy demo``: what the pack does, on one photo, with nothing to download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import demo, pipeline
from ..detectors import load_detector
from ..errors import DiffPrivacyError
from ..faces import Face, crop_face, crop_landmarks
from ..images import Picture, read_picture, write_picture
from ..preview import contact_sheet
from ..recognizers import FaceMatcher
from ..selection import select_faces
from .host import load_backbone

VARIANTS = 4


def run(photo: Path | None, output: Path, seed: int | None = None) -> None:
    """Anonymize the largest face of a photo in four variants; write them, a contact sheet, and print the table.

    photo: None for scikit-image's public-domain astronaut. Raises DiffPrivacyError for a photo without a face.
    """
    from tqdm import tqdm

    picture = _astronaut() if photo is None else read_picture(photo)
    detector = load_detector(None)
    faces = select_faces(detector.detect(picture.rgb), "largest")
    backbone = load_backbone()
    guide, judge = demo.load_recognizer("guide"), demo.load_recognizer("judge")
    with tqdm(desc="anonymize", unit="step", disable=None) as bar:

        def progress(step: dict) -> None:
            bar.total = step["steps"]
            bar.update(1)

        protected = pipeline.anonymize(
            picture.rgb,
            faces,
            backbone,
            size=demo.IMAGE_SIZE,
            margin=demo.MARGIN,
            recognizer=guide,
            variants=VARIANTS,
            seed=seed,
            callback=progress,
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiffPrivacyError(f"{output} cannot be made a folder ({error.strerror}); choose another.") from error
    names = ["original", *(f"variant {i + 1}" for i in range(VARIANTS))]
    pictures = [picture.rgb, *protected]
    labels = []
    print(f"{'':<10} {'guide':>6} {'judge':>6}   cosine to the original")
    for name, rgb in zip(names, pictures, strict=True):
        cosines = [cosine(recognizer, picture.rgb, rgb, faces[0]) for recognizer in (guide, judge)]
        print(f"{name:<10} {cosines[0]:>6.2f} {cosines[1]:>6.2f}")
        labels.append(f"{name}\nguide {cosines[0]:.2f}  judge {cosines[1]:.2f}")
    for i, rgb in enumerate(protected):
        write_picture(output / f"variant-{i + 1}.png", Picture(rgb))
    closeups = [crop_face(rgb, faces[0], 256, margin=2.2) for rgb in pictures]
    write_picture(output / "contact-sheet.png", Picture(contact_sheet(closeups, labels)))
    print(f"wrote {VARIANTS} pictures and contact-sheet.png to {output}")


def _astronaut() -> Picture:
    import skimage.data

    return Picture(torch.from_numpy(skimage.data.astronaut().astype(np.float32) / 255))


def cosine(recognizer: FaceMatcher, original: Tensor, other: Tensor, face: Face) -> float:
    """Cosine between the face in two versions (H,W,3) of a picture."""
    landmarks = crop_landmarks(face, 224, margin=2.0)[None]
    a, b = (
        recognizer.reference(crop_face(rgb, face, 224, margin=2.0).movedim(-1, 0)[None], landmarks, mirrored=True)
        for rgb in (original, other)
    )
    return recognizer.cosine(a, b).item()
