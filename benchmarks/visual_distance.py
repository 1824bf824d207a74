"""Which distance of two faces agrees with people's eyes? Prints a table of candidates for the energy of that name.

    DIFFPRIVACY_DATA=... python -m benchmarks.visual_distance [--sheet sheet.png]

A proxy, not a study with people: versions of one photo that anybody calls the same face (:data:`testing.changes.CHANGES`) should all be
nearer than other people's faces, and another photo of the person should be nearer more often than not. A recognizer
would do well by it, and cannot be taken: hiding keeps what recognizers see. LPIPS is left out: its backbone's weights
are a download, not part of its package.

Faces are those of lfw250 (ten photos each of ten people) and celebahq512 (one each), by YuNet; two people are always of
the same set. Every candidate reads the same part of the ArcFace crop. AUC is the chance that two people are farther
apart than the pair of the column. *Reach* is the mean distance in medians of two people's: how much of looking
different a change feigns, and what ten steps of gradient ascent make of +-4/255 a pixel, which hardly shows. A face
*erased*, painted grey, should reach about 1.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from diffprivacy.evaluation.drawing import contact_sheet
from diffprivacy.faces.alignment import align, template
from diffprivacy.faces.detectors import Detector, load_detector
from diffprivacy.faces.geometry import TEMPLATE_SIZE, crop_face, crop_landmarks
from diffprivacy.identity.energies import visual_distance
from diffprivacy.media.images import Picture, read_picture, write_picture
from testing.changes import CHANGES, CROP, changed, ellipse, grey

EDGE = 16
"""Left and right columns of the ArcFace crop that no candidate reads, as the energy does not."""
PAIRS = 1000
"""Of two people, in each set of photos."""
COLUMNS = ["AUC: all changes", "worst change", "other photo of the person", "beyond 5 % of two people", "farthest reach",
           "reach of a pattern", "erased"]  # fmt: skip
Distance = Callable[[Tensor, Tensor], Tensor]
"""Of aligned faces (N,3,112,112) in [0,1], in pairs: (N,)."""


def _read(images: Tensor, size: int = TEMPLATE_SIZE) -> Tensor:
    """What candidates read of aligned faces, averaged down to a size."""
    pool = TEMPLATE_SIZE // size
    return F.avg_pool2d(images, pool)[..., EDGE // pool : -EDGE // pool]


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    return (_read(a) - _read(b)).square().mean(dim=(1, 2, 3))


def normalised_squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Of grey faces, each with mean 0 and deviation 1."""

    def normalised(x: Tensor) -> Tensor:
        x = _read(grey(x))
        return (x - x.mean(dim=(1, 2, 3), keepdim=True)) / x.std(dim=(1, 2, 3), keepdim=True)

    return (normalised(a) - normalised(b)).square().mean(dim=(1, 2, 3))


def _moments(a: Tensor, b: Tensor, mean: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Local means, variances and covariance."""
    mean_a, mean_b = mean(a), mean(b)
    return mean_a, mean_b, mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b


def ssim_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - SSIM of grey faces (Wang et al., 2004)."""
    moments = _moments(_read(grey(a)), _read(grey(b)), lambda x: TF.gaussian_blur(x, [11, 11], [1.5, 1.5]))
    mean_a, mean_b, var_a, var_b, cov = moments
    light = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    return 1 - (light * (2 * cov + 0.03**2) / (var_a + var_b + 0.03**2)).mean(dim=(1, 2, 3))


def arithmetic_mean(a: Tensor, b: Tensor) -> Tensor:
    return (a + b) / 2


def geometric_mean(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sqrt()


def structure_distance(size: int, mean: Distance, constant: float) -> Distance:
    """1 - the mean square of the covariance over a mean of the variances in 7 x 7 windows; negative values are 0.

    The arithmetic mean makes it SSIM's contrast and structure, the geometric one a correlation: structure alone.
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        greys = _read(grey(a), size), _read(grey(b), size)
        _, _, var_a, var_b, cov = _moments(*greys, lambda x: F.avg_pool2d(x, 7, stride=1))
        similarity = (cov + constant) / mean(var_a + constant, var_b + constant)
        return 1 - similarity.clamp(min=0).square().mean(dim=(1, 2, 3))

    return distance


def ours(a: Tensor, b: Tensor) -> Tensor:
    points = template(TEMPLATE_SIZE).expand(len(a), -1, -1)
    return 1 - visual_distance(a, points, points)(b)


CANDIDATES: dict[str, Distance] = {
    "squared error": squared_error,
    "squared error, normalised": normalised_squared_error,
    "1 - SSIM": ssim_distance,
    **{
        f"contrast and structure at {size}": structure_distance(size, arithmetic_mean, 0.03**2 / 2)
        for size in (112, 56, 28, 14)
    },
    **{f"structure alone at {size}": structure_distance(size, geometric_mean, 1e-4) for size in (112, 56, 28, 14)},
    "**the energy**": ours,
}


@dataclass(frozen=True)
class Faces:
    """Faces (N,3,112,112), their aligned versions by the name of the change, and pairs (2,M) of their numbers."""

    original: Tensor
    versions: dict[str, Tensor]
    same_person: np.ndarray
    two_people: np.ndarray


def read_faces(folder: Path, detector: Detector) -> Faces:
    """The largest face of every photo; folders are people, and so are photos outside one."""
    crops, landmarks, people = [], [], []
    for path in sorted(folder.rglob("*.jpg")):
        photo = read_picture(path).rgb
        face = max(detector.detect(photo), key=lambda found: found.area)
        crops.append(crop_face(photo, face, **CROP).movedim(-1, 0))
        landmarks.append(crop_landmarks(face, **CROP))
        people.append(path.stem if path.parent == folder else path.parent.name)
    images, points, names = torch.stack(crops), torch.stack(landmarks), np.array(people)
    numbers = np.stack(np.triu_indices(len(names), k=1))
    same = names[numbers[0]] == names[numbers[1]]
    strangers = np.random.default_rng(0).choice(numbers[:, ~same], PAIRS, axis=1, replace=False)
    versions = {change: align(changed(images, change), points) for change in CHANGES}
    return Faces(align(images, points), versions, numbers[:, same], strangers)


def pattern(distance: Distance, faces: Tensor, bound: float = 4 / 255, steps: int = 10) -> Tensor:
    """The faces moved away from themselves along the gradient's signs, no value farther than the bound."""
    moved = faces + bound * (2 * torch.rand(faces.shape, generator=torch.Generator().manual_seed(0)) - 1)
    for _ in range(steps):
        moved = moved.clamp(0, 1).requires_grad_()
        (slope,) = torch.autograd.grad(distance(faces, moved).sum(), moved)
        moved = torch.clamp(moved.detach() + bound / 4 * slope.sign(), faces - bound, faces + bound)
    return moved.clamp(0, 1)


def auc(near: np.ndarray, far: np.ndarray) -> float:
    return float(roc_auc_score(np.repeat([0, 1], [len(near), len(far)]), np.concatenate((near, far))))


def cells(distance: Distance, lfw: Faces, celeba: Faces) -> list[str]:
    """A candidate's row of the table."""

    def apart(faces: Faces, pairs: np.ndarray) -> np.ndarray:
        return distance(faces.original[pairs[0]], faces.original[pairs[1]]).numpy()

    with torch.no_grad():
        photos = apart(lfw, lfw.same_person)
        lfw_strangers = apart(lfw, lfw.two_people)
        strangers = np.concatenate((lfw_strangers, apart(celeba, celeba.two_people)))
        erased = torch.cat([distance(x, torch.where(ellipse(x), 0.5, x)) for x in (lfw.original, celeba.original)])
        values = {c: [distance(faces.original, faces.versions[c]) for faces in (lfw, celeba)] for c in CHANGES}
    harmless = {change: torch.cat(both).numpy() for change, both in values.items()}
    everything, unit = np.concatenate(list(harmless.values())), np.median(strangers)
    worst, area = min(((change, auc(near, strangers)) for change, near in harmless.items()), key=lambda pair: pair[1])
    farthest = max(harmless, key=lambda change: harmless[change].mean())
    some = torch.cat((lfw.original[::4], celeba.original[::4]))
    feigned = distance(some, pattern(distance, some)).mean().item()
    return [
        f"{auc(everything, strangers):.4f}",
        f"{worst}, {area:.3f}",
        f"{auc(photos, lfw_strangers):.3f}",
        f"{100 * np.mean(everything > np.quantile(strangers, 0.05)):.1f} %",
        f"{farthest}, {harmless[farthest].mean() / unit:.2f}",
        f"{feigned / unit:.2f}",
        f"{erased.mean().item() / unit:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheet", type=Path, help="PNG to write a face and its versions to")
    options = parser.parse_args()
    start = time.time()
    torch.set_num_threads(1)
    data = Path(os.environ["DIFFPRIVACY_DATA"])
    detector = load_detector(data / "detectors" / "yunet_n.onnx")
    lfw, celeba = (read_faces(data / "photos" / name, detector) for name in ("lfw250", "celebahq512"))
    if options.sheet:
        shown = {"original": celeba.original} | celeba.versions
        sheet = contact_sheet([faces[20].movedim(0, -1) for faces in shown.values()], list(shown))
        write_picture(options.sheet, Picture(sheet))

    print("|", " | ".join(["distance", *COLUMNS]), "|\n" + "| --- " * (1 + len(COLUMNS)) + "|")
    for name, distance in CANDIDATES.items():
        print("|", " | ".join([name, *cells(distance, lfw, celeba)]), "|", flush=True)
    print(f"\n{len(lfw.original) + len(celeba.original)} faces, {len(CHANGES)} changes, {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
