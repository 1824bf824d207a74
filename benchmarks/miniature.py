"""The miniature of the paper: all three jobs over real faces with the embedded model, judged by recognizers.

    DIFFPRIVACY_DATA=... python -m benchmarks.miniature [--faces 24] [--processes 2] [--sheet sheet.png]

The largest face of each photo of photos/celebahq512 and photos/lfw250 is anonymized, hidden and recovered as the command
line does it, with the demo guide guiding. The demo judge and
mobilefacenet_ms1m take no part. Thresholds are those at FAR 1e-3 of the clean pairs of lfw250. Every version is judged
in the whole picture, where the face is found and aligned anew. PSNR and SSIM are over the ArcFace crop, NME is in
distances of the eyes, structure similarity is what people tell faces by (the line *other photo of the
person* holds its mean over lfw250, as a yardstick).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from diffprivacy import demo, pipeline
from diffprivacy.backends.diffusers import DiffusersModel
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.diffusion.noise import NoiseKey
from diffprivacy.evaluation.comparison import FaceComparison, clean_photos, judge
from diffprivacy.evaluation.drawing import contact_sheet
from diffprivacy.evaluation.table import table
from diffprivacy.faces.detectors import Detector, load_detector
from diffprivacy.faces.geometry import Face, crop_face, crop_landmarks, paste_faces
from diffprivacy.identity.energies import visual_distance
from diffprivacy.identity.recognizers import FaceMatcher, load_recognizer
from diffprivacy.identity.thresholds import FAR
from diffprivacy.identity.verification import operating_point
from diffprivacy.media.images import Picture, read_picture, write_picture
from diffprivacy.presets import PRESETS, Preset
from diffprivacy.recovery import replay as recovery
from diffprivacy.redrawing import checked
from diffprivacy.regeneration import Regeneration, Task, task_energy

SETS = ("celebahq512", "lfw250")
CROP = {"size": demo.IMAGE_SIZE, "margin": demo.MARGIN}
TOOLS: Tools


@dataclass
class Tools:
    """What every face needs, loaded once in a process."""

    diffusion_model: DiffusersModel
    detector: Detector
    judges: dict[str, FaceMatcher]
    presets: dict[Task, Preset]


def tools(data: Path, detector: str, steps: int | None) -> Tools:
    presets: dict[Task, Preset] = {task: PRESETS[task]["default"] for task in get_args(Task)}
    if steps:
        presets = {task: dataclasses.replace(preset, steps=steps) for task, preset in presets.items()}
    judges: dict[str, FaceMatcher] = {
        "guide": demo.load_recognizer("guide"),
        "demo judge": demo.load_recognizer("judge"),
        "mobilefacenet_ms1m": load_recognizer(data / "recognizers" / "mobilefacenet_ms1m.onnx"),
    }
    found = load_detector(None if detector == "builtin" else data / "detectors" / detector)
    return Tools(load_diffusion_model(), found, judges, presets)


def versions(picture: Picture, face: Face, use: Tools, seed: int) -> dict[str, Tensor]:
    """What the jobs make of one face of a picture, each (H,W,3)."""
    diffusion_model, protected = use.diffusion_model, {}
    for task, preset in use.presets.items():
        guide = use.judges["guide"]
        how = checked(Regeneration(preset, task_energy(task, guide)), task, guide, "face", print)
        (protected[task],) = pipeline.protect(
            picture.rgb, [face], diffusion_model, demo.CROP, how, NoiseKey.from_seed(seed)
        )
    crop = crop_face(picture.rgb, face, **CROP).movedim(-1, 0)[None]
    restored = diffusion_model.decode(diffusion_model.encode(crop))[0].movedim(0, -1)
    key = recovery.record(picture, [face], diffusion_model, demo.CROP)
    sealed = Picture(protected["anonymize"])
    return {
        "autoencoder round trip": paste_faces(picture.rgb, [restored], [face], demo.MARGIN, opaque=True),
        "anonymized": protected["anonymize"],
        "hidden": protected["hide"],
        "recovered": recovery.recover(sealed, [key.bound_to(sealed)], diffusion_model).rgb,
    }


def protected_and_judged(photo: Path, seed: int, use: Tools) -> tuple[dict[str, list[FaceComparison]], Tensor]:
    """The judgement of every version of a photo's largest face, and the versions side by side (H,W,3)."""
    picture = read_picture(photo)
    face = max(use.detector.detect(picture.rgb), key=lambda found: found.area)
    person = photo.parent.name if photo.parent.name not in SETS else photo.stem
    made = versions(picture, face, use, seed)
    shown = {"original": picture.rgb} | made
    return (
        {name: judge(picture.rgb, version, [face], [person], use.judges, use.detector) for name, version in made.items()},
        contact_sheet([crop_face(version, face, 160, 1.8) for version in shown.values()], list(shown)),
    )  # fmt: skip


def start_process(*arguments) -> None:
    global TOOLS
    torch.set_num_threads(1)
    TOOLS = tools(*arguments)


def in_process(photo: Path, seed: int) -> tuple[dict[str, list[FaceComparison]], Tensor]:
    return protected_and_judged(photo, seed, TOOLS)


def similarity_of_photos(photos: list[Path], detector: Detector) -> float:
    """Mean structure similarity of two photos of one person, folders being people."""
    crops, points = [], []
    for photo in photos:
        picture = read_picture(photo).rgb
        face = max(detector.detect(picture), key=lambda face: face.area)
        crops.append(crop_face(picture, face, 112, 1.0).movedim(-1, 0))
        points.append(crop_landmarks(face, 112, 1.0))
    i, j = np.array([
        (a, b) for a, b in combinations(range(len(photos)), 2) if photos[a].parent == photos[b].parent
    ]).T  # fmt: skip
    images, landmarks = torch.stack(crops), torch.stack(points)
    first = visual_distance(images[i], landmarks[i], landmarks[j])(images[j])
    return float(first.sqrt().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=200, help="photos, taken evenly from both sets")
    parser.add_argument("--steps", type=int, help="steps of both schedules (default: the presets')")
    parser.add_argument("--detector", default="yunet_n.onnx", help="ONNX file in detectors, or builtin")
    parser.add_argument("--sheet", type=Path, help="PNG to write the first faces to")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="faces worked on at once, one thread each")
    options = parser.parse_args()
    start = time.time()
    data = Path(os.environ["DIFFPRIVACY_DATA"])
    chosen_tools = (data, options.detector, options.steps)
    use = tools(*chosen_tools)
    pairs = sorted((data / "photos" / "lfw250").glob("*/*.jpg"))
    cosines = clean_photos(pairs, use.judges, use.detector).pairs
    points = {name: operating_point(*of_judge, FAR) for name, of_judge in cosines.items()}
    for name, point in points.items():
        print(
            f"{name}: threshold {point.threshold:.3f} at FAR {point.far:g}, TAR of clean pairs {100 * point.tar:.1f} %"
        )
    print(
        f"structure similarity of two photos of one person: {similarity_of_photos(pairs, use.detector):.3f}", flush=True
    )

    photos = [sorted((data / "photos" / name).rglob("*.jpg")) for name in SETS]
    chosen = [files[i * len(files) * 2 // options.faces] for files in photos for i in range(options.faces // 2)]
    seeds = range(options.seed, options.seed + len(chosen))
    judged: dict[str, list[FaceComparison]] = defaultdict(list)
    rows = []
    with ProcessPoolExecutor(options.processes, get_context("spawn"), start_process, chosen_tools) as pool:
        for number, (judgements, row) in enumerate(pool.map(in_process, chosen, seeds)):
            for name, faces in judgements.items():
                judged[name] += faces
            if options.sheet and number < 12:
                rows.append(row)
                write_picture(options.sheet, Picture(torch.cat(rows)))
            print(f"\r{number + 1} of {len(chosen)}, {time.time() - start:.0f} s", end="", flush=True)
    print("\n" + table(judged, {name: point.threshold for name, point in points.items()}))
    print(f"\n{len(chosen)} faces, {time.time() - start:.0f} s, {options.processes} process(es)")


if __name__ == "__main__":
    main()
