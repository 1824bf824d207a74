"""Nodes of a test's ComfyUI that make and read SEGS as Impact Pack does: named tuples, with arrays for masks and boxes.

And one that makes any boxes.
"""

from __future__ import annotations

import json
from collections import namedtuple

import numpy as np

SEG = namedtuple(
    "SEG",
    ["cropped_image", "cropped_mask", "confidence", "crop_region", "bbox", "label", "control_net_wrapper"],
    defaults=[None],
)


class MakeSegs:
    """One segment at a box of an image; width and height: of the image that they claim to be of, 0 for its own."""

    @classmethod
    def INPUT_TYPES(cls):
        number = ("INT", {"default": 0, "min": 0, "max": 4096})
        return {"required": {"image": ("IMAGE",), "box": ("BOUNDING_BOX",), "width": number, "height": number}}

    RETURN_TYPES = ("SEGS",)
    FUNCTION = "make"
    CATEGORY = "test"

    def make(self, image, box, width, height):
        x, y, right, low = box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]
        mask = np.ones((box["height"], box["width"]), np.float32)
        segment = SEG(None, mask, np.float32(0.9), [x, y, right, low], np.array([x, y, right, low]), "face")
        return (((height or image.shape[1], width or image.shape[2]), [segment]),)


class FilterSegs:
    """The segments whose middle lies in the left or right half, each replaced by a copy, as filters do."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"segs": ("SEGS",), "side": (["left", "right"],)}}

    RETURN_TYPES = ("SEGS", "MASK")
    FUNCTION = "filter"
    CATEGORY = "test"

    def filter(self, segs, side):
        import torch

        (height, width), segments = segs
        mask, kept = np.zeros((height, width), np.float32), []
        for segment in segments:
            x0, y0, x1, y1 = segment.crop_region
            if ((segment.bbox[0] + segment.bbox[2]) / 2 < width / 2) == (side == "left"):
                kept.append(segment._replace(label=f"{segment.label} on the {side}"))
                mask[y0:y1, x0:x1] = np.maximum(mask[y0:y1, x0:x1], segment.cropped_mask)
        return ((height, width), kept), torch.from_numpy(mask)[None]


class MakeBoxes:
    """Whatever a text in JSON says, as boxes."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"boxes": ("STRING", {})}}

    RETURN_TYPES = ("BOUNDING_BOX",)
    FUNCTION = "make"
    CATEGORY = "test"

    def make(self, boxes):
        return (json.loads(boxes),)


NODE_CLASS_MAPPINGS = {"TestMakeBoxes": MakeBoxes, "TestMakeSegs": MakeSegs, "TestFilterSegs": FilterSegs}
