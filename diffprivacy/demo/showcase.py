"""``diffprivacy demo``: what the pack does, on one photo, with nothing to download."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import demo
from ..backends.diffusers import DiffusersModel
from ..diffusion.noise import NoiseKey
from ..errors import DiffPrivacyError
from ..evaluation.comparison import FaceComparison, judge
from ..evaluation.drawing import contact_sheet
from ..faces.detectors import load_detector
from ..faces.geometry import ARCFACE_TEMPLATE, TEMPLATE_SIZE, Face, crop_face
from ..faces.selection import select_faces
from ..media.atomic import write_atomically
from ..media.disclosure import disclose
from ..media.images import Picture, encode_png, read_picture, write_picture
from ..pipeline import part_of, protect
from ..presets import PRESETS
from ..progress import sampling_progress
from ..recovery.encryption import Decryptor, Encryptor
from ..recovery.key import RecoveryKey
from ..recovery.replay import record, recover
from ..redrawing import checked
from ..regeneration import Regeneration, anonymizing, hiding
from .backend import load_diffusion_model

VARIANTS = 4
PROTECTED = [*(f"variant {i + 1}" for i in range(VARIANTS)), "hidden"]
VERSIONS = [*PROTECTED, "recovered"]
PORTRAITS = Path(__file__).with_name("portraits.webp")


def run(photo: Path | None, output: Path, seed: int | None = None) -> None:
    """Anonymize the largest face of a photo in four variants, hide it, and recover it, with the key and without.

    Writes the protected pictures, each with its sealed key beside it, the identity that opens the keys, what that key
    recovers, and a contact sheet; prints the table. photo: None for scikit-image's public-domain astronaut; the sheet
    then shows four other people too, anonymized. Raises DiffPrivacyError for a photo without a face.

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
    del protected

    rows = _report(_original(photo).rgb, face, output)
    if photo is None:
        rows += _other_people(diffusion_model, NoiseKey.from_seed(seed).derive("people"))
    write_picture(output / "contact-sheet.png", Picture(torch.cat(rows)))
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
    anonymized = checked(anonymized, "anonymize", guide, "face", print)
    with sampling_progress("anonymize", leave=True) as bar:
        variants = protect(original.rgb, [face], diffusion_model, demo.CROP, anonymized, noise_key, bar)
    with sampling_progress("hide", leave=True) as bar:
        as_hidden = checked(Regeneration(PRESETS["hide"]["default"], hiding(guide)), "hide", guide, "face", print)
        hidden = protect(original.rgb, [face], diffusion_model, demo.CROP, as_hidden, noise_key.derive("hide"), bar)
    with sampling_progress("record the key", leave=True) as bar:
        key = record(original, [face], diffusion_model, demo.CROP, callback=bar)

    def write(version: str, picture: Picture) -> None:
        write_atomically(_file(output, version), disclose(encode_png(picture)))
        write_atomically(_file(output, version, ".png.age"), encryptor.encrypt(key.bound_to(picture).to_bytes()))

    made = chain(variants, hidden)
    for version in PROTECTED:
        write(version, Picture(next(made)))


def _report(original: Tensor, face: Face, output: Path) -> list[Tensor]:
    """Print the table; two rows of the contact sheet with the original (H,W,3) and its versions in files.

    Who tries a wrong key is refused, so what they see is the protected image.
    """
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
    labels.append("hidden, with a wrong key\nrefused: the image\nstays as it is")
    closeups.append(closeups[VERSIONS.index("hidden") + 1])
    half = len(closeups) // 2
    return [contact_sheet(closeups[:half], labels[:half]), contact_sheet(closeups[half:], labels[half:])]


def _other_people(diffusion_model: DiffusersModel, noise_key: NoiseKey) -> list[Tensor]:
    """Two rows of the contact sheet: portraits that the model was not trained on, and the same anonymized."""
    judges = {name: demo.load_recognizer(name) for name in ("guide", "judge")}
    landmarks = (ARCFACE_TEMPLATE - TEMPLATE_SIZE / 2) * demo.IMAGE_SIZE / TEMPLATE_SIZE / demo.MARGIN
    face = Face((0, 0, demo.IMAGE_SIZE, demo.IMAGE_SIZE), landmarks + demo.IMAGE_SIZE / 2, 1.0)
    how = Regeneration(PRESETS["anonymize"]["default"], anonymizing(judges["guide"]))
    how = checked(how, "anonymize", judges["guide"], "face", print)
    people = read_picture(PORTRAITS).rgb.split(demo.IMAGE_SIZE, dim=1)
    labels, made = [], []
    with sampling_progress("anonymize four other people", leave=True) as bar:
        for i, person in enumerate(people):
            count_on = part_of(bar, i, len(people))
            made += protect(person, [face], diffusion_model, demo.CROP, how, noise_key.derive(i), count_on)
            judged = judge(person, made[-1], [face], [""], judges)[0]
            labels.append("anonymized\n" + "  ".join(f"{which} {judged.cosine(which):.2f}" for which in judges))
    larger = F.interpolate(torch.stack([*people, *made]).movedim(-1, 1), (256, 256), mode="bicubic").clamp(0, 1)
    larger = list(larger.movedim(1, -1))
    half = len(people)
    return [contact_sheet(larger[:half], ["original"] * half), contact_sheet(larger[half:], labels)]


def example_photo() -> Picture:
    """One face, 512x512: scikit-image's astronaut (NASA, public domain)."""
    import skimage.data

    return Picture(torch.from_numpy(skimage.data.astronaut().astype(np.float32) / 255))
