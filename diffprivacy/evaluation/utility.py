"""What protecting a face has cost: pose, gaze, expression, skin and light of two images of a face, compared.

Each measure is a distance, 0 for two equal images; none of them is ever 0 for two photos, so a report prints two photos
of one person and a JPEG of the original beside it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..faces.alignment import align
from ..faces.attributes import Attributes
from ..faces.facemesh import EXPRESSION, EYES, MOUTH, load_face_mesh
from ..faces.geometry import TEMPLATE_SIZE, Face
from ..faces.similarity import similarity
from .intervals import Mean

if TYPE_CHECKING:
    from .comparison import FaceComparison

MEASURES = {
    "landmarks": (
        "NME",
        "distance of 478 points once one face is moved, turned and scaled onto the other, by its eyes",
    ),
    "head pose": ("°", "angle of the rotation between the two heads"),
    "gaze": ("eye widths", "how far the irises lie elsewhere between the eyes' corners"),
    "eyes' opening": ("eye widths", "change of the distance between the lids"),
    "mouth's opening": ("mouth widths", "change of the distance between the lips"),
    "expression": ("", "mean change of 43 blendshapes in [0,1], without those of gaze"),
    "skin tone": ("°", "change of the individual typology angle of the cheeks"),
    "light direction": ("°", "angle between the directions that light comes from"),
    "age": ("years", "change of the estimated age"),
    "sex": ("share", "share of faces whose estimated sex changes"),
}
"""Of every measure its unit and its meaning."""
NEEDS_ATTRIBUTES = ("age", "sex")
JPEG_QUALITY = 60
"""Not a usual one: a file of the same quality would change no more."""
CHEEKS = ((32.0, 74.0), (80.0, 74.0))
CHEEK = 6
"""Middles of the cheeks in the ArcFace crop, and half the side of the squares whose skin is looked at."""
HEAD = ((56.0, 72.0), (42.0, 52.0, 42.0))
"""Middle and half axes (across, down, toward the viewer) of the ellipsoid that light is fitted on, in the ArcFace crop."""
LIT = 0.9
"""How much of its radius is looked at: the rim shows hair and background."""


@dataclass(frozen=True)
class Looks:
    """What one face in one image does.

    points: (478,3) in pixels; shapes: (52,) in [0,1]; skin: individual typology angle in degrees; light: unit vector
    (3,) toward the light, x right, y down, z toward the viewer; age in years, male: NaN where no model was given.
    """

    points: np.ndarray
    shapes: np.ndarray
    skin: float
    light: np.ndarray
    age: float = float("nan")
    male: float = float("nan")


def looks(image: Tensor, face: Face, attributes: Attributes | None = None) -> Looks:
    """Measure one face of an image (H,W,3) in [0,1]."""
    mesh, batch, landmarks = load_face_mesh(), image.movedim(-1, 0)[None], torch.from_numpy(face.landmarks)[None]
    with torch.inference_mode():
        points = mesh(batch, landmarks)
        shapes = mesh.shapes(points)
        crop = align(batch, landmarks)[0].movedim(0, -1).numpy()
    about = attributes(image, face) if attributes else ()
    return Looks(points[0].numpy(), shapes[0].numpy(), typology_angle(crop), light_direction(crop), *about)


def changes(before: Looks, after: Looks) -> dict[str, float]:
    """Every measure's distance between two images of a face; NaN for what needs a model that was not given."""
    return {
        "landmarks": landmark_error(before.points, after.points),
        "head pose": rotation_angle(before.points, after.points),
        "gaze": float(np.mean([np.linalg.norm(gaze(before.points, eye) - gaze(after.points, eye)) for eye in EYES])),
        "eyes' opening": float(
            np.mean([abs(opening(before.points, eye) - opening(after.points, eye)) for eye in EYES])
        ),
        "mouth's opening": abs(opening(before.points, MOUTH) - opening(after.points, MOUTH)),
        "expression": float(np.abs(before.shapes - after.shapes)[list(EXPRESSION)].mean()),
        "skin tone": abs(before.skin - after.skin),
        "light direction": float(np.degrees(np.arccos(np.clip(before.light @ after.light, -1, 1)))),
        "age": abs(before.age - after.age),
        "sex": abs(before.male - after.male),
    }


def landmark_error(before: np.ndarray, after: np.ndarray) -> float:
    """Mean distance of points (N,3), after the similarity of the image plane that fits best, in distances of the outer
    corners of the eyes."""
    one, other = (torch.from_numpy(points[None, :, :2]).double() for points in (before, after))
    matrix = similarity(other, one)[0].numpy()
    distances = np.linalg.norm(other[0].numpy() @ matrix[:2, :2].T + matrix[:2, 2] - before[:, :2], axis=1)
    return float(distances.mean() / np.linalg.norm(before[EYES[0][0], :2] - before[EYES[1][1], :2]))


def rotation_angle(before: np.ndarray, after: np.ndarray) -> float:
    """Degrees of the rotation that carries points (N,3) onto others best, whatever their size and place (Kabsch, 1976)."""
    from scipy.spatial.transform import Rotation

    rotation: Any = Rotation.align_vectors(after - after.mean(axis=0), before - before.mean(axis=0))[0]
    return float(np.degrees(rotation.magnitude()))


def opening(points: np.ndarray, parts: Sequence[int]) -> float:
    """Distance of the upper and lower of four points in distances of the left and right one."""
    left, right, upper, lower = points[list(parts[:4])]
    return float(np.linalg.norm(upper - lower) / np.linalg.norm(left - right))


def gaze(points: np.ndarray, eye: Sequence[int]) -> np.ndarray:
    """Where the iris lies from the middle of the eye's corners, along and across them, in distances of the corners."""
    left, right, iris = points[[eye[0], eye[1], eye[4]], :2]
    along = right - left
    across = np.array([-along[1], along[0]])
    return np.array([along, across]) @ (iris - (left + right) / 2) / (along @ along)


def typology_angle(crop: np.ndarray) -> float:
    """Individual typology angle of the cheeks in an ArcFace crop (112,112,3): atan((L* - 50) / b*), in degrees.

    Chardon et al., Int. J. Cosmetic Science 13 (1991): above 55 very light, below -30 dark.
    """
    from skimage.color import rgb2lab

    skin = np.concatenate([
        crop[int(y) - CHEEK : int(y) + CHEEK, int(x) - CHEEK : int(x) + CHEEK].reshape(-1, 3) for x, y in CHEEKS
    ])  # fmt: skip
    lightness, _, yellow = np.median(rgb2lab(skin), axis=0)
    return float(np.degrees(np.arctan2(lightness - 50, yellow)))


def light_direction(crop: np.ndarray) -> np.ndarray:
    """Unit vector toward the light in an ArcFace crop (112,112,3): x right, y down, z toward the viewer.

    The linear term of the spherical harmonics (Basri and Jacobs, 2003), fitted to linear luminance on an ellipsoid.
    """
    (x0, y0), axes = HEAD
    y, x = np.mgrid[:TEMPLATE_SIZE, :TEMPLATE_SIZE]
    across, down = (x - x0) / axes[0], (y - y0) / axes[1]
    inside = across**2 + down**2 < LIT**2
    across, down = across[inside], down[inside]
    normals = np.stack((across, down, np.sqrt(1 - across**2 - down**2)), axis=1) / axes
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    luminance = crop[inside] ** 2.2 @ (0.2126, 0.7152, 0.0722)
    fitted = np.linalg.lstsq(np.column_stack((normals, np.ones(len(normals)))), luminance, rcond=None)[0][:3]
    return fitted / max(np.linalg.norm(fitted), 1e-9)


def as_jpeg(image: Tensor) -> Tensor:
    """The image (H,W,3) after a JPEG of JPEG_QUALITY: what no onlooker minds."""
    from PIL import Image

    file = io.BytesIO()
    pixels = (image.clamp(0, 1).numpy() * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return torch.from_numpy(np.asarray(Image.open(file), dtype=np.float32) / 255)


Changes = Sequence[tuple[str, Mapping[str, float]]]
"""Of each face whose it is, and what :func:`changes` says of it; nothing where no face is found in its place."""


def changes_of(versions: Mapping[str, Sequence[FaceComparison]]) -> dict[str, Changes]:
    """What utility is told of, of every version."""
    return {name: [(face.person, face.utility) for face in faces] for name, faces in versions.items()}


def utility_table(columns: Mapping[str, Changes]) -> str:
    """A Markdown table of the mean of every measure, one column for each version or noise floor.

    "–" stands for what nothing was measured of; a line whose model was not given says which file it needs.
    """
    lines = [["", "unit", *columns], ["---"] * (2 + len(columns))]
    for measure, (unit, _) in MEASURES.items():
        means = [mean_change(faces, measure) for faces in columns.values()]
        lines.append(
            [measure, unit, *(lacking(measure) if mean is None else number(mean.value, unit) for mean in means)]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean_change(faces: Changes, measure: str) -> Mean | None:
    """The mean over the faces that it was measured of; None for none."""
    measured = [(of[measure], person) for person, of in faces if np.isfinite(of.get(measure, np.nan))]
    return Mean.of(*zip(*measured, strict=True)) if measured else None


def lacking(measure: str) -> str:
    """What stands where a measure has no value."""
    return "needs genderage.onnx (--attributes)" if measure in NEEDS_ATTRIBUTES else "–"


def number(value: float, unit: str) -> str:
    """A value as a table shows it."""
    return f"{value:.1f}" if unit in ("°", "years") else f"{value:.3f}"
