"""Attacks on sealed keys: what one face's key tells of its neighbours, forged originals, and injected chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffprivacy.backends.diffusers import DiffusersModel
from diffprivacy.faces.detectors import Detector
from diffprivacy.faces.geometry import Crop, Face, align_matrix
from diffprivacy.media.images import Picture, encode_png
from diffprivacy.recovery import png
from diffprivacy.recovery.key import Patch, RecoveryKey
from diffprivacy.recovery.replay import Replay, record, recover, replay

FACE_WIDTH = 120
"""Of the faces in :func:`side_by_side`, in pixels."""


def side_by_side(photos: Sequence[Tensor], detector: Detector, apart: float = 1.3) -> tuple[Tensor, list[Face]]:
    """Photos (H,W,3) by their largest faces, cut together so that the faces stand ``apart`` face widths from each other.

    Returns the picture and the places of its faces, as a detector finds them in each photo.
    """
    column = round(apart * FACE_WIDTH)
    height = 3 * FACE_WIDTH
    parts, faces = [], []
    for i, photo in enumerate(photos):
        face = max(detector.detect(photo), key=lambda face: face.area)
        scale = FACE_WIDTH / (face.box[2] - face.box[0])
        resized = torch.nn.functional.interpolate(
            photo.movedim(-1, 0)[None], scale_factor=scale, mode="bicubic", antialias=True, recompute_scale_factor=False
        )[0].clamp(0, 1)
        x, y = (round(value * scale) for value in face.centre)
        left = 0 if i == 0 else column // 2  # The outer faces keep more of their surroundings.
        left = FACE_WIDTH if i == 0 else left
        right = FACE_WIDTH if i == len(photos) - 1 else column - column // 2
        padded = torch.nn.functional.pad(resized[None], (2 * FACE_WIDTH,) * 4, mode="replicate")[0]
        top, start = y + FACE_WIDTH // 2, x + 2 * FACE_WIDTH
        parts.append(padded[:, top : top + height, start - left : start + right].movedim(0, -1))
        shift = torch.tensor([sum(p.shape[1] for p in parts[:-1]) - x + left, -y + height // 2]).numpy()
        box = [value * scale for value in face.box]
        moved = (box[0] + shift[0], box[1] + shift[1], box[2] + shift[0], box[3] + shift[1])
        faces.append(Face(moved, (face.landmarks * scale + shift).astype("float32"), face.score))
    return torch.cat(parts, dim=1).contiguous(), faces


def neighbours_key(
    original: Picture,
    faces: Sequence[Face],
    index: int,
    diffusion_model: DiffusersModel,
    crop: Crop,
    steps: int = 20,
) -> Tensor:
    """All that the latent key of one face holds, as the picture (H,W,3) it decodes to, grey where it holds nothing.

    Look at another face's place in it: that is what leaks.
    """
    key = record(original, faces, diffusion_model, crop, how=Replay(steps=steps)).only(index)
    key = RecoveryKey.from_bytes(dataclasses.replace(key, shape=tuple(original.rgb.shape[:2])).to_bytes())
    decoded = diffusion_model.decode(replay(key, diffusion_model))[0].movedim(0, -1).cpu()
    return whole_crop(torch.full_like(original.rgb, 0.5), decoded, faces[index], crop.margin)


def whole_crop(picture: Tensor, crop: Tensor, face: Face, margin: float) -> Tensor:
    """A picture (H,W,3) with the whole square of a crop (S,S,3) put back, not only what its mask would paste."""
    import cv2

    height, width = picture.shape[:2]
    matrix = align_matrix(face, crop.shape[0], margin)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    put = cv2.warpAffine(crop.numpy(), matrix, (width, height), flags=flags)
    where = cv2.warpAffine(torch.ones_like(crop).numpy(), matrix, (width, height), flags=flags)
    return torch.where(torch.from_numpy(where) > 0.999, torch.from_numpy(put), picture)


def forged_key(protected: Picture, face: Face, margin: float) -> RecoveryKey:
    """A lossless key that anybody can make and seal to a public recipient: all of the picture turned red, as an original."""
    height, width = protected.rgb.shape[:2]
    red = Picture(torch.tensor([1.0, 0.0, 0.0]).expand(height, width, 3), torch.ones(height, width))
    key = RecoveryKey("lossless", faces=(face,), margin=margin, patches=(Patch(0, 0, encode_png(red)),))
    return key.bound_to(protected)


def share_replaced(protected: Picture, keys: Sequence[RecoveryKey]) -> float:
    """The share of pixels that keys change; raises DiffPrivacyError where they are refused."""
    return float((recover(protected, keys).rgb != protected.rgb).any(dim=-1).float().mean())


def inject(path: Path, kind: bytes, content: bytes, first: bool = False) -> None:
    """Put a chunk into a PNG file, after all others or before them."""
    data = path.read_bytes()
    head = data[: len(png.SIGNATURE) + 25]  # with the header, which is always the first chunk
    if first:
        chunk = png.with_chunks(head + bytes(12), kind, [content])[len(head) : -12]
        path.write_bytes(head + chunk + data[len(head) :])
    else:
        path.write_bytes(png.with_chunks(data, kind, [content]))
