"""The whole job on one image, on any diffusion model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .diffusion.model import Backbone
from .diffusion.noise import NoiseKey
from .diffusion.sampling import Callback
from .errors import NoFaceError
from .faces.geometry import Crop, Face, crop_face, crop_landmarks, paste_faces
from .regeneration import Regeneration, latent_shape, regenerate_crops


def protect(
    picture: Tensor,
    faces: Sequence[Face],
    backbone: Backbone,
    crop: Crop,
    how: Regeneration | Sequence[Regeneration],
    noise_key: NoiseKey | None = None,
    callback: Callback | None = None,
) -> Iterator[Tensor]:
    """The image (H,W,3) in [0,1] with every given face made new; for each variant one image, pasted together when it
    is asked for.

    how: for all faces alike, or one for each. :func:`.regeneration.anonymizing` and :func:`.regeneration.hiding` give
    the energies of Diff-Privacy's two tasks (arXiv 2309.05330). noise_key: what the noise follows from; by default a
    fresh one.

    The faces are regenerated one after the other, so that memory does not grow with their number. Pixels outside
    their masks are unchanged.

    Raises NoFaceError without faces, DiffPrivacyError for crops that do not fit the backbone.
    """
    if not faces:
        raise NoFaceError("There is no face to protect in the picture.")
    hows = [how] * len(faces) if isinstance(how, Regeneration) else how
    shape = latent_shape(backbone, crop.size)
    noise_key = noise_key or NoiseKey()
    regenerated = []
    for i, (face, of_face) in enumerate(zip(faces, hows, strict=True)):
        original = crop_face(picture, face, crop.size, crop.margin).movedim(-1, 0)[None]
        landmarks = crop_landmarks(face, crop.size, crop.margin)[None]
        noise = torch.stack([noise_key.normal(shape, "face", i, "variant", v) for v in range(of_face.variants)])
        count_on = part_of(callback, i, len(faces))
        new = regenerate_crops(original, landmarks, noise, backbone, of_face, count_on)
        regenerated.append(new.movedim(1, -1).cpu())
    return (paste_faces(picture, variant, faces, crop.margin) for variant in zip(*regenerated, strict=True))


def part_of(callback: Callback | None, done: int, parts: int) -> Callback | None:
    """A callback for one of several sampling runs of equal length that counts on through all of them."""
    if callback is None:
        return None
    return lambda step: callback({**step, "i": done * step["steps"] + step["i"], "steps": parts * step["steps"]})
