"""The pack's own socket types and what travels over them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy_api.v0_0_2 import io

from ..diffprivacy.errors import DiffPrivacyError
from ..diffprivacy.faces.geometry import Face, crop_landmarks

FaceDetector = io.Custom("FACE_DETECTOR")
FaceRecognizer = io.Custom("FACE_RECOGNIZER")
Faces = io.Custom("FACES")
Energy = io.Custom("ENERGY")
MSI = io.Custom("MSI")
SealedKeys = io.Custom("SEALED_KEY")
Personas = io.Custom("PERSONAS")
BoundingBoxes = io.Custom("BOUNDING_BOX")
FaceMeshes = io.Custom("FACE_LANDMARKS")
Segments = io.Custom("SEGS")


@dataclass(frozen=True)
class FaceBatch:
    """The chosen faces of a batch of images, and how Crop Faces cropped them.

    faces: for each image its faces, in the order of the crops; size: (height, width) of the images in pixels;
    margin and variants: those of the crops, None before cropping; opaque: crops are pasted without a soft border;
    tracks: for each image the numbers of its faces' tracks, None where Follow Faces did not follow them; people: those of
    its faces' people, as Follow Faces shows them; jumps: the images that look different from the one before, as at cuts
    and flashes;
    doubtful: for each image detections with a score too low to count alone, for Follow Faces;
    keep: (N,H,W) in [0,1], what of the images Crop Faces was told to keep, None for nothing.
    """

    faces: tuple[tuple[Face, ...], ...]
    size: tuple[int, int]
    margin: float | None = None
    variants: int | None = None
    opaque: bool = False
    tracks: tuple[tuple[int, ...], ...] | None = None
    keep: torch.Tensor | None = None
    jumps: tuple[int, ...] = ()
    doubtful: tuple[tuple[Face, ...], ...] = ()
    people: tuple[tuple[int, ...], ...] | None = None

    def __len__(self) -> int:
        return sum(len(faces) for faces in self.faces)

    @property
    def flat(self) -> list[Face]:
        """All faces, in the order of their crops."""
        return [face for faces in self.faces for face in faces]

    def crop_landmarks(self, size: int) -> torch.Tensor:
        """The five points (F,2) of all F faces in their crops of size x size pixels, as (F,5,2)."""
        if self.margin is None:
            raise DiffPrivacyError("Connect Crop Faces, which knows how the faces were cropped.", "faces")
        return torch.stack([crop_landmarks(face, size, self.margin) for face in self.flat])


@dataclass(frozen=True)
class SealedKey:
    """Recovery keys as age files, none where an image carries none, and whether a saved image carries them inside or beside it."""

    files: tuple[bytes, ...]
    beside: bool = False
