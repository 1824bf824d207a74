"""The fields of keys as JSON, each with what it may hold; only loaded where a key is read."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import DiffPrivacyError
from ..faces.geometry import Face
from .key import MAX_ROWS, MAX_SIDE, Fidelity, Method, Option

SPAN = 1e6
"""Farthest coordinate, in pixels."""

Number = Annotated[float, Field(ge=-SPAN, le=SPAN)]
Pixel = Annotated[int, Field(ge=0, le=SPAN)]
Name = Annotated[str, Field(max_length=64)]
Side = Annotated[int, Field(ge=0, le=8 * MAX_SIDE)]
Margin = Annotated[float, Field(ge=1, le=4)]


class Fields(BaseModel):
    """JSON whose values have exactly the types that are declared: no text for numbers, no infinities."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class FaceFields(Fields):
    """A face: its box, its five points, and the detector's score."""

    box: tuple[Number, Number, Number, Number]
    landmarks: Annotated[list[tuple[Number, Number]], Field(min_length=5, max_length=5)]
    score: Number

    @model_validator(mode="after")
    def has_an_extent(self) -> FaceFields:
        """Raises ValueError where all points lie within a pixel: no crop can be cut there."""
        if np.ptp(self.landmarks, axis=0).max() < 1:
            raise ValueError("its points are one")
        return self

    def face(self) -> Face:
        return Face(self.box, np.array(self.landmarks, dtype=np.float32), self.score)


Faces = Annotated[list[FaceFields], Field(max_length=MAX_ROWS)]


class KeyFields(Fields):
    """What a recovery key holds besides tensors. ``neighbours`` is None in keys of version 1, which don't know them."""

    fidelity: Fidelity
    method: Method
    prompt: Annotated[str, Field(max_length=2000)]
    size: Side
    margin: Margin
    precision: Literal["float32", "float16", "bfloat16"]
    fingerprints: Annotated[dict[Name, Name], Field(max_length=16)]
    picture: Name
    shape: tuple[Pixel, Pixel]
    faces: Faces
    neighbours: Faces | None = None
    patches: Annotated[list[tuple[Pixel, Pixel]], Field(max_length=MAX_ROWS)]
    embeddings: Annotated[list[dict[Option, Number]], Field(max_length=MAX_ROWS)]


class PublicFields(Fields):
    """What travels openly with a picture in keyed mode."""

    version: Literal[1, 2]
    checkpoint: Annotated[str, Field(pattern="^[0-9a-f]{0,32}$")] = ""
    salt: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    size: Annotated[int, Field(ge=8, le=8 * MAX_SIDE)]
    margin: Margin
    faces: Annotated[list[FaceFields], Field(min_length=1, max_length=MAX_ROWS)]


def key_fields(text: str) -> KeyFields:
    """The fields in a key's JSON; raises DiffPrivacyError that names the field."""
    try:
        return KeyFields.model_validate_json(text)
    except ValidationError as error:
        wrong = error.errors(include_input=False, include_url=False)[0]
        name = wrong["loc"][0] if wrong["loc"] else "content"
        raise DiffPrivacyError(f"The recovery key's field `{name}` is wrong: {wrong['msg']}.") from None
