"""One image for ``anonymize`` and ``hide``: its chosen faces regenerated, and its recovery key if one is wanted."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path

from torch import Tensor

from .. import pipeline
from ..diffusion.noise import NoiseKey
from ..diffusion.sampling import Callback
from ..errors import NoFaceError, at_field
from ..faces.geometry import Face, crop_face
from ..faces.keeping import check_kept, keep_original, kept_parts
from ..faces.prompts import parse_prompts, prompts_of
from ..faces.transparency import flattened
from ..media.atomic import Together
from ..media.disclosure import disclose
from ..media.images import Picture, encode_picture, read_picture
from ..personas.book import Persona
from ..progress import sampling_progress, say
from ..recovery import png
from ..recovery.encryption import Encryptor
from ..recovery.key import RecoveryKey
from ..recovery.keyed import EXPERIMENTAL, Public, anonymize_keyed
from ..recovery.replay import record
from ..redrawing import checked
from ..regeneration import Regeneration, task_energy
from .batch import Outcome
from .face_finder import for_programs
from .requests import ProtectRequest, SealRequest
from .resources import Resources
from .sealing import write_sealed


def protect_picture(
    source: Path, files: Sequence[Path], request: ProtectRequest, use: Resources, made: Together
) -> Outcome:
    """Make an image's files, one for each variant."""
    covered: list[int] = []
    picture = read_picture(source)
    found = use.finder.find(source, picture)
    faces: list[Face] = []
    try:
        faces = use.finder.choose(source, picture, found, request.faces)
    except NoFaceError:
        if request.without_face == "error":
            raise
    with sampling_progress(source.name) as progress:
        pictures, key = _protected(source, picture, found, faces, request, use, progress, covered)
    said = []
    for file in files:
        data = encode_picture(next(pictures), file.suffix, request.quality)
        is_new = len(covered) < len(faces)
        if request.disclosure and is_new:
            data = disclose(data)
        said.append(_write(made, file, data, key, use.encryptor, request.sealing))
        if use.credentials is not None and is_new:
            use.credentials.sign(made.files[file], file.suffix)
    which = ", ".join(f"face {number}" for number in covered)
    chosen = {id(face) for face in faces}
    decided = {"left": [face for face in found if id(face) not in chosen], "covered": [found[i] for i in covered]}
    return Outcome(said, covered, which, {"faces": for_programs(found, faces)}, decided)


def _write(
    made: Together,
    file: Path,
    data: bytes,
    key: RecoveryKey | Public | None,
    encryptor: Encryptor | None,
    sealing: SealRequest,
) -> str:
    if isinstance(key, Public):
        png.add(made, file, data, [key.to_bytes()], kind=png.KEYED)
        print(f"warning: {EXPERIMENTAL}", file=sys.stderr)
        return f"{file} (keyed mode, experimental)"
    if encryptor is None or key is None:
        png.add(made, file, data)
        return str(file)
    return write_sealed(made, file, data, key, encryptor, sealing)


def _protected(
    source: Path,
    picture: Picture,
    found: Sequence[Face],
    faces: Sequence[Face],
    request: ProtectRequest,
    use: Resources,
    progress: Callback,
    covered: list[int],
) -> tuple[Iterator[Picture], RecoveryKey | Public | None]:
    """The protected variants, each made when it is asked for, and what brings the faces back where that is wanted.

    faces: those of the faces found that are to be protected. covered: takes the numbers of those that can only be
    covered; both they and prompts count all found.
    """
    model, encryptor = use.model, use.encryptor
    if not faces:
        return repeat(picture), None
    picture = flattened(picture, faces, model.crop.margin)
    if request.sealing.keyed and encryptor is not None:
        secret = encryptor.passphrase or ""
        rgb, public = anonymize_keyed(picture.rgb, faces, model.diffusion_model, model.crop, secret, callback=progress)
        return iter([dataclasses.replace(picture, rgb=rgb)]), public

    texts = prompts_of(parse_prompts(request.prompt), len(found))
    number_of = {id(face): number for number, face in enumerate(found)}
    numbers = [number_of[id(face)] for face in faces]
    hows = _hows(source, picture.rgb, dict(zip(numbers, faces, strict=True)), texts, request, use)
    noise_key = NoiseKey.from_seed(request.seed)

    def cover(i: int, error: Exception) -> None:
        covered.append(numbers[i])
        say(f"warning: {source}: face {numbers[i]} is covered, as it cannot be made new: {error}", sys.stderr)

    made = pipeline.protect(
        picture.rgb,
        faces,
        model.diffusion_model,
        model.crop,
        hows,
        noise_key,
        progress,
        cover if request.if_impossible == "cover" else None,
    )
    if request.keep:
        new = [face for face, number in zip(faces, numbers, strict=True) if number not in covered]
        keep = kept_parts(picture.rgb.shape, new, request.keep)
        with at_field("keep"):
            check_kept(keep, faces, model.crop.margin, source.name)
        made = (keep_original(picture.rgb, rgb, keep) for rgb in made)
    pictures = (dataclasses.replace(picture, rgb=rgb) for rgb in made)
    if encryptor is None:
        return pictures, None
    with use.network:
        key = record(picture, faces, model.diffusion_model, model.crop, request.sealing.fidelity, callback=progress)
    return pictures, key


def _hows(
    source: Path,
    picture: Tensor,
    faces: Mapping[int, Face],
    texts: Sequence[str],
    request: ProtectRequest,
    use: Resources,
) -> list[Regeneration]:
    """How the faces of an image (H,W,3), given by their numbers, are made new."""
    personas = [None] * len(faces) if use.personas is None else use.personas.in_picture(picture, [*faces.values()])
    return [
        _checked(_regeneration(picture, face, texts[number], persona, request, use), source, number, request, use)
        for (number, face), persona in zip(faces.items(), personas, strict=True)
    ]


def _regeneration(
    picture: Tensor, face: Face, text: str, persona: Persona | None, request: ProtectRequest, use: Resources
) -> Regeneration:
    """How a face of an image (H,W,3) is made new."""
    model, words = use.model, None
    if use.msi is not None:
        crop = crop_face(picture, face, model.crop.size, model.crop.margin)
        words = use.msi.words(model.diffusion_model, crop.movedim(-1, 0)[None])[0]
    guide = None if request.model.unguided else model.recognizer
    target = None if persona is None else persona.target
    energy = task_energy(request.task, guide, use.preset.form, request.variants, alone=True, persona=target)
    return Regeneration(
        use.preset,
        energy,
        words,
        text=text,
        variants=request.variants,
        match_colors=request.match_colors,
        by=use.regenerate,
        noise_key=None if persona is None else persona.noise_key,
        keep=request.keep,
    )


def _checked(how: Regeneration, source: Path, number: int, request: ProtectRequest, use: Resources) -> Regeneration:
    """The same, drawn again where the recognizer that guides sees otherwise than the task promises.

    A face hidden behind a persona is to match the persona, and the original no more than an anonymized one.
    """
    guide = use.model.recognizer
    if guide is None or request.model.unguided:
        return how
    task = request.task if use.personas is None else "anonymize"

    def warn(message: str) -> None:
        say(f"warning: {source}: {message}", sys.stderr)

    return checked(how, task, guide, f"face {number}", warn)
