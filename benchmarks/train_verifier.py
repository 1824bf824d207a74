"""Trains the verifier of the built-in face detector, diffprivacy/verifier.safetensors.

    python benchmarks/train_verifier.py --portraits portraits128.tar --yunet yunet_n.onnx

Faces: portraits of members of the US Congress (voteview/member_photos, largely public domain), 128 pixels wide, in a
tar of WebP files. Their landmarks are those that YuNet (libfacedetection, Apache-2.0) finds. Everything else: windows
of the pictures without people that scikit-image, scikit-learn and matplotlib bring along, and windows of the portraits
that show a part of a face only. About half an hour on one core of a CPU.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path
from typing import IO, cast

import cv2
import matplotlib
import numpy as np
import skimage.data
import sklearn.datasets
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from skimage.feature import Cascade
from torch import Tensor
from tqdm import trange

from diffprivacy.faces.verifier import CONTEXT, CROP_SIZE, WEIGHTS, FaceVerifier

PORTRAIT = 128
BACKGROUND = 64
SCENES = (
    *("brick", "cell", "chelsea", "clock_motion", "coffee", "coins", "color", "grass", "gravel", "horse"),
    *("hubble_deep_field", "ihc", "logo", "moon", "motorcycle_left", "motorcycle_right", "page", "phantom"),
    *("retina", "rocket", "text"),
)
WINDOW_SIDE = 2.57
"""Side of the cascade's window around a face, in distances from the eyes' middle to the mouth's, and how far the
window's middle lies above the landmarks' (medians over 243 portraits)."""
WINDOW_RISE = 0.234
FACES, PARTS, BACKGROUNDS = 48, 24, 40
"""What a batch is made of."""


def read_portraits(tar: Path) -> np.ndarray:
    """Grey portraits (N,128,128) uint8."""
    with tarfile.open(tar) as archive:
        files = sorted((member for member in archive if member.isfile()), key=lambda member: member.name)
        contents = [cast(IO[bytes], archive.extractfile(member)).read() for member in files]
    return np.stack([np.asarray(Image.open(io.BytesIO(content)).convert("L")) for content in contents])


def find_landmarks(portraits: np.ndarray, yunet: Path) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks (N,5,2) in portrait pixels and YuNet's scores (N,), 0 where it finds no face."""
    scale, border = 1.5, 32
    side = int(PORTRAIT * scale) + 2 * border
    model = cv2.FaceDetectorYN.create(str(yunet), "", (side, side), 0.5)
    landmarks, scores = np.zeros((len(portraits), 5, 2), np.float32), np.zeros(len(portraits))
    for i, grey in enumerate(portraits):
        larger = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        larger = cv2.copyMakeBorder(larger, border, border, border, border, cv2.BORDER_REPLICATE)
        _, found = model.detect(cv2.cvtColor(larger, cv2.COLOR_GRAY2BGR))
        if found is not None:
            best = found[found[:, -1].argmax()]
            landmarks[i] = (best[4:14].reshape(5, 2) - border + 0.5) / scale - 0.5
            scores[i] = best[-1]
    return landmarks, scores


def read_scenes() -> list[np.ndarray]:
    """Grey pictures without people."""
    scikit_image = Path(skimage.data.__file__).parent
    files = [next(scikit_image.glob(f"{name}.*")) for name in SCENES]
    files += sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    files += sorted((Path(matplotlib.get_data_path()) / "sample_data").glob("*.png"))
    return [np.asarray(Image.open(file).convert("L")) for file in files]


def background_windows(scenes: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Windows (M,64,64) uint8 of the scenes at many scales; those that the cascade takes for a face, and random ones."""
    cascade = Cascade(skimage.data.lbp_frontal_face_cascade_filename(), eps=0.3)
    inner = round(BACKGROUND / CONTEXT)
    windows = []
    for scene in scenes:
        for picture in (scene, scene[::-1].copy(), 255 - scene, np.rot90(scene).copy()):
            for scale in 1.2 ** np.arange(4, -14, -1):
                if not BACKGROUND < min(picture.shape) * scale < 1200:
                    continue
                kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
                small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=kind)
                proposed = cascade.detect_multi_scale(
                    small,
                    scale_factor=1.5,
                    step_ratio=1,
                    min_size=(inner, inner),
                    max_size=(inner + 4, inner + 4),
                    min_neighbor_number=1,
                    intersection_score_threshold=1.01,
                )
                corners = [(window["r"] - inner // 4, window["c"] - inner // 4) for window in proposed[:60]]
                corners += [tuple(rng.integers(0, np.array(small.shape) - BACKGROUND + 1)) for _ in range(20)]
                for row, column in corners:
                    row = min(max(row, 0), small.shape[0] - BACKGROUND)
                    column = min(max(column, 0), small.shape[1] - BACKGROUND)
                    windows.append(small[row : row + BACKGROUND, column : column + BACKGROUND])
    return np.stack(windows)


def uniform(count: int, low: float, high: float) -> Tensor:
    return torch.rand(count) * (high - low) + low


def choose(count: int, probability: float) -> Tensor:
    return torch.rand(count) < probability


def per_picture(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def cascade_window(landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (B,2) and side (B,) of the window that the cascade proposes for faces with these landmarks (B,5,2)."""
    height = (landmarks[:, :2].mean(dim=1) - landmarks[:, 3:].mean(dim=1)).norm(dim=1)
    rise = torch.stack((torch.zeros_like(height), WINDOW_RISE * height), dim=1)
    return landmarks.mean(dim=1) - rise, WINDOW_SIDE * height


def cut(portraits: Tensor, centre: Tensor, side: Tensor, roll: Tensor, aspect: Tensor, mirror: Tensor, behind: Tensor):
    """Crops (B,1,48,48) of portraits, half of them with ``behind`` beyond the portrait's border, and the linear part
    (B,2,2) of the map from crop sides to portrait pixels."""
    fine = 2 * CROP_SIZE
    angle = torch.deg2rad(roll)
    rotation = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), dim=1).view(-1, 2, 2)
    linear = rotation * torch.stack((side * aspect * torch.where(mirror, -1.0, 1.0), side), dim=1)[:, None]
    steps = (torch.arange(fine) + 0.5) / fine - 0.5
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).view(1, -1, 2)
    points = grid @ linear.transpose(1, 2) + centre[:, None]
    grid = ((points + 0.5) / PORTRAIT * 2 - 1).view(-1, fine, fine, 2)
    crops = F.grid_sample(portraits, grid, padding_mode="border", align_corners=False)
    beyond = (grid.abs().amax(dim=-1) > 1)[:, None] & per_picture(choose(len(crops), 0.5))
    crops = torch.where(beyond, F.interpolate(behind, (fine, fine), mode="bilinear"), crops)
    return F.avg_pool2d(crops, 2), linear


def as_photographed(crops: Tensor) -> Tensor:
    """Other light, contrast, sharpness and noise."""
    count = len(crops)
    mean = crops.mean(dim=(2, 3), keepdim=True)
    crops = (crops - mean) * per_picture(uniform(count, 0.4, 1.4)) + mean + per_picture(uniform(count, -0.25, 0.25))
    crops = crops.clamp(0, 1) ** per_picture(uniform(count, 0.6, 1.6))
    ramp = torch.linspace(-1, 1, CROP_SIZE)
    crops = crops + per_picture(uniform(count, -0.3, 0.3) * choose(count, 0.4)) * ramp
    crops = crops + per_picture(uniform(count, -0.15, 0.15)) * ramp[:, None]
    for side in (16, 20, 24, 32):
        coarse = choose(count, 0.08)
        if coarse.any():
            small = F.interpolate(crops[coarse], (side, side), mode="area")
            crops[coarse] = F.interpolate(small, crops.shape[2:], mode="bilinear")
    noise = torch.randn_like(crops) * per_picture(uniform(count, 0, 0.06) * choose(count, 0.5))
    return (crops + noise).clamp(0, 1)


def cover(crops: Tensor) -> Tensor:
    """A fifth of the crops with a rectangle in front, as hands, cups and hair are."""
    for crop in crops:
        if torch.rand(()) < 0.2:
            (height, width), (top, left) = torch.randint(6, 22, (2,)), torch.randint(0, CROP_SIZE, (2,))
            place = crop[:, top : top + height, left : left + width]
            place.copy_(torch.rand(()) if torch.rand(()) < 0.5 else torch.rand_like(place))
    return crops


class Samples:
    """Batches of faces, parts of faces, and backgrounds, half of these the hardest so far."""

    def __init__(self, portraits: Tensor, landmarks: Tensor, backgrounds: Tensor) -> None:
        self.portraits, self.landmarks, self.backgrounds = portraits, landmarks, backgrounds
        self.hardest = torch.arange(len(backgrounds))

    def batch(self, faces: int, parts: int, backgrounds: int) -> tuple[Tensor, Tensor, Tensor]:
        """Crops (B,1,48,48), whether they are faces (B,), and the landmarks (faces,5,2) of the first ones."""
        whole, points = self._faces(faces)
        others = torch.cat(
            (self._parts(parts), F.interpolate(self._background(backgrounds), CROP_SIZE, mode="bilinear"))
        )
        is_face = torch.cat((torch.ones(faces), torch.zeros(parts + backgrounds)))
        return torch.cat((cover(as_photographed(whole)), as_photographed(others))), is_face, points

    def mine(self, verifier: torch.nn.Module) -> None:
        """Look for the backgrounds that are most like faces."""
        with torch.no_grad():
            crops = [
                F.interpolate(part.float() / 255, CROP_SIZE, mode="bilinear") for part in self.backgrounds.split(500)
            ]
            logits = torch.cat([verifier(part)[0] for part in crops])
        self.hardest = logits.argsort(descending=True)[: len(logits) // 15]

    def _faces(self, count: int) -> tuple[Tensor, Tensor]:
        portraits, landmarks, centre, side = self._portraits(count)
        centre = centre + (torch.rand(count, 2) - 0.5) * 0.44 * side[:, None]
        side = side * CONTEXT * uniform(count, -0.3, 0.3).exp()
        roll = (torch.randn(count) * 20).clamp(-50, 50)
        mirror = choose(count, 0.5)
        aspect = uniform(count, -0.25, 0.25).exp()
        crops, linear = cut(portraits, centre, side, roll, aspect, mirror, self._background(count))
        points = (landmarks - centre[:, None]) @ torch.linalg.inv(linear).transpose(1, 2)
        points = points * CROP_SIZE + (CROP_SIZE - 1) / 2
        return crops, torch.where(mirror[:, None, None], points[:, [1, 0, 2, 4, 3]], points)

    def _parts(self, count: int) -> Tensor:
        """Windows that are much too small or beside the face."""
        portraits, _, centre, side = self._portraits(count)
        small = choose(count, 0.6)
        distance = side * torch.where(small, uniform(count, 0, 1), uniform(count, 0.65, 1.2))
        direction = uniform(count, 0, 2 * np.pi)
        centre = centre + torch.stack((direction.cos(), direction.sin()), dim=1) * distance[:, None]
        side = side * CONTEXT * torch.where(small, uniform(count, 0.2, 0.45), uniform(count, 0.5, 1.1))
        roll, mirror = torch.randn(count) * 20, choose(count, 0.5)
        return cut(portraits, centre, side, roll, torch.ones(count), mirror, self._background(count))[0]

    def _portraits(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        which = torch.randint(len(self.portraits), (count,))
        landmarks = self.landmarks[which]
        return self.portraits[which].float() / 255, landmarks, *cascade_window(landmarks)

    def _background(self, count: int) -> Tensor:
        which = torch.randint(len(self.backgrounds), (count,))
        which[: count // 2] = self.hardest[torch.randint(len(self.hardest), (count // 2,))]
        windows = self.backgrounds[which].float() / 255
        return torch.where(per_picture(choose(count, 0.5)), windows.flip(3), windows)


def train(samples: Samples, held_out: Samples, steps: int) -> dict[str, Tensor]:
    """The moving average of the weights over the last steps."""
    verifier, average = FaceVerifier(), torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    averaged = torch.optim.swa_utils.AveragedModel(verifier, multi_avg_fn=average, use_buffers=True)
    optimizer = torch.optim.AdamW(verifier.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in (bar := trange(steps)):
        crops, is_face, points = samples.batch(FACES, PARTS, BACKGROUNDS)
        logits, landmarks = verifier.train()(crops)
        loss = F.binary_cross_entropy_with_logits(logits, is_face)
        loss = loss + 0.3 * F.smooth_l1_loss(landmarks[:FACES], points)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        averaged.update_parameters(verifier)
        if step % 1000 == 999:
            samples.mine(averaged.eval())
            bar.write(f"{step + 1}: {evaluate(averaged, held_out)}")
    return averaged.module.state_dict()


def evaluate(verifier: torch.nn.Module, samples: Samples) -> str:
    crops, is_face, points = samples.batch(400, 200, 400)
    with torch.no_grad():
        logits, landmarks = verifier(crops)
    found = (logits[is_face > 0] > 0).float().mean()
    false = (logits[is_face < 1] > 0).float().mean()
    distance = (landmarks[: len(points)] - points).norm(dim=-1).mean()
    return f"faces found {found:.1%}, others taken for faces {false:.1%}, landmarks off by {distance:.2f} of 48 pixels"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the verifier of the built-in face detector.")
    parser.add_argument("--portraits", type=Path, required=True, help="tar of portraits, 128 x 128")
    parser.add_argument("--yunet", type=Path, required=True, help="YuNet as ONNX")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    torch.manual_seed(0)

    portraits = read_portraits(options.portraits)
    landmarks, scores = find_landmarks(portraits, options.yunet)
    usable = np.flatnonzero(scores > 0.7)
    backgrounds = torch.from_numpy(background_windows(read_scenes(), np.random.default_rng(0)))[:, None]
    print(f"{len(usable)} portraits, {len(backgrounds)} windows of backgrounds")
    held_out, used = usable[::20], np.setdiff1d(usable, usable[::20])
    samples, test = (
        Samples(torch.from_numpy(portraits[which])[:, None], torch.from_numpy(landmarks[which]), backgrounds)
        for which in (used, held_out)
    )
    weights = train(samples, test, options.steps)
    save_file({name: weight.half().contiguous() for name, weight in weights.items()}, options.out)


if __name__ == "__main__":
    main()
