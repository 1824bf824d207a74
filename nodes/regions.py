"""Faces from the boxes, masks and segments of other nodes, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from comfy_api.v0_0_2 import io, ui

from ..diffprivacy.errors import DiffPrivacyError, at_field
from ..diffprivacy.faces.geometry import Face, protected_mask
from ..diffprivacy.faces.preview import draw_faces
from ..diffprivacy.faces.regions import (
    Box,
    box_of,
    boxes_of_mask,
    check_box,
    entry_of,
    face_of_mesh,
    faces_in_boxes,
    union,
)
from . import sockets
from .faces import CATEGORY, check_pictures


class FacesFromRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyFacesFromRegions",
            display_name="Faces from Boxes or Masks",
            category=CATEGORY,
            description="Faces at boxes, masks or segments that you draw or other nodes give, alone or added to detected "
            "faces; a face in the same place counts once.",
            search_aliases=["missed face", "bounding box", "segs", "draw face", "manual face", "combine faces"],
            has_intermediate_output=True,
            inputs=[
                io.Image.Input("image"),
                sockets.FaceDetector.Input("detector", tooltip="Finds the five points of each face inside its region."),
                sockets.Faces.Input("faces", optional=True, tooltip="Faces to keep, such as those of Detect Faces."),
                sockets.BoundingBoxes.Input(
                    "boxes",
                    optional=True,
                    extra_dict={"forceInput": True},
                    tooltip="One box, a list for all images, or a list for each image, such as drawn in "
                    "Create Bounding Boxes or from Detect Face Landmarks (MediaPipe).",
                ),
                io.Mask.Input("mask", optional=True, tooltip="One face for each connected region."),
                sockets.Segments.Input(
                    "segs", optional=True, tooltip="One face for each segment, such as from Impact Pack."
                ),
                sockets.FaceMeshes.Input(
                    "landmarks",
                    optional=True,
                    tooltip="One face for each mesh, such as from Detect Face Landmarks (MediaPipe).",
                ),
                sockets.Faces.Input(
                    "more_faces",
                    optional=True,
                    tooltip="Faces of another detector or region, to be joined with the others.",
                ),
            ],
            outputs=[
                sockets.Faces.Output(display_name="faces", tooltip="For Crop Faces."),
                io.Int.Output(display_name="count", tooltip="Number of faces in the whole batch."),
            ],
        )

    @classmethod
    def execute(
        cls, image, detector, faces=None, boxes=None, mask=None, segs=None, landmarks=None, more_faces=None
    ) -> io.NodeOutput:
        if all(given is None for given in (boxes, mask, segs, landmarks, more_faces)):
            raise DiffPrivacyError("Connect `boxes`, `mask`, `segs`, `landmarks` or `more_faces`.")
        count, height, width = image.shape[:3]
        batches = [batch for batch in (faces, more_faces) if batch is not None]
        for batch in batches:
            check_pictures(image, batch)
        given: list[list[Box]] = [[] for _ in range(count)]
        for field, regions, boxes_of in (
            ("boxes", boxes, _of_boxes),
            ("mask", mask, _of_mask),
            ("segs", segs, _of_segs),
        ):
            if regions is not None:
                with at_field(field):
                    found = boxes_of(regions, count, (height, width))
                for mine, more in zip(given, found, strict=True):
                    mine.extend(more)
        meshes: list[list[Face]] = [[] for _ in range(count)]
        if landmarks is not None:
            with at_field("landmarks"):
                meshes = _of_meshes(landmarks, count, (height, width))
        chosen, previews = [], []
        for i, picture in enumerate(image.cpu().float()):
            found = faces_in_boxes(picture, given[i], detector)
            everybody = union(found, meshes[i], *(batch.faces[i] for batch in batches))
            chosen.append(tuple(everybody))
            previews.append(draw_faces(picture, everybody, everybody))
        batch = sockets.FaceBatch(tuple(chosen), (height, width), doubtful=_doubtful(batches, count))
        return io.NodeOutput(batch, len(batch), ui=ui.PreviewImage(torch.stack(previews)))


def _doubtful(batches: Sequence[sockets.FaceBatch], count: int) -> tuple[tuple[Face, ...], ...]:
    """The detections of each image whose score is too low to count alone, of all batches."""
    known = [batch.doubtful for batch in batches if batch.doubtful]
    return tuple(tuple(union(*(of_batch[i] for of_batch in known))) for i in range(count)) if known else ()


def _of_boxes(boxes: Any, count: int, size: tuple[int, int]) -> list[list[Box]]:
    """The boxes of each image."""
    found = lists_of_boxes(boxes, size)
    if len(found) not in (1, count):
        raise DiffPrivacyError(
            f"Boxes for {len(found)} images, but `image` holds {count}; "
            "give a list for each image, or one box or list for all."
        )
    return found * (count // len(found))


def lists_of_boxes(boxes: Any, size: tuple[int, int]) -> list[list[Box]]:
    """A BOUNDING_BOX for images of (height, width): a list for each of them, or one, as of a single box, for all."""
    if isinstance(boxes, dict):
        boxes = [boxes]
    of_picture = boxes if boxes and isinstance(boxes[0], list) else [boxes]
    if not any(of_picture):
        raise DiffPrivacyError("There is no box in it; draw one around each face.")
    try:
        found = [[box_of(entry) for entry in entries] for entries in of_picture]
    except (TypeError, ValueError, KeyError) as error:
        raise DiffPrivacyError(
            f"These are no bounding boxes, which have x, y, width and height in pixels ({error!r})."
        ) from error
    for box in (box for entries in found for box in entries):
        check_box(box, size)
    return found


def _of_mask(mask: torch.Tensor, count: int, size: tuple[int, int]) -> list[list[Box]]:
    """The regions of each image; a single mask is for all of them."""
    masks = mask.reshape(-1, *mask.shape[-2:])
    if tuple(masks.shape[1:]) != size or len(masks) not in (1, count):
        raise DiffPrivacyError(
            f"{len(masks)} masks of {masks.shape[2]}x{masks.shape[1]}, but `image` holds {count} images "
            f"of {size[1]}x{size[0]}; make them the same size, and one or as many masks as images."
        )
    if not bool((masks > 0.5).any()):
        raise DiffPrivacyError("The mask is empty; paint over each face.")
    regions = [boxes_of_mask(one) if bool((one > 0.5).any()) else [] for one in masks]
    return regions * (count // len(regions))


def _of_segs(segs: Any, count: int, size: tuple[int, int]) -> list[list[Box]]:
    """The segments, for every picture: ((height, width), segments), each with ``bbox`` x0, y0, x1, y1."""
    try:
        (height, width), segments = segs
        boxes = [tuple(float(value) - 0.5 for value in segment.bbox) for segment in segments]
    except (TypeError, ValueError, AttributeError) as error:
        raise DiffPrivacyError(f"These are no SEGS as Impact Pack makes them ({error}).") from error
    if (int(height), int(width)) != size:
        raise DiffPrivacyError(
            f"Segments of an image of {width}x{height}, but `image` is {size[1]}x{size[0]}; "
            "connect the image that they were made from."
        )
    if not boxes:
        raise DiffPrivacyError("There is no segment in them.")
    for x0, y0, x1, y1 in boxes:
        check_box((x0, y0, x1, y1), size)
    return [[(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes] for _ in range(count)]


def _of_meshes(landmarks: Any, count: int, size: tuple[int, int]) -> list[list[Face]]:
    """The meshes of each image: ``frames``, for each a list of faces with ``landmarks_xy`` (n,2), and ``image_size``."""
    try:
        (height, width), frames = landmarks["image_size"], landmarks["frames"]
        meshes = [
            [(np.asarray(face["landmarks_xy"], np.float64), float(face["score"])) for face in frame] for frame in frames
        ]
    except (TypeError, ValueError, KeyError) as error:
        raise DiffPrivacyError(f"These are no face landmarks as MediaPipe's node makes them ({error!r}).") from error
    if (int(height), int(width)) != size or len(meshes) != count:
        raise DiffPrivacyError(
            f"Landmarks of {len(meshes)} images of {width}x{height}, but `image` holds {count} of {size[1]}x{size[0]}; "
            "connect the images that they were found in."
        )
    if not any(meshes):
        raise DiffPrivacyError("There is no face in them.")
    found = [[face_of_mesh(points, score) for points, score in of_image] for of_image in meshes]
    for face in (face for of_image in found for face in of_image):
        check_box(face.box, size)
    return found


class Segment(NamedTuple):
    """A face as Impact Pack's nodes read it: cropped_mask (h,w) in [0,1] of crop_region; both boxes x0, y0, x1, y1."""

    cropped_image: None
    cropped_mask: np.ndarray
    confidence: float
    crop_region: tuple[int, int, int, int]
    bbox: tuple[int, int, int, int]
    label: str = "face"
    control_net_wrapper: None = None


class FacesToRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyFacesToRegions",
            display_name="Faces to Boxes and Masks",
            category=CATEGORY,
            description="The faces as other nodes read them: bounding boxes, masks, and Impact Pack's SEGS.",
            search_aliases=["bounding box", "segs", "face mask", "face boxes"],
            inputs=[sockets.Faces.Input("faces")],
            outputs=[
                sockets.BoundingBoxes.Output(display_name="boxes", tooltip="A list for each image."),
                io.Mask.Output(display_name="mask", tooltip="What is replaced, one mask for each image."),
                sockets.Segments.Output(
                    display_name="segs", tooltip="One segment for each face, of all images in one list."
                ),
            ],
        )

    @classmethod
    def execute(cls, faces) -> io.NodeOutput:
        height, width = faces.size
        boxes = [[entry_of(face, faces.size) for face in found] for found in faces.faces]
        masks = [protected_mask(faces.size, found) for found in faces.faces]
        segments = [_segment(face, faces.size) for face in faces.flat]
        return io.NodeOutput(boxes, torch.stack(masks), ((height, width), segments))


def _segment(face, size: tuple[int, int]) -> Segment:
    entry = entry_of(face, size)
    mask = protected_mask(size, [face])
    rows, columns = (mask.amax(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
    region = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    cropped = mask[region[1] : region[3], region[0] : region[2]].numpy()
    bbox = (entry["x"], entry["y"], entry["x"] + entry["width"], entry["y"] + entry["height"])
    return Segment(None, cropped, face.score, region, bbox)


NODES = [FacesFromRegions, FacesToRegions]
