"""Judging protected and recovered images against their originals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from comfy_api.v0_0_2 import io, ui

from ..diffprivacy.errors import DiffPrivacyError, at_field
from ..diffprivacy.evaluation.comparison import FaceComparison, jpeg_changes, judge
from ..diffprivacy.evaluation.drawing import cosine_plot, histogram, roc_plot
from ..diffprivacy.evaluation.report import plotted
from ..diffprivacy.evaluation.table import interval_table, table
from ..diffprivacy.evaluation.utility import JPEG_QUALITY, Changes, changes_of, utility_table
from ..diffprivacy.faces.detectors import Detector
from ..diffprivacy.identity.recognizers import FaceMatcher
from ..diffprivacy.identity.thresholds import FAR, kept_thresholds, person_threshold
from . import sockets

CATEGORY = "Diff-Privacy/report"


class Report(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyReport",
            display_name="Privacy Report",
            category=CATEGORY,
            description="Do recognizers still match the faces, how much else has changed, and how close is the recovery to "
            "the original? Judge with a recognizer that did not guide.",
            search_aliases=["evaluate", "face verification", "identity similarity", "psnr", "ssim", "utility", "gate"],
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
                io.Boolean.Input(
                    "gate",
                    default=False,
                    optional=True,
                    tooltip="Stop the graph with an error while the judge still takes a protected face for its original. "
                    "Save the output `protected`, so that nothing is saved before.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="Markdown."),
                io.Image.Output(display_name="plot", tooltip="Every face's cosine to its original."),
                io.Float.Output(display_name="cosine", tooltip="The highest of the protected faces: the worst case."),
                io.Float.Output(display_name="psnr", tooltip="In dB: of the recovered faces, or else the protected."),
                io.Image.Output(
                    display_name="protected", tooltip="The protected images, once the gate has let them through."
                ),
                io.Image.Output(
                    display_name="roc", tooltip="ROC curves against other people's originals; needs faces of several."
                ),
                io.Image.Output(
                    display_name="histogram", tooltip="How often each cosine occurs, to the originals and to others'."
                ),
            ],
        )

    @classmethod
    def execute(cls, original, protected, faces, judge, recovered=None, detector=None, gate=False) -> io.NodeOutput:
        pictures = {"protected": protected} | ({} if recovered is None else {"recovered": recovered})
        judges = {"judge": judge}
        versions = {name: _judged(original, name, batch, faces, judges, detector) for name, batch in pictures.items()}
        if gate:
            _stop_the_recognized(versions["protected"], person_threshold(judge))
        thresholds = kept_thresholds(judges)
        floor = {f"JPEG of quality {JPEG_QUALITY}": _jpegs(original, faces, detector)}
        shares = f"{table(versions, thresholds)}\n\n{interval_table(versions, thresholds)}"
        text = f"{shares}\n\n{utility_table(changes_of(versions) | floor)}"
        cosine = max(face.cosine("judge") for face in versions["protected"])
        fidelity = float(np.mean([face.psnr for face in versions["protected" if recovered is None else "recovered"]]))
        curves, groups = plotted(versions, "judge")
        plots = (cosine_plot(versions, thresholds), roc_plot(curves, FAR), histogram(groups, thresholds.get("judge")))
        cosines, roc, counts = (plot[None] for plot in plots)
        return io.NodeOutput(text, cosines, cosine, fidelity, protected, roc, counts, ui=ui.PreviewText(text))


def _stop_the_recognized(faces: Sequence[FaceComparison], threshold: float) -> None:
    recognized = [
        f"{face.person} (cosine {face.cosine('judge'):.2f})" for face in faces if face.cosine("judge") >= threshold
    ]
    if recognized:
        raise DiffPrivacyError(
            f"The gate stops: the judge still recognizes {', '.join(recognized)}, from {threshold:.2f} on. Raise the "
            "guidance's `scale` or the steps, or try another seed.",
            "protected",
        )


def _jpegs(originals: torch.Tensor, faces: sockets.FaceBatch, detector: Detector | None) -> Changes:
    """What the measures of utility say of a JPEG of each original."""
    return [
        (f"image {i}, face {j}", changed)
        for i, found in enumerate(faces.faces)
        if found
        for j, changed in enumerate(jpeg_changes(originals[i].cpu().float(), found, detector))
    ]


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
