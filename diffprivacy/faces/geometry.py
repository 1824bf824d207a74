"""Faces in a picture: alignment to a square crop, the mask that must be replaced, and pasting back.

All faces share one geometry, the ArcFace template (Deng et al., arXiv 1801.07698): five landmarks in a square of
112 pixels. A crop is that square seen with a margin, at any size; the mask is an ellipse in it. Both are functions
of the template's coordinates, so they are evaluated where they are needed, in the crop or in the picture, and never
resampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from .similarity import similarity

TEMPLATE_SIZE = 112
ARCFACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    dtype=np.float32,
)
"""Left eye, right eye, nose, left and right mouth corner of an upright face in a 112 x 112 crop, in pixels."""

MARGIN = 1.8
"""Side of the default crop in sides of the ArcFace crop: the whole head with its hair, and the mask with room around."""

HEAD_CENTRE = (55.5, 64.0)
TURN = -1.44
"""Middle of a head that looks straight ahead, in template pixels, and its shift when the nose moves by one: the head
lies away from where it looks. Fitted to 187 detected faces (correlation -0.99)."""
MASK_RADII = (50.0, 66.0)
"""Ellipse that is replaced completely, in template pixels: cheek to cheek, hairline to chin."""
FEATHER = 0.2
"""Width of the soft border outside the ellipse, in its radii."""
BORDER = 0.06
"""Width of the ramp that brings the mask to zero at the crop's border, in crop sides."""
SHARPNESS = 8
"""How abruptly, as a power of their depth, one face gives way to its neighbour."""
STRIP = 2**22
"""Pixels of a picture pasted at once, so that a face that fills a large one needs little more memory."""

_CENTRE = (TEMPLATE_SIZE - 1) / 2
Region = tuple[slice, slice]
"""Rows and columns."""


@dataclass(frozen=True, eq=False)
class Face:
    """A detected face, in pixels of its picture (x right, y down, pixel centres at integers).

    box: x0, y0, x1, y1. landmarks: (5,2) float32: left eye, right eye, nose, left and right mouth corner, left being
    the smaller x when the face is upright. score: the detector's confidence.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray
    score: float

    @property
    def centre(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)


@dataclass(frozen=True)
class Crop:
    """How crops of faces are cut: ``size`` pixels a side, ``margin`` sides of the ArcFace crop wide."""

    size: int
    margin: float = MARGIN


def align_matrix(face: Face, size: int, margin: float = MARGIN) -> np.ndarray:
    """Similarity (2,3) float64 from the picture's pixels to those of the face's crop of ``size`` x ``size``: the
    landmarks fitted to the template. margin 1 and size 112 give the ArcFace crop.
    """
    scale = size / (TEMPLATE_SIZE * margin)
    target = (ARCFACE_TEMPLATE.astype(np.float64) - _CENTRE) * scale + (size - 1) / 2
    landmarks = torch.from_numpy(face.landmarks.astype(np.float64))
    return similarity(landmarks[None], torch.from_numpy(target))[0, :2].numpy()


def head_centre(face: Face) -> np.ndarray:
    """Middle of the head, hairline to chin and ear to ear, in template pixels (2,)."""
    to_template = align_matrix(face, TEMPLATE_SIZE, 1.0)
    left_eye, right_eye, nose, *mouth = face.landmarks @ to_template[0, :2]
    turn = nose - np.mean([left_eye, right_eye, *mouth])
    return HEAD_CENTRE + np.array([TURN * turn, 0.0])


def crop_face(picture: Tensor, face: Face, size: int, margin: float = MARGIN, without: Sequence[Face] = ()) -> Tensor:
    """The face, upright, as (size,size,3) out of ``picture`` (H,W,3) in [0,1]; beyond the border it is mirrored.

    without: other faces, of which the crop shows nothing: what is theirs is filled from around, see :func:`own_pixels`.
    """
    to_crop = align_matrix(face, size, margin)
    to_picture = _inverse(to_crop)
    height, width = picture.shape[:2]
    reach = 3 / min(1.0, _scale(to_crop))
    x0, y0, x1, y1 = _bounds(to_picture, -reach, size - 1 + reach)
    cols = slice(max(0, min(x0, 2 * width - x1)), min(width, max(x1, -x0)))
    rows = slice(max(0, min(y0, 2 * height - y1)), min(height, max(y1, -y0)))
    to_picture[:, 2] -= cols.start, rows.start
    points = _transform(to_picture, *_grid(slice(0, size), slice(0, size), picture))
    part = _without(picture, (rows, cols), face, without, margin)
    return _sample(part, points, scale=_scale(to_crop))


def crop_landmarks(face: Face, size: int, margin: float = MARGIN) -> Tensor:
    """The face's five points (5,2) in pixels of its crop, float32."""
    matrix = align_matrix(face, size, margin)
    return torch.from_numpy(face.landmarks @ matrix[:, :2].T + matrix[:, 2]).float()


def face_in_crop(landmarks: Tensor, size: int) -> tuple[Face, float]:
    """The face that a crop of ``size`` x ``size`` shows, from its five points (5,2) there, and the crop's margin."""
    face = Face((0.0, 0.0, size - 1.0, size - 1.0), landmarks.cpu().numpy().astype(np.float32), 1.0)
    return face, _scale(align_matrix(face, TEMPLATE_SIZE, 1.0)) * size / TEMPLATE_SIZE


def face_mask(face: Face, size: int, margin: float = MARGIN) -> Tensor:
    """Soft mask (size,size) of the face in its crop: 1 where all is replaced, 0 at the border, float32."""
    steps = (torch.arange(size, dtype=torch.float32) - (size - 1) / 2) * (TEMPLATE_SIZE * margin / size) + _CENTRE
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return _mask_and_depth(x, y, head_centre(face), margin)[0]


def protected_mask(shape: Sequence[int], faces: Sequence[Face], margin: float = MARGIN) -> Tensor:
    """Union (H,W) of the faces' masks in a picture of ``shape`` (H, W, ...): what :func:`paste_faces` changes."""
    mask = torch.zeros(tuple(shape[:2]))
    for face in faces:
        region = _mask_region(face, shape, margin)
        mask[region] = torch.maximum(mask[region], _mask_in_picture(face, region, margin, mask)[0])
    return mask


def own_pixels(
    shape: Sequence[int], face: Face, neighbours: Sequence[Face], margin: float = MARGIN
) -> tuple[Region, Tensor]:
    """A region of a picture of ``shape`` (H, W, ...), and which of its pixels (h,w) belong to a face: those in its mask,
    where masks overlap those in which it lies deeper than any neighbour. No pixel belongs to two faces.
    """
    region = _mask_region(face, shape, margin)
    return region, _own(face, region, neighbours, margin, torch.zeros(()))


def put_face(picture: Tensor, crop: Tensor, face: Face, neighbours: Sequence[Face], margin: float = MARGIN) -> None:
    """Put a crop (S,S,3) into a picture (H,W,3), in place, at the pixels that belong to its face; without a soft border."""
    to_crop = align_matrix(face, crop.shape[0], margin)
    for region in _strips(_mask_region(face, picture.shape, margin)):
        own = _own(face, region, neighbours, margin, picture)
        points = _transform(to_crop, *_grid(*region, picture))
        sampled = _sample(crop.to(picture), points, scale=1 / _scale(to_crop))
        picture[region] = torch.where(own[..., None], sampled, picture[region])


def masks_meet(one: Face, other: Face, margin: float = MARGIN) -> bool:
    """Whether two faces' masks may overlap, judged by the rectangles around them."""
    (left, top, right, bottom), (x0, y0, x1, y1) = (_mask_bounds(face, margin) for face in (one, other))
    return left < x1 and x0 < right and top < y1 and y0 < bottom


def paste_faces(
    picture: Tensor,
    crops: Tensor | Sequence[Tensor],
    faces: Sequence[Face],
    margin: float = MARGIN,
    opaque: bool = False,
) -> Tensor:
    """``picture`` (H,W,3) with ``crops``, each (S,S,3) and cut with the same margin, blended into the faces' places.

    opaque: without the soft border, so that nothing of the picture is left within a mask.

    Pixels outside every mask keep their bits. Where masks overlap, the face in whose middle a pixel lies deeper
    prevails, so that neighbours do not wipe out each other.
    """
    pasted = picture.clone()
    regions = [_mask_region(face, picture.shape, margin) for face in faces]
    for crop, face, whole in zip(crops, faces, regions, strict=True):
        to_crop = align_matrix(face, crop.shape[0], margin)
        for region in _strips(whole):
            rivals = [
                _mask_in_picture(other, region, margin, picture)
                for other, other_region in zip(faces, regions, strict=True)
                if other is not face and _overlap(region, other_region)
            ]
            masks, depths = map(torch.stack, zip(_mask_in_picture(face, region, margin, picture), *rivals, strict=True))
            shares = (depths / depths.amax(dim=0).clamp_min(1e-12)) ** SHARPNESS
            if opaque:
                masks = (masks > 0).to(masks)
            weight = (masks.amax(dim=0) * shares[0] / shares.sum(dim=0).clamp_min(1e-12))[..., None]
            points = _transform(to_crop, *_grid(*region, picture))
            content = _sample(crop.to(picture), points, scale=1 / _scale(to_crop))
            blended = (pasted[region] + weight * (content - picture[region])).clamp(0, 1)
            pasted[region] = torch.where(weight > 0, blended, pasted[region])
    return pasted


def sort_faces(faces: Sequence[Face]) -> list[Face]:
    """Left to right by the middle of the box, and top to bottom where that is equal."""
    return sorted(faces, key=lambda face: face.centre)


def _mask_and_depth(x: Tensor, y: Tensor, centre: np.ndarray, margin: float) -> tuple[Tensor, Tensor]:
    """The mask at template coordinates, and how deep in the face they lie: 1 at its middle, 0 where the mask ends."""
    radius = torch.hypot((x - centre[0]) / MASK_RADII[0], (y - centre[1]) / MASK_RADII[1])
    soft = _smooth_step((1 + FEATHER - radius) / FEATHER)
    off_centre = torch.maximum((x - _CENTRE).abs(), (y - _CENTRE).abs()) / (TEMPLATE_SIZE * margin)
    inside = _smooth_step((0.5 - off_centre) / BORDER)
    return soft * inside, (1 - radius / (1 + FEATHER)).clamp_min(0) * inside


def _smooth_step(ramp: Tensor) -> Tensor:
    ramp = ramp.clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _mask_in_picture(face: Face, region: Region, margin: float, like: Tensor) -> tuple[Tensor, Tensor]:
    x, y = _transform(align_matrix(face, TEMPLATE_SIZE, 1.0), *_grid(*region, like))
    return _mask_and_depth(x, y, head_centre(face), margin)


def _own(face: Face, region: Region, neighbours: Sequence[Face], margin: float, like: Tensor) -> Tensor:
    """Which pixels of a region belong to a face; see :func:`own_pixels`."""
    mask, depth = _mask_in_picture(face, region, margin, like)
    own = mask > 0
    for other in neighbours:
        own &= _deeper(face, depth, other, _mask_in_picture(other, region, margin, like)[1])
    return own


def _deeper(face: Face, depth: Tensor, other: Face, its_depth: Tensor) -> Tensor:
    """Where a face lies deeper than another; the further left one where both lie as deep."""
    first = face.landmarks.ravel().tolist() < other.landmarks.ravel().tolist()
    return depth >= its_depth if first else depth > its_depth


def _without(picture: Tensor, region: Region, face: Face, others: Sequence[Face], margin: float) -> Tensor:
    """A region of a picture with what belongs to other faces filled by the nearest pixels that do not."""
    part = picture[region]
    depth = _mask_in_picture(face, region, margin, picture)[1]
    theirs = torch.zeros(part.shape[:2], dtype=torch.bool, device=picture.device)
    for other in others:
        mask, its_depth = _mask_in_picture(other, region, margin, picture)
        theirs |= (mask > 0) & ~_deeper(face, depth, other, its_depth)
    if not theirs.any():
        return part
    from scipy.ndimage import distance_transform_edt

    _, nearest = distance_transform_edt(theirs.cpu().numpy(), return_indices=True)  # pyright: ignore[reportGeneralTypeIssues]
    rows, cols = torch.from_numpy(nearest).to(part.device).long()
    return part[rows, cols]


def _mask_bounds(face: Face, margin: float) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 (ends excluded) around the whole mask, in pixels of the picture."""
    centre = head_centre(face)
    reach = np.array(MASK_RADII) * (1 + FEATHER)
    frame = TEMPLATE_SIZE * margin / 2
    low = np.maximum(centre - reach, _CENTRE - frame)
    high = np.minimum(centre + reach, _CENTRE + frame)
    return _bounds(_inverse(align_matrix(face, TEMPLATE_SIZE, 1.0)), low, high)


def _mask_region(face: Face, shape: Sequence[int], margin: float) -> Region:
    """Rows and columns of the picture that hold the whole mask."""
    x0, y0, x1, y1 = _mask_bounds(face, margin)
    height, width = shape[:2]
    return slice(max(0, min(y0, height)), max(0, min(y1, height))), slice(
        max(0, min(x0, width)), max(0, min(x1, width))
    )


def _strips(region: Region) -> Iterator[Region]:
    """The region from top to bottom in parts of at most ``STRIP`` pixels."""
    rows, cols = region
    height = max(1, STRIP // max(1, cols.stop - cols.start))
    for top in range(rows.start, rows.stop, height):
        yield slice(top, min(top + height, rows.stop)), cols


def _overlap(one: Region, other: Region) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def _sample(image: Tensor, points: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """Bicubic values (...,3) of ``image`` (h,w,3) at ``points`` (x, y), mirrored beyond its border.

    scale: how many points there are along one pixel; the image is shrunk first where there are fewer than one.
    """
    source = image.permute(2, 0, 1)[None]
    height, width = image.shape[:2]
    if scale < 1:
        smaller = (max(1, round(height * scale)), max(1, round(width * scale)))
        source = F.interpolate(source, smaller, mode="bicubic", antialias=True)
    x, y = points
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    values = F.grid_sample(source, grid[None], mode="bicubic", padding_mode="reflection", align_corners=False)
    return values[0].permute(1, 2, 0).clamp(0, 1)


def _grid(rows: slice, cols: slice, like: Tensor) -> tuple[Tensor, Tensor]:
    """x and y of every pixel in a region, each (rows, cols)."""
    y = torch.arange(rows.start, rows.stop, device=like.device, dtype=like.dtype)
    x = torch.arange(cols.start, cols.stop, device=like.device, dtype=like.dtype)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return x, y


def _transform(matrix: np.ndarray, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    (a, b, c), (d, e, f) = matrix.tolist()
    return a * x + b * y + c, d * x + e * y + f


def _inverse(matrix: np.ndarray) -> np.ndarray:
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack((linear, -linear @ matrix[:, 2]))


def _scale(matrix: np.ndarray) -> float:
    return float(np.hypot(*matrix[:, 0]))


def _bounds(matrix: np.ndarray, low: ArrayLike, high: ArrayLike) -> tuple[int, int, int, int]:
    """Integer x0, y0, x1, y1 (ends excluded) around the transformed rectangle from ``low`` to ``high``."""
    (x0, y0), (x1, y1) = np.broadcast_to(low, 2), np.broadcast_to(high, 2)
    corners = matrix @ np.array([[x0, x1, x0, x1], [y0, y0, y1, y1], [1, 1, 1, 1]])
    left, top = np.floor(corners.min(axis=1)).astype(int)
    right, bottom = np.ceil(corners.max(axis=1)).astype(int) + 1
    return int(left), int(top), int(right), int(bottom)
