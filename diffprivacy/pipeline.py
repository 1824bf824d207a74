"""Protect the chosen faces of one image, with any diffusion model: crop, regenerate, paste."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat

from torch import Tensor

from .diffusion.model import DiffusionModel
from .diffusion.noise import NoiseKey
from .diffusion.sampling import Callback
from .errors import DiffPrivacyError, NoFaceError
from .faces.covering import cover_faces
from .faces.geometry import Crop, Face, crop_face, crop_landmarks, paste_faces
from .regeneration import Regeneration, latent_shape, regenerate_crops, starting_noise


def protect(
    picture: Tensor,
    faces: Sequence[Face],
    diffusion_model: DiffusionModel,
    crop: Crop,
    how: Regeneration | Sequence[Regeneration],
    noise_key: NoiseKey | None = None,
    callback: Callback | None = None,
    cover: Callable[[int, Exception], object] | None = None,
) -> Iterator[Tensor]:
    """The image (H,W,3) in [0,1] with every given face regenerated: one image for each variant, pasted when it is asked
    for.

    how: one for all faces, or one for each. :func:`.regeneration.anonymizing` and :func:`.regeneration.hiding` give
    the energies of Diff-Privacy's two tasks (arXiv 2309.05330). noise_key: the noise is derived from it; by default
    a fresh one. cover: called with the number of a face that cannot be regenerated, and the error; that face is covered
    with its mean colour. None: the error is raised.

    The faces are regenerated one after the other, so that memory does not grow with their number. Pixels outside
    their masks are unchanged.

    Raises NoFaceError without faces, DiffPrivacyError for crops that do not fit the diffusion model.
    """
    if not faces:
        raise NoFaceError("There is no face to protect in the image.")
    hows = [how] * len(faces) if isinstance(how, Regeneration) else how
    shape = latent_shape(diffusion_model, crop.size)
    noise_key = noise_key or NoiseKey()
    regenerated: list[Tensor] = []
    made: list[Face] = []
    lost: list[Face] = []
    for i, (face, of_face) in enumerate(zip(faces, hows, strict=True)):
        original = crop_face(picture, face, crop.size, crop.margin).movedim(-1, 0)[None]
        landmarks = crop_landmarks(face, crop.size, crop.margin)[None]
        noise = starting_noise(of_face, shape, noise_key, "face", i)
        count_on = part_of(callback, i, len(faces))
        try:
            regenerate = of_face.by or regenerate_crops
            new = regenerate(original, landmarks, noise, diffusion_model, of_face, count_on)
            if not bool(new.isfinite().all()):
                raise DiffPrivacyError(f"The model's result for face {i} is no image; try another precision or seed.")
        except (DiffPrivacyError, RuntimeError, MemoryError) as error:  # PyTorch's out-of-memory is a RuntimeError
            if cover is None:
                raise
            cover(i, error)
            lost.append(face)
        else:
            made.append(face)
            regenerated.append(new.movedim(1, -1).cpu())
    variants = zip(*regenerated, strict=True) if made else repeat((), hows[0].variants)
    return (cover_faces(paste_faces(picture, new, made, crop.margin), lost, crop.margin) for new in variants)


def part_of(callback: Callback | None, done: int, parts: int) -> Callback | None:
    """A callback for one of several sampling runs of equal length, which reports steps counted over all of them."""
    if callback is None:
        return None
    return lambda step: callback({**step, "i": done * step["steps"] + step["i"], "steps": parts * step["steps"]})
