"""Find faces and choose those to protect."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.v0_0_2 import io, ui

from ..diffprivacy.errors import DiffPrivacyError, NoFaceError
from ..diffprivacy.faces.detectors import MIN_SIZE, load_detector
from ..diffprivacy.faces.preview import draw_faces
from ..diffprivacy.faces.selection import fitted_masks, select_faces, select_person
from ..diffprivacy.identity.embedding import embed_face
from ..diffprivacy.identity.thresholds import SAME_PERSON, person_threshold
from . import models, sockets

CATEGORY = "Diff-Privacy/faces"
BUILT_IN = "built-in (no file needed)"
SHOWN = 0.3
"""Score from which the preview shows a face."""
DETECTOR_FOLDERS = ("insightface", "detection")


def person_threshold_input() -> io.Float.Input:
    """The widget of nodes that tell people apart; 0 stands for the recognizer's own threshold."""
    return io.Float.Input(
        "person_threshold",
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.01,
        optional=True,
        advanced=True,
        tooltip="Cosine from which two faces are one person. 0: the threshold measured for the recognizer, "
        f"or {SAME_PERSON} if there is none.",
    )


class LoadDetector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyLoadDetector",
            display_name="Load Face Detector",
            category=CATEGORY,
            description="A face detector from models/insightface or models/detection, or the one that needs no file.",
            search_aliases=["face detection", "scrfd", "retinaface", "yunet", "insightface"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[BUILT_IN, *models.files(".onnx", *DETECTOR_FOLDERS)],
                    default=BUILT_IN,
                    tooltip="SCRFD, RetinaFace or YuNet as ONNX. The built-in one is YuNet.",
                )
            ],
            outputs=[sockets.FaceDetector.Output(display_name="detector")],
        )

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        return True

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        if file == BUILT_IN:
            return io.NodeOutput(load_detector(None))
        return io.NodeOutput(
            load_detector(models.find(file, ".onnx", "a detector such as det_10g.onnx", *DETECTOR_FOLDERS))
        )


class DetectFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyDetectFaces",
            display_name="Detect Faces",
            category=CATEGORY,
            description="Finds the faces of each image and chooses those to protect; shows where they are, numbered.",
            search_aliases=[
                "face privacy",
                "find faces",
                "select face",
                "anonymize",
                "deidentify",
                "blur face alternative",
            ],
            has_intermediate_output=True,
            inputs=[
                io.Image.Input("image"),
                sockets.FaceDetector.Input("detector"),
                io.String.Input(
                    "select",
                    default="all",
                    tooltip="all, largest, or numbers from the preview such as 0,2. Faces count from the left, starting at 0.",
                ),
                io.Combo.Input(
                    "without_face",
                    options=["error", "keep unchanged"],
                    tooltip="What to do with an image of the batch in which no face is found or chosen.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Only faces whose centre lies in the mask; a mask of another size is resized.",
                ),
                sockets.FaceRecognizer.Input(
                    "recognizer", optional=True, tooltip="Needed to compare faces with the person."
                ),
                io.Image.Input("person", optional=True, tooltip="An image of one person to look for."),
                io.Combo.Input(
                    "person_mode",
                    options=["only this person", "all but this person"],
                    optional=True,
                    advanced=True,
                    tooltip="Which faces to protect when a person is given.",
                ),
                person_threshold_input(),
                io.Float.Input(
                    "min_score",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Score from which a face counts; 0 is the detector's own. The preview shows in violet what "
                    "a lower one would add.",
                ),
                io.Int.Input(
                    "min_size",
                    default=MIN_SIZE,
                    min=4,
                    max=4096,
                    optional=True,
                    advanced=True,
                    tooltip="Longer side in pixels from which a face is looked for. More is faster in large images.",
                ),
            ],
            outputs=[
                sockets.Faces.Output(display_name="faces"),
                io.Int.Output(display_name="count", tooltip="Number of chosen faces in the whole batch."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image,
        detector,
        select,
        without_face,
        mask=None,
        recognizer=None,
        person=None,
        person_mode="only this person",
        person_threshold=0.0,
        min_score=0.0,
        min_size=MIN_SIZE,
    ) -> io.NodeOutput:
        known = None if person is None else _embedding_of_person(person, detector, recognizer)
        keep = "only" if person_mode == "only this person" else "all but"
        chosen, doubtful, previews = [], [], []
        masks = None if mask is None else fitted_masks(mask, image.shape[1:3])
        for i, picture in enumerate(image.cpu().float()):
            candidates = detector.detect(picture, SHOWN, min_size)
            found, below = by_score(candidates, min_score or detector.min_score)
            try:
                faces = _selected(found, select, None if masks is None else masks[i % len(masks)])
                if known is not None:
                    faces = _of_person(faces, picture, known, recognizer, person_threshold, keep)
            except NoFaceError as error:
                if without_face == "error":
                    raise NoFaceError(
                        f"Image {i + 1} of {len(image)}: {error.message} To leave such images as they are, "
                        "set `without_face` to `keep unchanged`.",
                        error.field,
                    ) from error
                faces = []
            chosen.append(tuple(faces))
            doubtful.append(tuple(below))
            previews.append(draw_faces(picture, found, faces, below))
        height, width = image.shape[1:3]
        batch = sockets.FaceBatch(tuple(chosen), (height, width), doubtful=tuple(doubtful))
        return io.NodeOutput(batch, len(batch), ui=ui.PreviewImage(torch.stack(previews)))


def _selected(found, select, mask):
    try:
        return select_faces(found, select, mask)
    except DiffPrivacyError as error:
        error.field = "select" if error.field == "faces" else error.field
        raise


def _of_person(faces, picture, known, recognizer, threshold, keep):
    """The faces of the person with the embeddings ``known``, or all others; threshold: 0 for the recognizer's own."""
    embeddings = np.stack([embed_face(recognizer, picture, face) for face in faces])
    return select_person(faces, embeddings, known, threshold or person_threshold(recognizer), keep)


def by_score(faces, min_score):
    """The faces that reach a score, and the others."""
    return [face for face in faces if face.score >= min_score], [face for face in faces if face.score < min_score]


def _embedding_of_person(person, detector, recognizer):
    """(1,D) of the only face in an IMAGE."""
    if recognizer is None:
        raise DiffPrivacyError("Connect a face recognizer to choose faces by `person`.", "recognizer")
    picture = person[0].cpu().float()
    found = detector.detect(picture)
    if len(found) != 1:
        raise DiffPrivacyError(f"{len(found)} faces found; give an image with exactly one face.", "person")
    return embed_face(recognizer, picture, found[0])[None]


def check_pictures(image, faces) -> None:
    found = (len(faces.faces), *faces.size)
    if tuple(image.shape[:3]) != found:
        raise DiffPrivacyError(
            f"{image.shape[0]} images of {image.shape[2]}x{image.shape[1]}, but the faces were found in "
            f"{found[0]} of {found[2]}x{found[1]}; connect the images that went into Detect Faces.",
            "image",
        )


NODES = [LoadDetector, DetectFaces]
