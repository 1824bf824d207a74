"""One image for ``anonymize`` and ``hide``: its chosen faces regenerated, and its recovery key if one is wanted."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path

from torch import Tensor

from .. import pipeline
from ..diffusion.noise import NoiseKey
from ..diffusion.sampling import Callback
from ..errors import NoFaceError, at_field
from ..faces.geometry import Face, crop_face
from ..faces.keeping import check_kept, keep_original, kept_parts
from ..faces.regions import faces_in_boxes, union
from ..faces.selection import select_faces
from ..faces.transparency import detect_faces, flattened
from ..media.atomic import Together
from ..media.images import Picture, read_picture
from ..progress import sampling_progress
from ..recovery import png
from ..recovery.encryption import Seal
from ..recovery.key import RecoveryKey
from ..recovery.keyed import EXPERIMENTAL, Public, anonymize_keyed
from ..recovery.replay import record
from ..regeneration import Regeneration, task_energy
from .requests import ProtectRequest, SealRequest
from .resources import Resources
from .sealing import write_sealed


def protect_picture(
    source: Path, files: Sequence[Path], request: ProtectRequest, use: Resources, made: Together
) -> list[str]:
    """Make an image's files, one for each variant; returns the lines to print."""
    with sampling_progress(source.name) as progress:
        pictures, key = _protected(source, request, use, progress)
    return [_write(made, file, next(pictures), key, use.seal, request.sealing) for file in files]


def _write(
    made: Together,
    file: Path,
    picture: Picture,
    key: RecoveryKey | Public | None,
    seal: Seal | None,
    sealing: SealRequest,
) -> str:
    if isinstance(key, Public):
        png.add(made, file, picture, [key.to_bytes()], kind=png.KEYED)
        print(f"warning: {EXPERIMENTAL}", file=sys.stderr)
        return f"{file} (keyed mode, experimental)"
    if seal is None or key is None:
        png.add(made, file, picture)
        return str(file)
    return write_sealed(made, file, picture, key, seal, sealing)


def _protected(
    source: Path, request: ProtectRequest, use: Resources, progress: Callback
) -> tuple[Iterator[Picture], RecoveryKey | Public | None]:
    """The protected variants, each pasted when it is asked for, and the recovery key if one is wanted."""
    model, seal = use.model, use.seal
    picture = read_picture(source)
    try:
        faces = select_faces(_found(source, picture, use), request.faces)
        if use.people is not None:
            faces = use.people.in_picture(flattened(picture, faces, model.crop.margin).rgb, faces)
        picture = flattened(picture, faces, model.crop.margin)
    except NoFaceError:
        if request.without_face == "error":
            raise
        return repeat(picture), None

    if request.sealing.keyed and seal is not None:
        secret = seal.passphrase or ""
        rgb, public = anonymize_keyed(
            picture.rgb, faces, model.backbone, model.crop.size, secret, model.crop.margin, callback=progress
        )
        return iter([dataclasses.replace(picture, rgb=rgb)]), public

    hows = [_regeneration(picture.rgb, face, request, use) for face in faces]
    noise_key = NoiseKey.from_seed(request.seed)
    cover = functools.partial(_say_covered, source) if request.if_impossible == "cover" else None
    made = pipeline.protect(picture.rgb, faces, model.backbone, model.crop, hows, noise_key, progress, cover)
    if request.keep:
        keep = kept_parts(picture.rgb.shape, faces, request.keep)
        with at_field("keep"):
            check_kept(keep, faces, model.crop.margin, source.name)
        made = (keep_original(picture.rgb, rgb, keep) for rgb in made)
    pictures = (dataclasses.replace(picture, rgb=rgb) for rgb in made)
    if seal is None:
        return pictures, None
    key = record(picture, faces, model.backbone, model.crop, request.sealing.fidelity, callback=progress)
    return pictures, key


def _found(source: Path, picture: Picture, use: Resources) -> list[Face]:
    """The detected faces and those of --boxes; where both are in one place, the surer one."""
    faces = detect_faces(use.detector, picture)
    if use.boxes is None:
        return faces
    use.boxes.check(source, 1, (picture.rgb.shape[0], picture.rgb.shape[1]))
    return union(faces, faces_in_boxes(picture.rgb, use.boxes.of(source), use.detector))


def _say_covered(source: Path, number: int, error: Exception) -> None:
    print(f"warning: {source}: face {number} is covered, as it cannot be made new: {error}", file=sys.stderr)


def _regeneration(picture: Tensor, face: Face, request: ProtectRequest, use: Resources) -> Regeneration:
    """How a face of an image (H,W,3) is made new."""
    model, words = use.model, None
    if use.msi is not None:
        crop = crop_face(picture, face, model.crop.size, model.crop.margin)
        words = use.msi.words(model.backbone, crop.movedim(-1, 0)[None])[0]
    guide = None if request.model.unguided else model.recognizer
    energy = task_energy(request.task, guide, use.preset.form, request.variants)
    return Regeneration(use.preset, energy, words, variants=request.variants)
