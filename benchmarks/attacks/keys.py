"""What an attacker gets from protected pictures, from their sealed keys, and in keyed mode.

    DIFFPRIVACY_DATA=... python -m benchmarks.attacks.keys [--faces 16] [--pairs 60] [--steps 20] [--sheet FILE]

Embedded demo model on CelebA-HQ photos. Judges: mobilefacenet_ms1m, which took no part, and
mobileface_v2, whose network is the demo guide: for the guided picture, *no key*, it judges its own work. TAR is the share of faces accepted
as the original at their LFW thresholds for FAR 1e-3. "refused" counts the attempts that end in an error. Whether one
person's protections under two secrets can be linked is told by the last table: its control is a face drawn from fresh
noise in the same surroundings, which shares hair, pose and light with the protections, but neither person nor secret.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyrage
import torch
from torch import Tensor

from diffprivacy import demo, pipeline
from diffprivacy.backends.diffusers import DiffusersModel
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.errors import DiffPrivacyError
from diffprivacy.evaluation.drawing import contact_sheet
from diffprivacy.evaluation.fidelity import psnr
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import Face, crop_face, crop_landmarks, paste_faces
from diffprivacy.identity.recognizers import FaceMatcher, load_recognizer
from diffprivacy.media.images import Picture, decode_picture, encode_png, levels, read_picture, write_picture
from diffprivacy.presets import PRESETS
from diffprivacy.recovery import keyed
from diffprivacy.recovery.encryption import Decryptor, Encryptor
from diffprivacy.recovery.key import RecoveryKey
from diffprivacy.recovery.replay import record, recover
from diffprivacy.regeneration import Regeneration, anonymizing

JUDGES = {"mobilefacenet_ms1m": 0.301, "mobileface_v2": 0.356}
"""Recognizer and its threshold at FAR 1e-3 on the 6000 LFW pairs."""


@dataclasses.dataclass
class Case:
    """A photo with its face, and everything that was made of it: name -> picture (H,W,3)."""

    original: Picture
    face: Face
    made: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    key: RecoveryKey | None = None
    sealed: bytes = b""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=60, help="faces protected under two secrets, for linking")
    parser.add_argument("--steps", type=int, default=20, help="of protection; 0.6 of them run")
    parser.add_argument("--sheet", type=Path, help="PNG to write the first faces to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = Path(os.environ["DIFFPRIVACY_DATA"])
    diffusion_model, guide, detector = load_diffusion_model(), demo.load_recognizer("guide"), load_detector(None)
    judges = {name: load_recognizer(data / "recognizers" / f"{name}.onnx") for name in JUDGES}
    identity = pyrage.x25519.Identity.generate()  # pyright: ignore[reportAttributeAccessIssue]
    encryptor, decryptor = Encryptor(recipients=[str(identity.to_public())]), Decryptor(identities=[str(identity)])
    preset = dataclasses.replace(PRESETS["anonymize"]["default"], steps=options.steps)
    cases: list[Case] = []
    for path in sorted((data / "photos" / "celebahq512").iterdir()):
        if len(cases) == max(options.faces, options.pairs):
            break
        original = read_picture(path)
        if len(faces := detector.detect(original.rgb)) != 1:
            continue
        case = Case(original, faces[0])
        key = os.urandom(32)
        keyed_protections(case, diffusion_model, key)
        if len(cases) < options.faces:
            how = Regeneration(preset, anonymizing(guide))
            (rgb,) = pipeline.protect(original.rgb, faces, diffusion_model, demo.CROP, how)
            stored_key(case, Picture(as_file(rgb)), diffusion_model, encryptor, decryptor)
            keyed_attacks(case, diffusion_model, key)
        cases.append(case)
        print(f"{len(cases)} faces", end="\r", flush=True)
    attacked = cases[: options.faces]
    others_key(attacked, diffusion_model)
    report(attacked, judges)
    refusals(attacked, decryptor)
    unlinkability(cases, judges)
    if options.sheet:
        write_sheet(cases[:5], options.sheet)


def as_file(rgb: Tensor) -> Tensor:
    """A picture as an 8-bit PNG gives it back."""
    return decode_picture(encode_png(Picture(rgb)), "file").rgb


def as_jpeg(rgb: Tensor, quality: int) -> Tensor:
    """A picture as a JPEG gives it back."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(levels(rgb, 8)).save(file, "JPEG", quality=quality)
    return decode_picture(file.getvalue(), "jpeg").rgb


def stored_key(
    case: Case, protected: Picture, diffusion_model: DiffusersModel, encryptor: Encryptor, decryptor: Decryptor
) -> None:
    """What the owner gets back at each fidelity, and what an attacker has without the key."""
    case.made["no key: the protected picture"] = protected.rgb
    for fidelity in ("latent", "compact", "lossless"):
        key = record(case.original, [case.face], diffusion_model, demo.CROP, fidelity).bound_to(protected)
        sealed = encryptor.encrypt(key.to_bytes())
        opened = RecoveryKey.from_bytes(decryptor.decrypt(sealed))
        case.made[f"right key, {fidelity}"] = as_file(recover(protected, [opened], diffusion_model).rgb)
        if fidelity == "latent":
            case.key, case.sealed = opened, sealed


def others_key(cases: list[Case], diffusion_model: DiffusersModel) -> None:
    """Another picture's key, opened rightfully and forced onto this picture."""
    for case, other in zip(cases, cases[1:] + cases[:1], strict=True):
        assert other.key is not None
        protected = Picture(case.made["no key: the protected picture"])
        key = dataclasses.replace(other.key, faces=(case.face,))
        case.made["another picture's key, forced"] = recover(protected, [key], diffusion_model, changed=True).rgb


PUBLISHED = "keyed: the protected picture"
SECOND = "keyed: under a second secret"
CONTROL = "keyed: a new face in the same surroundings"


def public_of(case: Case) -> keyed.Public:
    """What travels openly with the case's picture. The salt plays no part, as the keys here are drawn, not derived."""
    return keyed.Public(bytes(keyed.SALT_BYTES), [case.face], demo.IMAGE_SIZE, demo.MARGIN)


def show(
    case: Case, picture: Tensor, noise_map: Tensor, diffusion_model: DiffusersModel, opaque: bool = True
) -> Tensor:
    """A picture with the face of a noise map pasted in, as a PNG gives it back."""
    crop = keyed.face_of(noise_map, diffusion_model)
    return as_file(paste_faces(picture, [crop], [case.face], demo.MARGIN, opaque))


def keyed_protections(case: Case, diffusion_model: DiffusersModel, key: bytes) -> None:
    """Keyed mode under a key and under a second one, and a control that knows nothing of the person."""
    original_map, mask = keyed.face_noise(case.original.rgb, public_of(case), 0, diffusion_model)
    maps = {
        name: keyed.rotate(original_map, mask, keyed.face_seed(secret, 0))
        for name, secret in ((PUBLISHED, key), (SECOND, os.urandom(32)))
    }
    inside = mask.expand_as(original_map) > 0.5
    fresh = torch.randn_like(original_map) * original_map[inside].square().mean().sqrt()
    maps[CONTROL] = torch.where(inside, fresh, original_map)
    for name, noise_map in maps.items():
        case.made[name] = show(case, case.original.rgb, noise_map, diffusion_model, opaque=False)


def keyed_attacks(case: Case, diffusion_model: DiffusersModel, right: bytes) -> None:
    """Recovery in keyed mode through PNG and JPEG, and attacks with wrong or without any secret.

    One bit of the secret changes the whole derived key, so attacks here change the key itself, at no cost of scrypt.
    """
    public = public_of(case)
    protected = case.made[PUBLISHED]
    found, mask = keyed.face_noise(protected, public, 0, diffusion_model)
    inside = mask.expand_as(found) > 0.5
    one_bit = bytes([right[0] ^ 1]) + right[1:]
    for name, key in (("right secret, PNG", right), ("secret one bit off", one_bit), ("wrong secret", os.urandom(32))):
        turned = keyed.rotate(found, mask, keyed.face_seed(key, 0), back=True)
        case.made[f"keyed: {name}"] = show(case, protected, turned, diffusion_model)
    signs = torch.randn_like(found).sign()
    for name, values in (("its map's magnitudes, signs guessed", found.abs() * signs), ("the background alone", 0)):
        case.made[f"keyed: {name}"] = show(case, protected, torch.where(inside, values, found), diffusion_model)
    jpeg = as_jpeg(protected, 90)
    from_jpeg, _ = keyed.face_noise(jpeg, public, 0, diffusion_model)
    turned = keyed.rotate(from_jpeg, mask, keyed.face_seed(right, 0), back=True)
    case.made["keyed: right secret, JPEG 90"] = show(case, jpeg, turned, diffusion_model)


def embeddings(cases: list[Case], name: str, judge: FaceMatcher) -> Tensor:
    """Embeddings (N,D) of the faces in what was made under a name."""
    rows = []
    for case in cases:
        rgb = case.original.rgb if name == "original" else case.made[name]
        crop = crop_face(rgb, case.face, 224, margin=2.0).movedim(-1, 0)[None]
        rows.append(judge.reference(crop, crop_landmarks(case.face, 224, margin=2.0)[None], mirrored=True)[0][0])
    return torch.stack(rows)


def report(cases: list[Case], judges: Mapping[str, FaceMatcher]) -> None:
    """The table of what comes back."""
    print(f"{len(cases)} faces; cosine to the original and TAR@FAR=1e-3 of {' and '.join(judges)}")
    print(f"| {'what the attacker or owner does':<50} | PSNR of the face | cosine | TAR |")
    print("|---|---|---|---|")
    originals = {name: embeddings(cases, "original", judge) for name, judge in judges.items()}
    for made in cases[0].made:
        fidelity = [
            psnr(*(crop_face(rgb, case.face, 112, margin=1.0) for rgb in (case.made[made], case.original.rgb)))
            for case in cases
        ]
        cosines, rates = [], []
        for name, judge in judges.items():
            similarity = (originals[name] * embeddings(cases, made, judge)).sum(dim=1)
            cosines.append(f"{similarity.mean():.2f}")
            rates.append(f"{(similarity >= JUDGES[name]).float().mean():.0%}")
        print(f"| {made:<50} | {np.mean(fidelity):.1f} dB | {', '.join(cosines)} | {', '.join(rates)} |")


def refusals(cases: list[Case], decryptor: Decryptor) -> None:
    """Attempts on sealed keys: how many end in an error, of how many."""
    attempts: dict[str, list[bool]] = defaultdict(list)

    def attempt(name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except DiffPrivacyError:
            attempts[name].append(True)
        else:
            attempts[name].append(False)

    stranger = Decryptor(identities=[str(pyrage.x25519.Identity.generate())])  # pyright: ignore[reportAttributeAccessIssue]
    for case, other in zip(cases, cases[1:] + cases[:1], strict=True):
        sealed, header = case.sealed, case.sealed.index(b"\n--- ")
        regions = {"header": (0, header), "MAC": (header, header + 49), "payload": (header + 49, len(sealed))}
        attempt("another identity", lambda sealed=sealed: stranger.decrypt(sealed))
        for region, (low, high) in regions.items():
            for place in np.linspace(low, high - 1, 20).astype(int):
                changed = bytearray(sealed)
                changed[place] ^= 1
                attempt(f"one bit flipped in the {region}", lambda changed=changed: decryptor.decrypt(bytes(changed)))
        for cut in (1, 100, len(sealed) // 2):
            attempt("truncated", lambda sealed=sealed, cut=cut: decryptor.decrypt(sealed[:-cut]))
        protected = Picture(case.made["no key: the protected picture"])
        foreign = RecoveryKey.from_bytes(decryptor.decrypt(other.sealed))
        attempt("swapped between pictures", lambda protected=protected, key=foreign: recover(protected, [key]))
    wrong = Encryptor(passphrase="right").encrypt(b"key")
    attempt("wrong passphrase", lambda: Decryptor("wrong").decrypt(wrong))
    print("\n| attempt on a sealed key | refused |\n|---|---|")
    for name, refused in attempts.items():
        print(f"| {name} | {sum(refused)} of {len(refused)} |")


def unlinkability(cases: list[Case], judges: Mapping[str, FaceMatcher]) -> None:
    """One person under two secrets, against strangers under two secrets and against the control."""
    print(
        f"\n| keyed, two secrets, {len(cases)} people | cosine ± standard error | accepted as one person |\n|---|---|---|"
    )
    for name, judge in judges.items():
        first, second, control = (embeddings(cases, made, judge) for made in (PUBLISHED, SECOND, CONTROL))
        cosines = first @ second.T
        pairs = {
            "the same person": cosines.diagonal(),
            "a new face in the same surroundings": (first * control).sum(dim=1),
            "strangers": cosines[~torch.eye(len(cases), dtype=torch.bool)],
        }
        for kind, values in pairs.items():
            accepted = (values >= JUDGES[name]).float().mean()
            print(f"| {kind}, {name} | {values.mean():.3f} ± {values.std() / len(cases) ** 0.5:.3f} | {accepted:.0%} |")


def write_sheet(cases: list[Case], path: Path) -> None:
    """The faces of some cases, one a row."""
    names = ["no key: the protected picture", "right key, latent", PUBLISHED]
    names += ["keyed: right secret, PNG", "keyed: right secret, JPEG 90", "keyed: wrong secret"]
    rows = [
        contact_sheet(
            [crop_face(rgb, case.face, 160, 1.8) for rgb in (case.original.rgb, *(case.made[name] for name in names))],
            ["original", *(name.replace(": ", ":\n") for name in names)],
        )
        for case in cases
    ]
    write_picture(path, Picture(torch.cat(rows)))


if __name__ == "__main__":
    main()
