"""Recording what brings faces back before they are redrawn, and bringing them back (arXiv 2309.05330, section on recovery)."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..diffusion.conditioning import stage_denoiser
from ..diffusion.inversion import invert_belm, invert_ddim, invert_fixed_point, sample_belm
from ..diffusion.model import Backbone
from ..diffusion.sampling import Callback, ddim_sigmas, sample_euler
from ..errors import DiffPrivacyError
from ..faces.geometry import MARGIN, Face, crop_face, paste_faces, protected_mask
from ..media.images import Picture, decode_picture, encode_png, levels
from .fingerprints import picture_fingerprint
from .key import Patch, RecoveryKey

STEPS = 20
HALF_TOLERANCE = 1e-4
"""Where fixed-point inversion stops for networks in half precision, whose rounding is no finer."""


class ReplayBackbone(Backbone, Protocol):
    """A backbone that can be told from others."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of its parts by name."""
        ...


def record(
    original: Picture,
    faces: Sequence[Face],
    backbone: ReplayBackbone | None,
    size: int = 0,
    fidelity: str = "latent",
    method: str = "fixed point",
    steps: int = STEPS,
    prompt: str = "",
    pseudo_words: Sequence[Tensor] | None = None,
    margin: float = MARGIN,
    callback: Callback | None = None,
) -> RecoveryKey:
    """The key of the faces in a picture that is about to be protected with the same faces, size and margin.

    latent: each crop's latent inverted to its noise map under the prompt, in which ``*`` stands for the face's
    pseudo-words (S,D). compact: the same, kept in 8 bits a value. lossless: the pixels of the faces' masks themselves,
    which take less room than what a replay leaves over and need no backbone, neither here nor later.

    Bind the key to the protected picture with :meth:`RecoveryKey.bound_to`.
    """
    if fidelity == "lossless":
        patches = [_patch(original, protected_mask(original.rgb.shape, [face], margin) > 0) for face in faces]
        return RecoveryKey(fidelity, faces=tuple(faces), margin=margin, patches=tuple(patches))
    assert backbone is not None
    sigmas = ddim_sigmas(backbone.noise_levels, steps)
    states = []
    for i, face in enumerate(faces):
        crop = crop_face(original.rgb, face, size, margin).movedim(-1, 0)[None]
        words = None if pseudo_words is None else pseudo_words[i]
        invert = _inversion(method, backbone.dtype)
        denoiser = stage_denoiser(backbone, prompt, words)
        states.append(invert(denoiser, backbone.encode(crop), sigmas, _progress(callback, i, len(faces))))
    rows = [torch.cat(maps).float().cpu() for maps in zip(*states, strict=True)]
    return RecoveryKey(
        fidelity,
        sigmas=sigmas.cpu(),
        method=method,
        noise_map=rows[0],
        second_state=rows[1] if len(rows) > 1 else None,
        prompt=prompt,
        pseudo_words=None if pseudo_words is None else torch.stack(list(pseudo_words)).cpu(),
        faces=tuple(faces),
        size=size,
        margin=margin,
        precision=str(backbone.dtype).removeprefix("torch."),
        fingerprints=backbone.fingerprints,
    )


def recover(
    protected: Picture,
    keys: Sequence[RecoveryKey],
    backbone: ReplayBackbone | None = None,
    changed: bool = False,
    callback: Callback | None = None,
) -> Picture:
    """The protected picture with the faces of the keys brought back; those without a key stay as they are.

    backbone: the one that recorded, needed where a key has no patches. changed: accept a picture whose pixels are no
    longer those that the key was made for, such as one that went through JPEG.

    Raises DiffPrivacyError for a key of another picture, checkpoint or kind.
    """
    for key in keys:
        check_picture(protected, key, changed)
    crops, faces, margin = [], [], MARGIN
    replayed = [key for key in keys if not key.patches]
    total = sum(len(key.faces) for key in replayed)
    for key in replayed:
        if backbone is None:
            raise DiffPrivacyError("This key needs the checkpoint that the picture was protected with.")
        _check_backbone(key, backbone)
        for face in key.each():
            latent = replay(face, backbone, _progress(callback, len(crops), total))
            crops.append(backbone.decode(latent)[0].movedim(0, -1).cpu())
        faces += key.faces
        margin = key.margin
    rgb = paste_faces(protected.rgb, crops, faces, margin, opaque=True) if crops else protected.rgb.clone()
    for key in keys:
        for patch in key.patches:
            _apply(rgb, patch)
    return dataclasses.replace(protected, rgb=rgb)


def replay(key: RecoveryKey, backbone: Backbone, callback: Callback | None = None) -> Tensor:
    """The latent (1,C,h,w) of a key's single face."""
    assert key.noise_map is not None and key.sigmas is not None
    words = None if key.pseudo_words is None else key.pseudo_words[0]
    denoiser = stage_denoiser(backbone, key.prompt, words)
    if key.second_state is not None:
        return sample_belm(denoiser, (key.noise_map, key.second_state), key.sigmas, callback)
    return sample_euler(denoiser, key.noise_map, key.sigmas, callback)


def check_picture(protected: Picture, key: RecoveryKey, changed: bool = False) -> None:
    """Raises DiffPrivacyError unless the key belongs to the picture; ``changed`` pictures need only its size."""
    if tuple(protected.rgb.shape[:2]) != tuple(key.shape):
        height, width = protected.rgb.shape[:2]
        raise DiffPrivacyError(
            f"The key belongs to another picture: to one of {key.shape[1]}x{key.shape[0]}, and this has {width}x{height}."
        )
    if not changed and picture_fingerprint(protected) != key.picture:
        raise DiffPrivacyError(
            "The key belongs to another picture, or this one's pixels were changed since, as by saving it as JPEG."
        )


def _check_backbone(key: RecoveryKey, backbone: ReplayBackbone) -> None:
    found = backbone.fingerprints
    if different := [name for name, value in key.fingerprints.items() if found.get(name, value) != value]:
        raise DiffPrivacyError(
            f"The picture was protected with another {' and '.join(different)}: name the same one with --checkpoint."
        )
    assert key.noise_map is not None
    shape = (backbone.latent_channels, key.size // backbone.downscale, key.size // backbone.downscale)
    if tuple(key.noise_map.shape[1:]) != shape:
        raise DiffPrivacyError("The recovery key's field `noise_map` is wrong: its shape is not that of the crops.")


def _inversion(method: str, dtype: torch.dtype) -> Callable[..., tuple[Tensor, ...]]:
    """An inversion that returns all states a replay needs."""
    if method == "belm":
        return invert_belm
    invert = invert_ddim
    if method == "fixed point":
        invert = partial(invert_fixed_point, **({} if dtype == torch.float32 else {"tolerance": HALF_TOLERANCE}))
    return lambda *arguments: (invert(*arguments),)


def _progress(callback: Callback | None, done: int, total: int) -> Callback:
    def report(step: dict[str, Any]) -> None:
        if callback is not None:
            callback({**step, "i": done * step["steps"] + step["i"], "steps": total * step["steps"]})

    return report


def _patch(picture: Picture, where: Tensor) -> Patch:
    """The pixels of a picture (H,W,3) at a mask (H,W), without loss; nothing of the others."""
    rows, cols = (where.any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows:
        raise DiffPrivacyError("A face lies outside the picture: leave it out.")
    region = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
    alpha = where[region].float()
    part = Picture(picture.rgb[region] * alpha[..., None], alpha, picture.bit_depth)
    return Patch(rows[0], cols[0], encode_png(part) if picture.bit_depth == 16 else _encode_webp(part))


def _encode_webp(picture: Picture) -> bytes:
    """A lossless WebP, about a fifth smaller than PNG; it has 8 bits only."""
    from PIL import Image

    assert picture.alpha is not None
    pixels = np.dstack((levels(picture.rgb, 8), levels(picture.alpha, 8)))
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "WEBP", lossless=True, exact=True, method=4, quality=100)
    return file.getvalue()


def _apply(rgb: Tensor, patch: Patch) -> None:
    """Put a patch's pixels into a picture (H,W,3), in place."""
    from PIL import Image

    wrong = DiffPrivacyError("The recovery key's field `patches` is wrong: they do not fit the picture.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = Image.open(io.BytesIO(patch.file), formats=("WEBP", "PNG")).size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise wrong from None
    region = rgb[patch.top : patch.top + height, patch.left : patch.left + width]
    if tuple(region.shape[:2]) != (height, width):
        raise wrong
    part = decode_picture(patch.file, "The recovery key's patch")
    if part.alpha is None or part.rgb.shape != region.shape:
        raise wrong
    region[part.alpha > 0] = part.rgb[part.alpha > 0]
