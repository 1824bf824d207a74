"""Crop faces aligned, paste them back or cover them, and keep what is not to change."""

from __future__ import annotations

import dataclasses

import torch
from comfy_api.v0_0_2 import io

from ..diffprivacy.errors import DiffPrivacyError, NoFaceError, at_field
from ..diffprivacy.faces import colors
from ..diffprivacy.faces.covering import cover_faces
from ..diffprivacy.faces.geometry import (
    MARGIN,
    crop_face,
    crop_landmarks,
    face_mask,
    paste_faces,
    protected_mask,
)
from ..diffprivacy.faces.keeping import check_kept, keep_original, kept_parts, parse_parts
from . import sockets
from .faces import CATEGORY, check_pictures


class CropFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyCropFaces",
            display_name="Crop Faces",
            category=CATEGORY,
            description="Upright square crops of the faces, eyes level and at the same place in every crop, "
            "for Crops to Latent and a sampler.",
            search_aliases=["align face", "face crop", "face mask"],
            inputs=[
                io.Image.Input("image"),
                sockets.Faces.Input("faces"),
                io.Int.Input(
                    "size",
                    default=512,
                    min=64,
                    max=2048,
                    step=64,
                    tooltip="Side of the crops in pixels: what the checkpoint was trained on (512 for SD 1.5).",
                ),
                io.Float.Input(
                    "margin",
                    default=MARGIN,
                    min=1.0,
                    max=4.0,
                    step=0.05,
                    advanced=True,
                    tooltip="How much around the face the crop shows; 1 is the tight crop of face recognizers.",
                ),
                io.Int.Input(
                    "variants",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="How many different faces to make of each: each crop is repeated that many times.",
                ),
                io.Mask.Input(
                    "keep_mask",
                    optional=True,
                    tooltip="What stays as it is: hands, hair, a microphone, glasses. One mask for all images, or one "
                    "for each.",
                ),
                io.String.Input(
                    "keep",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Parts of the face that stay as they are: eyes, nose, mouth, contour, or several such as "
                    "eyes,mouth. Each keeps some of the identity.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="crops"),
                io.Mask.Output(display_name="mask", tooltip="The part of each crop that will be replaced."),
                sockets.Faces.Output(display_name="faces", tooltip="For Paste Faces."),
            ],
        )

    @classmethod
    def execute(cls, image, faces, size, margin, variants, keep_mask=None, keep="") -> io.NodeOutput:
        check_pictures(image, faces)
        if not len(faces):
            raise NoFaceError("There is no face to crop in any image of the batch.", "faces")
        crops = [
            crop_face(picture, face, size, margin)
            for picture, found in zip(image.cpu().float(), faces.faces, strict=True)
            for face in found
        ]
        masks = [face_mask(face, size, margin) for face in faces.flat]
        kept = _kept(image, faces, margin, keep_mask, parse_parts(keep))
        if kept is not None:
            shown = [
                crop_face(of_picture[..., None].expand(-1, -1, 3), face, size, margin)[..., 0]
                for of_picture, found in zip(kept, faces.faces, strict=True)
                for face in found
            ]
            masks = [mask * (1 - hidden) for mask, hidden in zip(masks, shown, strict=True)]
        return io.NodeOutput(
            torch.stack(crops).repeat_interleave(variants, dim=0),
            torch.stack(masks).repeat_interleave(variants, dim=0),
            dataclasses.replace(faces, margin=margin, variants=variants, keep=kept),
        )


class PasteFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyPasteFaces",
            display_name="Paste Faces",
            category=CATEGORY,
            description="Puts new faces where the old ones were, with a soft border. "
            "Pixels outside the face masks are unchanged.",
            search_aliases=["face swap", "composite face", "blend face"],
            inputs=[
                io.Image.Input("image", tooltip="The original images."),
                io.Image.Input("crops", tooltip="The new faces, in the order of Crop Faces; any size."),
                sockets.Faces.Input("faces", tooltip="From Crop Faces."),
                io.Mask.Input(
                    "keep_mask",
                    optional=True,
                    tooltip="What stays as it is, besides what Crop Faces keeps already.",
                ),
                io.Combo.Input(
                    "if_impossible",
                    options=["error", "cover"],
                    default="error",
                    optional=True,
                    tooltip="If a crop is empty or missing: stop with an error, or cover its face with the skin's mean "
                    "colour.",
                ),
                io.Boolean.Input(
                    "match_colors",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Give each new face the colours that the original has at the border of the mask.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="With several variants: all of image 1 first."),
                io.Mask.Output(display_name="mask", tooltip="Where the images were changed."),
                io.String.Output(
                    display_name="covered", tooltip="How many faces could only be covered, and which; empty for none."
                ),
            ],
        )

    @classmethod
    def execute(cls, image, crops, faces, keep_mask=None, if_impossible="error", match_colors=False) -> io.NodeOutput:
        check_pictures(image, faces)
        if faces.margin is None:
            raise DiffPrivacyError("Connect the output of Crop Faces, which knows how faces were cropped.", "faces")
        covers = if_impossible == "cover"
        rows = iter(_crops_of_faces(crops, faces, covers))
        kept = _kept(image, faces, faces.margin, keep_mask, ())
        pictures, masks, covered = [], [], []
        for i, (picture, found) in enumerate(zip(image.cpu().float(), faces.faces, strict=True)):
            of_picture = [next(rows) for _ in found]
            mask = protected_mask(picture.shape[:2], found, faces.margin)
            if kept is not None:
                mask = mask * (1 - kept[i])
            for variant in range(faces.variants):
                new = [variants[variant] for variants in of_picture]
                covered += [(i, variant, number) for number, crop in enumerate(new) if crop is None]
                if match_colors:
                    new = [_matched(picture, crop, face, faces.margin) for crop, face in zip(new, found, strict=True)]
                pictures.append(_pasted(picture, new, found, faces, None if kept is None else kept[i]))
                masks.append(mask)
        return io.NodeOutput(torch.stack(pictures), torch.stack(masks), _in_words(covered, faces.variants))


def _in_words(covered, variants) -> str:
    """Which faces, each as the numbers of its image, variant and face, could only be covered; empty for none."""
    if not covered:
        return ""
    names = [
        f"image {image + 1}, " + (f"variant {variant + 1}, " if variants > 1 else "") + f"face {number}"
        for image, variant, number in covered
    ]
    return f"{len(covered)} covered: {'; '.join(names)}"


def _crops_of_faces(crops, faces, covers):
    """For each face its variants (V,S,S,3), None in the place of one that is to be covered."""
    expected = len(faces) * faces.variants
    if len(crops) > expected or (len(crops) < expected and not covers):
        raise DiffPrivacyError(
            f"{len(crops)} crops for {expected} ({len(faces)} faces, {faces.variants} variant(s) "
            "each); every face needs its crop, or it would stay unprotected.",
            "crops",
        )
    given = [crop if _is_picture(crop) else None for crop in crops.cpu().float()]
    if None in given and not covers:
        raise DiffPrivacyError(
            f"Crop {given.index(None)} holds no image, as its sampler or VAE failed; try another seed, or set "
            "`if_impossible` to `cover`.",
            "crops",
        )
    given += [None] * (expected - len(given))
    return [given[i : i + faces.variants] for i in range(0, expected, faces.variants)]


def _matched(picture, crop, face, margin):
    """A crop (S,S,3) in the colours of the picture at its border; None stays None."""
    if crop is None:
        return None
    original, points = crop_face(picture, face, len(crop), margin), crop_landmarks(face, len(crop), margin)
    return colors.match_colors(crop.movedim(-1, 0), original.movedim(-1, 0), points).movedim(0, -1)


def _is_picture(crop) -> bool:
    """Whether a crop holds more than one colour, and nothing that is no number."""
    return bool(crop.isfinite().all()) and bool(crop.amax() > crop.amin())


def _pasted(picture, crops, found, faces, kept):
    """The picture with its new faces, what is kept (H,W) as it was, and a cover over each face without a crop."""
    made = [(crop, face) for crop, face in zip(crops, found, strict=True) if crop is not None]
    pasted = paste_faces(picture, [crop for crop, _ in made], [face for _, face in made], faces.margin, faces.opaque)
    if kept is not None:
        pasted = keep_original(picture, pasted, kept)
    lost = [face for crop, face in zip(crops, found, strict=True) if crop is None]
    return cover_faces(pasted, lost, faces.margin)


def _kept(image, faces, margin, keep_mask, parts):
    """What is kept of each image (N,H,W), None for nothing."""
    count, height, width = image.shape[:3]
    kept = None if faces.keep is None else faces.keep.clone()
    if keep_mask is not None:
        masks = keep_mask.cpu().float().reshape(-1, *keep_mask.shape[-2:])
        if tuple(masks.shape[1:]) != (height, width) or len(masks) not in (1, count):
            raise DiffPrivacyError(
                f"{len(masks)} masks of {masks.shape[2]}x{masks.shape[1]}, but `image` holds {count} "
                f"images of {width}x{height}; make them the same size, and one or as many masks as images.",
                "keep_mask",
            )
        masks = masks.clamp(0, 1).expand(count, -1, -1)
        kept = masks if kept is None else torch.maximum(kept, masks)
    if parts:
        named = torch.stack([kept_parts((height, width), found, parts) for found in faces.faces])
        kept = named if kept is None else torch.maximum(kept, named)
    if kept is not None:
        for i, found in enumerate(faces.faces):
            with at_field("keep_mask and keep"):
                check_kept(kept[i], found, margin, f"image {i + 1} of {count}")
    return kept


class CoverFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyCoverFaces",
            display_name="Cover Faces",
            category=CATEGORY,
            description="Covers faces with a flat ellipse in the mean colour of their skin. Nothing of the face is left, "
            "unlike under blur or mosaic.",
            search_aliases=["censor face", "redact face", "blur face alternative", "hide face"],
            inputs=[
                io.Image.Input("image"),
                sockets.Faces.Input("faces", tooltip="From Detect Faces or Faces from Boxes or Masks."),
            ],
            outputs=[
                io.Image.Output(),
                io.Mask.Output(display_name="mask", tooltip="Where the images were changed."),
            ],
        )

    @classmethod
    def execute(cls, image, faces) -> io.NodeOutput:
        check_pictures(image, faces)
        pairs = list(zip(image.cpu().float(), faces.faces, strict=True))
        covered = [cover_faces(picture, found) for picture, found in pairs]
        masks = [protected_mask(faces.size, found) for _, found in pairs]
        return io.NodeOutput(torch.stack(covered), torch.stack(masks).ceil())


NODES = [CropFaces, PasteFaces, CoverFaces]
