"""Judging protected and recovered images against their originals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from comfy_api.v0_0_2 import io, ui

from ..diffprivacy.errors import DiffPrivacyError, at_field
from ..diffprivacy.evaluation.comparison import FaceComparison, judge
from ..diffprivacy.evaluation.drawing import cosine_plot
from ..diffprivacy.evaluation.table import table
from ..diffprivacy.faces.detectors import Detector
from ..diffprivacy.identity.recognizers import FaceMatcher
from ..diffprivacy.identity.thresholds import kept_thresholds
from . import sockets

CATEGORY = "Diff-Privacy/report"


class Report(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyReport",
            display_name="Privacy Report",
            category=CATEGORY,
            description="Do recognizers still match the faces, and how close is the recovery to the original? "
            "Judge with a recognizer that did not guide.",
            search_aliases=["evaluate", "face verification", "identity similarity", "psnr", "ssim"],
            is_output_node=True,
            inputs=[
                io.Image.Input("original"),
                io.Image.Input("protected", tooltip="From Paste Faces: all variants of image 1, then of image 2."),
                sockets.Faces.Input("faces", tooltip="The faces of the original images."),
                sockets.FaceRecognizer.Input("judge", tooltip="A recognizer that did not guide."),
                io.Image.Input("recovered", optional=True),
                sockets.FaceDetector.Input(
                    "detector",
                    optional=True,
                    tooltip="Detects the faces again, to tell whether they still look like faces and how far they moved.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="Markdown."),
                io.Image.Output(display_name="plot", tooltip="Every face's cosine to its original."),
                io.Float.Output(display_name="cosine", tooltip="The highest of the protected faces: the worst case."),
                io.Float.Output(display_name="psnr", tooltip="In dB: of the recovered faces, or else the protected."),
            ],
        )

    @classmethod
    def execute(cls, original, protected, faces, judge, recovered=None, detector=None) -> io.NodeOutput:
        pictures = {"protected": protected} | ({} if recovered is None else {"recovered": recovered})
        judges = {"judge": judge}
        versions = {name: _judged(original, name, batch, faces, judges, detector) for name, batch in pictures.items()}
        thresholds = kept_thresholds(judges)
        text = table(versions, thresholds)
        cosine = max(face.cosine("judge") for face in versions["protected"])
        fidelity = float(np.mean([face.psnr for face in versions["protected" if recovered is None else "recovered"]]))
        plot = cosine_plot(versions, thresholds)[None]
        return io.NodeOutput(text, plot, cosine, fidelity, ui=ui.PreviewText(text))


def _judged(
    originals: torch.Tensor,
    name: str,
    batch: torch.Tensor,
    faces: sockets.FaceBatch,
    judges: Mapping[str, FaceMatcher],
    detector: Detector | None,
) -> list[FaceComparison]:
    variants, rest = divmod(len(batch), len(originals))
    if rest or not variants:
        raise DiffPrivacyError(
            f"{len(batch)} images are no whole number of variants of {len(originals)} originals; "
            "connect the images of Paste Faces.",
            name,
        )
    if (len(originals), *originals.shape[1:3]) != (len(faces.faces), *faces.size):
        raise DiffPrivacyError("These were found in other images; connect those of the originals.", "faces")
    judged = []
    for i, found in enumerate(faces.faces):
        people = [f"image {i}, face {j}" for j in range(len(found))]
        for version in batch[i * variants : (i + 1) * variants]:
            with at_field(name):
                judged += judge(originals[i].cpu().float(), version.cpu().float(), found, people, judges, detector)
    if not judged:
        raise DiffPrivacyError("There is no face in it, so nothing can be judged.", "faces")
    return judged


NODES = [Report]
