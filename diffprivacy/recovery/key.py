"""What brings protected faces back, to and from safetensors bytes.

A recovery key is the faces themselves: it is written only sealed (:mod:`diffprivacy.recovery.encryption`), with what
:mod:`diffprivacy.recovery.envelope` adds. Reading trusts nothing, as anybody can seal a key for a public recipient:
every field is checked in the header before a tensor is made.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..diffusion.sampling import check_sigmas
from ..errors import DiffPrivacyError
from ..faces.geometry import Face, masks_meet
from ..media.images import Picture
from .envelope import check_rest, verify, wrap
from .fingerprints import picture_fingerprint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from .fields import KeyFields

FORMAT = "diffprivacy recovery key"
VERSIONS = ("1", "2")
"""Those that are read; the last one is written. Version 1 knows no neighbours, carries no signature and is not padded."""
Fidelity = Literal["latent", "lossless", "compact"]
FIDELITIES: tuple[str, ...] = get_args(Fidelity)
Method = Literal["fixed point", "belm", "ddim"]
Size = Literal["width", "height", "crop_w", "crop_h", "target_width", "target_height"]
Option = Literal["start_percent", "end_percent", "strength", "guidance", Size]
"""Numbers that an entry of a graph's conditioning may carry in a key: its range, Flux's guidance, SDXL's sizes."""
OPTIONS: tuple[str, ...] = get_args(Option)
TENSORS = ("attention_mask", "t5xxl_ids", "t5xxl_weights")
"""Tensors that it may carry besides its context and its pooled vector: what language models as text encoders add."""
T5_VOCABULARY = 32128
MAX_BYTES = 64 * 2**20
"""Most bytes of a key, which is also the most that reading one allocates for tensors."""
MAX_HEADER = 2**20
MAX_ROWS = 256
MAX_SIDE = 1024
MAX_WIDTH = 2**15
"""Widest context: Flux.2's is 15360."""

_ITEM_BYTES = {"F32": 4, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1}
_PLAIN = ("fidelity", "method", "prompt", "size", "margin", "precision", "fingerprints", "picture", "shape")
_STATES = ("noise_map", "second_state")
_KINDS = {
    "noise_map": ((4, 5), {"F32", "I8"}),
    "noise_map_scale": ((4, 5), {"F32"}),
    "second_state": ((4, 5), {"F32", "I8"}),
    "second_state_scale": ((4, 5), {"F32"}),
    "sigmas": ((1,), {"F32"}),
    "pseudo_words": ((3,), {"F32"}),
    "context": ((3,), {"F32"}),
    "pooled": ((2,), {"F32"}),
    "attention_mask": ((2,), {"F32", "I64", "I32", "BOOL"}),
    "t5xxl_ids": ((1, 2), {"I64", "I32"}),
    "t5xxl_weights": ((1, 2), {"F32"}),
    "patch": ((1,), {"U8"}),
}
"""Dimensions and types of the tensors."""
_NUMBERED = ("context", "pooled", *TENSORS, "patch")
"""Those that carry a number, as in ``patch.0``."""


@dataclass(frozen=True, eq=False)
class Patch:
    """Original pixels at rows from ``top`` and columns from ``left``: a lossless picture file whose alpha says which."""

    top: int
    left: int
    file: bytes


@dataclass(frozen=True, eq=False)
class Embedding:
    """One entry of a graph's conditioning: context (B,T,D), pooled (B,P), and the options and tensors that hold with it."""

    context: Tensor
    pooled: Tensor | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RecoveryKey:
    """Everything that recovery needs besides the checkpoint and the protected picture.

    fidelity: "latent" brings a noise map, "compact" one in 8 bits, "lossless" the original pixels as patches.
    noise_map: (F,C,h,w) in the network's units, or in a graph's LATENT units, (F,C,1,h,w) of a video model; F faces. second_state: BELM's other one.
    sigmas: (N+1,) descending; method: the inversion's.
    prompt, pseudo_words: the conditioning's recipe, pseudo_words (F,S,D) with one row for each of S equal time stages;
    or ``embeddings``: a graph's conditioning itself.
    faces, size, margin: where the crops of size x size pixels were cut; patches: one for each face.
    neighbours: other faces whose masks meet these faces', where they lie and not what they look like: what belongs to them
    (:func:`diffprivacy.faces.geometry.own_pixels`) is not in the key. None for keys of version 1.
    precision: of the network; fingerprints: of what recovery must have, by name.
    picture: fingerprint of the protected picture, empty while the key is bound to none; shape: its (height, width).
    """

    fidelity: str
    sigmas: Tensor | None = None
    method: str = "fixed point"
    noise_map: Tensor | None = None
    second_state: Tensor | None = None
    prompt: str = ""
    pseudo_words: Tensor | None = None
    embeddings: Sequence[Embedding] = ()
    faces: Sequence[Face] = ()
    neighbours: Sequence[Face] | None = ()
    size: int = 0
    margin: float = 1.0
    patches: Sequence[Patch] = ()
    precision: str = "float32"
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    picture: str = ""
    shape: tuple[int, int] = (0, 0)

    def bound_to(self, protected: Picture) -> RecoveryKey:
        """The same key for one protected picture."""
        return dataclasses.replace(self, picture=picture_fingerprint(protected), shape=tuple(protected.rgb.shape[:2]))

    def only(self, face: int) -> RecoveryKey:
        """The key of one of its faces, to which the others are neighbours."""

        def row(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[face : face + 1]

        one, neighbours = self.faces[face], self.neighbours
        if neighbours is not None:
            others = (*self.faces[:face], *self.faces[face + 1 :], *neighbours)
            neighbours = tuple(other for other in others if masks_meet(one, other, self.margin))
        return dataclasses.replace(
            self,
            noise_map=row(self.noise_map),
            second_state=row(self.second_state),
            pseudo_words=row(self.pseudo_words),
            faces=(one,),
            neighbours=neighbours,
            patches=tuple(self.patches[face : face + 1]),
        )

    def each(self) -> list[RecoveryKey]:
        """A key for each face; raises DiffPrivacyError for one that only a graph can replay."""
        if not self.faces or (self.embeddings and not self.patches):
            raise DiffPrivacyError("The key was made in a graph: open it there, with the node Open Recovery Key.")
        return [self.only(i) for i in range(len(self.faces))]

    def to_bytes(self, signer: Ed25519PrivateKey | None = None) -> bytes:
        """The key as safetensors, signed if there is a signer, and padded to one of a few lengths.

        A compact one holds its noise map in 8 bits a value, scaled to each face's largest.
        Raises DiffPrivacyError for a key that could not be read again, such as a too large one.
        """
        from safetensors.torch import save

        tensors = {"sigmas": self.sigmas, "pseudo_words": self.pseudo_words}
        for name, state in zip(_STATES, (self.noise_map, self.second_state), strict=True):
            tensors[name] = state
            if state is not None and self.fidelity == "compact":
                scale = state.abs().amax(dim=tuple(range(1, state.ndim)), keepdim=True).clamp_min(1e-6) / 127
                tensors |= {name: (state / scale).round().to(torch.int8), f"{name}_scale": scale}
        for i, embedding in enumerate(self.embeddings):
            tensors |= {f"context.{i}": embedding.context, f"pooled.{i}": embedding.pooled}
            tensors |= {f"{name}.{i}": tensor for name, tensor in embedding.tensors.items()}
        for i, patch in enumerate(self.patches):
            tensors[f"patch.{i}"] = torch.frombuffer(bytearray(patch.file), dtype=torch.uint8)
        content = {
            "fidelity": self.fidelity,
            "method": self.method,
            "prompt": self.prompt,
            "size": self.size,
            "margin": self.margin,
            "precision": self.precision,
            "fingerprints": dict(self.fingerprints),
            "picture": self.picture,
            "shape": list(self.shape),
            "faces": [face_fields(face) for face in self.faces],
            "neighbours": None if self.neighbours is None else [face_fields(face) for face in self.neighbours],
            "patches": [[patch.top, patch.left] for patch in self.patches],
            "embeddings": [dict(embedding.options) for embedding in self.embeddings],
        }
        data = save(
            {
                name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
                for name, tensor in tensors.items()
                if tensor is not None
            },
            {"format": FORMAT, "version": VERSIONS[-1], "content": json.dumps(content)},
        )
        wrapped = wrap(data, signer)
        self.from_bytes(wrapped)
        return wrapped

    @classmethod
    def from_bytes(cls, data: bytes, signer: Ed25519PublicKey | None = None) -> RecoveryKey:
        """The key that :meth:`to_bytes` wrote. Raises DiffPrivacyError, naming the field, for bytes that are none.

        signer: whose signature it must have.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        from .fields import key_fields

        header, length = _header(data)
        content = _content(header.pop("__metadata__", None))
        _check_tensors(header, length)
        fields = key_fields(content)
        check_rest(data[length:])
        if signer is not None:
            verify(data[:length], data[length:], signer)
        try:
            tensors = load(data[:length])
        except SafetensorError as error:
            raise DiffPrivacyError(f"The recovery key is damaged: {error}.") from None
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise _wrong(name, "it holds NaN or infinity")
        for name in _STATES:
            if name in tensors and tensors[name].dtype == torch.int8:
                scale = tensors.get(f"{name}_scale")
                if scale is None or tuple(scale.shape) != (len(tensors[name]), *[1] * (tensors[name].ndim - 1)):
                    raise _wrong(f"{name}_scale", "it must be one number for each noise map")
                tensors[name] = tensors[name] * scale
        return _assemble(fields, tensors)


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """The JSON header of safetensors bytes, and where these end."""
    if len(data) > MAX_BYTES:
        raise DiffPrivacyError(f"The recovery key has {len(data)} bytes; more than {MAX_BYTES} are not read.")
    if len(data) < 8 or not 2 <= (length := struct.unpack("<Q", data[:8])[0]) <= min(MAX_HEADER, len(data) - 8):
        raise DiffPrivacyError("This is no recovery key: it has no safetensors header.")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        raise DiffPrivacyError("This is no recovery key: its safetensors header is no JSON.") from None
    if not isinstance(header, dict):
        raise DiffPrivacyError("This is no recovery key: its safetensors header is no table.")
    try:
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (TypeError, KeyError, IndexError, ValueError, OverflowError):
        ends = []  # What is wrong with the tensor is said where tensors are checked.
    end = 8 + length + max(ends, default=0)
    return header, end if 0 <= end <= len(data) else len(data)


def _content(metadata: Any) -> str:
    """The JSON of a key's fields."""
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise DiffPrivacyError("This is no recovery key: its header does not say so.")
    if metadata.get("version") not in VERSIONS:
        raise DiffPrivacyError(
            f"The recovery key has version {metadata.get('version')!r:.20} and this program reads {VERSIONS[-1]}: "
            "update it."
        )
    content = metadata.get("content")
    if not isinstance(content, str):
        raise _wrong("content", "it is missing")
    return content


def _check_tensors(header: Mapping[str, Any], total: int) -> None:
    """Names, types, dimensions and sizes of all tensors, from the header alone."""
    for name, entry in header.items():
        kind, dot, number = name.partition(".")
        numbered = kind in _NUMBERED
        if kind not in _KINDS or numbered != (number.isascii() and number.isdigit()) or numbered != bool(dot):
            raise _wrong(name[:40], "no key has such a tensor")
        dimensions, types = _KINDS[kind]
        if not isinstance(entry, dict) or entry.get("dtype") not in types:
            raise _wrong(name, f"its type must be {' or '.join(sorted(types))}")
        shape = entry.get("shape")
        if not isinstance(shape, list) or len(shape) not in dimensions or not all(type(n) is int for n in shape):
            raise _wrong(name, f"it must have {' or '.join(map(str, dimensions))} dimensions")
        limits = [MAX_BYTES] if kind == "patch" else [MAX_ROWS, *[MAX_SIDE * 4] * 4] if len(shape) > 1 else [MAX_SIDE]
        if kind == "context":
            limits[2] = MAX_WIDTH
        if not all(1 <= n <= limit for n, limit in zip(shape, limits, strict=False)):
            raise _wrong(name, f"its shape {shape} is too large or empty")
        if _ITEM_BYTES[entry["dtype"]] * int(np.prod(shape, dtype=object)) > total:
            raise _wrong(name, f"its shape {shape} does not fit the key's {total} bytes")


def _assemble(fields: KeyFields, tensors: dict[str, Tensor]) -> RecoveryKey:
    """The key of checked fields and tensors, checked against each other."""
    if sum(name.startswith("patch.") for name in tensors) != len(fields.patches):
        raise _wrong("patches", "their number is not that of the patch tensors")
    if fields.patches and len(fields.patches) != len(fields.faces):
        raise _wrong("patches", "their number is not that of the faces")
    if sum(name.startswith("context.") for name in tensors) != len(fields.embeddings):
        raise _wrong("embeddings", "their number is not that of the context tensors")
    try:
        patches = tuple(
            Patch(top, left, tensors[f"patch.{i}"].numpy().tobytes()) for i, (top, left) in enumerate(fields.patches)
        )
        embeddings = tuple(
            Embedding(
                tensors[f"context.{i}"],
                tensors.get(f"pooled.{i}"),
                {**options},
                {kind: tensors[f"{kind}.{i}"] for kind in TENSORS if f"{kind}.{i}" in tensors},
            )
            for i, options in enumerate(fields.embeddings)
        )
    except KeyError as error:
        raise _wrong(error.args[0], "it is missing") from None
    values: dict[str, Any] = {name: getattr(fields, name) for name in _PLAIN} | {
        name: tensors.get(name) for name in (*_STATES, "sigmas", "pseudo_words")
    }
    key = RecoveryKey(
        **values,
        faces=tuple(face.face() for face in fields.faces),
        neighbours=None if fields.neighbours is None else tuple(face.face() for face in fields.neighbours),
        patches=patches,
        embeddings=embeddings,
    )
    if key.noise_map is None and not key.patches:
        raise _wrong("noise_map", "it is missing")
    for embedding in key.embeddings:
        ids = embedding.tensors.get("t5xxl_ids")
        if ids is not None and not 0 <= int(ids.min()) <= int(ids.max()) < T5_VOCABULARY:
            raise _wrong("t5xxl_ids", "it holds what is no token")
    if key.noise_map is not None:
        if key.noise_map.ndim == 5 and (not key.embeddings or key.noise_map.shape[2] != 1):
            raise _wrong("noise_map", "a video is no noise map of faces")
        if key.sigmas is None:
            raise _wrong("sigmas", "they are missing")
        check_sigmas(key.sigmas)
        if (key.method == "belm") != (key.second_state is not None):
            raise _wrong("second_state", f"the method {key.method} does not go with it")
        if key.second_state is not None and key.second_state.shape != key.noise_map.shape:
            raise _wrong("second_state", "its shape is not the noise map's")
        if key.faces and len(key.noise_map) % len(key.faces):
            raise _wrong("faces", f"{len(key.faces)} do not share {len(key.noise_map)} noise maps")
        if key.pseudo_words is not None and len(key.pseudo_words) != len(key.noise_map):
            raise _wrong("pseudo_words", "their number is not the noise maps'")
    return key


def _wrong(name: str, reason: str) -> DiffPrivacyError:
    return DiffPrivacyError(f"The recovery key's field `{name}` is wrong: {reason}.")


def face_fields(face: Face) -> dict[str, Any]:
    """A face as JSON."""
    return {"box": list(map(float, face.box)), "landmarks": face.landmarks.tolist(), "score": float(face.score)}
