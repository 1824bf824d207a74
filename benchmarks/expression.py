"""What keeping expressions keeps, and what it costs in identity; prints two tables.

    DIFFPRIVACY_DATA=... python -m benchmarks.expression [--faces 32] [--steps 20] [--weights 0 0.25 0.5] [--made FOLDER]

Photos of photos/celebahq512 are anonymized with the embedded model, guided by the demo guide, with and without Keep
Expression Energy. The first table is of the network that the energy asks, so that it judges its own work; the second is
of YuNet's five points, and of recognizers at FAR 1e-3, of which only the guide took part.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.attacks.faces import Lab, Method, Photo, celebrities, open_lab, protections, threshold
from diffprivacy.evaluation.comparison import FaceComparison, judge
from diffprivacy.evaluation.utility import changes_of, utility_table
from diffprivacy.faces.geometry import Face
from diffprivacy.identity.energies import Energy
from diffprivacy.identity.expression import EXPRESSION_WEIGHT, keep_expression
from diffprivacy.presets import PRESETS
from diffprivacy.regeneration import anonymizing


def kept(lab: Lab, weight: float, steps: int) -> Method:
    """Anonymizing as shipped, and an energy of this weight that keeps expressions."""
    away = anonymizing(lab.guide)

    def both(crops: Tensor, landmarks: Tensor, noise: Tensor) -> Energy:
        keep, guided = keep_expression(crops, landmarks) * weight, away(crops, landmarks, noise)
        return guided + keep if guided else keep

    return Method(
        f"weight {weight:g}",
        dataclasses.replace(PRESETS["anonymize"]["default"], steps=steps),
        both if weight else away,
    )


def mouth(face: Face) -> float:
    """Distance of the mouth's corners in distances of the eyes."""
    right_eye, left_eye, _, right, left = face.landmarks
    return float(np.linalg.norm(right - left) / np.linalg.norm(right_eye - left_eye))


def mouth_change(photo: Photo, image: Tensor, lab: Lab) -> float:
    """How much wider or narrower YuNet sees the mouth; NaN where it finds no face."""
    found = lab.detector.detect(image)
    if not found:
        return float("nan")
    nearest = min(found, key=lambda face: float(np.hypot(*np.subtract(face.centre, photo.face.centre))))
    return abs(mouth(nearest) - mouth(photo.face))


def independent_table(versions: dict[str, list[FaceComparison]], mouths: dict[str, Sequence[float]], lab: Lab) -> str:
    """A Markdown table with a line for each version: five points, the mouth's width, and who is recognized."""
    judges = [f"{name}: cosine, accepted" for name in lab.judges]
    header = ["", "five points, NME", "mouth's width, eye distances", *judges]
    lines = [header, ["---"] * len(header)]
    for name, faces in versions.items():
        line = [name, f"{np.nanmean([face.nme for face in faces]):.3f}", f"{np.nanmean(mouths[name]):.3f}"]
        for which, recognizer in lab.judges.items():
            cosines = np.array([face.cosine(which) for face in faces])
            line.append(f"{cosines.mean():.2f}, {100 * np.mean(cosines >= threshold(which, recognizer)):.0f} %")
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--weights", type=float, nargs="+", default=[0, EXPRESSION_WEIGHT, 2 * EXPRESSION_WEIGHT])
    parser.add_argument("--made", type=Path, help="folder that keeps the protected photos")
    options = parser.parse_args()
    lab = open_lab()
    photos = celebrities(lab, options.faces)
    versions: dict[str, list[FaceComparison]] = {}
    mouths: dict[str, Sequence[float]] = {}
    for weight in options.weights:
        method = kept(lab, weight, options.steps)
        images = protections(photos, lab, method, 0, options.made)
        pairs = list(zip(photos, images, strict=True))
        versions[method.name] = [
            face for p, image in pairs for face in judge(p.rgb, image, [p.face], [p.person], lab.judges, lab.detector)
        ]
        mouths[method.name] = [mouth_change(p, image, lab) for p, image in pairs]
    print(f"{utility_table(changes_of(versions))}\n\n{independent_table(versions, mouths, lab)}")


if __name__ == "__main__":
    main()
