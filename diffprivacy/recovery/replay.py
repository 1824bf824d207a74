"""Record the recovery keys of faces before they are regenerated, and recover the faces (arXiv 2309.05330, recovery).

A face's key holds the pixels that belong to it (:func:`diffprivacy.faces.geometry.own_pixels`) and nothing of its
neighbours; the rest of a recovered picture is the protected one's.
"""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.conditioning import stage_denoiser
from ..diffusion.inversion import invert_belm, invert_ddim, invert_fixed_point, sample_belm, tolerance_for
from ..diffusion.model import DiffusionModel
from ..diffusion.sampling import Callback, ddim_sigmas, sample_euler
from ..errors import DiffPrivacyError
from ..faces.geometry import Crop, Face, Region, crop_face, own_pixels, put_face
from ..media.images import Picture, decode_picture, encode_png, levels
from .fingerprints import picture_fingerprint
from .key import MAX_ROWS, Patch, RecoveryKey

STEPS = 20
MAX_STEPS = 200
"""Most steps that a key asks for; keys made here have ``STEPS``."""
LARGEST_CROP = 4
"""Largest side of a crop, in sides of the pictures that a checkpoint was trained on."""
SHARED = 0.02
"""How much of the smaller face two keys may share, as rounding differs between machines."""
SHARED_MASKS = 0.6
"""The same for two keys of version 1, which hold whole masks: their intersection over their union."""
ROUNDING = 2
"""Pixels by which a patch may reach beyond its face's mask, for the same reason."""


@dataclass(frozen=True)
class Replay:
    """How a noise map is made and played back.

    method: "fixed point", "ddim" or "belm". prompt: in which ``*`` stands for the face's pseudo-words, (S,D) for each
    face.
    """

    method: str = "fixed point"
    steps: int = STEPS
    prompt: str = ""
    pseudo_words: Sequence[Tensor] | None = None


class ReplayModel(DiffusionModel, Protocol):
    """A diffusion model that can be told from others."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures it was trained on."""
        ...

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of its parts by name."""
        ...


def record(
    original: Picture,
    faces: Sequence[Face],
    diffusion_model: ReplayModel | None,
    crop: Crop,
    fidelity: str = "latent",
    how: Replay = Replay(),
    callback: Callback | None = None,
) -> RecoveryKey:
    """The key of the faces in a picture that is about to be protected with the same faces and crops.

    latent: each crop's latent inverted to its noise map, as ``how`` says. What belongs to other faces is filled from around before. compact: the same, kept in 8 bits a
    value. lossless: the faces' own pixels, which take less room than what a replay leaves over and need no diffusion model,
    neither here nor later.

    ``faces`` are all that are protected in the picture, so that a key of one of them (:meth:`RecoveryKey.only`) tells
    nothing of the others. Pseudo-words say what the pictures showed that they were made from.
    Bind the key to the protected picture with :meth:`RecoveryKey.bound_to`.

    Raises DiffPrivacyError for a face without a pixel of its own, and crops that are too large for the diffusion model.
    """
    others = [[*faces[:i], *faces[i + 1 :]] for i in range(len(faces))]
    places = [own_pixels(original.rgb.shape, face, rest, crop.margin) for face, rest in zip(faces, others, strict=True)]
    if not all(own.any() for _, own in places):
        raise DiffPrivacyError("A face lies outside the image, or behind another one: leave it out.")
    if fidelity == "lossless":
        patches = [_patch(original, region, own) for region, own in places]
        return RecoveryKey(fidelity, faces=tuple(faces), margin=crop.margin, patches=tuple(patches))
    assert diffusion_model is not None
    check_crops(crop.size, diffusion_model)
    sigmas = ddim_sigmas(diffusion_model.noise_levels, how.steps)
    invert = _inversion(how.method, diffusion_model.dtype)
    states = []
    for i, face in enumerate(faces):
        of_face = crop_face(original.rgb, face, crop.size, crop.margin, without=others[i]).movedim(-1, 0)[None]
        words = None if how.pseudo_words is None else how.pseudo_words[i]
        denoiser = stage_denoiser(diffusion_model, how.prompt, words)
        states.append(invert(denoiser, diffusion_model.encode(of_face), sigmas, _progress(callback, i, len(faces))))
    rows = [torch.cat(maps).float().cpu() for maps in zip(*states, strict=True)]
    return RecoveryKey(
        fidelity,
        sigmas=sigmas.cpu(),
        method=how.method,
        noise_map=rows[0],
        second_state=rows[1] if len(rows) > 1 else None,
        prompt=how.prompt,
        pseudo_words=None if how.pseudo_words is None else torch.stack(list(how.pseudo_words)).cpu(),
        faces=tuple(faces),
        size=crop.size,
        margin=crop.margin,
        precision=str(diffusion_model.dtype).removeprefix("torch."),
        fingerprints=diffusion_model.fingerprints,
    )


def recover(
    protected: Picture,
    keys: Sequence[RecoveryKey],
    diffusion_model: ReplayModel | None = None,
    changed: bool = False,
    callback: Callback | None = None,
) -> Picture:
    """The protected picture with the faces of the keys brought back; those without a key stay as they are.

    diffusion model: the one that recorded, needed where a key has no patches. changed: accept a picture whose pixels are no
    longer those that the key was made for, such as one that went through JPEG.

    Raises DiffPrivacyError for a key of another picture, checkpoint or kind, for two keys of one face, and for keys that
    would change what lies outside their faces' masks or ask for more work than the picture and the diffusion model explain.
    """
    for key in keys:
        check_picture(protected, key, changed)
    singles = [single for key in keys for single in key.each()]
    check_places(protected.rgb.shape, singles)
    replayed = [single for single in singles if not single.patches]
    for single in replayed:
        if diffusion_model is None:
            raise DiffPrivacyError("This key needs the checkpoint that the image was protected with.")
        _check_diffusion_model(single, diffusion_model)
    rgb = protected.rgb.clone()
    done = 0
    for single in singles:
        (face,) = single.faces
        if single.patches or diffusion_model is None:
            _apply(rgb, single)
            continue
        latent = replay(single, diffusion_model, _progress(callback, done, len(replayed)))
        crop = diffusion_model.decode(latent)[0].movedim(0, -1).cpu()
        neighbours = [*(single.neighbours or ()), *(other.faces[0] for other in singles if other is not single)]
        put_face(rgb, crop, face, neighbours, single.margin)
        done += 1
    return dataclasses.replace(protected, rgb=rgb)


def replay(key: RecoveryKey, diffusion_model: DiffusionModel, callback: Callback | None = None) -> Tensor:
    """The latent (1,C,h,w) of a key's single face."""
    assert key.noise_map is not None and key.sigmas is not None
    words = None if key.pseudo_words is None else key.pseudo_words[0]
    denoiser = stage_denoiser(diffusion_model, key.prompt, words)
    if key.second_state is not None:
        return sample_belm(denoiser, (key.noise_map, key.second_state), key.sigmas, callback)
    return sample_euler(denoiser, key.noise_map, key.sigmas, callback)


def check_picture(protected: Picture, key: RecoveryKey, changed: bool = False) -> None:
    """Raises DiffPrivacyError unless the key belongs to the picture; ``changed`` pictures need only its size."""
    if tuple(protected.rgb.shape[:2]) != tuple(key.shape):
        height, width = protected.rgb.shape[:2]
        raise DiffPrivacyError(
            f"The key belongs to another image: to one of {key.shape[1]}x{key.shape[0]}, and this has {width}x{height}."
        )
    if not changed and picture_fingerprint(protected) != key.picture:
        raise DiffPrivacyError(
            "The key belongs to another image, or this one's pixels were changed since, as by saving it as JPEG."
        )


def check_key(protected: Picture, key: RecoveryKey, changed: bool = False) -> None:
    """Raises DiffPrivacyError unless a key belongs to the picture and asks for nothing beyond its own faces."""
    check_picture(protected, key, changed)
    singles = key.each()
    check_places(protected.rgb.shape, singles)
    for single in singles:
        if single.patches:
            _patch_pixels(protected.rgb.shape, single)


def check_places(shape: Sequence[int], keys: Sequence[RecoveryKey]) -> None:
    """Raises DiffPrivacyError unless keys of one face each belong to as many different faces in a picture of ``shape``.

    Pixels belong to one face only. Keys of version 1 hold whole masks, of which neighbours share a part.
    """
    if len(keys) > MAX_ROWS:
        raise DiffPrivacyError(f"There are keys of {len(keys)} faces; more than {MAX_ROWS} are not recovered at once.")
    claimed = torch.full(tuple(shape[:2]), -1, dtype=torch.int16)
    areas: list[int] = []
    for i, key in enumerate(keys):
        region, own = own_pixels(shape, key.faces[0], key.neighbours or (), key.margin)
        areas.append(int(own.sum()))
        if not areas[i]:
            raise DiffPrivacyError("The key's face lies outside the image: the key was not made for it.")
        for other, shared in zip(*claimed[region][own].unique(return_counts=True), strict=True):
            if other < 0:
                continue
            old = key.neighbours is None and keys[int(other)].neighbours is None
            both = areas[i] + areas[int(other)] - shared
            if shared > (SHARED_MASKS * both if old else SHARED * min(areas[i], areas[int(other)])):
                x, y = key.faces[0].centre
                raise DiffPrivacyError(
                    f"Two keys are for one face, that at {x:.0f}, {y:.0f}, and one of them may be forged: "
                    "recover with one of them at a time."
                )
        claimed[region][own] = i


def check_crops(size: int, diffusion_model: ReplayModel) -> None:
    """Raises DiffPrivacyError for crops whose side in pixels is no multiple of the diffusion model's downscale, or far beyond
    what it was made for."""
    limit = LARGEST_CROP * diffusion_model.image_size
    if size % diffusion_model.downscale or not 0 < size <= limit:
        raise DiffPrivacyError(
            f"Crops of {size} pixels do not go with this checkpoint: their side is a multiple of {diffusion_model.downscale}, "
            f"up to {limit}."
        )


def check_fingerprints(recorded: Mapping[str, str], diffusion_model: ReplayModel) -> None:
    """Raises DiffPrivacyError where the diffusion model is not the one that was recorded."""
    found = diffusion_model.fingerprints
    if different := [name for name, value in recorded.items() if found.get(name, value) != value]:
        raise DiffPrivacyError(
            f"The image was protected with another {' and '.join(different)}: name the same one.", "checkpoint"
        )


def _check_diffusion_model(key: RecoveryKey, diffusion_model: ReplayModel) -> None:
    check_fingerprints(key.fingerprints, diffusion_model)
    assert key.noise_map is not None and key.sigmas is not None
    check_crops(key.size, diffusion_model)
    if len(key.sigmas) > MAX_STEPS + 1:
        raise DiffPrivacyError(
            f"The recovery key's field `sigmas` is wrong: {len(key.sigmas) - 1} steps, and {MAX_STEPS} are the most."
        )
    shape = (
        diffusion_model.latent_channels,
        key.size // diffusion_model.downscale,
        key.size // diffusion_model.downscale,
    )
    if tuple(key.noise_map.shape[1:]) != shape:
        raise DiffPrivacyError("The recovery key's field `noise_map` is wrong: its shape is not that of the crops.")


def _inversion(method: str, dtype: torch.dtype) -> Callable[..., tuple[Tensor, ...]]:
    """An inversion that returns all states a replay needs."""
    if method == "belm":
        return invert_belm
    invert = invert_ddim
    if method == "fixed point":
        invert = partial(invert_fixed_point, tolerance=tolerance_for(dtype))
    return lambda *arguments: (invert(*arguments),)


def _progress(callback: Callback | None, done: int, total: int) -> Callback:
    def report(step: dict[str, Any]) -> None:
        if callback is not None:
            callback({**step, "i": done * step["steps"] + step["i"], "steps": total * step["steps"]})

    return report


def _patch(picture: Picture, region: Region, own: Tensor) -> Patch:
    """Those pixels (h,w) of a region of a picture that are a face's own, without loss; nothing of the others."""
    alpha = own.float()
    part = Picture(picture.rgb[region] * alpha[..., None], alpha, picture.bit_depth)
    rows, cols = region
    return Patch(rows.start, cols.start, encode_png(part) if picture.bit_depth == 16 else _encode_webp(part))


def _encode_webp(picture: Picture) -> bytes:
    """A lossless WebP, about a fifth smaller than PNG; it has 8 bits only."""
    from PIL import Image

    assert picture.alpha is not None
    pixels = np.dstack((levels(picture.rgb, 8), levels(picture.alpha, 8)))
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "WEBP", lossless=True, exact=True, method=4, quality=100)
    return file.getvalue()


def _apply(rgb: Tensor, key: RecoveryKey) -> None:
    """Put the patch of a key's single face into a picture (H,W,3), in place; no pixel outside the face's mask."""
    part, where = _patch_pixels(rgb.shape, key)
    (patch,), (height, width) = key.patches, where.shape
    rgb[patch.top : patch.top + height, patch.left : patch.left + width][where] = part[where]


def _patch_pixels(shape: Sequence[int], key: RecoveryKey) -> tuple[Tensor, Tensor]:
    """The pixels (h,w,3) of a key's single patch, and which of them (h,w) count.

    Raises DiffPrivacyError, before anything is decoded that is too large, where one lies outside the face's mask.
    """
    from PIL import Image

    (patch,), (face,) = key.patches, key.faces
    wrong = DiffPrivacyError("The recovery key's field `patches` is wrong: they reach beyond their faces' masks.")
    rows, cols, allowed = _allowed(shape, face, key)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = Image.open(io.BytesIO(patch.file), formats=("WEBP", "PNG")).size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise DiffPrivacyError("The recovery key's field `patches` is wrong: one is no image.") from None
    top, left = patch.top - rows.start, patch.left - cols.start
    if top < 0 or left < 0 or top + height > allowed.shape[0] or left + width > allowed.shape[1]:
        raise wrong
    part = decode_picture(patch.file, "The recovery key's patch")
    if part.alpha is None or part.rgb.shape != (height, width, 3):
        raise wrong
    where = part.alpha > 0
    if (where & ~allowed[top : top + height, left : left + width]).any():
        raise wrong
    return part.rgb, where


def _allowed(shape: Sequence[int], face: Face, key: RecoveryKey) -> tuple[slice, slice, Tensor]:
    """Rows and columns around a face, and where in them (h,w) its key may change pixels."""
    (rows, cols), own = own_pixels(shape, face, key.neighbours or (), key.margin)
    near = F.pad(own.float(), (ROUNDING,) * 4)[None, None]
    near = F.max_pool2d(near, 2 * ROUNDING + 1, stride=1, padding=ROUNDING)[0, 0] > 0
    top, left = rows.start - ROUNDING, cols.start - ROUNDING
    bottom, right = min(shape[0], rows.stop + ROUNDING), min(shape[1], cols.stop + ROUNDING)
    inside = near[max(0, -top) : bottom - top, max(0, -left) : right - left]
    return slice(max(0, top), bottom), slice(max(0, left), right), inside
