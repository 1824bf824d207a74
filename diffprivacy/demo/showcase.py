"""``diffprivacy demo``: what the pack does, on one photo, with nothing to download."""

from __future__ import annotations

import dataclasses
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import demo
from ..backends.diffusers import DiffusersModel
from ..diffusion.noise import NoiseKey
from ..errors import DiffPrivacyError
from ..evaluation.comparison import FaceComparison, judge
from ..evaluation.drawing import contact_sheet
from ..faces.detectors import load_detector
from ..faces.geometry import Face, crop_face
from ..faces.selection import select_faces
from ..media.atomic import write_atomically
from ..media.disclosure import disclose
from ..media.images import Picture, encode_png, read_picture, write_picture
from ..pipeline import protect
from ..presets import PRESETS
from ..progress import sampling_progress
from ..recovery.encryption import Decryptor, Encryptor
from ..recovery.key import RecoveryKey
from ..recovery.replay import record, recover
from ..regeneration import Regeneration, anonymizing, hiding
from .backend import load_diffusion_model

VARIANTS = 4
PROTECTED = [*(f"variant {i + 1}" for i in range(VARIANTS)), "hidden"]
VERSIONS = [*PROTECTED, "recovered", "wrong key"]


def run(photo: Path | None, output: Path, seed: int | None = None) -> None:
    """Anonymize the largest face of a photo in four variants, hide it, and recover it, with the key and without.

    Writes the protected pictures, each with its sealed key beside it, the identity that opens the keys, what that key
    and a wrong one recover, and a contact sheet; prints the table. photo: None for scikit-image's public-domain
    astronaut. Raises DiffPrivacyError for a photo without a face.

    No more than two whole pictures are kept at once: a photo may be large, and the versions lie in files.
    """
    from pyrage import x25519  # pyright: ignore[reportAttributeAccessIssue]

    original = _original(photo)
    face = select_faces(load_detector(None).detect(original.rgb), "largest")[0]
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiffPrivacyError(f"{output} cannot be made a folder ({error.strerror}); choose another.") from error
    diffusion_model = load_diffusion_model()
    identity, stranger = x25519.Identity.generate(), x25519.Identity.generate()
    write_atomically(output / "identity.txt", f"{identity}\n".encode(), secret=True)
    _protect(original, face, diffusion_model, Encryptor(recipients=[str(identity.to_public())]), output, seed)
    del original

    protected = read_picture(_file(output, "hidden"))
    sealed = _file(output, "hidden", ".png.age").read_bytes()
    opened = RecoveryKey.from_bytes(Decryptor(identities=[str(identity)]).decrypt(sealed))
    with sampling_progress("recover", leave=True) as bar:
        write_picture(_file(output, "recovered"), recover(protected, [opened], diffusion_model, callback=bar))
    try:
        Decryptor(identities=[str(stranger)]).decrypt(sealed)
    except DiffPrivacyError as error:
        refusal = str(error)
    else:
        raise AssertionError("a stranger's identity opened the key")
    with sampling_progress("recover with a wrong key", leave=True) as bar:
        write_picture(_file(output, "wrong key"), recover(protected, [_another(opened)], diffusion_model, callback=bar))
    del protected

    _report(_original(photo).rgb, face, output)
    print(f"another identity instead of identity.txt: {refusal}")
    print(f"wrote the images, their sealed keys and contact-sheet.png to {output}")


def _original(photo: Path | None) -> Picture:
    return example_photo() if photo is None else read_picture(photo)


def _file(output: Path, version: str, ending: str = ".png") -> Path:
    return output / f"{version.replace(' ', '-')}{ending}"


def _protect(
    original: Picture, face: Face, diffusion_model: DiffusersModel, encryptor: Encryptor, output: Path, seed: int | None
) -> None:
    """Write the protected versions, each with its sealed key beside it."""
    guide, noise_key = demo.load_recognizer("guide"), NoiseKey.from_seed(seed)
    anonymized = Regeneration(PRESETS["anonymize"]["default"], anonymizing(guide, VARIANTS), variants=VARIANTS)
    with sampling_progress("anonymize", leave=True) as bar:
        variants = protect(original.rgb, [face], diffusion_model, demo.CROP, anonymized, noise_key, bar)
    with sampling_progress("hide", leave=True) as bar:
        as_hidden = Regeneration(PRESETS["hide"]["default"], hiding(guide))
        hidden = protect(original.rgb, [face], diffusion_model, demo.CROP, as_hidden, noise_key.derive("hide"), bar)
    with sampling_progress("record the key", leave=True) as bar:
        key = record(original, [face], diffusion_model, demo.CROP, callback=bar)

    def write(version: str, picture: Picture) -> None:
        write_atomically(_file(output, version), disclose(encode_png(picture)))
        write_atomically(_file(output, version, ".png.age"), encryptor.encrypt(key.bound_to(picture).to_bytes()))

    made = chain(variants, hidden)
    for version in PROTECTED:
        write(version, Picture(next(made)))


def _another(key: RecoveryKey) -> RecoveryKey:
    """A key of the same form whose noise map is a guess."""
    assert key.noise_map is not None and key.sigmas is not None
    return dataclasses.replace(key, noise_map=key.sigmas[0] * NoiseKey().normal(tuple(key.noise_map.shape)))


def _report(original: Tensor, face: Face, output: Path) -> None:
    """Print the table and write the contact sheet of the original (H,W,3) and its versions in files."""
    judges = {name: demo.load_recognizer(name) for name in ("guide", "judge")}

    def closeup(picture: Tensor) -> Tensor:
        return crop_face(picture, face, 256, margin=2.2)

    def look(version: str) -> tuple[FaceComparison, Tensor]:
        rgb = read_picture(_file(output, version)).rgb
        return judge(original, rgb, [face], [""], judges)[0], closeup(rgb)

    labels, closeups = ["original"], [closeup(original)]
    print(f"{'':<10} {'guide':>6} {'judge':>6} {'PSNR':>8}   (cosine to the original)")
    for version in VERSIONS:
        judged, seen = look(version)
        cosines = [judged.cosine(which) for which in judges]
        print(f"{version:<10} {cosines[0]:>6.2f} {cosines[1]:>6.2f} {judged.psnr:>5.1f} dB")
        labels.append(f"{version}\nguide {cosines[0]:.2f}  judge {cosines[1]:.2f}\n{judged.psnr:.1f} dB")
        closeups.append(seen)
    half = len(closeups) // 2
    rows = [contact_sheet(closeups[:half], labels[:half]), contact_sheet(closeups[half:], labels[half:])]
    write_picture(output / "contact-sheet.png", Picture(torch.cat(rows)))


def example_photo() -> Picture:
    """One face, 512x512: scikit-image's astronaut (NASA, public domain)."""
    import skimage.data

    return Picture(torch.from_numpy(skimage.data.astronaut().astype(np.float32) / 255))
