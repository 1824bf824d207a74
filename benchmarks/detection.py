"""Recall and precision of a face detector by size, rotation and what else makes faces hard to find.

    python -m benchmarks.detection --data DATA [--detector FILE|builtin] [--rows size,rotation,hard,photos]

Faces are cut from the portraits in DATA/photos/celebahq512 as SCRFD (DATA/detectors) finds them there, and set side by
side on a texture without faces, at one size and rotation each. A face is found if a detection's box overlaps its own by
0.3 or more (intersection over union) and its eyes lie the right way up, within 60 degrees. Detections that meet no face
are invented. The photos as they are follow: how many faces are found in each, and which photos have none or several.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch

from diffprivacy.faces.detectors import Detector, load_detector
from diffprivacy.faces.geometry import TEMPLATE_SIZE, Face, align_matrix
from diffprivacy.media.images import read_picture

SIZES = (12, 16, 20, 32, 64, 128, 256, 512, 1024, 2000)
"""Widths of the face's box in pixels."""
ROTATIONS = (0, 15, 30, 45, 60, 75, 90, 120, 150, 180)
"""Degrees, counter-clockwise."""
MOST_PIXELS = 2**22
"""Of a mosaic; larger faces stand alone."""
SAME = 0.3
UPRIGHT = 60


@dataclass(frozen=True)
class Portrait:
    """pixels: (H,W,3) uint8; face: the one in it."""

    pixels: np.ndarray
    face: Face


@dataclass(frozen=True)
class Mosaic:
    """pixels: (H,W,3) uint8 with the five points (N,5,2) and boxes (N,4) of the faces in it."""

    pixels: np.ndarray
    points: np.ndarray
    boxes: np.ndarray


def main() -> None:
    """Print one row for each kind of mosaic, and the photos."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--detector", default="builtin")
    parser.add_argument("--faces", type=int, default=24, help="faces of each kind")
    parser.add_argument("--rows", default="size,rotation,hard,photos")
    options = parser.parse_args()
    torch.set_num_threads(1)
    detector = load_detector(None if options.detector == "builtin" else Path(options.detector))
    portraits = read_portraits(options.data, options.faces)
    rows = options.rows.split(",")
    print("| faces | found | invented | seconds |\n|---|---|---|---|")
    if "size" in rows:
        for size in SIZES:
            measure(f"{size} px", detector, mosaics(portraits if size < 1000 else portraits[:8], size))
    if "rotation" in rows:
        for rotation in ROTATIONS:
            measure(f"96 px, turned by {rotation}°", detector, mosaics(portraits, 96, rotation))
    if "hard" in rows:
        for name, change in HARD.items():
            changed = [change(portrait) for portrait in portraits]
            measure(f"96 px, {name}", detector, mosaics(changed, 96))
        for side in ("left", "right", "top", "bottom"):
            measure(f"{side} third beyond the border", detector, [cut(portrait, side) for portrait in portraits])
    if "photos" in rows:
        for folder in ("celebahq512", "lfw250"):
            count_photos(folder, detector, options.data / "photos" / folder)


def read_portraits(data: Path, count: int) -> list[Portrait]:
    """The first portraits in which SCRFD finds exactly one face."""
    judge = load_detector(data / "detectors" / "scrfd_500m_bnkps.onnx")
    portraits = []
    for file in sorted((data / "photos" / "celebahq512").glob("*.jpg")):
        picture = read_picture(file).rgb
        faces = judge.detect(picture)
        if len(faces) == 1:
            portraits.append(Portrait((picture.numpy() * 255).round().astype(np.uint8), faces[0]))
        if len(portraits) == count:
            break
    return portraits


def mosaics(portraits: Sequence[Portrait], size: int, rotation: float = 0) -> Iterator[Mosaic]:
    """The portraits' faces, ``size`` pixels wide and turned by ``rotation`` degrees, in as few pictures as hold them."""
    cell = round(2.4 * size)
    columns = max(1, min(6, int(MOST_PIXELS**0.5) // cell))
    for start in range(0, len(portraits), columns**2):
        part = portraits[start : start + columns**2]
        rows = -(-len(part) // columns)
        canvas = texture(max(rows * cell, 480), max(columns * cell, 640))
        points, boxes = [], []
        for i, portrait in enumerate(part):
            top, left = i // columns * cell, i % columns * cell
            patch, inside, landmarks, box = cut_out(portrait, cell, size, rotation)
            window = canvas[top : top + cell, left : left + cell]
            window[inside] = patch[inside]
            points.append(landmarks + np.array((left, top)))
            boxes.append(box + np.array((left, top, left, top)))
        yield Mosaic(canvas, np.array(points), np.array(boxes))


def cut_out(
    portrait: Portrait, cell: int, size: int, rotation: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A cell (S,S,3), where in it the head is seen (S,S), the five points (5,2) and the box (4,)."""
    x0, _, x1, _ = portrait.face.box
    scale = size / (x1 - x0)
    matrix = cv2.getRotationMatrix2D(portrait.face.centre, rotation, scale)
    matrix[:, 2] += (cell - 1) / 2 - np.array(portrait.face.centre)
    height, width = portrait.pixels.shape[:2]
    source, matrix_of_small = portrait.pixels, matrix
    if scale < 1:
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        source = cv2.resize(source, small, interpolation=cv2.INTER_AREA)
        grow = np.array([[width / small[0], 0, 0], [0, height / small[1], 0], [0, 0, 1]])
        grow[:2, 2] = (grow[[0, 1], [0, 1]] - 1) / 2
        matrix_of_small = matrix @ grow
    patch = cv2.warpAffine(source, matrix_of_small, (cell, cell), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    y, x = np.mgrid[:cell, :cell] - (cell - 1) / 2
    inside = np.hypot(x, y) < cell / 2
    landmarks = portrait.face.landmarks @ matrix[:, :2].T + matrix[:, 2]
    return patch, inside, landmarks, around(landmarks, portrait.face, matrix)


def around(landmarks: np.ndarray, face: Face, matrix: np.ndarray) -> np.ndarray:
    """An upright box (4,) as wide and high as the face's own around its moved middle."""
    half = np.array([face.box[2] - face.box[0], face.box[3] - face.box[1]]) / 2 * np.hypot(*matrix[:, 0])
    if abs(matrix[0, 1]) > abs(matrix[0, 0]):
        half = half[::-1]
    centre = matrix[:, :2] @ face.centre + matrix[:, 2]
    return np.concatenate((centre - half, centre + half))


def texture(height: int, width: int) -> np.ndarray:
    """Gravel and grass: much detail, no face."""
    tile = np.stack([skimage.data.gravel(), skimage.data.grass(), skimage.data.gravel()[::-1]], axis=2)
    return np.tile(tile, (-(-height // 512), -(-width // 512), 1))[:height, :width].copy()


def cut(portrait: Portrait, side: str) -> Mosaic:
    """The portrait, 256 pixels wide, without what lies beyond a third of the face's box."""
    x0, y0, x1, y1 = (round(value) for value in portrait.face.box)
    left = round((2 * x0 + x1) / 3) if side == "left" else 0
    right = round((x0 + 2 * x1) / 3) if side == "right" else portrait.pixels.shape[1]
    top = round((2 * y0 + y1) / 3) if side == "top" else 0
    bottom = round((y0 + 2 * y1) / 3) if side == "bottom" else portrait.pixels.shape[0]
    box = np.array([max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)]) - (left, top, left, top)
    pixels = portrait.pixels[top:bottom, left:right]
    return Mosaic(pixels.copy(), (portrait.face.landmarks - (left, top))[None], box[None])


def darkened(portrait: Portrait) -> Portrait:
    """A sixteenth of the light, with the noise of a sensor."""
    light = (portrait.pixels / 255) ** 2.2 / 16
    noisy = light + np.random.default_rng(0).normal(0, 0.002, light.shape)
    return Portrait((255 * noisy.clip(0, 1) ** (1 / 2.2)).round().astype(np.uint8), portrait.face)


def covered(portrait: Portrait, polygon: Sequence[tuple[float, float]], colour: tuple[int, int, int]) -> Portrait:
    """A polygon in template pixels painted over the face."""
    to_template = align_matrix(portrait.face, TEMPLATE_SIZE, 1.0)
    corners = np.linalg.solve(to_template[:, :2], (np.array(polygon) - to_template[:, 2]).T).T
    pixels = portrait.pixels.copy()
    cv2.fillPoly(pixels, [corners.round().astype(np.int32)], colour)
    return Portrait(pixels, portrait.face)


def masked(portrait: Portrait) -> Portrait:
    """A surgical mask."""
    shape = [(18, 66), (56, 58), (94, 66), (90, 104), (56, 122), (22, 104)]
    return covered(portrait, shape, (150, 190, 205))


def sunglasses(portrait: Portrait) -> Portrait:
    """A dark bar before both eyes."""
    return covered(portrait, [(22, 42), (90, 42), (88, 64), (62, 64), (56, 56), (50, 64), (24, 64)], (15, 15, 18))


def grey(portrait: Portrait) -> Portrait:
    """Without colour, at a quarter of the contrast."""
    luma = cv2.cvtColor(portrait.pixels, cv2.COLOR_RGB2GRAY)[..., None]
    return Portrait(np.repeat((128 + (luma.astype(float) - 128) / 4).astype(np.uint8), 3, axis=2), portrait.face)


HARD = {"darkened to 1/16": darkened, "masked": masked, "sunglasses": sunglasses, "grey, 1/4 contrast": grey}


def measure(name: str, detector: Detector, pictures: Iterator[Mosaic] | Sequence[Mosaic]) -> None:
    """Print how many of the faces are found, how many detections are none, and the time."""
    faces = found = invented = 0
    seconds = 0.0
    for picture in pictures:
        began = time.perf_counter()
        detections = detector.detect(torch.from_numpy(picture.pixels).float() / 255)
        seconds += time.perf_counter() - began
        met = [[is_same(face, box) for box in picture.boxes] for face in detections]
        upright = [
            [is_upright(face, points) and same for points, same in zip(picture.points, row, strict=True)]
            for face, row in zip(detections, met, strict=True)
        ]
        faces += len(picture.boxes)
        found += int(np.any(upright, axis=0).sum()) if detections else 0
        invented += sum(not any(row) for row in met)
    print(f"| {name} | {found} of {faces} | {invented} | {seconds:.1f} |", flush=True)


def is_same(face: Face, box: np.ndarray) -> bool:
    low, high = np.maximum(face.box[:2], box[:2]), np.minimum(face.box[2:], box[2:])
    common = np.prod(np.maximum(high - low, 0))
    return bool(common / (face.area + np.prod(box[2:] - box[:2]) - common) >= SAME)


def is_upright(face: Face, points: np.ndarray) -> bool:
    down = [p[3:].mean(axis=0) - p[:2].mean(axis=0) for p in (face.landmarks, points)]
    cosine = down[0] @ down[1] / np.prod(np.linalg.norm(down, axis=1))
    return bool(cosine > np.cos(np.radians(UPRIGHT)))


def count_photos(name: str, detector: Detector, folder: Path) -> None:
    """Print how many photos have how many detections, and which have not exactly one."""
    began = time.perf_counter()
    counts = {file: len(detector.detect(read_picture(file).rgb)) for file in sorted(folder.rglob("*.jpg"))}
    seconds = time.perf_counter() - began
    numbers = ", ".join(f"{many} photos with {n}" for n, many in sorted(Counter(counts.values()).items()))
    print(f"{name}: {numbers} ({seconds:.0f} s)")
    for file, n in counts.items():
        if n != 1:
            print(f"  {file.relative_to(folder)}: {n}")


if __name__ == "__main__":
    main()
