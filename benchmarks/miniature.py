"""The miniature of the paper: all three jobs over real faces with the embedded model, judged by recognizers.

    DIFFPRIVACY_DATA=... python -m benchmarks.miniature [--faces 24] [--detector yunet_n.onnx] [--sheet sheet.png]

The largest face of each photo of photos/celebahq512 and photos/lfw250 is anonymized, hidden and recovered as the command
line does it, with the demo guide guiding. The demo judge (distilled from the guide's teacher: kin) and
mobilefacenet_ms1m take no part. Thresholds are those at FAR 1e-3 of the clean pairs of lfw250. Every version is judged
in the whole picture, where the face is found and aligned anew. PSNR and SSIM are over the ArcFace crop, drift is in
distances of the eyes, likeness is the structural similarity that people tell faces by (the line *other photo of the
person* holds its mean over lfw250, as a yardstick).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffprivacy import demo, pipeline, recovery
from diffprivacy.demo.host import load_backbone
from diffprivacy.detectors import Detector, load_detector
from diffprivacy.energy import visual_distance
from diffprivacy.evaluation import Judged, clean_pairs, judge, table
from diffprivacy.faces import Face, crop_face, crop_landmarks, paste_faces
from diffprivacy.hosts.diffusers import DiffusersBackbone
from diffprivacy.images import Picture, read_picture, write_picture
from diffprivacy.preview import contact_sheet
from diffprivacy.recognizers import FaceMatcher, load_recognizer
from diffprivacy.stages import PRESETS, Preset

SETS = ("celebahq512", "lfw250")
CROP = {"size": demo.IMAGE_SIZE, "margin": demo.MARGIN}


def versions(
    picture: Picture, face: Face, backbone: DiffusersBackbone, guide: FaceMatcher, presets: dict[str, Preset], seed: int
) -> dict[str, Tensor]:
    """What the jobs make of one face of a picture, each (H,W,3)."""
    redraw = {"anonymize": pipeline.anonymize, "hide": pipeline.hide}
    protected = {
        task: redraw[task](
            picture.rgb, [face], backbone, preset=presets[task], recognizer=guide, seed=seed, **CROP
        )[0]
        for task in redraw
    }  # fmt: skip
    crop = crop_face(picture.rgb, face, **CROP).movedim(-1, 0)[None]
    restored = backbone.decode(backbone.encode(crop))[0].movedim(0, -1)
    key = recovery.record(picture, [face], backbone, **CROP)
    sealed = Picture(protected["anonymize"])
    return {
        "autoencoder round trip": paste_faces(picture.rgb, [restored], [face], demo.MARGIN, opaque=True),
        "anonymized": protected["anonymize"],
        "hidden": protected["hide"],
        "recovered": recovery.recover(sealed, [key.bound_to(sealed)], backbone).rgb,
    }


def likeness_of_photos(photos: list[Path], detector: Detector) -> float:
    """Mean likeness of two photos of one person, folders being people."""
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
    options = parser.parse_args()
    start = time.time()
    data = Path(os.environ["DIFFPRIVACY_DATA"])
    detector = load_detector(None if options.detector == "builtin" else data / "detectors" / options.detector)
    guide = demo.load_recognizer("guide")
    judges: dict[str, FaceMatcher] = {
        "guide": guide,
        "demo judge": demo.load_recognizer("judge"),
        "mobilefacenet_ms1m": load_recognizer(data / "recognizers" / "mobilefacenet_ms1m.onnx"),
    }
    pairs = sorted((data / "photos" / "lfw250").glob("*/*.jpg"))
    points = clean_pairs(pairs, judges, detector)
    for name, point in points.items():
        print(
            f"{name}: threshold {point.threshold:.3f} at FAR {point.far:g}, TAR of clean pairs {100 * point.tar:.1f} %"
        )
    print(f"likeness of two photos of one person: {likeness_of_photos(pairs, detector):.3f}", flush=True)

    presets = {task: PRESETS[task]["default"] for task in ("anonymize", "hide")}
    if options.steps:
        presets = {task: dataclasses.replace(preset, steps=options.steps) for task, preset in presets.items()}
    backbone = load_backbone()
    photos = [sorted((data / "photos" / name).rglob("*.jpg")) for name in SETS]
    chosen = [files[i * len(files) * 2 // options.faces] for files in photos for i in range(options.faces // 2)]
    judged: dict[str, list[Judged]] = defaultdict(list)
    rows = []
    for number, photo in enumerate(chosen):
        picture = read_picture(photo)
        face = max(detector.detect(picture.rgb), key=lambda found: found.area)
        person = photo.parent.name if photo.parent.name not in SETS else photo.stem
        made = versions(picture, face, backbone, guide, presets, options.seed + number)
        for name, version in made.items():
            judged[name] += judge(picture.rgb, version, [face], [person], judges, detector)
        if options.sheet and len(rows) < 12:
            shown = {"original": picture.rgb} | made
            rows.append(contact_sheet([crop_face(v, face, 160, 1.8) for v in shown.values()], list(shown)))
            write_picture(options.sheet, Picture(torch.cat(rows)))
        print(f"\r{number + 1} of {len(chosen)}, {time.time() - start:.0f} s", end="", flush=True)
    print("\n" + table(judged, {name: point.threshold for name, point in points.items()}))
    print(f"\n{len(chosen)} faces, {time.time() - start:.0f} s, {torch.get_num_threads()} thread(s)")


if __name__ == "__main__":
    main()
