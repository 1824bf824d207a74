"""How strongly to guide: cosine to the original for the guide and for a judge that took no part, by guidance scale.

    DIFFPRIVACY_DATA=... python -m benchmarks.guidance_scale [--sheet sheet.png]

Anonymizes CelebA-HQ faces with the embedded model (30 steps, strength 0.6); the sheet shows what each scale looks like.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

import numpy as np
import torch

from diffprivacy import demo, pipeline
from diffprivacy.demo.backend import load_diffusion_model
from diffprivacy.diffusion.noise import NoiseKey
from diffprivacy.evaluation.drawing import contact_sheet
from diffprivacy.faces.detectors import load_detector
from diffprivacy.faces.geometry import crop_face
from diffprivacy.faces.selection import select_faces
from diffprivacy.identity.embedding import embed_face
from diffprivacy.identity.recognizers import load_recognizer
from diffprivacy.media.images import Picture, read_picture, write_picture
from diffprivacy.presets import PRESETS
from diffprivacy.regeneration import Regeneration, anonymizing

SCALES = (0.0, 0.015, 0.03, 0.06, 0.1)
PHOTOS = ("000", "003", "007", "012")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheet", type=Path, help="PNG to write the faces to")
    options = parser.parse_args()
    data = Path(os.environ["DIFFPRIVACY_DATA"])
    diffusion_model = load_diffusion_model()
    guide = demo.load_recognizer("guide")
    judge = load_recognizer(data / "recognizers" / "mobilefacenet_ms1m.onnx")
    detector = load_detector(data / "detectors" / "yunet_n.onnx")
    rows = []
    print("scale  guide  judge")
    for scale in SCALES:
        preset = dataclasses.replace(PRESETS["anonymize"]["default"], scale=scale, scale_after=scale, steps=30)
        cosines, crops, labels = [], [], []
        for name in PHOTOS:
            picture = read_picture(data / "photos" / "celebahq512" / f"{name}.jpg").rgb
            (face,) = select_faces(detector.detect(picture), "largest")
            how = Regeneration(preset, anonymizing(guide if scale else None))
            (protected,) = pipeline.protect(picture, [face], diffusion_model, demo.CROP, how, NoiseKey.from_seed(1))
            cosines.append([embed_face(r, picture, face) @ embed_face(r, protected, face) for r in (guide, judge)])
            crops.append(crop_face(protected, face, 192, 2.0))
            labels.append(f"scale {scale}\nguide {cosines[-1][0]:.2f} judge {cosines[-1][1]:.2f}")
        print("{:<5}  {:>5.2f}  {:>5.2f}".format(scale, *np.mean(cosines, axis=0)), flush=True)
        rows.append(contact_sheet(crops, labels))
    if options.sheet:
        write_picture(options.sheet, Picture(torch.cat(rows)))


if __name__ == "__main__":
    main()
